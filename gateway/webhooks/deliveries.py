"""Deliveries: one per event and endpoint, claimed by workers, with the result of each attempt.

A claim is a lease: it postpones the next attempt. If the worker dies, another one retries when the
lease ends.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, exists, func, or_, select, text, true, update

from gateway.db.audit import Action, record
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.pages import Page, page_of
from gateway.db.tables import (
    EventRow,
    WebhookDeliveryRow,
    WebhookEndpointRow,
    WebhookSecretRow,
)
from gateway.domain import new_id
from gateway.errors import Conflict, NotFound
from gateway.webhooks import endpoints
from gateway.webhooks.endpoints import Session, WebhookEndpoint
from gateway.webhooks.events import Event, EventType, event_of
from gateway.webhooks.sealing import SealedSecret
from gateway.webhooks.sender import DeliveryAttempt
from gateway.webhooks.targets import DeliveryFailure

RETRY_SECONDS = (5, 60, 300, 1800, 7200, 14_400, 28_800, 32_400)
"""Delays before retries, nearly a day in total; after the last one a delivery is dead."""
TRIES = len(RETRY_SECONDS) + 1
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint, with its state. `attempts`: the number of attempts started."""

    id: UUID
    endpoint_id: UUID
    event_id: UUID
    event_type: str
    status: str
    attempts: int
    next_attempt_at: datetime | None
    last_status: int | None
    last_error: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailingEndpoint:
    """An endpoint that does not receive its events, with the failure of its latest delivery.

    `disabled_at`: it answered that it is gone, and gets no events any more.
    """

    id: UUID
    url: str
    disabled_at: datetime | None
    last_error: str | None
    last_status: int | None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery claimed by this worker; `attempt` counts from one."""

    id: UUID
    attempt: int
    endpoint_id: UUID
    tenant_id: UUID | None
    url: str
    event: Event
    secrets: tuple[SealedSecret, ...]


# Functions for workers

# At most one per endpoint with due deliveries, so that none waits behind another's backlog. The
# first part is a loose index scan: it reads no more than one row of each endpoint. Endpoints to
# which this worker is not sending come first: hanging ones must not take all its capacity.
CLAIM = text("""
WITH RECURSIVE waiting AS (
    (SELECT endpoint_id FROM webhook_delivery WHERE status = 'pending'
     ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.endpoint_id FROM webhook_delivery d
            WHERE d.status = 'pending' AND d.endpoint_id > w.endpoint_id
            ORDER BY d.endpoint_id LIMIT 1)
    FROM waiting w WHERE w.endpoint_id IS NOT NULL
), due AS (
    SELECT d.id FROM waiting w CROSS JOIN LATERAL (
        SELECT id, next_attempt_at FROM webhook_delivery
        WHERE endpoint_id = w.endpoint_id AND status = 'pending' AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED) d
    WHERE w.endpoint_id <> ALL(CAST(:busy AS uuid[]))
    ORDER BY w.endpoint_id = ANY(CAST(:under_way AS uuid[])), d.next_attempt_at LIMIT :limit
)
UPDATE webhook_delivery d SET attempts = d.attempts + 1,
    next_attempt_at = now() + make_interval(secs => :lease_seconds)
