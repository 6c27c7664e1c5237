"""Archived months: entries go, what they add up to stays, and nothing is ever half done."""

import asyncio
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from gateway.billing import archive, ledger, usage, usage_sums
from gateway.billing.reconciliation import Resolution, resolve, show
from gateway.billing.usage_queries import (
    EVERYTHING,
    GROUP_FIELDS,
    GroupField,
    Period,
    ReportQuery,
)
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.money import NanoUsd
from gateway.tenancy import tenants
from tests.archive_helpers import (
    BEGIN,
    DAY,
    FEBRUARY,
    JANUARY,
    MARCH,
    check_books,
    months_of,
    old_calls,
)
from tests.harness import Served, owner_connections, process_environment
from tests.money_helpers import post_image
from tests.usage_helpers import (
    READ,
    Owner,
    expected_sums,
    id_at,
    reported_sums,
)

ZONES = ("UTC", "America/New_York", "Pacific/Kiritimati")
ARCHIVE_WAITS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE '%archive_month%' AND pid <> pg_backend_pid()
    AND wait_event_type IN ('Lock', 'Timeout')
"""


def months_ago(number: int) -> date:
    """The first day of a month before the present one."""
    month = datetime.now(UTC).date().replace(day=1)
    for _ in range(number):
        month = (month - DAY).replace(day=1)
    return month


async def settle_late(served: Served, tenant_id: UUID, call: UUID) -> str:
    """Report the actual cost of a call that was estimated or void; return the result."""
    late = {"tenant_id": tenant_id, "id": call, "kind": "post", "amount_nano": 17}
    [settled] = await served.owner_sql(
        "SELECT result FROM settle(CAST(:late AS jsonb))",
        late=json.dumps([late | {"outcome": "success"}], default=str),
    )
    return str(settled.result)


@pytest.fixture
async def year(served: Served) -> tuple[Served, list[Owner]]:
    """Tenants in three time zones with calls of three months, many at the turns of months."""
    await months_of(served, JANUARY, FEBRUARY, MARCH)
    chance = random.Random(7)
    owners = []
    for zone in ZONES:
        tenant_id = await served.tenant(zone.lower(), time_zone=zone)
        for user in (None, "alice"):
            key = await served.key(tenant_id=tenant_id, user=user)
            [row] = await served.owner_sql("SELECT user_id FROM api_key WHERE id = :id", id=key.id)
            owners.append(Owner(tenant_id, key.id, row.user_id))
    turns = [BEGIN + timedelta(days=days) for days in (31, 59, 89)]
    for owner in owners:
        moments = [BEGIN + timedelta(minutes=chance.randrange(89 * 1440)) for _ in range(30)]
        moments += [
            chance.choice(turns) + timedelta(minutes=chance.randrange(-1500, 1500))
            for _ in range(30)
        ]
        await old_calls(served, owner, moments, chance)
    estimated = await served.owner_sql("SELECT * FROM reservation WHERE state = 'posted_est'")
    for row in estimated[::2]:
        assert await settle_late(served, row.tenant_id, row.id) == "ok"  # a third line
    await usage_sums.roll_up(served.gateway.database)
    await check_books(served)
    return served, owners


def any_query(owners: Sequence[Owner], chance: random.Random) -> ReportQuery:
    owner = chance.choice([*owners, None])
    zone = ZoneInfo(chance.choice(ZONES))
    start = datetime(2025, chance.randrange(1, 4), chance.randrange(1, 28), tzinfo=zone)
    if chance.random() < 0.2:
        start += timedelta(minutes=chance.randrange(1440))
    fields: list[GroupField] = chance.sample(GROUP_FIELDS, k=chance.randrange(4))
    return ReportQuery(
        tenant_id=None if owner is None else owner.tenant_id,
        filters=EVERYTHING,
        livemode=chance.random() < 0.9,
        period=Period(start.astimezone(UTC), start.astimezone(UTC) + chance.randrange(1, 60) * DAY),
        group_by=tuple(fields),
        zone=chance.choice([None, None, zone.key]),
    )


async def compare(
    served: Served, owners: Sequence[Owner], lines: Sequence[Any], chance: random.Random
) -> tuple[int, int]:
    """Compare reports with lines of all months; return the numbers of right and refused ones."""
    zones = {row.id: row.time_zone for row in await served.owner_sql("SELECT * FROM tenant")}
    right = refused = 0
    for _ in range(60):
        query = any_query(owners, chance)
        try:
            async with served.gateway.database.operator() as session:
                found = reported_sums(await usage.report(session, query))
        except InvalidRequest as error:
            refused += error.code == "report_archived"
            continue
        expected = expected_sums(lines, query, zones)
        assert found == expected, query
        right += bool(expected)
    return right, refused


async def entries(served: Served) -> list[Any]:
    return list(await served.owner_sql(READ))


@pytest.mark.parametrize("seed", range(2))
async def test_reports_are_the_same_after_months_were_archived_or_say_what_is_gone(
    year: tuple[Served, list[Owner]], seed: int
) -> None:
    served, owners = year
    chance = random.Random(seed)
    database = served.gateway.database
    lines = await entries(served)
    right, refused = await compare(served, owners, lines, chance)
    assert (right > 30, refused) == (True, 0)
    for month in (date(2024, 12, 1), JANUARY, FEBRUARY):
        await archive.archive_month(database, month)
        await served.check_invariants()
        right, refused = await compare(served, owners, lines, chance)
        assert right > 20
    assert refused > 0
    kept = await entries(served)
    assert 0 < len(kept) < len(lines)
    for owner in owners:
        async with database.operator() as session:
            await usage_sums.recompute(session, owner.tenant_id)
    await usage_sums.roll_up(database)
    await served.check_invariants()
    assert (await compare(served, owners, lines, chance))[0] > 20


async def test_days_move_with_a_time_zone_also_in_archived_months(
    year: tuple[Served, list[Owner]],
) -> None:
    served, owners = year
    database = served.gateway.database
    lines = await entries(served)
    await archive.archive_month(database, date(2024, 12, 1))
    await archive.archive_month(database, JANUARY)
    moved = owners[0].tenant_id
    async with database.operator() as session:
        await tenants.set_settings(session, str(moved), time_zone="Asia/Kathmandu")
    assert await usage_sums.rebuild_moved_days(database) == 1
    await served.check_invariants()
    zones = {moved: "Asia/Kathmandu"}
    zone = ZoneInfo(zones[moved])
    period = Period(*(datetime(2024 + n, 12, 1, tzinfo=zone).astimezone(UTC) for n in range(2)))
    async with database.tenant(moved) as session:
        query = ReportQuery(moved, EVERYTHING, True, period, ("day", "model"))  # noqa: FBT003
        assert reported_sums(await usage.report(session, query)) == expected_sums(
            lines, query, zones
        )
        by_key = ReportQuery(moved, EVERYTHING, True, period, ("key",))  # noqa: FBT003
        assert reported_sums(await usage.report(session, by_key)) == expected_sums(
            lines, by_key, zones
        )


async def test_sums_of_a_former_zone_stay_marked_where_months_are_archived(served: Served) -> None:
    database = served.gateway.database
    await months_of(served, JANUARY)
    owners = [Owner(served.tenant_id), Owner(await served.tenant("other"))]
    chance = random.Random(5)
    await old_calls(served, owners[0], [BEGIN + 5 * DAY], chance)
    await usage_sums.roll_up(database)
    await check_books(served)
    await archive.archive_month(database, date(2024, 12, 1))
    await archive.archive_month(database, JANUARY)
    async with database.operator() as session:
        for owner in owners:
            await tenants.set_settings(session, str(owner.tenant_id), time_zone="Asia/Kathmandu")
            await usage_sums.recompute(session, owner.tenant_id)
    [stale] = await served.owner_sql("SELECT tenant_id FROM usage_stale")
    assert stale.tenant_id == served.tenant_id


async def test_a_month_is_archived_only_when_nothing_can_need_its_entries(served: Served) -> None:
    database = served.gateway.database
    chance = random.Random(1)
    await months_of(served, JANUARY, FEBRUARY, MARCH)
    owner = Owner(served.tenant_id)

    async def obstacle(month: date) -> str | None:
        async with database.operator() as session:
            months = await archive.list_months(session)
        [found] = [one for one in months if one.month == month]
        return found.obstacle

    async def refusal(month: date) -> str:
        with pytest.raises((Conflict, NotFound)) as refused:
            await archive.archive_month(database, month)
        return refused.value.code

    now = datetime.now(UTC).date().replace(day=1)
    last = (now - DAY).replace(day=1)
    assert [await obstacle(month) for month in (now, last)] == ["recent", "recent"]
    assert await obstacle(JANUARY) == "earlier"
    assert await obstacle(date(2024, 12, 1)) == "unchecked"
    assert await refusal(date(2024, 12, 1)) == "month_not_archived"
    await check_books(served)
    await archive.archive_month(database, date(2024, 12, 1))
    assert await refusal(date(2024, 12, 1)) == "not_found"
    call, _ = await old_calls(served, owner, [BEGIN + 3 * DAY, BEGIN + 9 * DAY], chance)
    assert await obstacle(JANUARY) == "unsummed"
    await usage_sums.roll_up(database)
    checked = "UPDATE sweep SET compared_to = :to WHERE name = 'invariants'"
    beyond = BEGIN + (31 + 7) * DAY
    await served.owner_sql(checked, to=beyond - timedelta(microseconds=1))
    assert await obstacle(JANUARY) == "unchecked"
    await served.owner_sql(checked, to=beyond)
    assert await obstacle(JANUARY) is None
    await served.owner_sql(
        "UPDATE reservation SET state = 'unknown', final_nano = NULL WHERE id = :id", id=call
    )
    assert await obstacle(JANUARY) == "open"
    await served.owner_sql(
        "UPDATE reservation r SET state = 'posted', final_nano = l.amount_nano FROM ledger l"
        " WHERE l.reservation_id = r.id AND l.seq = 1"
    )
    await served.owner_sql("UPDATE reservation SET held_nano = held_nano + 1")
    with pytest.raises(Exception, match="do not add up"):
        await archive.archive_month(database, JANUARY)
    await served.owner_sql("UPDATE reservation SET held_nano = held_nano - 1")
    await served.owner_sql("DELETE FROM usage_slot WHERE slot < :at", at=BEGIN + 6 * DAY)
    with pytest.raises(Exception, match="1 of 2 sums of usage_slot are missing"):
        await archive.archive_month(database, JANUARY)
    async with database.operator() as session:
        await usage_sums.recompute(session, served.tenant_id)
    await usage_sums.roll_up(database)
    await served.owner_sql("UPDATE usage_day SET images = images - 1")
    await old_calls(served, owner, [BEGIN + 70 * DAY], chance)  # to be summed up, of another month
    await archive.archive_month(database, JANUARY)  # the sums of all are checked by I6
    assert [one.what for one in await ledger.invariant_breaks(database)] == [
        "I6 usage by day is not the ledger"
    ]
    await served.owner_sql("UPDATE usage_day SET images = images + 1 WHERE NOT is_archived")
    await usage_sums.roll_up(database)
    await served.check_invariants()


async def test_the_costs_of_archived_calls_are_final(served: Served) -> None:
    database = served.gateway.database
    await months_of(served, JANUARY, FEBRUARY)
    chance, owner = random.Random(3), Owner(served.tenant_id)
    calls = await old_calls(served, owner, [BEGIN + n * DAY for n in range(5, 25)], chance)
    await old_calls(served, owner, [BEGIN + 40 * DAY], chance)  # whose lines are kept
    await usage_sums.roll_up(database)
    await check_books(served)
    await archive.archive_month(database, date(2024, 12, 1))
    await archive.archive_month(database, JANUARY)
    rows = {
        row.state: row.id
        for row in await served.owner_sql("SELECT id, state FROM reservation")
        if row.id in calls
    }
    estimated, failed = rows["posted_est"], rows["void"]
    before = await served.owner_sql("SELECT * FROM reservation ORDER BY id")
    models = served.gateway.core.catalog.models
    for call in (estimated, failed):
        async with database.operator() as session:
            shown = await show(session, models, call)
            assert (shown.id, shown.lines) == (call, ())
            with pytest.raises(Conflict) as refused:
                await resolve(session, models, call, Resolution("post", "invoice", NanoUsd(1)))
        assert refused.value.code == "call_archived"
        assert await settle_late(served, served.tenant_id, call) == "archived"
    assert await served.owner_sql("SELECT * FROM reservation ORDER BY id") == before
    await served.check_invariants()
    await served.owner_sql(
        "UPDATE reservation SET final_nano = final_nano + 1 WHERE id = :id", id=estimated
    )
    assert [one.what for one in await ledger.invariant_breaks(database)] == [
        "I3 archived lines do not add up to the final costs"
    ]
    await served.owner_sql(
        "UPDATE reservation SET final_nano = final_nano - 1 WHERE id = :id", id=estimated
    )


async def command(served: Served, *words: str, **environment: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "gateway", *words],
        env=os.environ | process_environment(served.gateway.settings) | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


async def test_a_worker_killed_while_it_archives_leaves_nothing_half_done(
    year: tuple[Served, list[Owner]],
) -> None:
    served, owners = year
    await served.budget("5", window="total")
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 200
    lines = await entries(served)
    environment = os.environ | process_environment(served.gateway.settings)
    environment["GATEWAY_LEDGER_MONTHS"] = "3"
    async with owner_connections(served.gateway.settings, 2) as (reader, watcher):
        reading = reader.transaction()
        await reading.start()
        await reader.fetch("SELECT 1 FROM ledger LIMIT 1")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "maintain"),
            env=environment,
            stderr=asyncio.subprocess.DEVNULL,
        )
        while not await watcher.fetchval(ARCHIVE_WAITS):
            assert process.returncode is None
            await asyncio.sleep(0)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        # Calls go on meanwhile, and after Postgres has noticed that the worker is gone.
        async with served.http(await served.key()) as http:
            assert (await post_image(http)).status_code == 200
        await reading.rollback()
        while await watcher.fetchval(ARCHIVE_WAITS):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    assert len(await entries(served)) == len(lines) + 1
    assert (await served.owner_sql("SELECT count(*) FROM archived_month"))[0][0] == 0
    await served.check_invariants()
    status, out, err = await command(served, "maintain", "--json", GATEWAY_LEDGER_MONTHS="3")
    assert (status, json.loads(out)) == (0, {"breaks": []}), err
    months = await served.owner_sql("SELECT month, lines FROM archived_month ORDER BY month")
    assert [row.month for row in months] == [
        date(2024, 12, 1),
        *(JANUARY, FEBRUARY, MARCH, date(2025, 4, 1)),
    ]
    assert sum(row.lines for row in months) == len(lines) - 1 + 60 * len(owners)  # with holds
    assert len(await entries(served)) == 2
    await served.check_invariants()


async def test_a_month_is_exported_before_it_is_archived(
    year: tuple[Served, list[Owner]],
) -> None:
    served, _ = year
    status, out, _ = await command(served, "ledger", "export", "2025-02")
    rows = list(csv.DictReader(io.StringIO(out)))
    low, high = id_at(BEGIN + 31 * DAY), id_at(BEGIN + 59 * DAY)
    stored = await served.owner_sql("SELECT * FROM ledger")
    wanted = [
        row for row in stored if low.int >> 80 <= row.reservation_id.int >> 80 < high.int >> 80
    ]
    assert status == 0
    assert len(rows) == len(wanted) > 0
    assert sum(int(row["amount_nano"]) for row in rows) == sum(row.amount_nano for row in wanted)
    for month in ("2024-12", "2025-01"):
        assert (await command(served, "ledger", "archive", month))[0] == 0
    status, out, err = await command(served, "ledger", "months", "--json")
    assert status == 0, err
    states = {one["month"]: (one["is_archived"], one["obstacle"]) for one in json.loads(out)}
    assert states["2025-01-01"] == (True, None)
    assert states["2025-02-01"] == (False, None)
    assert states["2025-03-01"] == (False, "earlier")
    for words in (("export", "2025-01"), ("archive", "2025-01"), ("archive", "January")):
        status, out, err = await command(served, "ledger", *words)
        assert (status, out, err.startswith("Refused: ")) == (1, "", True)
    await served.check_invariants()


async def test_months_of_the_audit_trail_are_dropped_after_their_time(served: Served) -> None:
    two_ago, three_ago = (months_ago(number) for number in (2, 3))  # the latter ended two ago
    await months_of(served, JANUARY, three_ago, two_ago)
    await served.owner_sql(
        "INSERT INTO audit (id, at, actor_type, actor_id, action, object_id)"
        " VALUES (gen_random_uuid(), '2025-01-10', 'gateway', 'gateway', 'price.added', '1')"
    )
    database = served.gateway.database
    assert await archive.retain(database, ledger_months=None, audit_months=None) == (
        archive.Retained()
    )
    kept = await archive.retain(database, ledger_months=None, audit_months=1200)
    assert kept.audit_months == 0
    dropped = await archive.retain(database, ledger_months=None, audit_months=2)
    assert dropped.audit_months == 4
    rows = await served.owner_sql("SELECT min(at) AS first FROM audit")
    assert rows[0].first is None or rows[0].first > datetime.now(UTC) - 100 * DAY
    async with served.http(await served.key()) as http:  # calls and their audit trail go on
        assert (await post_image(http)).status_code == 200
