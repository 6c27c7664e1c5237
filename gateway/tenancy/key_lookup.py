"""Authentication of API keys and admin keys, with caches in front of Postgres."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog

from gateway.db.cache import Cache
from gateway.db.engine import Database, DatabaseUnavailable
from gateway.domain import Caller, Operator
from gateway.errors import Unauthenticated
from gateway.request_record import current
from gateway.tenancy.caller_lookup import CallerLookup
from gateway.tenancy.credentials import OwnCredentials
from gateway.tenancy.refused_keys import RefusedKeys
from gateway.tenancy.tenants import refuse_suspended
from gateway.vault import key_format
from gateway.vault.gateway_secrets import GatewaySecrets
from gateway.vault.key_format import Kind

UNKNOWN_SECONDS = 10.0
MAX_UNKNOWN = 10_000
ADMIN_PREFIX = "igw_admin_"
log = structlog.get_logger(__name__)


class UnknownKeys:
    """A negative cache of key digests, bounded in size and time, and cleared by each change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self.epoch = 0

    def __contains__(self, digest: bytes) -> bool:
        return self._clock() < self._until.get(digest, 0.0)

    def add(self, digest: bytes, *, epoch: int) -> None:
        """Remember a digest, unless a key has changed since `epoch`: it may exist by now."""
        if epoch != self.epoch:
            return
        self._until.pop(digest, None)
        self._until[digest] = self._clock() + UNKNOWN_SECONDS
        if len(self._until) > MAX_UNKNOWN:
            self._until.popitem(last=False)

    def clear(self) -> None:
        """Remove all digests."""
        self.epoch += 1
        self._until.clear()


@dataclass(frozen=True, slots=True)
class CallerCaches:
    """The caches that a look-up of a key fills."""

    by_key: Cache[bytes, Caller | Operator]
    operators: Cache[bytes, Caller | Operator]
    credentials: Cache[tuple[UUID, UUID | None], OwnCredentials]


class KeyLookup:
    """The look-up of the caller or operator of a key."""

    def __init__(
        self,
        database: Database,
        secrets: GatewaySecrets,
        callers: CallerCaches,
        refused: RefusedKeys,
        *,
        seconds: float,
    ) -> None:
        """Wait at most `seconds` for Postgres to find a key."""
        self._database = database
        self._secrets = secrets
        self._callers = callers.by_key
        self._operators = callers.operators
        self._credentials = callers.credentials
        self._refused = refused
        self._lookup = CallerLookup(database, seconds=seconds)
        self._unknown = UnknownKeys()

    def clear(self) -> None:
        """Clear the negative cache: one of its keys may have been issued."""
        self._unknown.clear()

    async def warm(self) -> None:
        """Have Postgres prepare the look-up.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        await self._lookup.warm()

    async def authenticate(self, text: str, *, address: str = "") -> Caller | Operator:
        """Authenticate a key that was sent from `address`.

        Raises:
            Unauthenticated: malformed, unknown, revoked or expired.
            RateLimited: the same for an admin key, while many other refusals are delayed.
            Forbidden: the tenant is suspended.
            DatabaseUnavailable: the key is not cached and Postgres is away.
        """
        kind = key_format.key_kind(text)
        try:
            return await self._find(text, kind, address)
        except Unauthenticated:
            is_admin = text.startswith(ADMIN_PREFIX)
            await self._refused.refuse("admin" if is_admin else kind or "malformed", address)
            raise

    async def _find(self, text: str, kind: Kind | None, address: str) -> Caller | Operator:
        if kind is None:
            raise Unauthenticated(
                "This is not an API key of this gateway (igw_live_… or igw_test_…), "
                "or it was copied incompletely. Copy the whole key."
            )
        caller = await self._cached(text, kind, address)
        if caller is None:
            raise unknown_key()
        # For a refused key too, so that its tenant can look up the reason.
        current().identify(caller)
        if caller.expires_at is not None and caller.expires_at <= datetime.now(UTC):
            raise Unauthenticated("This API key has expired. Ask your administrator for a new one.")
        if isinstance(caller, Caller):
            refuse_suspended(caller.tenant_status)
        return caller

    async def _cached(self, text: str, kind: Kind, address: str) -> Caller | Operator | None:
        digest = key_format.digest(self._secrets.pepper, text)
        if digest in self._unknown:
            return None

        async def load() -> tuple[Caller | Operator, str] | None:
            async with self._refused.lookup(address):
                while True:
                    looked_under = self._secrets.peppers
                    found = await self._load(text, kind)
                    if found is not None:
                        return found
                    # A worker with a newer pepper may have rehashed this key already.
                    await self._secrets.refresh_peppers(self._database)
                    # The peppers decide, not this refresh: a concurrent one may have been first.
                    if self._secrets.peppers == looked_under:
                        return None

        epoch = self._unknown.epoch
        cache = self._operators if kind == "admin" else self._callers
        caller = await cache.get(digest, load)
        if caller is None:
            self._unknown.add(digest, epoch=epoch)
        return caller

    async def _load(self, text: str, kind: Kind) -> tuple[Caller | Operator, str] | None:
        """Look up a key under every pepper, and rehash a found one with the newest.

        In one statement: between two, another worker could rehash the key.
        """
        newest, *older = self._secrets.peppers
        digests = [key_format.digest(pepper, text) for pepper in (newest, *older)]
        load = self._load_operator if kind == "admin" else self._load_caller
        found = await load(digests)
        if found is None:
            return None
        caller, tag, digest = found
        if digest != digests[0]:
            await self._rehash(digest, digests[0], newest.version)
        return caller, tag

    async def _rehash(self, old: bytes, new: bytes, version: int) -> None:
        try:
            await self._database.call(
                "SELECT rehash_key(:old, :new, :version)",
                {"old": old, "new": new, "version": version},
            )
        except DatabaseUnavailable:
            # The key is valid as it is; a later request can rehash it.
            log.warning("key_not_rehashed", pepper=version)

    async def _load_caller(
        self, digests: Sequence[bytes]
    ) -> tuple[Caller | Operator, str, bytes] | None:
        epoch = self._credentials.epoch
        found = await self._lookup.find(digests)
        if found is None:
            return None
        caller, tag = found.caller, str(found.caller.tenant_id)
        if found.credentials is not None:
            owner = (caller.tenant_id, caller.user_id)
            self._credentials.keep_read(owner, found.credentials, tag, epoch=epoch)
        return caller, tag, found.digest

    async def _load_operator(
        self, digests: Sequence[bytes]
    ) -> tuple[Caller | Operator, str, bytes] | None:
        # Runs when the cached operator expires, so `last_used_at` is accurate to the cache's TTL.
        rows = await self._database.call(
            "UPDATE operator_key SET last_used_at = clock_timestamp()"
            " WHERE digest = ANY(CAST(:digests AS bytea[])) AND revoked_at IS NULL"
            " AND (expires_at IS NULL OR expires_at > clock_timestamp())"
            " RETURNING id, name, scopes, expires_at, digest",
            {"digests": list(digests)},
        )
        if not rows:
            return None
        row = rows[0]
        operator = Operator(row.id, row.name, frozenset(row.scopes), row.expires_at)
        return operator, "operator_key", row.digest


def unknown_key() -> Unauthenticated:
    """Build the refusal of a key that was never issued, or was revoked: both look the same."""
    return Unauthenticated("This API key is unknown, or it was revoked.")
