"""Figures of tenants and budgets for the metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import bindparam, text

from gateway.billing import budgets
from gateway.db.engine import OperatorSession

_TOP = text(
    """
    SELECT t.id, t.name FROM tenant t JOIN (
        SELECT tenant_id, sum(amount_nano) AS nano, sum(calls) AS calls
        FROM usage_day WHERE day > current_date - 7 AND livemode
        GROUP BY tenant_id ORDER BY nano DESC, calls DESC, tenant_id LIMIT :most
    ) top ON top.tenant_id = t.id
    WHERE t.deleted_at IS NULL
    ORDER BY top.nano DESC, top.calls DESC, t.id
    """
)
_NAMED = text(
    """
    SELECT id, name FROM tenant
    WHERE deleted_at IS NULL AND (name IN :names OR id::text IN :names) ORDER BY id
    """
).bindparams(bindparam("names", expanding=True))
# Without a call in the current period there is no row of it.
_USED = text(
    """
    SELECT b.tenant_id, b.period AS window, coalesce(p.spent_nano + p.held_nano, 0) AS used_nano,
        limit_at(b.limit_nano, b.raised_to_nano, b.raised_until, clock_timestamp()) AS limit_nano
    FROM budget b
    LEFT JOIN budget_period p ON p.tenant_id = b.tenant_id AND p.budget_id = b.id
        AND p.period_start <= clock_timestamp() AND clock_timestamp() < p.period_end
    WHERE b.tenant_id IN :tenants AND b.livemode AND b.removed_at IS NULL
        AND b.api_key_id IS NULL AND b.user_id IS NULL
    """
).bindparams(bindparam("tenants", expanding=True))


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """The spent and held amount of a budget in its period; the operator's has no tenant."""

    tenant_id: UUID | None
    window: str
    used_nano: int
    limit_nano: int


async def tenants_with_series(
    session: OperatorSession, *, named: Sequence[str], top: int
) -> dict[UUID, str]:
    """Return the names of the tenants in `named` (names or ids), and of those that spent most."""
    rows = list(await session.execute(_NAMED, {"names": list(named)})) if named else []
    rows += await session.execute(_TOP, {"most": top})
    return {row.id: row.name for row in rows}


async def used_by_tenants(session: OperatorSession, tenants: Sequence[UUID]) -> Sequence[BudgetUse]:
    """Return the use of these tenants' own budgets for live calls."""
    if not tenants:
        return []
    rows = await session.execute(_USED, {"tenants": list(tenants)})
    return [BudgetUse(row.tenant_id, row.window, row.used_nano, row.limit_nano) for row in rows]


async def used_by_house(session: OperatorSession) -> Sequence[BudgetUse]:
    """Return the use of the operator's budgets."""
    return [
        BudgetUse(None, one.window, one.spent_nano + one.held_nano, one.limit_in_force_nano)
        for one in await budgets.list_budgets(session, None)
    ]
