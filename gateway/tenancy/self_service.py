"""Self-service of tenants with the scope `tenant:admin`, within the caller's own rights.

A key can neither issue nor reveal a key with more rights. A test key sees and changes test mode
only; a live key administers both modes.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from gateway.db.engine import TenantSession, one_at_a_time
from gateway.db.owners import OwnerIds, find_owner, refuse_own_bound
from gateway.db.pages import Page
from gateway.domain import USUAL_KEY_SCOPES, Caller, LimitKind, Scope
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound
from gateway.tenancy import api_keys, erasure, limit_rows, users
from gateway.tenancy.api_keys import IssuedKey, KeyInfo
from gateway.tenancy.delegation import KeyGrant, refuse_more
from gateway.tenancy.limit_rows import StoredLimit
from gateway.tenancy.users import User
from gateway.vault.key_format import Pepper


def mode_of(caller: Caller, *, livemode: bool | None) -> bool:
    """Return the requested mode, by default the caller's own.

    Raises:
        Forbidden: a test key names live mode.
    """
    if livemode is None:
        return caller.livemode
    if livemode and not caller.livemode:
        raise Forbidden("livemode: A test key can see and change test mode only.")
    return livemode


async def issue_key(
    session: TenantSession,
    caller: Caller,
    *,
    pepper: Pepper,
    livemode: bool | None,
    name: str | None,
    user_id: UUID | None,
    scopes: Sequence[str] | None,
    models: Sequence[str] | None,
    expires_at: datetime | None,
) -> IssuedKey:
    """Issue a key with at most the caller's rights.

    Defaults are the caller's own: scopes (except `tenant:admin`), models, user and expiry.

    Raises:
        Forbidden: scopes, models, a mode, a user or an expiry beyond the caller's own, or a caller
            with budgets or limits that would not apply to the new key.
        InvalidRequest: an unknown scope, an expiry more than ten years away, or an invalid name.
        NotFound: the user does not belong to this tenant.
    """
    if scopes is None:
        scopes = [scope for scope in USUAL_KEY_SCOPES if scope in caller.scopes]
        if not scopes:
            raise InvalidRequest(
                "scopes must be given: your own key has none of the default scopes.",
                param="scopes",
            )
    if models is None and caller.models is not None:
        models = sorted(caller.models)
    if user_id is None and caller.api_key_id is not None:
        user_id = caller.user_id
    if expires_at is None and caller.api_key_id is not None:
        expires_at = caller.expires_at
    known = [scope for scope in scopes if scope in set(Scope)]
    await refuse_more(session, caller, KeyGrant(known, models, user_id, expires_at))
    return await api_keys.issue(
        session,
        caller.tenant_id,
        pepper=pepper,
        livemode=mode_of(caller, livemode=livemode),
        name=name,
        user_id=user_id,
        scopes=scopes,
        models=models,
        expires_at=expires_at,
    )


async def get_key(session: TenantSession, caller: Caller, key_id: UUID) -> KeyInfo:
    """Return a key of the tenant that the caller may see.

    Raises:
        NotFound: there is none.
    """
    found = await api_keys.get(session, caller.tenant_id, key_id)
    if found.livemode and not caller.livemode:
        raise NotFound(f"There is no API key {key_id}.", param="key_id")
    return found


async def roll_key(
    session: TenantSession, caller: Caller, key_id: UUID, *, pepper: Pepper, grace: timedelta
) -> IssuedKey:
    """Roll a key with at most the caller's rights, because the successor's secret is shown.

    Raises:
        Forbidden: it has more rights or fewer limits than the caller.
        InvalidRequest: a grace of more than a year.
        NotFound: there is no such key, or it was revoked.
    """
    found = await get_key(session, caller, key_id)
    grant = KeyGrant(found.scopes, found.models, found.user_id, found.expires_at, found.root_id)
    await refuse_more(session, caller, grant)
    return await api_keys.roll(session, key_id, pepper=pepper, grace=grace)


async def rename_key(
    session: TenantSession, caller: Caller, key_id: UUID, name: str | None
) -> KeyInfo:
    """Rename a key and all others of its line.

    Raises:
        InvalidRequest: an invalid name.
        NotFound: there is no such key.
    """
    name = api_keys.checked_name(name)
    await get_key(session, caller, key_id)
    return await api_keys.rename(session, key_id, name)


async def revoke_key(session: TenantSession, caller: Caller, key_id: UUID) -> KeyInfo:
    """Revoke a key, unless it is the last that can administer the tenant.

    Raises:
        Conflict: it is that one (code `last_admin_key`).
        NotFound: there is no such key.
    """
    # Two administrators who revoke each other at the same time must not both succeed.
    await one_at_a_time(session, caller.tenant_id)
    found = await get_key(session, caller, key_id)
    if (
        caller.api_key_id is not None
        and found.revoked_at is None
        and Scope.TENANT_ADMIN in found.scopes
        and not await api_keys.has_other_admin(session, caller.tenant_id, but=found)
    ):
        raise Conflict(
            "This is the last key with the scope tenant:admin. Issue another one first, or ask "
            "the operator of this gateway to revoke it.",
            code="last_admin_key",
            param="key_id",
        )
    return await api_keys.revoke(session, key_id)


async def change_user(
    session: TenantSession, caller: Caller, user_id: UUID, changes: users.UserChanges
) -> User:
    """Rename, disable or enable a user; the user of the key in use cannot be disabled.

    Raises:
        Forbidden: a test key, or the caller's own user.
        InvalidRequest: an invalid name.
        NotFound: there is no such user, or the user was deleted.
        Conflict: the name is taken.
    """
    _check_other_user(caller, user_id if changes.status == "disabled" else None)
    return await users.change(
        session, caller.tenant_id, user_id, name=changes.name, status=changes.status
    )


async def delete_user(session: TenantSession, caller: Caller, user_id: UUID) -> User:
    """Delete a user permanently, except the user of the key in use.

    Raises:
        Forbidden: a test key, or the caller's own user.
        NotFound: there is no such user.
    """
    _check_other_user(caller, user_id)
    return await erasure.delete_user(session, caller.tenant_id, user_id)


async def set_limit(
    session: TenantSession,
    caller: Caller,
    *,
    kind: LimitKind,
    value: int,
    livemode: bool | None,
    api_key_id: UUID | None,
    user_id: UUID | None,
    tenant_default: int | None,
) -> StoredLimit:
    """Limit a user or a key of the tenant, at most to the tenant's own limit.

    Raises:
        Forbidden: the tenant's own limit, live mode for a test key, or a higher limit for the
            caller itself.
        InvalidRequest: above the tenant's limit, or two owners at once.
        NotFound: the key or the user does not belong to this tenant or mode.
    """
    if api_key_id is None and user_id is None:
        raise Forbidden(
            "The limits of a tenant are set by the operator of this gateway. Name one of your "
            "users (user_id) or keys (api_key_id)."
        )
    if api_key_id is not None:
        await get_key(session, caller, api_key_id)
    owner = await find_owner(
        session,
        caller.tenant_id,
        livemode=mode_of(caller, livemode=livemode),
        api_key_id=api_key_id,
        user_id=user_id,
    )
    present = await limit_rows.value_of(session, caller.tenant_id, kind, owner)
    if present is not None and value > present:
        refuse_own_bound(caller, owner)
    whole = OwnerIds(None, None, owner.livemode)
    ceiling = await limit_rows.value_of(session, caller.tenant_id, kind, whole)
    ceiling = tenant_default if ceiling is None else ceiling
    if ceiling is not None and value > ceiling:
        raise InvalidRequest(
            f"value must be at most {ceiling}, the tenant's own limit of {kind} (got {value}).",
            param="value",
        )
    return await limit_rows.set_limit(
        session,
        caller.tenant_id,
        kind=kind,
        value=value,
        livemode=owner.livemode,
        api_key_id=api_key_id,
        user_id=user_id,
    )


async def list_limits(
    session: TenantSession,
    caller: Caller,
    *,
    livemode: bool | None,
    limit: int,
    after: int | None = None,
) -> Page[StoredLimit]:
    """List one page of limits of the tenant, its users and keys in one mode, newest first.

    Raises:
        Forbidden: a test key names live mode.
    """
    return await limit_rows.list_page(
        session,
        caller.tenant_id,
        limit=limit,
        after=after,
        livemode=mode_of(caller, livemode=livemode),
    )


async def remove_limit(session: TenantSession, caller: Caller, limit_id: int) -> None:
    """Remove the limit of a user or a key.

    Raises:
        Forbidden: it is the tenant's own, or applies to the caller.
        NotFound: the tenant has no such limit in a mode that the caller may see.
    """
    found = await limit_rows.get(session, caller.tenant_id, limit_id)
    if found.livemode and not caller.livemode:
        raise NotFound(f"This tenant has no limit {limit_id}.", param="limit_id")
    if found.owner == "tenant":
        raise Forbidden("The limits of a tenant are set by the operator of this gateway.")
    owner = OwnerIds(found.api_key_id, found.user_id, found.livemode)
    refuse_own_bound(caller, owner)
    await limit_rows.remove_limit(session, caller.tenant_id, limit_id)


def _check_other_user(caller: Caller, user_id: UUID | None) -> None:
    if not caller.livemode:
        raise Forbidden("A test key cannot change users. Use a live key (igw_live_…).")
    if user_id is not None and user_id == caller.user_id:
        raise Forbidden(
            "This is the user of the key in use. Ask another administrator, or use a key that "
            "belongs to no user."
        )
