"""Owners of budgets and limits: a line of keys, a user, or the whole tenant."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.tables import ApiKeyRow, TenantUserRow
from gateway.domain import Caller
from gateway.errors import Forbidden, InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class OwnerIds:
    """An owner (a key, a user, or if neither the tenant) and the mode of its calls."""

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
) -> OwnerIds:
    """Find the requested owner; a key stands for its line, by the first key.

    Raises:
        InvalidRequest: a key and a user at once.
        NotFound: the key or the user does not belong to this tenant.
    """
    if api_key_id is None:
        if user_id is not None:
            await check_user(session, tenant_id, user_id)
        return OwnerIds(None, user_id, livemode)
    if user_id is not None:
        raise InvalidRequest("Give api_key_id or user_id, not both.", param="user_id")
    key = await session.scalar(
        select(ApiKeyRow).where(ApiKeyRow.tenant_id == tenant_id, ApiKeyRow.id == api_key_id)
    )
    if key is None:
        raise NotFound(f"This tenant has no API key {api_key_id}.", param="api_key_id")
    # A key stands for its whole line, and its calls have only the key's own mode.
    return OwnerIds(key.root_id, None, key.livemode)


async def check_user(
    session: TenantSession | OperatorSession, tenant_id: UUID, user_id: UUID
) -> None:
    """Raise `NotFound` if this is not the id of a user of the tenant."""
    known = await session.scalar(
        select(TenantUserRow.id).where(
            TenantUserRow.tenant_id == tenant_id,
            TenantUserRow.id == user_id,
            TenantUserRow.status != "deleted",
        )
    )
    if known is None:
        raise NotFound(f"This tenant has no user {user_id}.", param="user_id")


def refuse_own_bound(caller: Caller, owner: OwnerIds) -> None:
    """Refuse to loosen a limit that applies to the caller.

    Raises:
        Forbidden: the limit is that of the caller's own line of keys or user.
    """
    own = {caller.api_key_id, caller.user_id} - {None}
    if own & {owner.api_key_id, owner.user_id}:
        raise Forbidden(
            "This limit applies to the key in use, which can lower it but neither raise nor remove "
            "it. Ask another administrator."
        )
