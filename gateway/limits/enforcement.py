"""Lets a request in, or says which limit is in its way: the one place where limits are enforced.

All limits of a request are counted together or not at all: in Redis where there is one, and else
in this process (docs/limits.md, docs/decisions/0013-limits.md).
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from itertools import count as counting
from typing import TYPE_CHECKING
from uuid import UUID

from gateway import telemetry
from gateway.config import Settings
from gateway.domain import Caller, LimitKind, LimitOwner, RateLimit, SecretText, Standing
from gateway.errors import RateLimited
from gateway.limits.process_counters import LocalCounters
from gateway.limits.windows import Demand, Found, Taken
from gateway.tracing import step

if TYPE_CHECKING:  # imported where a Redis is configured
    from gateway.limits.redis_counters import SharedCounters

NEVER_MS = 3_600_000
_OWNERS = {"key": "this API key", "user": "this user", "tenant": "this tenant"}
_KINDS = {
    LimitKind.REQUESTS: ("requests", "in a minute"),
    LimitKind.IMAGES: ("images", "in a minute"),
    LimitKind.CONCURRENT: ("generations", "at once"),
}


class LimitReached(RateLimited):
    """A limit of the gateway's own; `standings` say how all of the caller's stand.

    Without `retry_after_seconds` the request is too much for the limit at any time.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: int | None = None,
        standings: tuple[Standing, ...],
        reason: str,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds, reason=reason)
        self.standings = standings
        self.retry = False if retry_after_seconds is None else None


class Admission:
    """An admitted request; `standings` are its caller's own limits, with this request counted."""

    __slots__ = ("_is_sent", "_is_withdrawn", "standings")

    def __init__(self, standings: tuple[Standing, ...] = ()) -> None:
        self.standings = standings
        self._is_sent = False
        self._is_withdrawn = False

    def mark_sent(self) -> None:
        """Count the request for every limit: its call goes out to the provider."""
        self._is_sent = True

    def withdraw(self) -> None:
        """Count the request for no limit: it repeats an earlier one and buys nothing."""
        self._is_withdrawn = True

    def uncounted(self, demands: Sequence[Demand]) -> list[Demand]:
        """The demands that are given back when the request ends."""
        if self._is_withdrawn:
            return list(demands)
        if self._is_sent:
            return []
        # The others must not pay for a call that was refused.
        return [demand for demand in demands if demand.limit.owner == "house"]


class Limiter:
    """Counts what callers do; `shared` is None where there is no Redis."""

    def __init__(
        self,
        *,
        tenant_defaults: Sequence[RateLimit],
        house: Sequence[RateLimit],
        process: UUID,
        local: LocalCounters,
        shared: "SharedCounters | None",
    ) -> None:
        self._tenant_defaults = tuple(tenant_defaults)
        self._house = tuple(house)
        self._process = process
        self._numbers = counting()
        self._local = local
        self._shared = shared

    @property
    def processes(self) -> int | None:
        """The number of processes that share the limits, this one too; None without Redis."""
        return None if self._shared is None or self._shared.is_away else self._shared.processes

    @property
    def trouble(self) -> str | None:
        """Why Redis cannot be used, while it cannot."""
        return None if self._shared is None else self._shared.trouble

    @asynccontextmanager
    async def admit(
        self,
        caller: Caller,
        images: int,
        house: str | None,
        *,
        own: bool = True,
    ) -> AsyncIterator[Admission]:
        """Admit a request for the length of the block.

        `house` is the provider for which it would use the house credential, if it would. Without
        `own` the caller's limits do not apply, because the request is counted for them already.

        Counts of a minute stay however the request ends, except those of the house where
        nothing was sent, and all of them where the admission was withdrawn.

        Raises:
            LimitReached: one of its limits; nothing was counted.
        """
        demands = self._demands(caller, images, house, own=own)
        if not demands:
            yield Admission()
            return
        lease = f"{self._process}.{next(self._numbers)}"
        taken, second, processes = await self._take(demands, lease)
        standings = tuple(
            _standing(demand, _share(demand, processes), found)
            for demand, found in zip(demands, taken.found, strict=True)
            if demand.limit.owner != "house"
        )
        if not taken.is_admitted:
            raise _refusal(demands, taken.found, standings)
        admission = Admission(standings)
        try:
            yield admission
        finally:
            self._local.release(demands, lease)
            if self._shared is not None:
                self._shared.release(demands, lease)
            uncounted = admission.uncounted(demands)
            if uncounted:
                self._local.give_back(uncounted, second)
                if self._shared is not None:
                    self._shared.give_back(uncounted, taken.second)

    async def _take(self, demands: Sequence[Demand], lease: str) -> tuple[Taken, int, int]:
        """Count a request; return the result, the second of this process's own counters, and the
        number of processes that share the limits.
        """
        processes = 1
        if self._shared is not None:
            with step("redis take", is_call=True, db__system__name="redis"):
                taken = await self._shared.take(demands, lease)
            if taken is not None:
                # Should Redis go away, this process knows what it has let in itself.
                second = self._local.add(demands, lease) if taken.is_admitted else 0
                return taken, second, 1
            telemetry.limits_unshared_total.inc()
            processes = self._shared.processes
        values = [_share(demand, processes) for demand in demands]
        taken = self._local.take(demands, values, lease)
        return taken, taken.second, processes

    def _demands(
        self, caller: Caller, images: int, house: str | None, *, own: bool
    ) -> list[Demand]:
        limits = caller.limits if own else ()
        if own and self._tenant_defaults:
            set_kinds = {limit.kind for limit in limits if limit.owner == "tenant"}
            limits += tuple(one for one in self._tenant_defaults if one.kind not in set_kinds)
        if house is not None:
            limits += self._house
        return [
            Demand(
                limit,
                counter=f"{limit.kind}:{_owner_id(limit.owner, caller, house)}",
                cost=images if limit.kind is LimitKind.IMAGES else 1,
            )
            for limit in limits
        ]


