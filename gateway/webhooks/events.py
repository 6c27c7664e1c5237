"""Events: what they say, and handing those that wait to the log and to whoever listens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

import orjson
import structlog
from sqlalchemy import func, insert, select, update

from gateway import telemetry
from gateway.db.engine import OperatorSession
from gateway.db.tables import EventRow, WebhookDeliveryRow, WebhookEndpointRow
from gateway.domain import new_id

log = structlog.get_logger(__name__)


class EventType(StrEnum):
    """Every event there is; docs/webhooks.md describes them."""

    BUDGET_THRESHOLD_REACHED = "budget.threshold_reached"
    BUDGET_EXCEEDED = "budget.exceeded"
    WEBHOOK_TEST = "webhook.test"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that somebody is to be told of; of the house where `tenant_id` is None."""

    id: UUID
    tenant_id: UUID | None
    livemode: bool
    type: str
    created_at: datetime
    data: Mapping[str, object]


def event_of(row: EventRow) -> Event:
    """The event in a row."""
    return Event(row.id, row.tenant_id, row.livemode, row.type, row.created_at, row.data)


def body_of(event: Event) -> bytes:
    """What is sent: the same bytes each time."""
    return orjson.dumps(
        {
            "id": str(event.id),
            "type": event.type,
            "timestamp": event.created_at.astimezone(UTC),
            "livemode": event.livemode,
            "tenant_id": None if event.tenant_id is None else str(event.tenant_id),
            "data": event.data,
        },
        option=orjson.OPT_UTC_Z,
    )


async def announce(session: OperatorSession, *, limit: int) -> int:
    """Log the oldest events that wait, and make a delivery for each endpoint that hears them.

    Returns how many. Other workers take others meanwhile. A line is logged before the commit: one
    that fails brings it twice, where the other order could lose it.
    """
    rows = (
        await session.scalars(
            select(EventRow)
            .where(EventRow.announced_at.is_(None))
            .order_by(EventRow.created_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
    ).all()
    if not rows:
        return 0
    deliveries = await _deliveries_of(session, rows)
    if deliveries:
        await session.execute(insert(WebhookDeliveryRow), deliveries)
    await session.execute(
        update(EventRow)
        .where(EventRow.id.in_([row.id for row in rows]))
        .values(announced_at=func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )
    for row in rows:
        telemetry.events_total.labels(row.type).inc()
        log.warning(
            "event_announced",
            id=str(row.id),
            type=row.type,
            tenant_id=None if row.tenant_id is None else str(row.tenant_id),
            livemode=row.livemode,
            data=row.data,
        )
    return len(rows)


async def _deliveries_of(
    session: OperatorSession, events: Sequence[EventRow]
) -> list[dict[str, object]]:
    # Nobody deletes or disables them until the commit; other workers do not wait.
    endpoints = (
        await session.scalars(
            select(WebhookEndpointRow)
            .where(
                WebhookEndpointRow.disabled_at.is_(None),
                WebhookEndpointRow.tenant_id.is_(None)
                | WebhookEndpointRow.tenant_id.in_({event.tenant_id for event in events}),
            )
            .order_by(WebhookEndpointRow.id)
            .with_for_update(read=True)
        )
    ).all()
    return [
        {
            "id": new_id(),
            "tenant_id": endpoint.tenant_id,
            "endpoint_id": endpoint.id,
            "event_id": event.id,
        }
        for event in events
        for endpoint in endpoints
        if _hears(endpoint, event)
    ]


def _hears(endpoint: WebhookEndpointRow, event: EventRow) -> bool:
    return (
        endpoint.tenant_id in {None, event.tenant_id}
        and endpoint.livemode in {None, event.livemode}
        and (endpoint.event_types is None or event.type in endpoint.event_types)
    )
