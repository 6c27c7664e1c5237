"""Bulkheads: concurrency limits of this process, with a share for each tenant."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from gateway import telemetry
from gateway.errors import Unavailable

TENANT_SHARE = 2
"""By default a tenant takes at most every second slot, so that others find some."""


class Bulkhead:
    """The bounded slots of one kind of work; `what` names the work in refusals."""

    def __init__(self, most: int, what: str, *, most_of_one: int | None = None) -> None:
        self._most = most
        self._most_of_one = max(1, most // TENANT_SHARE) if most_of_one is None else most_of_one
        self._what = what
        self._taken: Counter[UUID] = Counter()
        self._count = 0

    def check(self, tenant_id: UUID) -> None:
        """Raise `Unavailable` where none is free, or this tenant has its share."""
        if self._count >= self._most or self._taken[tenant_id] >= self._most_of_one:
            telemetry.shed_total.labels(self._what).inc()
            raise Unavailable(f"Too many {self._what} at once. Try again.", retry_after_seconds=1)

    def take(self, tenant_id: UUID) -> None:
        """Take one of the slots, to give it back later.

        Raises:
            Unavailable: see `check`.
        """
        self.check(tenant_id)
        self._count += 1
        self._taken[tenant_id] += 1

    def give_back(self, tenant_id: UUID) -> None:
        """Free a slot that was taken."""
        self._count -= 1
        self._taken[tenant_id] -= 1
        if not self._taken[tenant_id]:
            del self._taken[tenant_id]

    @contextmanager
    def taken(self, tenant_id: UUID) -> Iterator[None]:
        """Hold one of the slots for the length of the block.

        Raises:
            Unavailable: see `check`.
        """
        self.take(tenant_id)
        try:
            yield
        finally:
            self.give_back(tenant_id)
