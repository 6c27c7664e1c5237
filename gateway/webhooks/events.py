"""Events: their bodies, and their announcement to the log and to endpoints."""

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
    """The types of events, described in docs/webhooks.md."""

    BUDGET_THRESHOLD_REACHED = "budget.threshold_reached"
    BUDGET_EXCEEDED = "budget.exceeded"
    BREAK_GLASS = "console.break_glass"
    WEBHOOK_TEST = "webhook.test"


OF_OPERATORS = frozenset({EventType.BREAK_GLASS})
"""Events that concern the operator alone: no webhook of a tenant gets them."""
OF_TENANTS = tuple(one for one in EventType if one not in OF_OPERATORS)


@dataclass(frozen=True, slots=True)
class Event:
    """One event; it concerns only the operator if `tenant_id` is None."""

    id: UUID
    tenant_id: UUID | None
    livemode: bool
    type: str
    created_at: datetime
    data: Mapping[str, object]


def event_of(row: EventRow) -> Event:
    """Build the event of a row."""
    return Event(row.id, row.tenant_id, row.livemode, row.type, row.created_at, row.data)


def body_of(event: Event) -> bytes:
    """Render the body of a delivery, identical for every attempt."""
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


async def note_break_glass(session: OperatorSession, *, name: str, role: str, address: str) -> None:
    """Write the event of a sign-in to the console with an admin key, to be sent after the commit.

    `name`: that of the session, with the key's; `address`: the network of the browser.
    """
    session.add(
        EventRow(
            tenant_id=None,
            livemode=True,
            type=EventType.BREAK_GLASS,
            data={"name": name, "role": role, "address": address},
        )
    )
    await session.flush()


async def announce(session: OperatorSession, *, limit: int) -> int:
    """Log the oldest pending events, and create a delivery for each subscribed endpoint.

    Returns the number of events. Other workers skip them. A line is logged before the commit: a
    failed commit duplicates it, whereas the other order could lose it.
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
    # A shared lock: they cannot be deleted or disabled until the commit; other workers do not wait.
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
