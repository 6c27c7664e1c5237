"""Stored limits of tenants, users and keys: requests and images per minute, generations at once.

gateway/limits enforces them; docs/limits.md explains them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, cast
from uuid import UUID

from sqlalchemy import ColumnElement, func, select

from gateway.db.audit import Action, record
from gateway.db.engine import TenantSession, one_at_a_time
from gateway.db.owners import OwnerIds, find_owner
from gateway.db.pages import Page, page_of
from gateway.db.tables import ApiKeyRow, RateLimitRow, TenantUserRow
from gateway.domain import LimitKind, LimitOwner, RateLimit
from gateway.errors import InvalidRequest, NotFound

KINDS = tuple(kind.value for kind in LimitKind)
MAX_VALUE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """A limit as it was set; `is_new`: just created."""

    id: int
    owner: Literal["tenant", "user", "key"]
    api_key_id: UUID | None
    api_key_name: str | None
    user_id: UUID | None
    user_name: str | None
    livemode: bool
    kind: LimitKind
    value: int
    created_at: datetime
    updated_at: datetime
    is_new: bool = False


async def set_limit(
    session: TenantSession,
    tenant_id: UUID,
    *,
    kind: str,
    value: int,
    livemode: bool = True,
    api_key_id: UUID | None = None,
    user_id: UUID | None = None,
) -> StoredLimit:
    """Create a limit, or change its value; every gateway applies it at once. 0 allows nothing.

    Raises:
        InvalidRequest: unknown kind, value out of range, or two owners at once.
        NotFound: the key or the user does not belong to this tenant.
    """
    if kind not in KINDS:
        raise InvalidRequest(
            f"kind must be one of {', '.join(KINDS)} (got {kind!r}).", param="kind"
        )
    if not 0 <= value <= MAX_VALUE:
        raise InvalidRequest(f"value must be from 0 to {MAX_VALUE} (got {value}).", param="value")
    await one_at_a_time(session, tenant_id)
    owner = await find_owner(
        session, tenant_id, livemode=livemode, api_key_id=api_key_id, user_id=user_id
    )
    row = await session.scalar(
        select(RateLimitRow).where(
            RateLimitRow.tenant_id == tenant_id,
            RateLimitRow.api_key_id.is_not_distinct_from(owner.api_key_id),
            RateLimitRow.user_id.is_not_distinct_from(owner.user_id),
            RateLimitRow.livemode.is_(owner.livemode),
            RateLimitRow.kind == kind,
        )
    )
    before = None if row is None else _shown(row)
    if row is None:
        row = RateLimitRow(
            tenant_id=tenant_id,
            api_key_id=owner.api_key_id,
            user_id=owner.user_id,
            livemode=owner.livemode,
            kind=kind,
        )
    row.value, row.updated_at = value, func.now()
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await record(
        session,
        Action.LIMIT_CREATED if before is None else Action.LIMIT_UPDATED,
        tenant_id=tenant_id,
        object_id=row.id,
        before=before,
        after=_shown(row),
    )
    [stored] = await _select(session, tenant_id, RateLimitRow.id == row.id)
    return replace(stored, is_new=before is None)


async def list_limits(session: TenantSession, tenant_id: UUID) -> list[StoredLimit]:
    """List every limit of the tenant, its users and its keys."""
    found = await _select(session, tenant_id)
    return sorted(
        found,
        key=lambda one: (
            not one.livemode,
            str(one.api_key_id or ""),
            str(one.user_id or ""),
            one.id,
        ),
    )


async def list_page(
    session: TenantSession,
    tenant_id: UUID,
    *,
    limit: int,
    after: int | None = None,
    livemode: bool | None = None,
) -> Page[StoredLimit]:
    """List one page of limits of the tenant, its users and keys (in one mode), newest first."""
    which = [] if after is None else [RateLimitRow.id < after]
    if livemode is not None:
        which.append(RateLimitRow.livemode.is_(livemode))
    return page_of(await _select(session, tenant_id, *which, limit=limit + 1), limit)


async def get(session: TenantSession, tenant_id: UUID, limit_id: int) -> StoredLimit:
    """Return the tenant's limit with this id.

    Raises:
        NotFound: there is none.
    """
    found = await _select(session, tenant_id, RateLimitRow.id == limit_id)
    if not found:
        raise _no_limit(limit_id)
    return found[0]


async def value_of(
    session: TenantSession, tenant_id: UUID, kind: LimitKind, owner: OwnerIds
) -> int | None:
    """Return the value of the limit set for this owner, if any."""
    value: int | None = await session.scalar(
        select(RateLimitRow.value).where(
            RateLimitRow.tenant_id == tenant_id,
            RateLimitRow.api_key_id.is_not_distinct_from(owner.api_key_id),
            RateLimitRow.user_id.is_not_distinct_from(owner.user_id),
            RateLimitRow.livemode.is_(owner.livemode),
            RateLimitRow.kind == kind,
        )
    )
    return value


async def _select(
    session: TenantSession,
    tenant_id: UUID,
    *which: ColumnElement[bool],
    limit: int | None = None,
) -> list[StoredLimit]:
    """Select limits with the names of their owners, newest first."""
    rows = await session.execute(
        select(RateLimitRow, ApiKeyRow.name, TenantUserRow.name)
        .outerjoin(ApiKeyRow, ApiKeyRow.id == RateLimitRow.api_key_id)
        .outerjoin(TenantUserRow, TenantUserRow.id == RateLimitRow.user_id)
        .where(RateLimitRow.tenant_id == tenant_id, *which)
        .order_by(RateLimitRow.id.desc())
        .limit(limit)
    )
    return [_stored(row, key_name, user_name) for row, key_name, user_name in rows.all()]


async def remove_limit(session: TenantSession, tenant_id: UUID, limit_id: int) -> None:
    """Remove a limit; for a tenant, the gateway's default applies again.

    Raises:
        NotFound: this tenant has no such limit.
    """
    await one_at_a_time(session, tenant_id)
    row = await session.scalar(
        select(RateLimitRow).where(RateLimitRow.tenant_id == tenant_id, RateLimitRow.id == limit_id)
    )
    if row is None:
        raise _no_limit(limit_id)
    await session.delete(row)
    await record(
        session,
        Action.LIMIT_REMOVED,
        tenant_id=tenant_id,
        object_id=limit_id,
        before=_shown(row),
    )


def read_limits(lines: Sequence[str]) -> tuple[RateLimit, ...]:
    """Parse the result of the SQL function `limits_of`: owner, kind and value per line."""
    parts = (line.split() for line in lines)
    return tuple(
        RateLimit(cast("LimitOwner", owner), LimitKind(kind), int(value))
        for owner, kind, value in parts
    )


def _no_limit(limit_id: int) -> NotFound:
    return NotFound(f"This tenant has no limit {limit_id}.", param="limit_id")


def _shown(row: RateLimitRow) -> dict[str, object]:
    """Render a limit for the audit trail."""
    return {
        "api_key_id": row.api_key_id,
        "user_id": row.user_id,
        "livemode": row.livemode,
        "kind": row.kind,
        "value": row.value,
    }


def _stored(row: RateLimitRow, key_name: str | None, user_name: str | None) -> StoredLimit:
    return StoredLimit(
        id=row.id,
        owner="key" if row.api_key_id else "user" if row.user_id else "tenant",
        api_key_id=row.api_key_id,
        api_key_name=key_name,
        user_id=row.user_id,
        user_name=user_name,
        livemode=row.livemode,
        kind=LimitKind(row.kind),
        value=row.value,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
