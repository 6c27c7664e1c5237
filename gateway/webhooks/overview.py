"""All webhooks, of every tenant and of the operator, with their last delivery."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text

from gateway.db.engine import OperatorSession
from gateway.db.pages import Page, page_of
from gateway.db.tables import WebhookEndpointRow
from gateway.errors import NotFound
from gateway.webhooks.targets import shown


@dataclass(frozen=True, slots=True)
class EndpointState:
    """A webhook and the state of its deliveries. `url`: scheme, host and port alone.

    `tenant_id` is None for the operator's own; `last_*` are those of its newest delivery.
    """

    id: UUID
    tenant_id: UUID | None
    tenant: str | None
    url: str
    description: str
    disabled_at: datetime | None
    disabled_reason: str | None
    waiting: int
    last_status: str | None
    last_http_status: int | None
    last_error: str | None
    last_at: datetime | None


_STATES = text("""
    SELECT e.id, e.tenant_id, t.name AS tenant, e.url, e.description, e.disabled_at,
        e.disabled_reason, w.waiting, d.status, d.last_status, d.last_error, d.created_at AS last_at
    FROM webhook_endpoint e
    LEFT JOIN tenant t ON t.id = e.tenant_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM webhook_delivery x
        WHERE x.endpoint_id = e.id AND x.status = 'pending'
    ) w
    LEFT JOIN LATERAL (
        SELECT * FROM webhook_delivery y WHERE y.endpoint_id = e.id ORDER BY y.id DESC LIMIT 1
    ) d ON true
    WHERE (CAST(:after AS uuid) IS NULL OR e.id < CAST(:after AS uuid))
        AND (CAST(:tenant_id AS uuid) IS NULL OR e.tenant_id = CAST(:tenant_id AS uuid))
        AND (NOT :of_operator OR e.tenant_id IS NULL)
    ORDER BY e.id DESC LIMIT :limit
""")


async def list_states(
    session: OperatorSession,
    *,
    limit: int,
    after: UUID | None = None,
    tenant_id: UUID | None = None,
    of_operator: bool = False,
) -> Page[EndpointState]:
    """List one page of webhooks, newest first, after `after`: all, a tenant's or the operator's."""
    rows = await session.execute(
        _STATES,
        {
            "after": after,
            "tenant_id": tenant_id,
            "of_operator": of_operator,
            "limit": limit + 1,
        },
    )
    found = [
        EndpointState(
            id=row.id,
            tenant_id=row.tenant_id,
            tenant=row.tenant,
            url=shown(row.url),
            description=row.description,
            disabled_at=row.disabled_at,
            disabled_reason=row.disabled_reason,
            waiting=row.waiting,
            last_status=row.status,
            last_http_status=row.last_status,
            last_error=row.last_error,
            last_at=row.last_at,
        )
        for row in rows
    ]
    return page_of(found, limit)


async def owner_of(session: OperatorSession, endpoint_id: UUID) -> UUID | None:
    """Return the tenant of a webhook; None: it is the operator's.

    Raises:
        NotFound: there is no such webhook.
    """
    row = await session.scalar(
        select(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id)
    )
    if row is None:
        raise NotFound(f"There is no webhook {endpoint_id}.", param="webhook_id")
    return row.tenant_id
