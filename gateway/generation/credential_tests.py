"""Tests of stored credentials against their provider, without a paid call."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from gateway.db.engine import Database
from gateway.domain import Caller
from gateway.errors import ConfigurationError, CredentialUnreadable, RateLimited
from gateway.providers.base import CredentialState, CredentialTester
from gateway.tenancy import credentials as stored
from gateway.tenancy.credentials import CredentialInfo, Credentials
from gateway.vault.sealing import SealBroken

MAX_TESTS = 10
WINDOW_SECONDS = 60.0
MAX_TENANTS = 10_000


@dataclass(frozen=True, slots=True)
class TestedCredential:
    """A credential and its current state at the provider."""

    info: CredentialInfo
    state: CredentialState


class CredentialTests:
    """Tests credentials: each at most once every few seconds, ten tests a minute for each tenant.

    The limit per tenant is counted in this process. It keeps the gateway from being used to try
    out stolen keys.
    """

    def __init__(
        self,
        database: Database,
        credentials: Credentials,
        testers: Mapping[str, CredentialTester],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._credentials = credentials
        self._testers = testers
        self._clock = clock
        self._recent: OrderedDict[UUID, deque[float]] = OrderedDict()

    async def run(self, caller: Caller, provider: str) -> TestedCredential:
        """Test the credential of the caller's user, or of the tenant for keys without one.

        Raises:
            NotFound: no credential is stored, or the provider accepts none.
            RateLimited: too many tests.
            CredentialUnreadable: the stored credential cannot be decrypted.
        """
        stored.check_provider(provider, self._testers)
        self._count(caller.tenant_id)
        async with self._database.tenant(caller.tenant_id) as session:
            info, choice = await stored.start_test(
                session, caller.tenant_id, user_id=caller.user_id, provider=provider
            )
        try:
            secret = await self._credentials.open(choice, provider)
        except (SealBroken, ConfigurationError):
            raise CredentialUnreadable(
                f"Your stored {provider} key cannot be opened. Store it again with "
                f"PUT /v1/credentials/{provider}."
            ) from None
        return TestedCredential(info, await self._testers[provider].test_credential(secret))

    def _count(self, tenant_id: UUID) -> None:
        now = self._clock()
        recent = self._recent.setdefault(tenant_id, deque(maxlen=MAX_TESTS))
        self._recent.move_to_end(tenant_id)
        if len(recent) == MAX_TESTS and now - recent[0] < WINDOW_SECONDS:
            raise RateLimited(
                f"Too many tests of stored keys: at most {MAX_TESTS} per minute are allowed.",
                retry_after_seconds=max(1, int(recent[0] + WINDOW_SECONDS - now)),
            )
        recent.append(now)
        while len(self._recent) > MAX_TENANTS:
            self._recent.popitem(last=False)
