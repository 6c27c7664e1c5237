"""Look-up of callers by the digests of their API keys, concurrent ones in one statement.

It reads everything that is cached of a caller (tenant, user, limits, sealed credentials) in one
round trip, so that a gateway with many tenants is about as fast as one with few.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Row

from gateway.db.engine import Database, answered_within
from gateway.db.group_commit import GroupCommit
from gateway.domain import Caller, TenantSettings
from gateway.tenancy.credentials import OwnCredentials, read_credentials
from gateway.tenancy.limit_rows import read_limits

MAX_BATCH = 64
MAX_SHARED = 1000
"""Values that are shared by callers, such as their scopes."""
Value = TypeVar("Value", bound=Hashable)
_FIND = "SELECT * FROM find_callers(CAST(:digests AS bytea[]))"


@dataclass(frozen=True, slots=True)
class FoundCaller:
    """A caller with its credentials (None for a test key); `digest` is the one that matched."""

    caller: Caller
    digest: bytes
    credentials: OwnCredentials | None


class CallerLookup:
    """A batcher of look-ups: while one statement runs, the next batch gathers."""

    def __init__(self, database: Database, *, seconds: float) -> None:
        """Wait at most `seconds` for a batch: later ones must not wait for a dead connection."""
        self._database = database
        self._seconds = seconds
        self._batches: GroupCommit[Sequence[bytes], FoundCaller | None] = GroupCommit(
            "find_callers", self._find_batch, max_batch=MAX_BATCH
        )
        self._shared: dict[Hashable, Any] = {}

    async def find(self, digests: Sequence[bytes]) -> FoundCaller | None:
        """Find the caller whose key has one of these digests; None if there is none.

        Raises:
            DatabaseUnavailable: Postgres is away, or does not answer in time.
        """
        return await self._batches.submit(digests)

    async def warm(self) -> None:
        """Have Postgres prepare the statement and the functions that it calls.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        await self._find_batch([[b""]])

    async def _find_batch(self, batch: Sequence[Sequence[bytes]]) -> list[FoundCaller | None]:
        digests = [digest for each in batch for digest in each]
        async with answered_within(self._seconds):
            rows = await self._database.call(_FIND, {"digests": digests})
        found = {row.digest: self._found(row) for row in rows}
        return [next((found[digest] for digest in each if digest in found), None) for each in batch]

    def _found(self, row: Row[Any]) -> FoundCaller:
        caller = Caller(
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            api_key_id=row.id,
            livemode=row.livemode,
            scopes=self._share(frozenset(row.scopes)),
            models=None if row.models is None else self._share(frozenset(row.models)),
            expires_at=row.expires_at,
            tenant_status=self._share(row.tenant_status),
            tenant_settings=self._share(
                TenantSettings(
                    continuity=row.continuity,
                    fallback=row.fallback,
                    stores_prompts=row.stores_prompts,
                    image_retention_seconds=row.image_retention_seconds,
                )
            ),
            limits=self._share(read_limits(row.limits)),
        )
        credentials = read_credentials(row.tenant_id, row.credentials) if row.livemode else None
        return FoundCaller(caller, row.digest, credentials)

    def _share(self, value: Value) -> Value:
        """Return the equal value that earlier callers hold, if any: most have the same few."""
        if len(self._shared) >= MAX_SHARED:
            self._shared.clear()
        shared: Value = self._shared.setdefault(value, value)
        return shared
