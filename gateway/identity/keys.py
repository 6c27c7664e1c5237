"""Sign-in with a key: an admin key in an emergency, or a tenant's own API key."""

from uuid import UUID

from sqlalchemy import select

from gateway.db.engine import Database, OperatorSession
from gateway.db.key_tables import KeyDirectoryRow
from gateway.db.tables import ApiKeyRow
from gateway.domain import Operator
from gateway.errors import InvalidRequest, Unauthenticated
from gateway.identity.sessions import SignedIn
from gateway.identity.viewers import role_of_admin_key, role_of_api_key
from gateway.tenancy.key_lookup import KeyLookup
from gateway.vault import key_format
from gateway.vault.key_format import Pepper


async def by_admin_key(keys: KeyLookup, text: str, *, address: str) -> SignedIn:
    """Sign in with an admin key; its scopes give the role.

    Raises:
        Unauthenticated: unknown, revoked or expired.
        Forbidden: the key reads metrics alone.
        InvalidRequest: it is a tenant's key.
        RateLimited: too many refused admin keys are delayed at the moment.
    """
    caller = await keys.authenticate(text, address=address)
    if not isinstance(caller, Operator):
        raise InvalidRequest("This is a tenant's key. Use the form for API keys.", param="key")
    return SignedIn(
        f"{caller.name or 'unnamed'} (admin key)",
        role_of_admin_key(caller.scopes),
        "admin_key",
        operator_key_id=caller.operator_key_id,
        expires_at=caller.expires_at,
    )


async def by_api_key(
    database: Database, keys: KeyLookup, text: str, *, address: str, pepper: Pepper
) -> SignedIn:
    """Sign in with a tenant's API key; the session may do what the key may.

    No connection is held while a refused key is delayed.

    Raises:
        Unauthenticated: unknown, revoked or expired.
        Forbidden: the tenant or the user is disabled.
        InvalidRequest: it is an admin key.
    """
    caller = await keys.authenticate(text, address=address)
    if isinstance(caller, Operator):
        raise InvalidRequest("This is an admin key. Use the form for operators.", param="key")
    # The caller names the first key of its line. The session ends with the key that was typed in.
    async with database.operator() as session:
        key = await _find(session, caller.tenant_id, key_format.digest(pepper, text))
    if key is None:  # another worker has rolled the pepper in this very moment
        raise Unauthenticated("This API key could not be looked up. Try again.")
    return SignedIn(
        f"{key.name or 'API key'} …{key.last4}",
        role_of_api_key(caller.scopes),
        "api_key",
        tenant_id=caller.tenant_id,
        user_id=caller.user_id,
        api_key_id=key.id,
        expires_at=key.expires_at,
    )


async def _find(session: OperatorSession, tenant_id: UUID, digest: bytes) -> ApiKeyRow | None:
    found: ApiKeyRow | None = await session.scalar(
        select(ApiKeyRow)
        .join(
            KeyDirectoryRow,
            (KeyDirectoryRow.tenant_id == ApiKeyRow.tenant_id)
            & (KeyDirectoryRow.api_key_id == ApiKeyRow.id),
        )
        .where(ApiKeyRow.tenant_id == tenant_id, KeyDirectoryRow.digest == digest)
    )
    return found
