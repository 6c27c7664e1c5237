"""Sizes and use of the pools of connections, and the number that one worker opens."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

SPARED = 2
"""Connections of the pool of requests that are reserved for look-ups, not for tenants' pages."""
LANES = 4
"""Connections for holds and settlements, each for one kind of statement."""
LISTENERS = 1


class Beside(Enum):
    """Kinds of work with a pool of their own: connections, those of one tenant, seconds to wait."""

    REPORTS = (3, 1, 30.0)
    """Tenants' reports: one at a time for each."""
    OPERATORS = (2, 2, 10.0)
    """Operators' pages and changes."""
    OPERATORS_REPORTS = (1, 1, 30.0)
    """One at a time: Postgres computes as many at once as there are connections."""
    BACKGROUND = (3, 3, 30.0)
    """Periodic work."""

    def __init__(self, connections: int, of_one_tenant: int, wait_seconds: float) -> None:
        self.connections = connections
        self.of_one_tenant = of_one_tenant
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The connections that a pool may open, and those in use."""

    name: str
    size: int
    in_use: int


class PoolMeter(Protocol):
    """Measures one pool (`gateway.db.pool_metrics`)."""

    def waited(self, seconds: float) -> None:
        """Note the time until a connection was available."""

    def timed_out(self) -> None:
        """Count a request that found none in time."""

    def close(self) -> None:
        """Forget the pool."""


OpenMeter = Callable[[str, AsyncEngine, int], PoolMeter]
"""Begins to measure a pool, by its name and its number of connections."""


def connections_of_worker(pool_size: int) -> int:
    """Return the most connections that a worker opens, with `pool_size` of them for requests."""
    return pool_size + sum(work.connections for work in Beside) + LANES + LISTENERS
