"""The open connections of one process: count, per-address counts, idle and overdue ones."""

import asyncio
from collections import Counter
from typing import Protocol

from gateway import telemetry
from gateway.web.connections.bounds import ConnectionBounds
from gateway.web.connections.refusals import ConnectionRefusal, ConnectionRefusals

GIVES_WAY_AFTER_SECONDS = 0.25
"""Shortest idle time before a connection is closed: its next request may be on the way."""
FEWEST_LINGERING = 16
CONNECTIONS_PER_LINGERING_ONE = 8


class Connection(Protocol):
    """The registry's view of a connection."""

    def overdue(self) -> None:
        """Close the connection: its deadline has passed."""

    def give_way(self) -> None:
        """Close the connection: new ones need its slot."""


class Registry:
    """Admits connections up to the bounds; new ones replace the longest idle ones.

    Idle connections and deadlines are kept in time order, so that the oldest is first and one timer
    serves all.
    """

    def __init__(self, bounds: ConnectionBounds) -> None:
        self.bounds = bounds
        self.refusals = ConnectionRefusals(bounds)
        self.lingering = 0
        self._admitted: dict[Connection, str | None] = {}
        self._by_address: Counter[str] = Counter()
        self._idle: dict[Connection, float] = {}
        self._deadlines: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def admit(
        self, connection: Connection, host: str | None, now: float
    ) -> ConnectionRefusal | None:
        """Register a new connection, or return the refusal; `now` is the loop's time."""
        address = self.bounds.counted_address(host)
        if address is not None and self._by_address[address] >= self.bounds.per_address:
            return self.refusals.address
        if len(self._admitted) >= self.bounds.connections and not self._make_room(now):
            return self.refusals.connections
        self._admitted[connection] = address
        if address is not None:
            self._by_address[address] += 1
        telemetry.connections_open.inc()
        self.expect(connection, now)
        self.becomes_idle(connection, now)
        return None

    def leave(self, connection: Connection) -> None:
        """Remove a connection, admitted or not."""
        self._idle.pop(connection, None)
        self._deadlines.pop(connection, None)
        if connection not in self._admitted:
            return
        address = self._admitted.pop(connection)
        telemetry.connections_open.dec()
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def becomes_idle(self, connection: Connection, now: float) -> None:
        """Mark a connection idle; beyond the bound on idle ones, the longest idle one is closed."""
        self._idle[connection] = now
        if len(self._idle) > self.bounds.idle:
            self._make_room(now)

    def becomes_busy(self, connection: Connection) -> None:
        """Mark a connection busy: a request has begun."""
        self._idle.pop(connection, None)

    def expect(self, connection: Connection, now: float) -> None:
        """Start a connection's deadline now, unless it is running already."""
        if connection in self._deadlines:
            return
        due = self._deadlines[connection] = now + self.bounds.header_seconds
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due, self._end_late_ones)

    def may_linger(self) -> bool:
        """Return True if one more connection may stay open until its client has read a refusal.

        Lingering connections come on top of the bound on connections, and hold descriptors.
        """
        most = max(FEWEST_LINGERING, self.bounds.connections // CONNECTIONS_PER_LINGERING_ONE)
        return self.lingering < most

    def came(self, connection: Connection) -> None:
        """Cancel a connection's deadline: the expected data has arrived."""
        self._deadlines.pop(connection, None)

    def _make_room(self, now: float) -> bool:
        """Close the longest idle connection, if it has been idle for long enough."""
        connection, since = next(iter(self._idle.items()), (None, 0.0))
        if connection is None or now - since < GIVES_WAY_AFTER_SECONDS:
            return False
        self.leave(connection)
        connection.give_way()
        return True

    def _end_late_ones(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._deadlines:
            connection, due = next(iter(self._deadlines.items()))
            if due > loop.time():
                self._timer = loop.call_at(due, self._end_late_ones)
                return
            del self._deadlines[connection]
            connection.overdue()
