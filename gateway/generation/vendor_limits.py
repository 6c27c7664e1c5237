"""Vendors' own rate limits, by credential: metrics, and an alarm before one runs out."""

import time
from collections import OrderedDict
from collections.abc import Callable

from gateway import telemetry
from gateway.provider_answers import ProviderLimit, ProviderReply
from gateway.tenancy.credentials import CredentialChoice

LOW_PERCENT = 10
MAX_SERIES = 200
"""Credentials with metrics of their own, the first that were used: Prometheus forgets no series."""
MAX_WARNED = 10_000


class VendorLimits:
    """The limits that vendors' answers told last.

    A label names a credential by its owner and id, never by a part of its secret.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: set[tuple[str, str]] = set()
        self._warned_until: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def note(
        self, provider: str, credential: CredentialChoice, reply: ProviderReply | None
    ) -> None:
        """Show the limits of an answer; raise an alarm once a window if little is left of one."""
        if reply is None or not reply.limits:
            return
        sealed = credential.sealed
        owner = credential.owner if sealed is None else f"{credential.owner}:{sealed.id}"
        is_shown = (provider, owner) in self._shown
        if not is_shown and len(self._shown) < MAX_SERIES:
            self._shown.add((provider, owner))
            is_shown = True
        for limit in reply.limits:
            if is_shown:
                labels = (provider, owner, limit.kind)
                telemetry.provider_limit.labels(*labels).set(limit.limit)
                telemetry.provider_limit_remaining.labels(*labels).set(limit.remaining)
            if limit.remaining * 100 <= limit.limit * LOW_PERCENT:
                self._warn(provider, owner, limit)

    def _warn(self, provider: str, owner: str, limit: ProviderLimit) -> None:
        now, key = self._clock(), (provider, owner, limit.kind)
        if now < self._warned_until.get(key, now):
            return
        self._warned_until.pop(key, None)
        self._warned_until[key] = now + limit.reset_seconds
        while len(self._warned_until) > MAX_WARNED:
            self._warned_until.popitem(last=False)
        telemetry.alarm(
            "provider_limit_low",
            provider=provider,
            credential=owner,
            limit=limit.kind,
            remaining=limit.remaining,
            of=limit.limit,
        )
