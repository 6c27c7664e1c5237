"""Endpoints: the receivers of one tenant's events or, for the operator's own, of all tenants'."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import delete, func, or_, select, update

from gateway.db.audit import Action, record
from gateway.db.engine import OperatorSession, TenantSession, one_at_a_time
from gateway.db.pages import Page, page_of
from gateway.db.tables import WebhookDeliveryRow, WebhookEndpointRow, WebhookSecretRow
from gateway.domain import SecretText, new_id
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.tenancy.tenants import UNCHANGED, Unchanged
from gateway.webhooks.events import OF_TENANTS, EventType
from gateway.webhooks.sealing import Sealing
from gateway.webhooks.signatures import new_secret
from gateway.webhooks.targets import DeliveryFailure, TargetRefused, read_target, shown

Session = TenantSession | OperatorSession
MAX_DESCRIPTION_CHARACTERS = 200
MAX_VALID_SECRETS = 5
MAX_GRACE = timedelta(days=30)
THE_HOUSE = UUID(int=0)
"""The id that stands for the operator in the lock that serialises changes."""


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """A signing secret, valid until it is rolled if its expiry is None."""

    created_at: datetime
    valid_until: datetime | None


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """A receiver of events. None in `event_types`: all types; None in `livemode`: both modes."""

    id: UUID
    tenant_id: UUID | None
    url: str
    event_types: tuple[str, ...] | None
    livemode: bool | None
    description: str
    disabled_at: datetime | None
    disabled_reason: Literal["operator", "gone"] | None
    secrets: tuple[SecretInfo, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewSecret:
    """An endpoint with its new secret, which is shown only once."""

    endpoint: WebhookEndpoint
    secret: SecretText


async def create(
    session: Session,
    tenant_id: UUID | None,
    *,
    sealing: Sealing,
    url: str,
    event_types: Sequence[str] | None = None,
    livemode: bool | None = None,
    description: str = "",
    allow_private: bool,
    max_endpoints: int,
) -> NewSecret:
    """Create an endpoint of this tenant, or of the operator.

    Raises:
        InvalidRequest: an invalid URL, event type or description.
        Conflict: the number of endpoints is at its limit.
    """
    checked_url = _check_url(url, allow_private=allow_private)
    await one_at_a_time(TenantSession(session), tenant_id or THE_HOUSE)
    count = await session.scalar(
        select(func.count())
        .select_from(WebhookEndpointRow)
        .where(WebhookEndpointRow.tenant_id.is_not_distinct_from(tenant_id))
    )
    if (count or 0) >= max_endpoints:
        raise Conflict(
            f"The limit of webhooks is reached ({count}). Delete one first, or ask the operator "
            "to raise GATEWAY_MAX_WEBHOOKS.",
            code="too_many_webhooks",
        )
    row = WebhookEndpointRow(
        id=new_id(),
        tenant_id=tenant_id,
        url=checked_url,
        event_types=_check_types(tenant_id, event_types),
        livemode=livemode,
        description=_check_description(description),
    )
    session.add(row)
    await session.flush()
    secret = new_secret()
    session.add(await sealing.seal(session, tenant_id, row.id, secret))
    endpoint = await _flushed(session, tenant_id, row)
    await record(
        session,
        Action.WEBHOOK_CREATED,
        tenant_id=tenant_id,
        object_id=row.id,
        after=_shown(endpoint),
    )
    return NewSecret(endpoint, secret)


async def get(
    session: Session, tenant_id: UUID | None, endpoint_id: UUID, *, kept: bool = False
) -> WebhookEndpoint:
    """Return the endpoint with this id; `kept` locks it against deletion in this transaction.

    Raises:
        NotFound: it does not belong to this tenant, or to the operator.
    """
    row = await _find(session, tenant_id, endpoint_id, kept=kept)
    return await _flushed(session, tenant_id, row)


async def list_page(
    session: Session,
    tenant_id: UUID | None,
    *,
    limit: int,
    after: UUID | None = None,
    test_only: bool = False,
) -> Page[WebhookEndpoint]:
    """List one page of the tenant's or the operator's endpoints, newest first, after `after`.

    `test_only`: only those that receive events of test calls alone.
    """
    query = (
        select(WebhookEndpointRow)
        .where(WebhookEndpointRow.tenant_id.is_not_distinct_from(tenant_id))
        .order_by(WebhookEndpointRow.id.desc())
        .limit(limit + 1)
    )
    if after is not None:
        query = query.where(WebhookEndpointRow.id < after)
    if test_only:
        query = query.where(WebhookEndpointRow.livemode.is_(False))
    rows = await session.scalars(query)
    return page_of([await _flushed(session, tenant_id, row) for row in rows.all()], limit)


async def change(
    session: Session,
    tenant_id: UUID | None,
    endpoint_id: UUID,
    *,
    url: str | None = None,
    event_types: Sequence[str] | Unchanged | None = UNCHANGED,
    livemode: bool | Unchanged | None = UNCHANGED,
    description: str | None = None,
    disabled: bool | None = None,
    allow_private: bool,
) -> WebhookEndpoint:
    """Change an endpoint. Disabling it marks its pending deliveries dead.

    Raises:
        InvalidRequest: as for `create`.
        NotFound: it does not belong to this tenant, or to the operator.
    """
    row = await _find(session, tenant_id, endpoint_id, for_change=True)
    before = await _flushed(session, tenant_id, row)
    if url is not None:
        row.url = _check_url(url, allow_private=allow_private)
    if event_types is not UNCHANGED:
        row.event_types = _check_types(tenant_id, event_types)
    if livemode is not UNCHANGED:
        row.livemode = livemode
    if description is not None:
        row.description = _check_description(description)
    if disabled is not None and disabled != (row.disabled_at is not None):
        row.disabled_at = func.now() if disabled else None
        row.disabled_reason = "operator" if disabled else None
        if disabled:
            await _bury(session, tenant_id, endpoint_id, DeliveryFailure.DISABLED)
    after = await _flushed(session, tenant_id, row)
    if after != before:
        row.updated_at = func.clock_timestamp()
        after = await _flushed(session, tenant_id, row)
    await record(
        session,
        Action.WEBHOOK_UPDATED,
        tenant_id=tenant_id,
        object_id=endpoint_id,
        before=_shown(before),
        after=_shown(after),
    )
    return after


async def has_address(session: OperatorSession, endpoint_id: UUID, url: str) -> bool:
    """Return True if an endpoint still has this address; it keeps it until the transaction ends."""
    row = await session.scalar(
        select(WebhookEndpointRow.url).where(WebhookEndpointRow.id == endpoint_id).with_for_update()
    )
    return row == url


async def disable_gone(
    session: Session, tenant_id: UUID | None, endpoint_id: UUID, *, told_by: UUID
) -> int | None:
    """Disable an endpoint whose receiver answered 410 Gone to the delivery `told_by`.

    Returns how many other pending deliveries were marked dead; None if it was disabled before.
    """
    row = await session.scalar(
        select(WebhookEndpointRow)
        .where(WebhookEndpointRow.id == endpoint_id, WebhookEndpointRow.disabled_at.is_(None))
        .with_for_update()
    )
    if row is None:
        return None
    before = await _flushed(session, tenant_id, row)
    row.disabled_at, row.disabled_reason = func.now(), "gone"
    row.updated_at = func.clock_timestamp()
    count = await _bury(session, tenant_id, endpoint_id, DeliveryFailure.GONE, but=told_by)
    after = await _flushed(session, tenant_id, row)
    await record(
        session,
        Action.WEBHOOK_DISABLED,
        tenant_id=tenant_id,
        object_id=endpoint_id,
        before=_shown(before),
        after=_shown(after),
    )
    return count


async def roll(
    session: Session,
    tenant_id: UUID | None,
    endpoint_id: UUID,
    *,
    sealing: Sealing,
    grace: timedelta,
) -> NewSecret:
    """Add a secret; older ones keep signing for `grace`, but not beyond their own expiry.

    Raises:
        InvalidRequest: a grace of more than 30 days.
        NotFound: it does not belong to this tenant, or to the operator.
        Conflict: too many secrets would sign at once.
    """
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise InvalidRequest(
            f"The grace must be from 0 to {int(MAX_GRACE.total_seconds())} seconds (30 days; got "
            f"{int(grace.total_seconds())}).",
            param="grace_seconds",
        )
    row = await _find(session, tenant_id, endpoint_id, for_change=True)
    before = await _flushed(session, tenant_id, row)
    await session.execute(
        update(WebhookSecretRow)
        .where(WebhookSecretRow.endpoint_id == endpoint_id)
        .values(valid_until=func.least(WebhookSecretRow.valid_until, func.now() + grace))
        .execution_options(synchronize_session=False)
    )
    await session.execute(
        delete(WebhookSecretRow)
        .where(
            WebhookSecretRow.endpoint_id == endpoint_id,
            WebhookSecretRow.valid_until <= func.now(),
        )
        .execution_options(synchronize_session=False)
    )
    secret = new_secret()
    session.add(await sealing.seal(session, tenant_id, endpoint_id, secret))
    row.updated_at = func.clock_timestamp()
    after = await _flushed(session, tenant_id, row)
    if len(after.secrets) > MAX_VALID_SECRETS:
        raise Conflict(
            f"{MAX_VALID_SECRETS} secrets of this webhook are valid, the most allowed. Wait until "
            "one expires, or roll with a grace of 0, which ends all of them now.",
            code="too_many_secrets",
        )
    await record(
        session,
        Action.WEBHOOK_ROLLED,
        tenant_id=tenant_id,
        object_id=endpoint_id,
        before=_shown(before),
        after=_shown(after),
    )
    return NewSecret(after, secret)


async def remove(session: Session, tenant_id: UUID | None, endpoint_id: UUID) -> None:
    """Delete an endpoint with its secrets and deliveries.

    Raises:
        NotFound: it does not belong to this tenant, or to the operator.
    """
    row = await _find(session, tenant_id, endpoint_id, for_change=True)
    before = await _flushed(session, tenant_id, row)
    await session.execute(
        delete(WebhookEndpointRow)
        .where(WebhookEndpointRow.id == endpoint_id)
        .execution_options(synchronize_session=False)
    )
    await record(
        session,
        Action.WEBHOOK_DELETED,
        tenant_id=tenant_id,
        object_id=endpoint_id,
        before=_shown(before),
    )


async def _find(
    session: Session,
    tenant_id: UUID | None,
    endpoint_id: UUID,
    *,
    for_change: bool = False,
    kept: bool = False,
) -> WebhookEndpointRow:
    query = select(WebhookEndpointRow).where(
        WebhookEndpointRow.tenant_id.is_not_distinct_from(tenant_id),
        WebhookEndpointRow.id == endpoint_id,
    )
    if for_change:
        query = query.with_for_update()
    elif kept:  # the weakest sufficient lock, which does not block workers' results
        query = query.with_for_update(read=True, key_share=True)
    row = await session.scalar(query)
    if row is None:
        raise NotFound(f"There is no webhook {endpoint_id}.", param="webhook_id")
    return row


async def _bury(
    session: Session,
    tenant_id: UUID | None,
    endpoint_id: UUID,
    reason: DeliveryFailure,
    *,
    but: UUID | None = None,
) -> int:
    """Mark the endpoint's pending deliveries dead, except `but`; return their number."""
    buried = await session.scalars(
        update(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.tenant_id.is_not_distinct_from(tenant_id),
            WebhookDeliveryRow.endpoint_id == endpoint_id,
            WebhookDeliveryRow.status == "pending",
            WebhookDeliveryRow.id.is_distinct_from(but),
        )
        .values(status="dead", last_error=reason, next_attempt_at=None, finished_at=func.now())
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return len(buried.all())


async def _flushed(
    session: Session, tenant_id: UUID | None, row: WebhookEndpointRow
) -> WebhookEndpoint:
    """Flush changes, and return the endpoint as stored with its valid secrets."""
    await session.flush()
    await session.refresh(row)
    secrets = await session.scalars(
        select(WebhookSecretRow)
        .where(
            WebhookSecretRow.tenant_id.is_not_distinct_from(tenant_id),
            WebhookSecretRow.endpoint_id == row.id,
            or_(
                WebhookSecretRow.valid_until.is_(None),
                WebhookSecretRow.valid_until > func.now(),
            ),
        )
        .order_by(WebhookSecretRow.id)
        .execution_options(populate_existing=True)
    )
    return WebhookEndpoint(
        id=row.id,
        tenant_id=row.tenant_id,
        url=row.url,
        event_types=None if row.event_types is None else tuple(row.event_types),
        livemode=row.livemode,
        description=row.description,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        secrets=tuple(SecretInfo(one.created_at, one.valid_until) for one in secrets),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _check_url(url: str, *, allow_private: bool) -> str:
    try:
        return str(read_target(url, allow_private=allow_private))
    except TargetRefused as refused:
        raise InvalidRequest(refused.message, code=refused.reason, param="url") from None


def _check_types(tenant_id: UUID | None, event_types: Sequence[str] | None) -> list[str] | None:
    if event_types is None:
        return None
    known = tuple(EventType) if tenant_id is None else OF_TENANTS
    if unknown := sorted(set(event_types) - set(known)):
        raise InvalidRequest(
            f"Unknown event {unknown[0]!r}. Choose from: {', '.join(known)}.", param="events"
        )
    if not event_types:
        raise InvalidRequest(
            "events must not be empty. Leave it out to receive every event.", param="events"
        )
    return sorted(set(event_types))


def _check_description(text: str) -> str:
    if len(text) > MAX_DESCRIPTION_CHARACTERS or not text.isprintable():
        raise InvalidRequest(
            f"description must have at most {MAX_DESCRIPTION_CHARACTERS} characters in one line.",
            param="description",
        )
    return text


def _shown(endpoint: WebhookEndpoint) -> dict[str, object]:
    """Render an endpoint for the audit trail; of its URL only scheme, host and port.

    `updated_at` shows a change of the rest of the URL.
    """
    return {
        "url": shown(endpoint.url),
        "events": endpoint.event_types,
        "livemode": endpoint.livemode,
        "description": endpoint.description,
        "disabled_at": endpoint.disabled_at,
        "disabled_reason": endpoint.disabled_reason,
        "secrets_valid_until": [secret.valid_until for secret in endpoint.secrets],
        "updated_at": endpoint.updated_at,
    }
