"""Reports that need archived entries: refused where they do, and only there."""

import random
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from gateway.billing import archive, usage, usage_sums
from gateway.billing.usage_queries import EVERYTHING, GroupField, OwnDays, Period, ReportQuery
from gateway.errors import InvalidRequest
from tests.archive_helpers import (
    BEGIN,
    DAY,
    FEBRUARY,
    JANUARY,
    check_books,
    months_of,
    old_calls,
)
from tests.harness import Served
from tests.usage_helpers import Owner, calls_of, id_at, write_calls

FEBRUARY_BEGINS = datetime(2025, 2, 1, tzinfo=UTC)


async def test_a_report_that_cuts_the_quarter_of_the_last_archived_call_is_refused(
    served: Served,
) -> None:
    database = served.gateway.database
    await months_of(served, JANUARY)
    at = BEGIN + 12 * DAY  # the very beginning of a quarter
    await old_calls(served, Owner(served.tenant_id), [at], random.Random(1))
    await usage_sums.roll_up(database)
    await check_books(served)
    for month in (date(2024, 12, 1), JANUARY):
        await archive.archive_month(database, month)

    async def report(minutes: int) -> int:
        period = Period(BEGIN, at + timedelta(minutes=minutes))
        query = ReportQuery(served.tenant_id, EVERYTHING, True, period, ())  # noqa: FBT003
        async with database.operator() as session:
            return (await usage.report(session, query)).total.requests

    assert [await report(minutes) for minutes in (0, 15)] == [0, 1]
    with pytest.raises(InvalidRequest) as refused:
        await report(7)
    assert refused.value.code == "report_archived"


async def test_a_report_by_key_that_ends_within_an_archived_day_is_refused(served: Served) -> None:
    database = served.gateway.database
    await months_of(served, JANUARY)
    await old_calls(served, Owner(served.tenant_id), [BEGIN + 12 * DAY], random.Random(1))
    await usage_sums.roll_up(database)
    await check_books(served)
    for month in (date(2024, 12, 1), JANUARY):
        await archive.archive_month(database, month)

    async def report(end: datetime, tenant_id: UUID | None = served.tenant_id) -> int:
        query = ReportQuery(
            *(tenant_id, EVERYTHING), livemode=True, period=Period(BEGIN, end), group_by=("key",)
        )
        async with database.operator() as session:
            return (await usage.report(session, query)).total.requests

    async def check_is_refused(end: datetime, tenant_id: UUID | None) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await report(end, tenant_id)
        assert refused.value.code == "report_archived"

    midnight = BEGIN + 13 * DAY
    assert [await report(midnight), await report(midnight, None)] == [1, 1]
    for tenant_id in (served.tenant_id, None):
        await check_is_refused(BEGIN + 12.5 * DAY, tenant_id)
    await served.tenant("east", time_zone="Asia/Tokyo")  # where it is nine in the morning
    assert await report(midnight) == 1
    await check_is_refused(midnight, None)


async def test_own_days_after_an_archived_month_are_refused_only_where_a_zone_needs_it(
    served: Served,
) -> None:
    database = served.gateway.database
    await months_of(served, JANUARY, FEBRUARY)
    moments = [FEBRUARY_BEGINS - timedelta(hours=3), FEBRUARY_BEGINS + timedelta(hours=3)]
    owner = Owner(served.tenant_id)
    calls = calls_of(owner, moments, random.Random(1))
    for call, moment in zip(calls, moments, strict=True):
        call |= {"id": str(id_at(moment)), "livemode": True}
    await write_calls(served, owner, calls)
    await usage_sums.roll_up(database)
    await check_books(served)
    for month in (date(2024, 12, 1), JANUARY):
        await archive.archive_month(database, month)
    days = OwnDays(FEBRUARY, date(2025, 2, 28))

    async def report(*fields: GroupField) -> int:
        query = ReportQuery(
            *(None, EVERYTHING), livemode=True, period=days.period, group_by=fields, own_days=days
        )
        async with database.operator() as session:
            found = await usage.report(session, query)
        return found.total.requests + found.total.failed_requests

    assert [await report(), await report("key"), await report("size")] == [1, 1, 1]
    await served.tenant("east", time_zone="Pacific/Kiritimati")
    assert [await report(), await report("key")] == [1, 1]
    with pytest.raises(InvalidRequest) as refused:
        await report("size")
    assert refused.value.code == "report_archived"
