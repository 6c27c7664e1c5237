"""The audit trail: author, time and both states of every change.

A row is written in the transaction of its change: both are committed, or neither is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import insert, select, tuple_

from gateway.db.actors import Actor
from gateway.db.engine import ACTOR, OperatorSession, TenantSession
from gateway.db.pages import Page, page_of
from gateway.db.tables import ApiKeyRow, AuditRow, TenantRow, TenantUserRow
from gateway.domain import new_id
from gateway.errors import InvalidRequest

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Action(StrEnum):
    """The kinds of changes."""

    TENANT_CREATED = "tenant.created"
    TENANT_UPDATED = "tenant.updated"
    TENANT_SUSPENDED = "tenant.suspended"
    TENANT_RESUMED = "tenant.resumed"
    TENANT_DELETED = "tenant.deleted"
    USER_CREATED = "user.created"
    USER_UPDATED = "user.updated"
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    USER_DELETED = "user.deleted"
    API_KEY_ISSUED = "api_key.issued"
    API_KEY_RENAMED = "api_key.renamed"
    API_KEY_ROLLED = "api_key.rolled"
    API_KEY_REVOKED = "api_key.revoked"
    CREDENTIAL_STORED = "credential.stored"
    CREDENTIAL_DELETED = "credential.deleted"
    BUDGET_CREATED = "budget.created"
    BUDGET_UPDATED = "budget.updated"
    BUDGET_REMOVED = "budget.removed"
    LIMIT_CREATED = "limit.created"
    LIMIT_UPDATED = "limit.updated"
    LIMIT_REMOVED = "limit.removed"
    PRICE_ADDED = "price.added"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_UPDATED = "webhook.updated"
    WEBHOOK_ROLLED = "webhook.rolled"
    WEBHOOK_DELETED = "webhook.deleted"
    WEBHOOK_DISABLED = "webhook.disabled"
    WEBHOOK_TESTED = "webhook.tested"
    WEBHOOK_REDELIVERED = "webhook.redelivered"
    IMAGE_DELETED = "image.deleted"
    OPERATOR_KEY_CREATED = "operator_key.created"
    OPERATOR_KEY_ROLLED = "operator_key.rolled"
    OPERATOR_KEY_REVOKED = "operator_key.revoked"
    OPERATOR_KEY_REFUSED = "operator_key.refused"
    MASTER_KEY_ROTATED = "master_key.rotated"
    DATA_KEYS_ROTATED = "data_keys.rotated"
    GATEWAY_SECRET_ROLLED = "gateway_secret.rolled"  # noqa: S105 - a name
    GATEWAY_SECRET_RETIRED = "gateway_secret.retired"  # noqa: S105 - a name
    CALL_RESOLVED = "call.resolved"
    LINK_MADE = "console.link_made"
    SESSION_BEGUN = "console.session_begun"
    SESSION_ENDED = "console.session_ended"
    SIGN_IN_REFUSED = "console.sign_in_refused"
    PORTAL_OPENED = "console.portal_opened"
    PORTAL_LEFT = "console.portal_left"
    IMAGES_ORDERED = "console.images_ordered"
    PERSON_ADDED = "console.person_added"
    PERSON_CHANGED = "console.person_changed"
    INVITATION_MADE = "console.invitation_made"
    INVITATION_ACCEPTED = "console.invitation_accepted"
    INVITATION_REVOKED = "console.invitation_revoked"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change. `before` is None for a creation, `after` is None for a removal."""

    id: UUID
    at: datetime
    actor_type: str
    actor_id: str
    actor_name: str | None
    request_id: str | None
    action: str
    tenant_id: UUID | None
    tenant_name: str | None
    object_id: str
    object_name: str | None
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None


