"""Connections to Postgres: transactions bound to one tenant, and single-statement calls.

Every connection uses the role `image_gateway_app`, which owns nothing. Row-level security shows
it the rows of the tenant set for the transaction, and no rows if none is set. A transaction of
operators becomes `image_gateway_operator`, which sees all rows.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NewType
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
from sqlalchemy import Row, TextClause, func, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from gateway.db.actors import THE_GATEWAY, Actor
from gateway.db.addresses import create_engine, database_url, open_connection
from gateway.db.deadlines import Deadline
from gateway.db.pools import SPARED, Beside, OpenMeter, PoolMeter, PoolUse
from gateway.errors import Unavailable

APP_ROLE = "image_gateway_app"
OPERATOR_ROLE = "image_gateway_operator"
AS_TENANT = text("SELECT set_config('gateway.tenant_id', :tenant_id, true)")
AS_OPERATOR = text(f"SET LOCAL ROLE {OPERATOR_ROLE}")
CONFLICT_ATTEMPTS = 5

ACTOR = "actor"
"""The session's key for the author of its transaction's changes."""

TenantSession = NewType("TenantSession", AsyncSession)
"""A transaction that sees one tenant's rows."""
OperatorSession = NewType("OperatorSession", AsyncSession)
"""A transaction that sees every tenant's rows, for operators' commands and the sweeper."""

LOST_CLASSES = frozenset({"08", "40", "53", "55", "57"})
"""SQLSTATE classes of connection loss, rollback (deadlock), lack of resources, unavailable lock,
and operator intervention (shutdown, cancel): nothing was committed, or the outcome is unknown."""
READ_ONLY = "25006"
"""The SQLSTATE of a primary that has become a standby: nothing was committed."""
QUERY_CANCELED = "57014"
"""The SQLSTATE of a statement beyond its time limit."""
DEFECT_CLASSES = frozenset({"22", "23", "42", "P0"})
"""SQLSTATE classes that a retry cannot fix: data, constraint, syntax or privilege, assertion."""
LANE_ERRORS = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(OSError, TimeoutError),
)
LOST_CONNECTION = (InterfaceError, OperationalError, PoolTimeoutError, OSError, TimeoutError)


class DatabaseUnavailable(Unavailable):
    """A missing answer of Postgres; the outcome of a commit that was sent is unknown."""

    code = "database_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The gateway's database is not available right now. Nothing was bought; try again.",
            retry_after_seconds=1,
        )


@asynccontextmanager
async def answered_within(seconds: float) -> AsyncIterator[None]:
    """Limit the wait for Postgres before a call: a client waits, and nothing is bought yet.

    Raises:
        DatabaseUnavailable: the limit has passed.
    """
    try:
        async with Deadline(seconds):
            yield
    except TimeoutError as error:
        raise DatabaseUnavailable from error


