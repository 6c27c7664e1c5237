"""Authentication by tokens of the operator's identity provider, beside API keys.

The gateway is an OAuth 2.1 resource server. It verifies tokens with the provider's public keys and
never forwards them.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from gateway.config import Settings
from gateway.db.cache import Cache
from gateway.db.engine import Database
from gateway.domain import Caller, RateLimit, TenantSettings, new_id
from gateway.errors import Forbidden, InvalidToken
from gateway.oidc.signing_keys import SigningKeys
from gateway.oidc.tokens import TokenExpectations, TokenIdentity, read_header, read_identity
from gateway.tenancy.limit_rows import read_limits
from gateway.tenancy.tenants import MAX_NAME_CHARACTERS, as_uuid, refuse_suspended


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """The tenant and user that a token's claims name, with what applies to their requests."""

    tenant_id: UUID
    user_id: UUID | None
    tenant_status: str
    tenant_settings: TenantSettings
    limits: tuple[RateLimit, ...]


class IdentityProvider:
    """The authentication of a token: signature, claims, then the cache in front of Postgres."""

    def __init__(
        self,
        database: Database,
        keys: SigningKeys,
        owners: Cache[tuple[str, str], TokenOwner],
        expected: TokenExpectations,
    ) -> None:
        self._database = database
        self._keys = keys
        self._owners = owners
        self._expected = expected

    async def authenticate(self, token: str) -> Caller:
        """Authenticate a token.

        Raises:
            InvalidToken: malformed, forged, expired, or not for this gateway.
            Forbidden: the tenant in its claims is unknown or suspended.
            KeysUnavailable: the provider is away, and the token's key is unknown.
            DatabaseUnavailable: tenant and user are not cached, and Postgres is away.
        """
        header = read_header(token, max_characters=self._expected.max_characters)
        key = await self._keys.find(header.key_id, header.algorithm)
        if key is None:
            raise InvalidToken(
                "This token was signed with a key that the identity provider does not publish. "
                "Get a new one."
            )
        identity = read_identity(token, header, key, self._expected)
        owner = await self._owners.get(
            (identity.tenant, identity.user), lambda: self._load(identity)
        )
        if owner is None:
            name = identity.tenant[:MAX_NAME_CHARACTERS]
            raise Forbidden(
                f"The tenant of this token, {name!r}, is unknown. "
                "Ask the operator of this gateway to create it.",
                code="tenant_unknown",
            )
        refuse_suspended(owner.tenant_status)
        return _caller(owner, identity.scopes, identity.expires_at)

    async def examine(self) -> int:
        """Fetch the provider's keys now; return the number of usable ones.

        Raises:
            KeysNotFetched: they cannot be fetched; the message gives the reason.
        """
        return await self._keys.fetch()

    async def close(self) -> None:
        """Close connections."""
        await self._keys.close()

    async def _load(self, identity: TokenIdentity) -> tuple[TokenOwner, str] | None:
        if len(identity.tenant) > MAX_NAME_CHARACTERS or not identity.tenant.isprintable():
            return None
        rows = await self._database.call(
            "SELECT c.*, limits_of(c.tenant_id, NULL, c.user_id, true) AS limits"
            " FROM find_caller_by_claims(:tenant_id, :tenant, :user, :new_id) c",
            {
                "tenant_id": as_uuid(identity.tenant),
                "tenant": identity.tenant,
                "user": identity.user,
                "new_id": new_id(),
            },
        )
        if not rows:
            return None
        row = rows[0]
        owner = TokenOwner(
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            tenant_status=row.tenant_status,
            tenant_settings=TenantSettings(
                continuity=row.continuity,
                fallback=row.fallback,
                stores_prompts=row.stores_prompts,
                image_retention_seconds=row.image_retention_seconds,
            ),
            limits=read_limits(row.limits),
        )
        return owner, str(row.tenant_id)


def identity_provider_of(
    settings: Settings, database: Database, owners: Cache[tuple[str, str], TokenOwner]
) -> IdentityProvider | None:
    """Build the configured identity provider, if any; nothing is fetched before the first token."""
    if settings.oidc_issuer is None:
        return None
    expected = TokenExpectations(
        issuer=settings.oidc_issuer,
        audiences=settings.oidc_audiences,
        leeway_seconds=settings.oidc_leeway_seconds,
        tenant_claim=settings.oidc_tenant_claim,
        user_claim=settings.oidc_user_claim,
        scope_prefix=settings.oidc_scope_prefix,
        max_characters=settings.oidc_max_token_characters,
    )
    keys = SigningKeys(settings.oidc_issuer, settings)
    return IdentityProvider(database, keys, owners, expected)


def _caller(owner: TokenOwner, scopes: frozenset[str], expires_at: datetime) -> Caller:
    return Caller(
        tenant_id=owner.tenant_id,
        user_id=owner.user_id,
        api_key_id=None,
        livemode=True,
        scopes=scopes,
        models=None,
        expires_at=expires_at,
        tenant_status=owner.tenant_status,
        tenant_settings=owner.tenant_settings,
        limits=owner.limits,
    )
