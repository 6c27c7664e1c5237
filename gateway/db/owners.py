"""Whose a budget or a limit is: that of a line of keys, of a user, or of the whole tenant."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.tables import ApiKeyRow, TenantUserRow
from gateway.errors import InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class Owner:
    """A key, a user, or neither: the tenant. And the mode of the calls that are meant."""

    api_key_id: UUID | None
    user_id: UUID | None
    livemode: bool


async def find_owner(
    session: TenantSession | OperatorSession,
    tenant_id: UUID,
    *,
    livemode: bool,
    api_key_id: UUID | None,
    user_id: UUID | None,
) -> Owner:
    """The owner that is meant, for a key the first one of its line.

    Raises:
        InvalidRequest: a key and a user at once.
        NotFound: the key or the user is not this tenant's.
    """
    if api_key_id is None:
        if user_id is not None:
            await check_user(session, tenant_id, user_id)
        return Owner(None, user_id, livemode)
    if user_id is not None:
        raise InvalidRequest("Name a key or a user, not both.", param="user_id")
    key = await session.scalar(
        select(ApiKeyRow).where(ApiKeyRow.tenant_id == tenant_id, ApiKeyRow.id == api_key_id)
    )
    if key is None:
        raise NotFound(f"This tenant has no API key {api_key_id}.", param="api_key_id")
    # Of a rolled key the whole line is meant, and only calls of the key's own mode exist.
    return Owner(key.root_id, None, key.livemode)


async def check_user(
    session: TenantSession | OperatorSession, tenant_id: UUID, user_id: UUID
) -> None:
    """Raise `NotFound` where this is the id of none of the tenant's users."""
    known = await session.scalar(
        select(TenantUserRow.id).where(
            TenantUserRow.tenant_id == tenant_id,
            TenantUserRow.id == user_id,
            TenantUserRow.status != "deleted",
        )
    )
    if known is None:
        raise NotFound(f"This tenant has no user {user_id}.", param="user_id")
