"""Usage reports: which sums they read, which groups they show, in which order, and their limits."""

import asyncio
import random
import resource
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from gateway.billing import usage, usage_sums
from gateway.billing.usage_queries import (
    EVERYTHING,
    GroupField,
    Period,
    ReportQuery,
    UsageFilters,
)
from gateway.config import Settings
from gateway.db.engine import OperatorSession
from gateway.domain import new_id
from gateway.errors import InvalidRequest
from tests.admin_helpers import answered
from tests.harness import Served, error_of
from tests.money.test_money_crashes import locked, waiting_for_locks
from tests.money_helpers import age_unknown, eventually, post_image
from tests.stub_openai import Fault, Stub
from tests.usage_helpers import Owner, calls_of, write_calls

VIENNA = ZoneInfo("Europe/Vienna")
BEGIN = datetime(2026, 3, 27, tzinfo=VIENNA)
WAITING_STATUS = """
CREATE OR REPLACE FUNCTION usage_status(p_state text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7);
    RETURN p_state;
END $$
"""
"""A function that is called for each row while a report is read, and waits."""
REFUSING_STATUS = """
CREATE OR REPLACE FUNCTION usage_status(p_state text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RAISE EXCEPTION 'conflict with recovery' USING ERRCODE = 'serialization_failure';
END $$;
"""
"""The same, refused as by a standby that drops the rows which the report reads."""
DAY, SLOT, OWNER_DAY = 1, 1_000, 1_000_000
"""Added to the cost of every sum of a kind, so that a report shows how many of each it read."""

ALIKE = {
    "livemode": True,
    "operation": "edit",
    "model": "gpt-image-2",
    "provider": "openai",
    "credential": "house",
    "cost_nano": 100,
    "is_failed": False,
    "is_estimated": False,
}
"""The fields that the calls of a test share."""


def report_query(
    tenant_id: UUID,
    *group_by: GroupField,
    begin: datetime = BEGIN,
    end: datetime = BEGIN + timedelta(days=4),
    zone: str | None = None,
    filters: UsageFilters = EVERYTHING,
) -> ReportQuery:
    return ReportQuery(
        tenant_id,
        filters,
        livemode=True,
        period=Period(begin.astimezone(UTC), end.astimezone(UTC)),
        group_by=group_by,
        zone=zone,
    )


async def statement_limit(session: OperatorSession) -> object:
    return await session.scalar(text("SHOW statement_timeout"))


async def report(served: Served, query: ReportQuery) -> usage.UsageReport:
    assert query.tenant_id is not None
    async with served.gateway.database.tenant(query.tenant_id) as session:
        return await usage.report(session, query)


async def write(served: Served, moments: Sequence[datetime], **same: object) -> Owner:
    """Write a call of 100 nano-USD at each moment, of a tenant in Vienna and one of its users."""
    tenant_id = await served.tenant("vienna", time_zone="Europe/Vienna")
    key = await served.key(tenant_id=tenant_id, user="ann")
    [row] = await served.owner_sql("SELECT user_id FROM api_key WHERE id = :id", id=key.id)
    owner = Owner(tenant_id, key.id, row.user_id)
    calls = [{**call, **ALIKE, **same} for call in calls_of(owner, moments, random.Random(0))]
    await write_calls(served, owner, calls)
    return owner


