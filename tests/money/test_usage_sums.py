"""The sums that reports read are the ledger, to the nano-dollar, whatever is rolled up when."""

import asyncio
import csv
import io
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import REGISTRY

from gateway.billing import usage, usage_sums
from gateway.billing.usage_queries import (
    EVERYTHING,
    GROUP_FIELDS,
    GroupField,
    OwnDays,
    Period,
    ReportQuery,
    UsageFilters,
)
from gateway.tenancy import tenants
from tests.harness import Served
from tests.money_helpers import post_image
from tests.usage_helpers import (
    MODELS,
    READ,
    Owner,
    calls_of,
    expected_sums,
    reported_sums,
    write_calls,
)

ZONES = ("Europe/Vienna", "Asia/Kathmandu", "America/Havana", "Australia/Lord_Howe", "UTC")
TURNS = [
    # Summer time begins and ends in Vienna, in Havana at midnight, on Lord Howe by half an hour;
    # a leap day; the end of a year.
    *(datetime(2026, 3, 29, tzinfo=UTC), datetime(2025, 10, 26, tzinfo=UTC)),
    *(datetime(2026, 3, 8, 5, tzinfo=UTC), datetime(2025, 11, 2, 5, tzinfo=UTC)),
    *(datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2025, 10, 4, 15, tzinfo=UTC)),
    *(datetime(2024, 2, 29, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
]
LATE_TRUTH = """
WITH late AS (
    UPDATE reservation SET final_nano = final_nano + :more
    WHERE id IN (SELECT id FROM reservation WHERE state = 'posted' ORDER BY id LIMIT 20)
    RETURNING *
), line AS (
    INSERT INTO ledger (
        reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
        requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
        image_input_tokens, text_output_tokens, image_output_tokens
    )
    SELECT id, (SELECT max(seq) + 1 FROM ledger WHERE reservation_id = late.id),
        clock_timestamp(), admitted_at, tenant_id, livemode, api_key_id, user_id, requested_model,
        served_model, 'adjust', :more, 0, 0, 0, 0, 0, 0 FROM late
    RETURNING tenant_id, reservation_id, seq
)
INSERT INTO usage_pending (tenant_id, reservation_id, seq) SELECT * FROM line RETURNING seq
"""


async def owners_of(served: Served) -> list[Owner]:
    """Make tenants in different time zones, each with two keys, one of a user."""
    found = []
    for zone in ZONES:
        tenant_id = await served.tenant(zone.lower(), time_zone=zone)
        for user in (None, "alice"):
            key = await served.key(tenant_id=tenant_id, user=user)
            [row] = await served.owner_sql("SELECT user_id FROM api_key WHERE id = :id", id=key.id)
            found.append(Owner(tenant_id, key.id, row.user_id))
    return found


def any_moment(chance: random.Random) -> datetime:
    """Pick an instant near a turn: any minute, or the edge of a quarter, or of a zone's day."""
    moment = chance.choice(TURNS) + timedelta(minutes=chance.randrange(-2880, 2880))
    match chance.randrange(4):
        case 0:
            return moment
        case 1:
            moment = moment.replace(minute=moment.minute // 15 * 15)
        case _:
            local = moment.astimezone(ZoneInfo(chance.choice(ZONES)))
            moment = local.replace(hour=0, minute=0).astimezone(UTC)
    return moment + timedelta(microseconds=chance.choice([-1, 0, 0, 1]))


async def fill(served: Served, owners: list[Owner], chance: random.Random, each: int) -> None:
    for owner in owners:
        moments = [any_moment(chance) for _ in range(each)]
        await write_calls(served, owner, calls_of(owner, moments, chance))


def any_query(owners: list[Owner], chance: random.Random) -> ReportQuery:
    """Make a report request: any fields, filters, zone and bounds, of one tenant or of all."""
    owner = chance.choice([*owners, None])
    fields: list[GroupField] = chance.sample(GROUP_FIELDS, k=chance.randrange(4))
    turn, zone = chance.choice(TURNS), ZoneInfo(chance.choice(ZONES))
    day = turn.astimezone(zone).replace(hour=0, minute=0, tzinfo=None)
    whole = [(day + timedelta(days=n)).replace(tzinfo=zone) for n in (-2, -1, 0, 1, 2)]
    free = [any_moment(chance) for _ in range(3)]
    near = [turn + timedelta(minutes=chance.randrange(-2880, 2880)) for _ in range(2)]
    bounds = [
        *whole,
        *free,
        *near,
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=zone),
    ]
    start, end = sorted(
        (one.astimezone(UTC) for one in chance.sample(bounds, k=2)), key=datetime.timestamp
    )
    filters = UsageFilters(
        key_id=owner.api_key_id if owner and chance.random() < 0.2 else None,
        user_id=owner.user_id if owner and chance.random() < 0.2 else None,
        model=chance.choice([None, None, MODELS[0]]),
    )
    own_days = None
    if chance.random() < 0.3:
        own_days = OwnDays(start.date(), end.date())
    period = Period(start, end if end > start else start + timedelta(minutes=1))
    return ReportQuery(
        tenant_id=None if owner is None else owner.tenant_id,
        filters=filters,
        livemode=chance.random() < 0.9,
        period=period if own_days is None else own_days.period,
        group_by=tuple(fields),
        zone=chance.choice([None, None, chance.choice(ZONES)]) if own_days is None else None,
        own_days=own_days,
    )


async def check(
    served: Served, query: ReportQuery, lines: Sequence[Any], zones: dict[UUID, str]
) -> None:
    """Compare a report with the ledger's lines, summed in Python."""
    if query.tenant_id is None:
        async with served.gateway.database.operator() as session:
            report = await usage.report(session, query)
    else:
        async with served.gateway.database.tenant(query.tenant_id) as session:
            report = await usage.report(session, query)
    assert reported_sums(report) == expected_sums(lines, query, zones), query


@pytest.mark.parametrize("seed", range(3))
async def test_every_report_is_the_ledger_at_every_stage_of_the_sums(
    served: Served, seed: int
) -> None:
    chance = random.Random(seed)
    owners = await owners_of(served)
    database = served.gateway.database

    async def check_some() -> None:
        lines = await served.owner_sql(READ)
        zones = {row.id: row.time_zone for row in await served.owner_sql("SELECT * FROM tenant")}
        for _ in range(12):
            await check(served, any_query(owners, chance), lines, zones)
        await served.check_invariants()

    await fill(served, owners, chance, each=20)
    await check_some()
    await database.call("SELECT roll_up_usage(70)")  # a worker that is killed afterwards
    await check_some()
    assert await usage_sums.roll_up(database) == 20 * len(owners) - 70
    await check_some()
    await served.owner_sql(LATE_TRUTH, more=12_345)
    await fill(served, owners, chance, each=5)
    await check_some()
    assert await usage_sums.roll_up(database) == 20 + 5 * len(owners)
    moved, other = chance.sample(sorted({owner.tenant_id for owner in owners}), k=2)
    for tenant_id in (moved, other):
        async with database.operator() as session:
            [row] = await served.owner_sql("SELECT * FROM tenant WHERE id = :id", id=tenant_id)
            zone = chance.choice([zone for zone in ZONES if zone != row.time_zone])
            await tenants.set_settings(session, str(tenant_id), time_zone=zone)
    await fill(served, owners, chance, each=2)
    await check_some()
    async with database.operator() as session:
        lines = await usage_sums.recompute(session, moved)
    assert lines == await pending(served, moved)
    await check_some()
    assert await usage_sums.rebuild_moved_days(database) == 1
    await check_some()
    async with database.operator() as session:
        assert await usage_sums.count_pending(session) == lines + 2 * (len(owners) - 2)
    await usage_sums.roll_up(database)
    assert await usage_sums.rebuild_moved_days(database) == 0
    await check_some()
    async with database.operator() as session:
        assert await usage_sums.count_pending(session) == 0
        assert await usage_sums.differences(session) == []


async def test_a_report_reads_the_parts_of_quarters_at_both_ends(served: Served) -> None:
    owner, hour = Owner(served.tenant_id), datetime(2026, 3, 10, 10, tzinfo=UTC)
    moments = [hour + timedelta(minutes=minutes) for minutes in (5, 10, 17, 32, 40)]
    calls = calls_of(owner, moments, random.Random(1))
    for number, call in enumerate(calls):
        call |= {"livemode": True, "is_failed": False, "cost_nano": 10**number}
    await write_calls(served, owner, calls)
    await usage_sums.roll_up(served.gateway.database)
    found = {}
    for first, last in ((0, 45), (7, 45), (7, 35), (12, 31), (17, 32), (18, 33)):
        period = Period(hour + timedelta(minutes=first), hour + timedelta(minutes=last))
        query = ReportQuery(served.tenant_id, EVERYTHING, livemode=True, period=period)
        async with served.gateway.database.tenant(served.tenant_id) as session:
            found[first, last] = (await usage.report(session, query)).total.cost_nano
    assert found == {
        (0, 45): 11_111,
        (7, 45): 11_110,
        (7, 35): 1_110,
        (12, 31): 100,
        (17, 32): 100,
        (18, 33): 1_000,
    }


async def pending(served: Served, tenant_id: UUID) -> int:
    """Count a tenant's ledger lines that are queued: all of them, where it is to be recomputed."""
    lines = await served.owner_sql(READ)
    return sum(line.tenant_id == tenant_id for line in lines)


async def test_reports_are_right_while_calls_are_made_and_sums_are_written(served: Served) -> None:
    """Each report lies between the ledger before it and the ledger after it."""
    database = served.gateway.database
    done = asyncio.Event()

    async def call() -> None:
        async with served.http(await served.key()) as http:
            for _ in range(30):
                assert (await post_image(http)).status_code == 200
        done.set()

    async def add_up() -> int:
        rounds = 0
        while not done.is_set():
            await database.call("SELECT roll_up_usage(3)")
            rounds += 1
        return rounds

    async def report() -> int:
        now = datetime.now(UTC)
        period = Period(now - timedelta(days=1), now + timedelta(days=1))
        seen = set()
        while not done.is_set():
            before = await served.ledger_total()
            async with database.tenant(served.tenant_id) as session:
                query = ReportQuery(served.tenant_id, EVERYTHING, True, period, ("day",))  # noqa: FBT003
                found = await usage.report(session, query)
            assert before <= found.total.cost_nano <= await served.ledger_total()
            seen.add(found.total.cost_nano)
        return len(seen)

    _, rounds, seen = await asyncio.gather(call(), add_up(), report())
    assert rounds > 2
    assert seen > 2
    await served.check_invariants()


async def test_a_report_of_many_groups_is_a_file_or_pages(served: Served) -> None:
    key = await served.key()
    owner = Owner(served.tenant_id, key.id)
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    moments = [begin + timedelta(hours=hour) for hour in range(10_001)]
    calls = calls_of(owner, moments, random.Random(0))
    await write_calls(
        served, owner, [{**call, "is_failed": False, "livemode": True} for call in calls]
    )
    await usage_sums.roll_up(served.gateway.database)
    async with served.http(key) as http:
        first = await http.get("/v1/usage?start=2025-01-01&group_by=hour")
        after = first.json()["next_after"]
        second = await http.get(f"/v1/usage?start=2025-01-01&group_by=hour&after={after}")
        fewer = await http.get("/v1/usage?start=2025-01-01&group_by=day")
        most = await http.get("/v1/usage?start=2025-01-01T01:00:00&group_by=hour")
        table = await http.get("/v1/usage?start=2025-01-01&group_by=hour&format=csv")
        lines = await http.get("/v1/usage?start=2025-01-01&group_by=hour&format=jsonl")
    pages = [first.json(), second.json()]
    assert [(len(page["data"]), page["has_more"]) for page in pages] == [(10_000, True), (1, False)]
    assert {page["total"]["requests"] for page in pages} == {10_001}
    assert fewer.json()["total"]["requests"] == 10_001
    assert len(most.json()["data"]) == 10_000
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == 10_001
    objects = [json.loads(line) for line in lines.text.splitlines()]
    assert [{name: str(value) for name, value in one.items()} for one in objects] == rows
    assert lines.headers["content-type"] == "application/jsonl"


def alarms() -> float:
    return REGISTRY.get_sample_value("gateway_alarms_total", {"kind": "invariant_break"}) or 0


async def test_sums_that_differ_from_the_ledger_are_an_invariant_break(served: Served) -> None:
    async with served.http(await served.key()) as http:
        await post_image(http)
    await served.sweep()
    for table, what in (
        ("usage_slot", "I6 usage by slot is not the ledger"),
        ("usage_day", "I6 usage by day is not the ledger"),
        ("usage_owner_day", "I6 usage by owner day is not the ledger"),
    ):
        await served.owner_sql(f"UPDATE {table} SET amount_nano = amount_nano + 1")  # noqa: S608
        [found] = await served.owner_sql("SELECT what, id FROM invariant_break")
        assert (found.what, UUID(found.id)) == (what, served.tenant_id)
        await served.owner_sql("UPDATE sweep SET due_at = now() WHERE name = 'invariants'")
        before = alarms()
        for _ in range(2):  # once an hour, in one of the workers
            await served.sweep()
        assert alarms() == before + 1
        assert REGISTRY.get_sample_value("gateway_invariant_breaks") == 1
        await served.owner_sql(f"UPDATE {table} SET amount_nano = amount_nano - 1")  # noqa: S608
