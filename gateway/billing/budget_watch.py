"""Budgets that are nearly used up, of all tenants and of the operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from gateway.db.engine import OperatorSession

NEARLY_PERCENT = 80


@dataclass(frozen=True, slots=True)
class WatchedBudget:
    """A budget and its use in its current period. Amounts in nano-USD.

    `tenant_id` is None for the operator's own; `owner` names its key or user, if it has one.
    """

    id: int
    tenant_id: UUID | None
    tenant: str | None
    owner: str | None
    window: str
    enforcement: str
    limit_nano: int
    spent_nano: int
    held_nano: int
    resets_at: datetime | None


_NEARLY_USED = text("""
    WITH used AS (
        SELECT b.id, b.tenant_id, t.name AS tenant, coalesce(k.name, u.name) AS owner,
            b.period AS window_name, b.enforcement, p.spent_nano, p.held_nano,
            nullif(p.period_end, 'infinity') AS resets_at,
            CASE WHEN b.raised_until > clock_timestamp()
                THEN greatest(b.limit_nano, b.raised_to_nano) ELSE b.limit_nano END AS limit_nano
        FROM budget_period p
        JOIN budget b ON b.tenant_id = p.tenant_id AND b.id = p.budget_id
        JOIN tenant t ON t.id = b.tenant_id
        LEFT JOIN api_key k ON k.tenant_id = b.tenant_id AND k.id = b.api_key_id
        LEFT JOIN tenant_user u ON u.tenant_id = b.tenant_id AND u.id = b.user_id
        WHERE p.period_start <= clock_timestamp() AND clock_timestamp() < p.period_end
            AND b.removed_at IS NULL AND b.livemode AND t.status = 'active'
        UNION ALL
        SELECT b.id, NULL, NULL, NULL, b.period, b.enforcement, sum(p.spent_nano)::bigint,
            sum(p.held_nano)::bigint, nullif(min(p.period_end), 'infinity'),
            CASE WHEN b.raised_until > clock_timestamp()
                THEN greatest(b.limit_nano, b.raised_to_nano) ELSE b.limit_nano END
        FROM house_budget_period p JOIN house_budget b ON b.id = p.budget_id
        WHERE p.period_start <= clock_timestamp() AND clock_timestamp() < p.period_end
            AND b.removed_at IS NULL
        GROUP BY b.id
    )
    SELECT * FROM used
    WHERE (spent_nano + held_nano)::numeric * 100 >= limit_nano::numeric * :percent
        AND spent_nano + held_nano > 0
    ORDER BY (spent_nano + held_nano)::numeric / nullif(limit_nano, 0) DESC NULLS FIRST, tenant, id
    LIMIT :limit
""")


async def nearly_used(
    session: OperatorSession, *, percent: int = NEARLY_PERCENT, limit: int
) -> Sequence[WatchedBudget]:
    """List the live budgets of which at least `percent` is spent or held, the fullest first."""
    rows = await session.execute(_NEARLY_USED, {"percent": percent, "limit": limit})
    return [
        WatchedBudget(
            id=row.id,
            tenant_id=row.tenant_id,
            tenant=row.tenant,
            owner=row.owner,
            window=row.window_name,
            enforcement=row.enforcement,
            limit_nano=row.limit_nano,
            spent_nano=row.spent_nano,
            held_nano=row.held_nano,
            resets_at=row.resets_at,
        )
        for row in rows
    ]