async def test_a_report_reads_the_coarsest_sums_that_can_answer_it(served: Served) -> None:
    """Days where they are whole, else quarters; days of key and user; lines for what images are."""
    days = [BEGIN + timedelta(days=number) for number in range(4)]
    hours = (0, 9, 23)
    owner = await write(served, [day + timedelta(hours=hour) for day in days for hour in hours])
    await usage_sums.roll_up(served.gateway.database)
    for table, mark in (("usage_day", DAY), ("usage_slot", SLOT), ("usage_owner_day", OWNER_DAY)):
        changed = f"UPDATE {table} SET amount_nano = amount_nano + {mark}"  # noqa: S608 - constants
        await served.owner_sql(changed)
    of_key = UsageFilters(key_id=owner.api_key_id)
    of_user = UsageFilters(user_id=owner.user_id)
    of_model = UsageFilters(model="gpt-image-2")
    tenant, morning = owner.tenant_id, BEGIN + timedelta(hours=6)
    evening = BEGIN + timedelta(days=3, hours=18)
    expected = {
        report_query(tenant): 4 * DAY,
        report_query(tenant, "day", "model"): 4 * DAY,
        report_query(tenant, "month", filters=of_model): 4 * DAY,
        report_query(tenant, "key"): 4 * OWNER_DAY,
        report_query(tenant, "day", "user"): 4 * OWNER_DAY,
        report_query(tenant, "day", filters=of_key): 4 * OWNER_DAY,
        report_query(tenant, filters=of_user): 4 * OWNER_DAY,
        report_query(tenant, "hour"): 12 * SLOT,
        report_query(tenant, "day", zone="Asia/Kathmandu"): 12 * SLOT,
        # The first and the last day are not whole: nine and eleven, and midnight and nine.
        report_query(tenant, "day", begin=morning, end=evening): 2 * DAY + 4 * SLOT,
        report_query(tenant, "key", begin=morning, end=evening): 2 * OWNER_DAY,
        report_query(tenant, "hour", begin=morning, end=evening): 10 * SLOT,
        report_query(tenant, "hour", "key"): 0,
        report_query(tenant, "quality"): 0,
        report_query(tenant, "size", filters=of_user): 0,
    }
    found = {}
    for query in expected:
        answer = await report(served, query)
        found[query] = answer.total.cost_nano - 100 * answer.total.requests
    assert found == expected
    for table, mark in (("usage_day", DAY), ("usage_slot", SLOT), ("usage_owner_day", OWNER_DAY)):
        restored = f"UPDATE {table} SET amount_nano = amount_nano - {mark}"  # noqa: S608
        await served.owner_sql(restored)


async def test_every_sum_grows_by_what_is_rolled_up_later(served: Served) -> None:
    database = served.gateway.database
    owner = await write(served, [BEGIN])
    await usage_sums.roll_up(database)
    call = {**calls_of(owner, [BEGIN], random.Random(1))[0], **ALIKE, "cost_nano": 11}
    for _ in range(2):
        await write_calls(served, owner, [call | {"id": str(new_id())}])
        await usage_sums.roll_up(database)
    for fields in (("day",), ("hour",), ("day", "key")):
        found = await report(served, report_query(owner.tenant_id, *fields))
        assert found.total == usage.UsageRow(
            (), requests=3, images=6, input_tokens=9, output_tokens=21, cost_nano=122
        )
    calls = await served.owner_sql(
        "SELECT calls FROM usage_slot UNION ALL SELECT calls FROM usage_day"
        " UNION ALL SELECT calls FROM usage_owner_day"
    )
    assert [row.calls for row in calls] == [3, 3, 3]


async def test_free_and_failed_calls_are_groups_too(served: Served) -> None:
    owner = await write(served, [BEGIN], cost_nano=0)
    failed = calls_of(owner, [BEGIN + timedelta(days=1)], random.Random(0))
    await write_calls(
        served, owner, [{**failed[0], "livemode": True, "is_failed": True, "cost_nano": 7}]
    )
    found = await report(served, report_query(owner.tenant_id, "day"))
    assert found.rows == (
        usage.UsageRow(
            ("2026-03-27",),
            requests=1,
            images=2,
            input_tokens=3,
            output_tokens=7,
        ),
        # The tokens are those that the test has written.
        replace(found.rows[1], group=("2026-03-28",), requests=0, cost_nano=0, failed_requests=1),
    )
    assert found.total.failed_requests == 1


async def test_groups_are_in_one_order_whether_settled_or_not(served: Served, stub: Stub) -> None:
    """By their texts, those without one last."""
    for name, is_settled in (("ben", True), ("ann", False), ("cid", True), (None, True)):
        if not is_settled:
            stub.faults.add(Fault("reset_after_headers"))
        async with served.http(await served.key(user=name)) as http:
            await post_image(http)
            found = answered(await http.get("/v1/usage?group_by=user"))
    assert [row["user"] for row in found["data"]] == ["ann", "ben", "cid", None]
    [first, *_] = found["data"]
    held, count = first.pop("open_usd"), first.pop("open_requests")
    assert (float(held) > 0, count) == (True, 1)
    assert set(first.values()) == {"ann", first["user_id"], 0, "0.000000000"}