FROM due WHERE d.id = due.id RETURNING d.id
""")


async def claim(
    session: OperatorSession,
    *,
    limit: int,
    lease_seconds: float,
    busy: Sequence[UUID],
    under_way: Sequence[UUID],
) -> list[ClaimedDelivery]:
    """Claim due deliveries: one per endpoint, none for `busy` ones, `under_way` ones last."""
    values = {
        "limit": limit,
        "lease_seconds": lease_seconds,
        "busy": list(busy),
        "under_way": list(under_way),
    }
    ids = (await session.scalars(CLAIM, values)).all()
    if not ids:
        return []
    # One query per row, by key: under row-level security a join would read whole tables.
    found = (
        await session.scalars(select(WebhookDeliveryRow).where(WebhookDeliveryRow.id.in_(ids)))
    ).all()
    hooks = await session.scalars(
        select(WebhookEndpointRow).where(
            WebhookEndpointRow.id.in_({delivery.endpoint_id for delivery in found})
        )
    )
    events = await session.scalars(
        select(EventRow).where(EventRow.id.in_({delivery.event_id for delivery in found}))
    )
    hook_of = {hook.id: hook for hook in hooks}
    event_by_id = {event.id: event_of(event) for event in events}
    secrets: dict[UUID, list[SealedSecret]] = {hook: [] for hook in hook_of}
    valid = await session.scalars(
        select(WebhookSecretRow)
        .where(
            WebhookSecretRow.endpoint_id.in_(secrets),
            or_(
                WebhookSecretRow.valid_until.is_(None),
                WebhookSecretRow.valid_until > func.now(),
            ),
        )
        .order_by(WebhookSecretRow.id.desc())
    )
    for row in valid:
        secrets[row.endpoint_id].append(
            SealedSecret(row.id, row.tenant_id, row.endpoint_id, row.data_key_version, row.sealed)
        )
    return [
        ClaimedDelivery(
            id=delivery.id,
            attempt=delivery.attempts,
            endpoint_id=delivery.endpoint_id,
            tenant_id=delivery.tenant_id,
            url=hook_of[delivery.endpoint_id].url,
            event=event_by_id[delivery.event_id],
            secrets=tuple(secrets[delivery.endpoint_id]),
        )
        for delivery in found
    ]


async def note_delivered(
    session: OperatorSession, claimed: ClaimedDelivery, attempt: DeliveryAttempt
) -> None:
    """Record a successful attempt; it overrides any result that was recorded meanwhile."""
    await session.execute(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id == claimed.id, WebhookDeliveryRow.status != "delivered")
        .values(
            status="delivered",
            last_status=attempt.status,
            last_error=None,
            next_attempt_at=None,
            finished_at=func.now(),
        )
        .execution_options(synchronize_session=False)
    )


async def note_failed(
    session: OperatorSession, claimed: ClaimedDelivery, attempt: DeliveryAttempt
) -> bool:
    """Record a failed attempt and schedule a retry; return True if it was the last attempt.

    Records nothing if the lease had ended and another worker has started a new attempt.
    """
    delay = _delay(claimed.attempt)
    is_last = delay is None or attempt.failure is DeliveryFailure.GONE
    noted = await session.scalar(
        update(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.id == claimed.id,
            WebhookDeliveryRow.status == "pending",
            WebhookDeliveryRow.attempts == claimed.attempt,
        )
        .values(
            status="dead" if is_last else "pending",
            last_status=attempt.status,
            last_error=attempt.failure,
            next_attempt_at=None if is_last else func.now() + delay,
            finished_at=func.now() if is_last else None,
        )
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return is_last and noted is not None


def _delay(attempt: int) -> timedelta | None:
    """Return the delay after this attempt; None if it was the last."""
    if attempt >= TRIES:
        return None
    spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
    return timedelta(seconds=RETRY_SECONDS[attempt - 1] * spread)


async def count_waiting(session: OperatorSession) -> int:
    """Count the deliveries that are neither delivered nor dead."""
    found = await session.scalar(
        select(func.count())
        .select_from(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.status == "pending")
    )
    return found or 0


async def prune(session: OperatorSession, *, after_seconds: int, limit: int) -> int:
    """Delete old deliveries, and old events without deliveries; return their number."""
    before = func.now() - timedelta(seconds=after_seconds)
    old = (
        select(WebhookDeliveryRow.id)
        .where(WebhookDeliveryRow.status != "pending", WebhookDeliveryRow.finished_at < before)
        .limit(limit)
    )
    deliveries = await session.scalars(
        delete(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id.in_(old.with_for_update(skip_locked=True)))
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    done = len(deliveries.all())
    is_needed = exists().where(WebhookDeliveryRow.event_id == EventRow.id)
    events = await session.scalars(
        delete(EventRow)
        .where(
            EventRow.id.in_(
                select(EventRow.id).where(EventRow.announced_at < before, ~is_needed).limit(limit)
            )
        )
        .returning(EventRow.id)
        .execution_options(synchronize_session=False)
    )
    return done + len(events.all())


# Functions for operators and tenants


async def list_page(
    session: Session,
    tenant_id: UUID | None,
    endpoint_id: UUID,
    *,
    limit: int,
    after: UUID | None = None,
    status: str | None = None,
) -> Page[Delivery]:
    """List one page of an endpoint's deliveries, newest first, after `after`.

    Raises:
        NotFound: the endpoint does not belong to this tenant, or to the operator.
    """
    await endpoints.get(session, tenant_id, endpoint_id)
    query = (
        select(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.endpoint_id == endpoint_id)
        .order_by(WebhookDeliveryRow.id.desc())
        .limit(limit + 1)
    )
    if status is not None:
        query = query.where(WebhookDeliveryRow.status == status)
    if after is not None:
        query = query.where(WebhookDeliveryRow.id < after)
    rows = (await session.scalars(query)).all()
    events = await session.scalars(
        select(EventRow).where(EventRow.id.in_({row.event_id for row in rows}))
    )
    types = {event.id: event.type for event in events}
    # A delivery pruned between the two queries has no event any more.
    known = [_delivery(row, types[row.event_id]) for row in rows if row.event_id in types]
    return page_of(known, limit)


async def send_test(session: Session, tenant_id: UUID | None, endpoint_id: UUID) -> Delivery:
    """Send a `webhook.test` event to this endpoint only, regardless of its event types.

    Raises:
        NotFound: the endpoint does not belong to this tenant, or to the operator.
        Conflict: it is disabled.
    """
    endpoint = await endpoints.get(session, tenant_id, endpoint_id, kept=True)
    _refuse_disabled(endpoint)
    event = EventRow(
        tenant_id=tenant_id,
        livemode=endpoint.livemode is not False,
        type=EventType.WEBHOOK_TEST,
        data={"webhook_id": str(endpoint_id)},
        announced_at=func.clock_timestamp(),
    )
    session.add(event)
    await session.flush()
    row = WebhookDeliveryRow(
        id=new_id(), tenant_id=tenant_id, endpoint_id=endpoint_id, event_id=event.id
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await record(
        session,
        Action.WEBHOOK_TESTED,
        tenant_id=tenant_id,
        object_id=endpoint_id,
        after={"delivery": row.id},
    )
    return _delivery(row, event.type)


async def redeliver(
    session: Session, tenant_id: UUID | None, endpoint_id: UUID, delivery_id: UUID
) -> Delivery:
    """Send a dead or delivered one again, with the same `webhook-id` and all its retries.

    Raises:
        NotFound: there is no such delivery of this endpoint.
        Conflict: it is still pending, or the endpoint is disabled.
    """
    endpoint = await endpoints.get(session, tenant_id, endpoint_id, kept=True)
    _refuse_disabled(endpoint)
    row = await session.scalar(
        select(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.tenant_id.is_not_distinct_from(tenant_id),
            WebhookDeliveryRow.endpoint_id == endpoint_id,
            WebhookDeliveryRow.id == delivery_id,
        )
        .with_for_update()
    )
    if row is None:
        raise NotFound(f"This webhook has no delivery {delivery_id}.", param="delivery_id")
    if row.status == "pending":
        raise Conflict(
            "This delivery is still pending; see `next_attempt_at`.", code="delivery_pending"
        )
    before = {"delivery": row.id, "status": row.status}
    row.status, row.attempts, row.finished_at = "pending", 0, None
    row.next_attempt_at = func.now()
    await session.flush()
    await session.refresh(row)
    event_type = await session.scalar(select(EventRow.type).where(EventRow.id == row.event_id))
    await record(
        session,
        Action.WEBHOOK_REDELIVERED,
        tenant_id=tenant_id,
        object_id=endpoint_id,
        before=before,
        after={"delivery": row.id, "status": row.status},
    )
    return _delivery(row, event_type or "")


def _refuse_disabled(endpoint: WebhookEndpoint) -> None:
    if endpoint.disabled_at is not None:
        raise Conflict("This webhook is disabled. Enable it first.", code="webhook_disabled")


def _delivery(row: WebhookDeliveryRow, event_type: str) -> Delivery:
    return Delivery(
        id=row.id,
        endpoint_id=row.endpoint_id,
        event_id=row.event_id,
        event_type=event_type,
        status=row.status,
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at,
        last_status=row.last_status,
        last_error=row.last_error,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )


async def list_failing(session: TenantSession, tenant_id: UUID) -> list[FailingEndpoint]:
    """List the tenant's endpoints whose latest attempted delivery failed, and those that are gone.

    Endpoints that an operator has disabled are not listed.
    """
    latest = (
        select(
            WebhookDeliveryRow.status,
            WebhookDeliveryRow.last_error,
            WebhookDeliveryRow.last_status,
            WebhookDeliveryRow.created_at,
        )
        .where(
            WebhookDeliveryRow.endpoint_id == WebhookEndpointRow.id,
            WebhookDeliveryRow.tenant_id == tenant_id,
            WebhookDeliveryRow.attempts > 0,
        )
        .order_by(WebhookDeliveryRow.id.desc())
        .limit(1)
        .lateral("latest")
    )
    rows = await session.execute(
        select(WebhookEndpointRow, latest)
        .outerjoin(latest, true())
        .where(WebhookEndpointRow.tenant_id == tenant_id)
        .order_by(WebhookEndpointRow.id)
    )
    return [
        FailingEndpoint(row[0].id, row[0].url, row[0].disabled_at, row.last_error, row.last_status)
        for row in rows
        if _is_failing(row[0], row.status, row.last_error)
    ]


def _is_failing(endpoint: WebhookEndpointRow, status: str | None, error: str | None) -> bool:
    if endpoint.disabled_at is not None:
        return endpoint.disabled_reason == "gone"
    return status in {"pending", "dead"} and error is not None