async def record(
    session: TenantSession | OperatorSession,
    action: Action,
    *,
    tenant_id: UUID | None,
    object_id: UUID | int | str,
    before: Mapping[str, object] | None = None,
    after: Mapping[str, object] | None = None,
) -> None:
    """Record a change made by this transaction, unless both states are equal.

    `before` and `after` are the public fields of the object. The serializer refuses bytes and
    `SecretText`, so that neither a digest nor a secret can be recorded by mistake.
    """
    if before == after:
        return
    actor: Actor = session.info[ACTOR]
    await session.execute(
        insert(AuditRow).values(
            id=new_id(),
            actor_type=actor.type,
            actor_id=actor.id,
            actor_name=actor.name,
            request_id=actor.request_id,
            action=action,
            tenant_id=tenant_id,
            object_id=str(object_id),
            before=_plain(before),
            after=_plain(after),
        )
    )


async def list_entries(
    session: OperatorSession | TenantSession,
    *,
    limit: int,
    after: UUID | None = None,
    tenant_id: UUID | None = None,
    action: Action | None = None,
    actor: str | None = None,
    object_id: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Page[AuditEntry]:
    """List one page of changes from `start` until `end`, newest first, after `after`.

    `actor`: the id of their author, or the name at the time.

    Raises:
        InvalidRequest: `after` is not the id of an entry.
    """
    query = select(AuditRow)
    if tenant_id is not None:
        query = query.where(AuditRow.tenant_id == tenant_id)
    equal = {AuditRow.action: action, AuditRow.object_id: object_id}
    for column, value in equal.items():
        if value is not None:
            query = query.where(column == value)
    if actor is not None:
        query = query.where((AuditRow.actor_id == actor) | (AuditRow.actor_name == actor))
    if start is not None:
        query = query.where(AuditRow.at >= start)
    if end is not None:
        query = query.where(AuditRow.at < end)
    if after is not None:
        cursor = await session.scalar(select(AuditRow).where(AuditRow.id == after))
        if cursor is None:
            raise InvalidRequest("after must be the id of an audit entry.", param="after")
        query = query.where(tuple_(AuditRow.at, AuditRow.id) < tuple_(cursor.at, cursor.id))
    query = query.order_by(AuditRow.at.desc(), AuditRow.id.desc()).limit(limit + 1)
    rows = (await session.scalars(query)).all()
    names = await _names(session, rows)
    return page_of([_entry(row, names) for row in rows], limit)


async def list_entries_of(
    session: OperatorSession,
    tenant_id: UUID,
    action: Action,
    object_id: UUID,
    *,
    since: datetime,
) -> list[AuditEntry]:
    """List the changes of one kind to one object of a tenant, oldest first."""
    query = (
        select(AuditRow)
        .where(
            AuditRow.tenant_id == tenant_id,
            AuditRow.at >= since,
            AuditRow.action == action,
            AuditRow.object_id == str(object_id),
        )
        .order_by(AuditRow.at, AuditRow.id)
    )
    rows = (await session.scalars(query)).all()
    names = await _names(session, rows)
    return [_entry(row, names) for row in rows]


async def _names(
    session: OperatorSession | TenantSession, rows: Sequence[AuditRow]
) -> Mapping[str, str | None]:
    """Look up the current names of the tenants, users and keys of these changes by id."""
    texts = {row.object_id for row in rows} | {str(row.tenant_id) for row in rows}
    ids = [UUID(one) for one in texts if _UUID.fullmatch(one)]
    names: dict[str, str | None] = {}
    for table in (TenantRow, TenantUserRow, ApiKeyRow):
        found = await session.execute(select(table.id, table.name).where(table.id.in_(ids)))
        names |= {str(row.id): row.name for row in found}
    return names


def _entry(row: AuditRow, names: Mapping[str, str | None]) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at=row.at,
        actor_type=row.actor_type,
        actor_id=row.actor_id,
        actor_name=row.actor_name,
        request_id=row.request_id,
        action=row.action,
        tenant_id=row.tenant_id,
        tenant_name=names.get(str(row.tenant_id)),
        object_id=row.object_id,
        object_name=names.get(row.object_id),
        before=row.before,
        after=row.after,
    )


def _plain(value: object) -> object:
    """Convert to JSON's own types: not every encoder knows the driver's UUID class."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