async def test_estimates_count_in_the_period_of_their_admission_and_for_their_tenant(
    served: Served,
) -> None:
    begin, end = BEGIN, BEGIN + timedelta(days=1)
    tick = timedelta(microseconds=1)
    owner = await write(served, [begin - tick, begin, end - tick, end], is_estimated=True)
    other = await served.tenant("other", time_zone="UTC")
    found = await report(served, report_query(owner.tenant_id, "day", begin=begin, end=end))
    assert [(row.group, row.requests, row.estimated_nano) for row in found.rows] == [
        (("2026-03-27",), 2, 200)
    ]
    utc = await report(
        served, report_query(owner.tenant_id, "day", begin=begin, end=end, zone="UTC")
    )
    assert [(row.group, row.estimated_nano) for row in utc.rows] == [
        (("2026-03-26",), 100),
        (("2026-03-27",), 100),
    ]
    assert (await report(served, report_query(other, "day"))).total.estimated_nano == 0


async def test_calls_are_counted_by_what_became_of_them(served: Served, stub: Stub) -> None:
    """In every report, and as groups."""
    async with served.http(await served.key()) as http:
        stub.faults.add(Fault("reset_after_headers"))
        await post_image(http)
        await age_unknown(served)
        await served.sweep()
        await post_image(http)
        stub.faults.add(Fault("status", status=400))
        await post_image(http)
        stub.faults.add(Fault("reset_after_headers"))
        await post_image(http)
        whole = answered(await http.get("/v1/usage?start=2020-01-01"))["total"]
        found = answered(await http.get("/v1/usage?start=2020-01-01&group_by=status"))
    counts = ("requests", "failed_requests", "estimated_requests", "open_requests")
    assert [whole[name] for name in counts] == [2, 1, 1, 1]
    assert {row["status"]: [row[name] for name in counts] for row in found["data"]} == {
        "charged": [1, 0, 0, 0],
        "estimated": [1, 0, 1, 0],
        "failed": [0, 1, 0, 0],
        "unknown": [0, 0, 0, 1],
    }
    assert found["total"] == whole


async def test_pages_of_a_report_have_each_group_once_and_the_total_of_all(served: Served) -> None:
    """With groups of ids that are null, and of calls that are not settled."""
    owner = await write(served, [BEGIN + timedelta(hours=hour) for hour in range(25)])
    await write_calls(
        served,
        Owner(owner.tenant_id),
        calls_of(
            Owner(owner.tenant_id),
            [BEGIN + timedelta(hours=hour) for hour in range(7)],
            random.Random(1),
        ),
    )
    query = report_query(owner.tenant_id, "user", "day", "hour", "model")
    whole = await report(served, query)
    for limit in (1, 4, len(whole.rows) - 1, len(whole.rows)):
        rows: list[usage.UsageRow] = []
        after = None
        while True:
            async with served.gateway.database.tenant(owner.tenant_id) as session:
                page = await usage.report(session, query, after=after, limit=limit)
            assert page.total == whole.total
            rows += page.rows
            if not page.has_more:
                break
            assert len(page.rows) == limit
            after = usage.parse_cursor(usage.cursor_of(page.rows[-1].group), query)
        assert tuple(rows) == whole.rows


@pytest.mark.parametrize("after", ["x", "bnVsbA", "WzFd", "W10", "WyJhIiwiYiJd", "\u00e9"])
async def test_a_position_of_another_report_is_refused(served: Served, after: str) -> None:
    async with served.http(await served.key()) as http:
        answer = await http.get("/v1/usage", params={"group_by": "model", "after": after})
        file = await http.get(
            "/v1/usage",
            params={"group_by": "model", "after": usage.cursor_of(("a",)), "format": "csv"},
        )
    assert (answer.status_code, error_of(answer)["param"]) == (400, "after")
    assert (file.status_code, error_of(file)["param"]) == (400, "after")


