"""What operators allow tenants, users and keys: requests and images a minute, generations at once.

gateway/limits enforces it; docs/limits.md explains it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast
from uuid import UUID

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert

from gateway.db.engine import TenantSession
from gateway.db.tables import ApiKeyRow, RateLimitRow, TenantUserRow
from gateway.domain import LimitKind, LimitOwner, RateLimit
from gateway.errors import InvalidRequest, NotFound

KINDS = tuple(kind.value for kind in LimitKind)
MAX_VALUE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """A limit as it was set."""

    id: int
    owner: Literal["tenant", "user", "key"]
    api_key_id: UUID | None
    user_id: UUID | None
    livemode: bool
    kind: LimitKind
    value: int
    created_at: datetime
    updated_at: datetime


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
    """Make a limit, or change its value; every gateway hears of it at once. 0 allows nothing.

    Raises:
        InvalidRequest: unknown kind, value out of bounds, or two owners at once.
        NotFound: the key or the user is not this tenant's.
    """
    if kind not in KINDS:
        raise InvalidRequest(f"A limit is one of {', '.join(KINDS)}.", param="kind")
    if not 0 <= value <= MAX_VALUE:
        raise InvalidRequest(f"A limit is a number from 0 to {MAX_VALUE}.", param="value")
    if api_key_id is not None and user_id is not None:
        raise InvalidRequest("A limit belongs to a key or to a user, not to both.", param="user")
    if api_key_id is not None:
        key = await session.scalar(
            select(ApiKeyRow).where(ApiKeyRow.tenant_id == tenant_id, ApiKeyRow.id == api_key_id)
        )
        if key is None:
            raise NotFound(f"This tenant has no API key {api_key_id}.", param="key")
        # Of a rolled key the whole line is limited, and only calls of the key's own mode exist.
        api_key_id, livemode = key.root_id, key.livemode
    if user_id is not None and not await session.scalar(
        select(TenantUserRow.id).where(
            TenantUserRow.tenant_id == tenant_id, TenantUserRow.id == user_id
        )
    ):
        raise NotFound(f"This tenant has no user {user_id}.", param="user")
    made = await session.execute(
        insert(RateLimitRow)
        .values(
            tenant_id=tenant_id,
            api_key_id=api_key_id,
            user_id=user_id,
            livemode=livemode,
            kind=kind,
            value=value,
        )
        .on_conflict_do_update(
            constraint="rate_limit_owner", set_={"value": value, "updated_at": text("now()")}
        )
        .returning(RateLimitRow)
        .execution_options(populate_existing=True)
    )
    return _stored(made.scalar_one())


async def list_limits(session: TenantSession, tenant_id: UUID) -> list[StoredLimit]:
    """Every limit of the tenant, its users and its keys."""
    rows = await session.scalars(
        select(RateLimitRow)
        .where(RateLimitRow.tenant_id == tenant_id)
        .order_by(
            RateLimitRow.livemode.desc(),
            RateLimitRow.api_key_id.nulls_first(),
            RateLimitRow.user_id.nulls_first(),
            RateLimitRow.id,
        )
    )
    return [_stored(row) for row in rows]


async def remove_limit(session: TenantSession, tenant_id: UUID, limit_id: int) -> None:
    """Take a limit away; for a tenant, the gateway's default is in force again.

    Raises:
        NotFound: this tenant has no such limit.
    """
    removed = await session.execute(
        delete(RateLimitRow)
        .where(RateLimitRow.tenant_id == tenant_id, RateLimitRow.id == limit_id)
        .returning(RateLimitRow.id)
    )
    if removed.first() is None:
        raise NotFound(f"This tenant has no limit {limit_id}.")


def read_limits(lines: Sequence[str]) -> tuple[RateLimit, ...]:
    """What the database's `limits_of` says of a caller: owner, kind and value a line."""
    parts = (line.split() for line in lines)
    return tuple(
        RateLimit(cast("LimitOwner", owner), LimitKind(kind), int(value))
        for owner, kind, value in parts
    )


def _stored(row: RateLimitRow) -> StoredLimit:
    return StoredLimit(
        id=row.id,
        owner="key" if row.api_key_id else "user" if row.user_id else "tenant",
        api_key_id=row.api_key_id,
        user_id=row.user_id,
        livemode=row.livemode,
        kind=LimitKind(row.kind),
        value=row.value,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