@asynccontextmanager
async def open_limiter(settings: Settings, *, process: UUID) -> AsyncIterator[Limiter]:
    """The limiter that the settings describe, with its Redis where they name one."""
    local = LocalCounters()
    shared: SharedCounters | None = None
    if settings.redis_url is not None:
        # The client takes 6 MB of each process that imports it.
        counters = import_module("gateway.limits.redis_counters")
        shared = counters.SharedCounters(
            SecretText(settings.redis_url.get_secret_value()),
            process=str(process),
            leases=lambda: local.leases,
            timeout_seconds=settings.redis_timeout_ms / 1000,
            lease_seconds=settings.limit_lease_seconds,
        )
        await shared.open()
    try:
        yield Limiter(
            tenant_defaults=_limits(
                "tenant",
                settings.default_requests_per_minute,
                settings.default_images_per_minute,
                settings.default_concurrent_generations,
            ),
            house=_limits(
                "house",
                settings.house_requests_per_minute,
                settings.house_images_per_minute,
                settings.house_concurrent_generations,
            ),
            process=process,
            local=local,
            shared=shared,
        )
    finally:
        if shared is not None:
            await shared.close()


def _limits(owner: LimitOwner, *values: int | None) -> list[RateLimit]:
    """A limit for each value, in the order of the kinds; None: no limit."""
    return [
        RateLimit(owner, kind, value)
        for kind, value in zip(LimitKind, values, strict=True)
        if value is not None
    ]


def _owner_id(owner: LimitOwner, caller: Caller, house: str | None) -> str:
    """The owner part of a counter's name; live and test calls have their own counters."""
    if owner == "house":
        return f"house:{house}"
    owner_id = caller.tenant_id
    if owner != "tenant":
        owner_id = (caller.api_key_id if owner == "key" else caller.user_id) or owner_id
    return f"{owner}:{owner_id}:{'live' if caller.livemode else 'test'}"


def _share(demand: Demand, processes: int) -> int:
    """The part of a limit that one of several processes may use by itself.

    A request for more images than that is not shut out by it: it comes through when nothing else
    was counted here.
    """
    value = demand.limit.value
    return max(value // processes, min(demand.cost, value))


def _standing(demand: Demand, share: int, found: Found) -> Standing:
    return Standing(
        demand.limit,
        remaining=max(0, share - found.used),
        next_ms=found.wait_ms or 0,
        reset_ms=found.reset_ms,
    )


def _refusal(
    demands: Sequence[Demand], found: Sequence[Found], standings: tuple[Standing, ...]
) -> LimitReached:
    """The error for the limit that is longest in the way, so that trying again is of use."""
    waits = [(one.wait_ms, demand) for demand, one in zip(demands, found, strict=True)]
    waited_ms, demand = max(waits, key=lambda one: NEVER_MS if one[0] is None else one[0])
    limit = demand.limit
    telemetry.limited_total.labels(limit.owner, limit.kind).inc()
    return limit_reached(
        limit,
        standings,
        cost=demand.cost,
        wait_seconds=None if waited_ms is None else max(1, -(-waited_ms // 1000)),
    )


def limit_reached(
    limit: RateLimit, standings: tuple[Standing, ...], *, cost: int, wait_seconds: int | None
) -> LimitReached:
    """Build the refusal by a limit; `wait_seconds` is None if it never has room for `cost`."""
    things, when = _KINDS[limit.kind]
    if limit.owner == "house":
        # How much the house may buy is the operator's business alone.
        said = "all calls with the gateway's own provider key together. A key of your own helps"
    else:
        said = f"{_OWNERS[limit.owner]} may make {limit.value} {things} {when}"
    if wait_seconds is None:
        return LimitReached(
            f"Limit {limit.name} is in the way: {said}, and this request asks for {cost}.",
            standings=standings,
            reason=f"limit {limit.name}",
        )
    return LimitReached(
        f"Limit {limit.name} reached: {said}.",
        retry_after_seconds=wait_seconds,
        standings=standings,
        reason=f"limit {limit.name}",
    )