async def test_a_file_that_the_disk_has_no_room_for_is_a_clear_refusal(served: Served) -> None:
    owner = await write(served, [BEGIN + timedelta(hours=hour) for hour in range(80)])
    async with served.http(await served.key(tenant_id=owner.tenant_id)) as http:
        path = "/v1/usage?start=2026-03-27&end=2026-04-01&group_by=hour&format=csv"
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
        try:
            refused = await http.get(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        answer = await http.get(path)
    assert (refused.status_code, error_of(refused)["code"]) == (503, "temporary_files_full")
    assert answer.status_code == 200


async def test_an_export_ends_at_its_limit(served: Served) -> None:
    owner = await write(served, [BEGIN + timedelta(hours=hour) for hour in range(5)])
    query = report_query(owner.tenant_id, "hour")

    async def exported(most: int) -> int:
        async with served.gateway.database.tenant(owner.tenant_id) as session:
            return len([row async for row in usage.export(session, query, max_rows=most)])

    assert await exported(5) == 5
    with pytest.raises(InvalidRequest) as refused:
        await exported(4)
    assert refused.value.code == "report_too_large"


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [("pg_cancel_backend", 400, "report_too_large"), ("pg_terminate_backend", 503, None)],
    ids=["out of time", "connection lost"],
)
async def test_a_report_that_takes_too_long_is_refused_as_too_large(
    settings: Settings, served: Served, end: str, status: int, code: str | None
) -> None:
    async with (
        served.http(await served.key()) as http,
        locked(settings, "LOCK TABLE usage_day IN ACCESS EXCLUSIVE MODE"),
    ):
        asked = asyncio.create_task(http.get("/v1/usage?group_by=day"))
        await eventually(lambda: waiting_for_locks(served))
        # A statement beyond its time limit is cancelled in the same way.
        await served.owner_sql(
            f"SELECT {end}(pid) FROM pg_stat_activity"  # noqa: S608 - one of two names
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        answer = await asked
    assert answer.status_code == status
    assert code in {None, error_of(answer)["code"]}


async def test_work_on_all_sums_may_take_longer_than_a_request(served: Served) -> None:
    async with served.gateway.database.operator() as session:
        assert await usage_sums.recompute(session, served.tenant_id) == 0
        assert await statement_limit(session) == "10min"
    async with served.gateway.database.operator() as session:
        assert await usage_sums.differences(session) == []
        assert await statement_limit(session) == "10min"


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        ("pg_cancel_backend", 400, "report_too_large"),
        ("pg_terminate_backend", 503, "database_unavailable"),
    ],
    ids=["out of time", "connection lost"],
)
async def test_a_report_that_ends_while_its_rows_are_read_is_refused_as_before_them(
    settings: Settings, served: Served, end: str, status: int, code: str
) -> None:
    key = await served.key()
    owner = Owner(served.tenant_id, key.id)
    calls = calls_of(owner, [BEGIN] * 3, random.Random(0))
    await write_calls(served, owner, [{**call, "livemode": True} for call in calls])
    await served.owner_sql(WAITING_STATUS)
    async with (
        served.http(key) as http,
        locked(settings, "SELECT pg_advisory_xact_lock(7)"),
    ):
        path = "/v1/usage?group_by=status&start=2026-03-01&end=2026-04-01"
        asked = asyncio.create_task(http.get(path))
        await eventually(lambda: waiting_for_locks(served))
        await served.owner_sql(
            f"SELECT {end}(pid) FROM pg_stat_activity"  # noqa: S608 - one of two names
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        answer = await asked
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


async def test_a_report_that_loses_against_other_work_while_its_rows_are_read_can_be_repeated(
    served: Served,
) -> None:
    key = await served.key()
    owner = Owner(served.tenant_id, key.id)
    calls = calls_of(owner, [BEGIN], random.Random(0))
    await write_calls(served, owner, [{**call, "livemode": True} for call in calls])
    await served.owner_sql(REFUSING_STATUS)
    async with served.http(key) as http:
        answer = await http.get("/v1/usage?group_by=status&start=2026-03-01&end=2026-04-01")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "database_unavailable")
