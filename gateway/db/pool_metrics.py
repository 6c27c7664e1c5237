"""Metrics of a pool of connections to Postgres."""

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from gateway import telemetry
from gateway.db.sql_traces import trace_statements


class PoolMetrics:
    """Measures one pool; a part of `Database.measure`, since commands that read measure nothing."""

    def __init__(
        self, name: str, engine: AsyncEngine, size: int, *, is_traced: bool = False
    ) -> None:
        self._wait = telemetry.pool_wait_seconds.labels(name)
        self._timeouts = telemetry.pool_timeouts_total.labels(name)
        self._in_use = telemetry.pool_in_use.labels(name)
        self._connections = telemetry.pool_connections.labels(name)
        self._size = size
        self._connections.inc(size)
        event.listen(engine.sync_engine, "checkout", self._taken)
        event.listen(engine.sync_engine, "checkin", self._given_back)
        if is_traced:
            trace_statements(engine)

    def waited(self, seconds: float) -> None:
        """Note the time until a connection was available."""
        self._wait.observe(seconds)

    def timed_out(self) -> None:
        """Count a request that found none in time."""
        self._timeouts.inc()

    def close(self) -> None:
        """Count the pool's connections no longer."""
        self._connections.dec(self._size)

    def _taken(self, _driver: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        if record.record_info is not None:
            record.record_info[self] = True
            self._in_use.inc()

    def _given_back(self, _driver: object, record: ConnectionPoolEntry) -> None:
        # A connection that could not be opened is given back without having been taken.
        if record.record_info is not None and record.record_info.pop(self, False):
            self._in_use.dec()
