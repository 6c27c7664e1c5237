"""Bounds of the request log: its queue, its retention, floods of bad keys, a Postgres outage."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from gateway.config import Settings
from gateway.db.addresses import create_engine, database_url
from gateway.db.engine import Database, DatabaseUnavailable
from gateway.request_log.writer import RequestLog
from gateway.request_record import RequestRecord
from tests.harness import Served, make_settings, served_gateway
from tests.money_helpers import eventually, post_image
from tests.money_postgres import relayed
from tests.request_log_helpers import rows_of
from tests.stub_openai import Stub

NOWHERE = "postgresql://unknown@127.0.0.1:9/nothing"


def dropped(reason: str) -> float:
    """The number of records that this process dropped for this reason."""
    name, labels = "gateway_request_log_dropped_total", {"reason": reason}
    return REGISTRY.get_sample_value(name, labels) or 0.0


def record(*, at: datetime | None = None) -> RequestRecord:
    """A complete record of a tenant's request."""
    made = RequestRecord.begin()
    made.tenant_id, made.livemode = uuid4(), True
    made.method, made.route, made.status, made.milliseconds = "GET", "/v1/models", 200, 1
    made.at = at or made.at
    return made


@asynccontextmanager
async def request_log(database: Database, *, max_waiting: int) -> AsyncIterator[RequestLog]:
    """A log of its own on this database."""
    opened = RequestLog(
        database, log_format="json", max_waiting=max_waiting, unauthenticated_per_minute=2
    )
    try:
        yield opened
    finally:
        await opened.close()


async def test_without_postgres_rows_wait_up_to_a_bound_and_are_counted_beyond() -> None:
    database = Database(NOWHERE, pool_size=2, connect_timeout_seconds=0.2)
    before = {reason: dropped(reason) for reason in ("rows_full", "shutdown")}
    async with request_log(database, max_waiting=3) as log:
        for _ in range(5):
            log.put(record())
        with pytest.raises(DatabaseUnavailable):
            await log.flush()
        log.put(record())
    await database.close()
    assert dropped("rows_full") - before["rows_full"] == 3
    assert dropped("shutdown") - before["shutdown"] == 3


async def test_requests_go_on_while_postgres_is_away_and_their_rows_come_later(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    assert settings.database_url is not None
    async with relayed(settings.database_url.get_secret_value()) as relay:
        changed = make_settings(
            relay.url,
            tmp_path,
            OPENAI_BASE_URL=settings.openai_base_url,
            migration_database_url=settings.database_url,
            admission_timeout_ms=800,
        )
        async with served_gateway(changed) as served, served.http(await served.key()) as http:
            assert (await post_image(http)).status_code == 200
            relay.silence()
            away = await post_image(http)
            assert away.status_code == 503
            with pytest.raises(DatabaseUnavailable):
                await served.gateway.request_log.flush()
            relay.reset()

            async def is_written() -> bool:
                found = await served.owner_sql("SELECT status FROM request_log ORDER BY at")
                return [row.status for row in found] == [200, 503]

            await eventually(is_written)


async def test_rows_are_written_by_themselves_a_moment_after_the_answer(served: Served) -> None:
    async with served.http(await served.key()) as http:
        await asyncio.gather(*(http.get("/v1/models") for _ in range(20)))

    async def is_written() -> bool:
        [row] = await served.owner_sql("SELECT count(*) AS number FROM request_log")
        return int(row.number) == 20

    await eventually(is_written)


async def test_pending_records_are_written_at_a_shutdown(settings: Settings) -> None:
    async with served_gateway(settings) as served, served.http(await served.key()) as http:
        await http.get("/v1/models")
    async with served_gateway(settings) as again:
        rows = await again.owner_sql("SELECT route FROM request_log")
    assert [row.route for row in rows] == ["/v1/models"]


async def test_a_batch_that_is_sent_twice_adds_its_rows_once(served: Served) -> None:
    database = served.gateway.database
    one = record()
    async with request_log(database, max_waiting=10) as log:
        for _ in range(2):
            log.put(one)
            await log.flush()
    assert [row["request_id"] for row in await rows_of(served)] == [one.request_id]


async def test_rows_of_a_clock_that_is_weeks_off_are_counted_and_make_no_partitions(
    served: Served,
) -> None:
    before, days = dropped("clock"), await partitions(served)
    async with request_log(served.gateway.database, max_waiting=10) as log:
        log.put(record(at=datetime.now(UTC) + timedelta(days=30)))
        log.put(record(at=datetime.now(UTC) - timedelta(days=30)))
        log.put(record())
    assert len(await rows_of(served)) == 1
    assert dropped("clock") - before == 2
    assert await partitions(served) - days <= {utc_today()}


async def test_a_flood_of_bad_keys_leaves_a_bounded_number_of_rows(settings: Settings) -> None:
    changed = settings.model_copy(update={"request_log_unauthenticated_per_minute": 5})
    before = dropped("unauthenticated")
    async with served_gateway(changed) as served:
        key = await served.key()
        async with served.http("igw_live_wrong") as http:
            answers = [await http.get("/v1/models") for _ in range(12)]
        async with served.http(key) as http:
            assert (await http.get("/v1/models")).status_code == 200
        rows = await rows_of(served)
    assert {answer.status_code for answer in answers} == {401}
    assert [row["status"] for row in rows] == [401] * 5 + [200]
    assert dropped("unauthenticated") - before == 7


async def test_days_are_made_ahead_and_dropped_after_their_time(settings: Settings) -> None:
    changed = settings.model_copy(update={"request_log_retention_days": 7})
    async with served_gateway(changed) as served:
        today = utc_today()
        for days in (6, 7, 8, 40):
            await served.owner_sql(
                "SELECT add_request_log_day(CAST(:day AS text)::date)",
                day=str(today - timedelta(days=days)),
            )
        await served.sweep()
        kept = {today - timedelta(days=days) for days in (6, 7)}
        ahead = {today + timedelta(days=days) for days in range(4)}
        assert await partitions(served) == kept | ahead
        await served.sweep()
        assert await partitions(served) == kept | ahead


def utc_today() -> date:
    return datetime.now(UTC).date()


async def partitions(served: Served) -> set[date]:
    """The days that have a partition."""
    rows = await served.owner_sql(
        "SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'request_log'::regclass"
        " AND c.relkind = 'r'"
    )
    return {row.day for row in rows}


async def test_two_sessions_that_make_the_same_day_at_once_make_it_once(served: Served) -> None:
    url = served.gateway.settings.database_url
    assert url is not None
    address = database_url(url.get_secret_value())
    engines = [create_engine(address, role=None) for _ in range(2)]
    make = text("SELECT add_request_log_day('2031-05-05')")
    async with engines[0].connect() as first, engines[1].connect() as second:
        await first.execute(make)
        late = asyncio.create_task(second.execute(make))
        await until_waiting(served, "add_request_log_day")
        await first.commit()
        await late
        await second.commit()
    for engine in engines:
        await engine.dispose()
    [made] = await served.owner_sql(
        "SELECT relrowsecurity FROM pg_class WHERE relname = 'request_log_20310505'"
    )
    assert made.relrowsecurity


async def until_waiting(served: Served, statement: str) -> None:
    """Return once Postgres says that a session waits for a lock with this statement."""
    async with asyncio.timeout(30):
        while not await served.owner_sql(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :like",
            like=f"%{statement}%",
        ):
            pass
