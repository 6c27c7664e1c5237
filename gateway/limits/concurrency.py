"""How much may go on at once in this process, and how much of it for one tenant."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from gateway.errors import Unavailable

TENANT_SHARE = 2
"""One tenant takes at most one place in two: the others always find some."""


class Places:
    """So many of something at once; `what` says in the refusal what there is too much of."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._taken: Counter[UUID] = Counter()

    @contextmanager
    def taken(self, tenant_id: UUID) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            Unavailable: none is free, or this tenant has its share.
        """
        own = self._taken[tenant_id]
        if self._taken.total() >= self._most or own >= max(1, self._most // TENANT_SHARE):
            raise Unavailable(f"Too many {self._what} at once. Try again.", retry_after_seconds=1)
        self._taken[tenant_id] += 1
        try:
            yield
        finally:
            self._taken[tenant_id] -= 1
            self._taken += Counter()  # tenants that hold none any more are let go
