"""Figures of tenants for lists: the costs of this month, and the last call."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from gateway.db.engine import OperatorSession, TenantSession

Session = TenantSession | OperatorSession


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """The live calls of a tenant in this month of its time zone. Cost in nano-USD.

    `last_call_at`: accurate to a quarter of an hour, in either mode; None if there was none.
    """

    cost_nano: int
    requests: int
    failed: int
    last_call_at: datetime | None


NO_FIGURES = TenantFigures(0, 0, 0, None)
# The sums, and the lines that are not in them yet.
_FIGURES = text("""
    SELECT t.id, s.cost_nano + p.cost_nano AS cost_nano, s.requests + p.requests AS requests,
        s.failed AS failed, greatest(u.slot, p.last) AS last_call_at
    FROM tenant t
    CROSS JOIN LATERAL (
        SELECT date_trunc('month', clock_timestamp() AT TIME ZONE t.time_zone) AS local
    ) m
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(d.amount_nano), 0)::bigint AS cost_nano,
            coalesce(sum(d.requests), 0)::bigint AS requests,
            coalesce(sum(d.calls - d.requests), 0)::bigint AS failed
        FROM usage_day d
        WHERE d.tenant_id = t.id AND d.livemode AND d.day >= m.local::date
    ) s
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(l.amount_nano) FILTER (WHERE l.kind <> 'hold' AND l.livemode
                AND l.admitted_at >= m.local AT TIME ZONE t.time_zone), 0)::bigint AS cost_nano,
            coalesce(sum(l.requests) FILTER (WHERE l.kind <> 'hold' AND l.livemode
                AND l.admitted_at >= m.local AT TIME ZONE t.time_zone), 0)::bigint AS requests,
            max(l.admitted_at) AS last
        FROM usage_pending x
        JOIN ledger l ON l.tenant_id = x.tenant_id AND l.reservation_id = x.reservation_id
            AND l.seq = x.seq
        WHERE x.tenant_id = t.id
    ) p
    CROSS JOIN LATERAL (
        SELECT max(z.slot) AS slot FROM (VALUES (true), (false)) AS modes(livemode)
        CROSS JOIN LATERAL (
            SELECT slot FROM usage_slot
            WHERE tenant_id = t.id AND usage_slot.livemode = modes.livemode
            ORDER BY slot DESC LIMIT 1
        ) z
    ) u
    WHERE t.id = ANY(CAST(:ids AS uuid[]))
""")


async def figures_of(session: Session, tenant_ids: Sequence[UUID]) -> dict[UUID, TenantFigures]:
    """Return the figures of these tenants, as far as the session sees them."""
    rows = await session.execute(_FIGURES, {"ids": list(tenant_ids)})
    return {
        row.id: TenantFigures(row.cost_nano, row.requests, row.failed, row.last_call_at)
        for row in rows
    }