class _Shares:
    """A bulkhead for the pool: at most so many connections for one tenant, and for all of them.

    A tenant with slow pages leaves connections to the others, and look-ups before a call (keys,
    prices) find a connection even while many tenants read.
    """

    def __init__(self, *, together: int, of_one: int, wait_seconds: float) -> None:
        self._together = asyncio.Semaphore(max(1, together))
        self._of_one = max(1, of_one)
        self._wait_seconds = wait_seconds
        self._own: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def taken(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Take one connection of the tenant's share for the block.

        Raises:
            DatabaseUnavailable: none was free in time.
        """
        own = self._own.get(tenant_id)
        if own is None:
            own = self._own[tenant_id] = asyncio.Semaphore(self._of_one)
        async with AsyncExitStack() as stack:
            async with answered_within(self._wait_seconds):
                await stack.enter_async_context(own)
                await stack.enter_async_context(self._together)
            yield


class Database:
    """A pool of serving connections, with small ones beside it for work that must not fill it.

    The pool itself is for tenants' requests, which wait for no one else's work.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int,
        connect_timeout_seconds: float,
        read_only: bool = False,
        work: Beside | None = None,
    ) -> None:
        self._settings = (url, connect_timeout_seconds, read_only)
        self._url = database_url(url)
        self._read_only = read_only
        self._pool_size = pool_size
        self._work = work
        self._beside: dict[Beside, Database] = {}
        self._open_meter: OpenMeter | None = None
        self._meter: PoolMeter | None = None
        wait_seconds = connect_timeout_seconds if work is None else work.wait_seconds
        self._engine = create_engine(
            self._url,
            role=APP_ROLE,
            pool_size=pool_size,
            pool_timeout=wait_seconds,
            connect_timeout_seconds=connect_timeout_seconds,
            read_only=read_only,
        )
        self._calls = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._shares = _Shares(
            together=pool_size - SPARED if work is None else pool_size,
            of_one=pool_size // 2 if work is None else work.of_one_tenant,
            wait_seconds=wait_seconds,
        )

    def beside(self, work: Beside | None) -> "Database":
        """Return the pool for work of this kind, else (None) this one.

        Its connections are opened when they are first used.
        """
        if work is None or self._work is not None:
            return self
        if work not in self._beside:
            url, connect_timeout_seconds, read_only = self._settings
            other = self._beside[work] = Database(
                url,
                pool_size=work.connections,
                connect_timeout_seconds=connect_timeout_seconds,
                read_only=read_only,
                work=work,
            )
            if self._open_meter is not None:
                other.measure(self._open_meter)
        return self._beside[work]

    def use(self) -> list[PoolUse]:
        """Tell how much each pool is used by now: that of requests, then those beside it."""
        return [
            PoolUse(
                "requests" if one._work is None else one._work.name.lower(),  # noqa: SLF001 - of its own class
                one._pool_size,  # noqa: SLF001
                one._in_use,  # noqa: SLF001
            )
            for one in (self, *self._beside.values())
        ]

    @property
    def _in_use(self) -> int:
        pool = self._engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    def measure(self, open_meter: OpenMeter) -> None:
        """Measure this pool and those beside it, from now on."""
        self._open_meter = open_meter
        name = "requests" if self._work is None else self._work.name.lower()
        self._meter = open_meter(name, self._engine, self._pool_size)
        for other in self._beside.values():
            other.measure(open_meter)

    async def warm(self) -> None:
        """Open every connection of the pool, so that a burst of first requests does not wait.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        try:
            async with AsyncExitStack() as stack:
                for _ in range(self._pool_size):
                    connection = await stack.enter_async_context(self._calls.connect())
                    await connection.execute(text("SELECT 1"))
        except (DBAPIError, *LOST_CONNECTION) as error:
            raise_if_lost(error, read_only=self._read_only)
            raise

    async def close(self) -> None:
        """Close every connection of the pool, and of those beside it."""
        await self._engine.dispose()
        if self._meter is not None:
            self._meter.close()
        for other in self._beside.values():
            await other.close()

    @asynccontextmanager
    async def tenant(
        self, tenant_id: UUID, *, by: Actor = THE_GATEWAY
    ) -> AsyncIterator[TenantSession]:
        """Open a transaction that sees the rows of `tenant_id` only; commit at the end.

        The audit trail names the actor `by` as the author of its changes.

        Raises:
            DatabaseUnavailable: Postgres is away, or this tenant's share of the pool is in use.
        """
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._shares.taken(tenant_id))
            except DatabaseUnavailable:
                if self._meter is not None:
                    self._meter.timed_out()
                raise
            begin = AS_TENANT.bindparams(tenant_id=str(tenant_id))
            session = await stack.enter_async_context(self._transaction(begin, by))
            yield TenantSession(session)

    @asynccontextmanager
    async def operator(self, *, by: Actor = THE_GATEWAY) -> AsyncIterator[OperatorSession]:
        """Open a transaction that sees every tenant's rows; commit at the end.

        The audit trail names the actor `by` as the author of its changes.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        async with self._transaction(AS_OPERATOR, by) as session:
            yield OperatorSession(session)

    @asynccontextmanager
    async def _transaction(self, begin: TextClause, by: Actor) -> AsyncIterator[AsyncSession]:
        started = time.perf_counter()
        try:
            async with (
                AsyncSession(self._engine, expire_on_commit=False, info={ACTOR: by}) as session,
                session.begin(),
            ):
                await session.connection()
                self._note_wait(started)
                await session.execute(begin)
                yield session
        except (DBAPIError, *LOST_CONNECTION) as error:
            self._raise_if_lost(error)
            raise

    async def call(
        self, statement: str, parameters: Mapping[str, object] | None = None
    ) -> Sequence[Row[Any]]:
        """Run one statement in its own commit: one round trip to Postgres.

        Raises:
            DatabaseUnavailable: Postgres is away, or went away before it acknowledged.
        """
        started = time.perf_counter()
        try:
            async with self._calls.connect() as connection:
                self._note_wait(started)
                result = await connection.execute(text(statement), parameters or {})
                return result.all()
        except (DBAPIError, *LOST_CONNECTION) as error:
            self._raise_if_lost(error)
            raise

    def _note_wait(self, started: float) -> None:
        if self._meter is not None:
            self._meter.waited(time.perf_counter() - started)

    def _raise_if_lost(self, error: BaseException) -> None:
        if self._meter is not None and isinstance(error, PoolTimeoutError):
            self._meter.timed_out()
        raise_if_lost(error, read_only=self._read_only)

    @asynccontextmanager
    async def exclusive(self, lock: int) -> AsyncIterator[None]:
        """Hold an advisory lock against all other processes, on a separate connection."""
        connection = await self.connect()
        try:
            # Another process may hold it for as long as a backup takes.
            await connection.execute("SET statement_timeout = 0")
            await connection.execute("SELECT pg_advisory_lock($1)", lock)
            yield
        finally:
            await connection.close()

    def lane(self, *, timeout_seconds: float) -> "Lane":
        """Create a lane: a separate connection for consecutive statements."""
        return Lane(self.connect, timeout_seconds)

    async def connect(self) -> asyncpg.Connection:
        """Open a connection outside the pool.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        try:
            return await open_connection(self._url, role=APP_ROLE, read_only=self._read_only)
        except (asyncpg.PostgresError, *LOST_CONNECTION) as error:
            raise DatabaseUnavailable from error


async def one_at_a_time(session: TenantSession | OperatorSession, tenant_id: UUID | None) -> None:
    """Serialise changes of this tenant until the end of the transaction; readers do not wait.

    Otherwise two concurrent first changes would both insert. None: changes of the operator's own.
    """
    await session.execute(
        select(func.pg_advisory_xact_lock(func.hashtextextended(str(tenant_id), 0)))
    )


class Lane:
    """One connection for consecutive single-statement commits.

    The money path's batches are strictly sequential, so they need neither a pool nor a
    transaction of several round trips; a bare driver connection costs a third of both.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[asyncpg.Connection]], timeout_seconds: float
    ) -> None:
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._connection: asyncpg.Connection | None = None

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement in its own commit.

        Raises:
            DatabaseUnavailable: no acknowledgement. The statement may have been committed.
        """
        for attempt in range(CONFLICT_ATTEMPTS):
            try:
                return await self._fetch(statement, *arguments)
            except asyncpg.TransactionRollbackError:
                # Rolled back whole (for example by a deadlock), so a retry cannot repeat anything.
                if attempt == CONFLICT_ATTEMPTS - 1:
                    raise DatabaseUnavailable from None
        raise AssertionError

    async def _fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        try:
            rows: list[asyncpg.Record] = await self._connection.fetch(
                statement, *arguments, timeout=self._timeout_seconds
            )
        except asyncpg.TransactionRollbackError:
            raise
        except LANE_ERRORS as error:
            self.close()
            if isinstance(error, asyncpg.PostgresError) and error.sqlstate[:2] in DEFECT_CLASSES:
                raise
            raise DatabaseUnavailable from error
        return rows

    def close(self) -> None:
        """Close the connection at once; the next statement opens a new one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def raise_if_lost(error: BaseException, *, read_only: bool = False) -> None:
    """Convert a lost connection to `DatabaseUnavailable`; other errors are defects and stay.

    `read_only`: the connection was opened to read alone, so a refused change is a defect.
    """
    lost = isinstance(error, LOST_CONNECTION)
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        is_standby = state == READ_ONLY and not read_only
        is_lost_state = state[:2] in LOST_CLASSES or is_standby
        lost = error.connection_invalidated or (lost and not state) or is_lost_state
    if lost:
        raise DatabaseUnavailable from error
