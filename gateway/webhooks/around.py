"""The events of a tenant in a span of time, with their deliveries."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from gateway.db.engine import OperatorSession
from gateway.db.tables import EventRow, WebhookDeliveryRow, WebhookEndpointRow
from gateway.webhooks.targets import shown

MOST = 50


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event at one endpoint; without a subscribed endpoint, the fields of the delivery are None.

    `url`: scheme, host and port alone.
    """

    event_id: UUID
    type: str
    created_at: datetime
    endpoint_id: UUID | None
    url: str | None
    status: str | None
    attempts: int | None


async def list_around(
    session: OperatorSession, tenant_id: UUID, *, start: datetime, end: datetime
) -> list[SentEvent]:
    """List the tenant's events announced in [start, end], at its own endpoints and the operator's.

    At most `MOST`, the oldest first.
    """
    rows = await session.execute(
        select(EventRow, WebhookDeliveryRow, WebhookEndpointRow.url)
        .outerjoin(WebhookDeliveryRow, WebhookDeliveryRow.event_id == EventRow.id)
        .outerjoin(WebhookEndpointRow, WebhookEndpointRow.id == WebhookDeliveryRow.endpoint_id)
        .where(
            EventRow.announced_at >= start,
            EventRow.announced_at <= end,
            EventRow.tenant_id == tenant_id,
        )
        .order_by(EventRow.created_at, EventRow.id)
        .limit(MOST)
    )
    return [
        SentEvent(
            event_id=event.id,
            type=event.type,
            created_at=event.created_at,
            endpoint_id=None if delivery is None else delivery.endpoint_id,
            url=None if url is None else shown(url),
            status=None if delivery is None else delivery.status,
            attempts=None if delivery is None else delivery.attempts,
        )
        for event, delivery, url in rows.all()
    ]
