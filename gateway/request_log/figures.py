"""Figures of requests: how many, how many failed, and how long they took."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text

from gateway.db.engine import OperatorSession, TenantSession

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Tenants' requests of one mode in a period, with the playground's calls.

    `failed` were answered with 5xx, `refused` with 4xx. The milliseconds are those of requests that
    reserved money, None where there were none. `by_hour`: the number of requests and of failed ones
    in each hour from the start on, hours without requests included.
    """

    start: datetime
    requests: int
    failed: int
    refused: int
    p50_milliseconds: int | None
    p95_milliseconds: int | None
    by_hour: tuple[tuple[int, int], ...]


_FIGURES = text("""
    SELECT date_bin('1 hour', r.at, :start) AS hour, count(*) AS requests,
        count(*) FILTER (WHERE r.status >= 500) AS failed,
        count(*) FILTER (WHERE r.status BETWEEN 400 AND 499) AS refused,
        percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY r.milliseconds)
            FILTER (WHERE r.generation_id IS NOT NULL) AS milliseconds
    FROM request_log r
    WHERE r.at >= :start AND r.at < :end AND r.livemode = :livemode AND r.tenant_id IS NOT NULL
        AND (r.route NOT LIKE '/console%' OR r.generation_id IS NOT NULL)
        AND (CAST(:tenant_id AS uuid) IS NULL OR r.tenant_id = CAST(:tenant_id AS uuid))
    GROUP BY GROUPING SETS ((date_bin('1 hour', r.at, :start)), ())
    ORDER BY hour NULLS FIRST
""")


async def figures(
    session: OperatorSession | TenantSession,
    tenant_id: UUID | None,
    *,
    start: datetime,
    end: datetime,
    livemode: bool = True,
) -> RequestFigures:
    """Sum up the requests of one tenant, or of all that the session sees, in [start, end)."""
    rows = (
        await session.execute(
            _FIGURES,
            {"tenant_id": tenant_id, "start": start, "end": end, "livemode": livemode},
        )
    ).all()
    total, by_hour = rows[0], {row.hour: (row.requests, row.failed) for row in rows[1:]}
    hours = -((start - end) // HOUR)
    p50, p95 = total.milliseconds or (None, None)
    return RequestFigures(
        start=start,
        requests=total.requests,
        failed=total.failed,
        refused=total.refused,
        p50_milliseconds=p50,
        p95_milliseconds=p95,
        by_hour=tuple(by_hour.get(start + at * HOUR, (0, 0)) for at in range(hours)),
    )
