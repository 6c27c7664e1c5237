"""M15 and M16: every instant lies in exactly one period of a budget, in every time zone, and a call
is charged to the period in which it was admitted.
"""

import asyncio
from zoneinfo import available_timezones

import pytest

from gateway.errors import InvalidRequest
from gateway.money import format_usd
from tests.harness import Served
from tests.money_helpers import budget_rows, post_image, quote_nano
from tests.stub_openai import Fault, Stub

# Around each change of a zone's offset: the instants of four days, a quarter of an hour apart, and
# a microsecond before each. `local` is what a wall clock would call the period's first day.
CHECK = """
WITH zones AS MATERIALIZED (SELECT unnest(CAST(:zones AS text[])) AS zone),
days AS MATERIALIZED (
    SELECT d FROM generate_series(
        CAST(:first AS text)::timestamptz, CAST(:last AS text)::timestamptz, interval '1 day') d
),
changes AS MATERIALIZED (
    SELECT zone, d FROM (
        SELECT zone, d, d AT TIME ZONE zone AS here,
            lead(d AT TIME ZONE zone) OVER (PARTITION BY zone ORDER BY d) AS there
        FROM zones CROSS JOIN days
    ) x WHERE there - here <> interval '1 day'
),
instants AS MATERIALIZED (
    SELECT DISTINCT zone, i + step AS at FROM changes
    CROSS JOIN LATERAL generate_series(
        d - interval '26 hours', d + interval '50 hours', interval '30 minutes') i
    CROSS JOIN (VALUES (interval '0'), (interval '-1 microsecond')) s(step)
),
found AS MATERIALIZED (
    SELECT zone, period, at, starts_at, ends_at
    FROM instants CROSS JOIN unnest(CAST(:periods AS text[])) period
    CROSS JOIN LATERAL period_bounds(period, at, zone)
),
edges AS (SELECT DISTINCT zone, period, starts_at, ends_at FROM found)
SELECT 'outside' AS what, zone, period, at::text AS at FROM found
    WHERE NOT (starts_at <= at AND at < ends_at)
UNION ALL
SELECT 'another at its start', zone, period, e.starts_at::text FROM edges e
    CROSS JOIN LATERAL period_bounds(period, e.starts_at, zone) s
    WHERE (s.starts_at, s.ends_at) <> (e.starts_at, e.ends_at)
UNION ALL
SELECT 'another at its end', zone, period, e.ends_at::text FROM edges e
    CROSS JOIN LATERAL period_bounds(period, e.ends_at - interval '1 microsecond', zone) s
    WHERE (s.starts_at, s.ends_at) <> (e.starts_at, e.ends_at)
UNION ALL
SELECT 'a gap or an overlap behind it', zone, period, e.ends_at::text FROM edges e
    CROSS JOIN LATERAL period_bounds(period, e.ends_at, zone) s
    WHERE s.starts_at <> e.ends_at
"""


async def broken_periods(
    served: Served, zones: list[str], first: str, last: str, periods: list[str]
) -> list[tuple[str, ...]]:
    """Instants that lie in no period, or in more than one."""
    rows = await served.owner_sql(CHECK, zones=zones, first=first, last=last, periods=periods)
    return [tuple(row) for row in rows][:20]


async def distinct_zones(served: Served, first: str, last: str) -> list[str]:
    """One zone of each kind: those that read the same all the time are one."""
    rows = await served.owner_sql(
        "SELECT min(zone) FROM (SELECT zone, md5(string_agg((d AT TIME ZONE zone)::text, ','"
        " ORDER BY d)) AS clock FROM unnest(CAST(:zones AS text[])) zone CROSS JOIN"
        " generate_series(CAST(:first AS text)::timestamptz, CAST(:last AS text)::timestamptz,"
        " interval '1 day') d GROUP BY zone) x GROUP BY clock",
        zones=sorted(available_timezones() - set(await unknown_zones(served))),
        first=first,
        last=last,
    )
    return [row[0] for row in rows]


async def unknown_zones(served: Served) -> list[str]:
    """Zones of this machine that Postgres does not know."""
    rows = await served.owner_sql(
        "SELECT zone FROM unnest(CAST(:zones AS text[])) zone"
        " WHERE zone NOT IN (SELECT name FROM pg_timezone_names)",
        zones=sorted(available_timezones()),
    )
    return [row[0] for row in rows]


async def test_a_tenant_gets_no_zone_that_postgres_does_not_know(served: Served) -> None:
    """Each of its holds would fail, with the other holds in the same commit."""
    accepted = []
    for zone in [*await unknown_zones(served), "localtime", "Nowhere/City"]:
        try:
            await served.tenant(f"tenant of {zone}", time_zone=zone)
        except InvalidRequest:
            continue
        accepted.append(zone)
    assert accepted == []


async def test_every_instant_around_a_change_of_clocks_lies_in_exactly_one_period(
    served: Served,
) -> None:
    zones = await distinct_zones(served, "2025-12-01", "2027-12-01")
    found = await broken_periods(
        served, zones, "2025-12-01", "2027-12-01", ["day", "week", "month"]
    )
    assert found == []


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(1970, 2038, 4))
async def test_every_instant_around_every_change_of_clocks_ever_lies_in_exactly_one_period(
    first: int, served: Served
) -> None:
    start, end = f"{first}-01-01", f"{first + 4}-01-10"
    zones = await distinct_zones(served, start, end)
    found = await broken_periods(served, zones, start, end, ["day", "week", "month"])
    assert found == []


@pytest.mark.parametrize(
    ("zone", "first", "last"),
    [
        ("Pacific/Apia", "2011-12-20", "2012-01-10"),
        ("America/Sao_Paulo", "2017-10-01", "2018-03-01"),
        ("Asia/Beirut", "2026-01-01", "2027-12-31"),
        ("America/Havana", "2026-01-01", "2027-12-31"),
        ("Africa/Cairo", "2026-01-01", "2027-12-31"),
        ("America/Scoresbysund", "2023-01-01", "2026-12-31"),
        ("Antarctica/Troll", "2026-01-01", "2027-12-31"),
        ("Africa/Casablanca", "2026-01-01", "2027-12-31"),
        ("Asia/Pyongyang", "2015-01-01", "2018-12-31"),
        ("America/Juneau", "1867-10-01", "1867-11-01"),
        ("Asia/Manila", "1844-12-01", "1845-01-31"),
        ("Pacific/Kwajalein", "1993-08-01", "1993-09-10"),
    ],
)
async def test_days_that_are_skipped_doubled_or_start_late_belong_to_one_period(
    zone: str, first: str, last: str, served: Served
) -> None:
    found = await broken_periods(served, [zone], first, last, ["day", "week", "month"])
    assert found == []


async def test_a_period_is_in_the_tenants_time_zone(served: Served) -> None:
    tenant = await served.tenant("kiritimati", time_zone="Pacific/Kiritimati")
    key = await served.key(tenant_id=tenant)
    for window in ("day", "week", "month"):
        await served.budget("1", window=window, tenant_id=tenant)
    async with served.http(key) as http:
        assert (await post_image(http)).status_code == 200
    rows = await served.owner_sql(
        "SELECT b.period, p.period_start = date_trunc(b.period, now(), 'Pacific/Kiritimati') AS"
        " begins, p.period_end = date_trunc(b.period, now(), 'Pacific/Kiritimati') AT TIME ZONE"
        " 'Pacific/Kiritimati' + ('1 ' || b.period)::interval AS local_end,"
        " p.period_start <= now() AND now() < p.period_end AS is_now"
        " FROM budget_period p JOIN budget b ON b.id = p.budget_id ORDER BY b.id"
    )
    assert [(row.period, row.begins, row.is_now) for row in rows] == [
        ("day", True, True),
        ("week", True, True),
        ("month", True, True),
    ]


async def end_period_now(served: Served) -> None:
    """End the current periods, as midnight would."""
    await served.owner_sql("UPDATE budget_period SET period_end = clock_timestamp()")


async def test_a_call_is_charged_to_the_period_in_which_it_was_admitted(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http:
        await served.budget("1", window="day")
        asking = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        await end_period_now(served)
        assert (await post_image(http)).status_code == 200
        stub.release()
        assert (await asking).status_code == 200
    early, late = (line.cost_nano_usd for line in stub.bill)
    assert await budget_rows(served) == [
        ("tenant", 1_000_000_000, early, 0),
        ("tenant", 1_000_000_000, late, 0),
    ]


async def test_a_new_period_starts_with_the_whole_limit_at_the_end_of_the_last_one(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        await served.budget(format_usd(await quote_nano(http)), window="day")
        assert (await post_image(http)).status_code == 200
        assert (await post_image(http)).status_code == 402
        await end_period_now(served)
        assert (await post_image(http)).status_code == 200
        assert (await post_image(http)).status_code == 402
    assert len(stub.calls) == 2
    rows = await served.owner_sql(
        "SELECT period_start, period_end,"
        " current_periods(tenant_id, ARRAY[budget_id], period_start) = ARRAY[id] AS has_its_start"
        " FROM budget_period ORDER BY id"
    )
    assert rows[0].period_end == rows[1].period_start
    assert [row.has_its_start for row in rows] == [True, True]
    [last] = await served.owner_sql(
        "SELECT current_periods(tenant_id, ARRAY[budget_id], period_end) = ARRAY[id] AS has_its_end"
        " FROM budget_period ORDER BY id DESC LIMIT 1"
    )
    assert not last.has_its_end
    # The periods of another budget do not cut those of a new one.
    await served.budget("5", window="month")
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 402
    [month] = await served.owner_sql(
        "SELECT p.period_start FROM budget_period p JOIN budget b ON b.id = p.budget_id"
        " WHERE b.period = 'month'"
    )
    assert month.period_start <= rows[0].period_start


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
async def test_a_tenant_that_changes_its_time_zone_gets_no_period_twice(
    zone: str, served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        await served.budget(format_usd(await quote_nano(http)), window="day")
        assert (await post_image(http)).status_code == 200
        await served.owner_sql("UPDATE tenant SET time_zone = :zone", zone=zone)
        await served.budget("5", window="month")  # its first period is made beside the day's
        assert (await post_image(http)).status_code == 402
    assert len(stub.calls) == 1
    [overlaps] = await served.owner_sql(
        "SELECT count(*) FROM budget_period a JOIN budget_period b ON a.budget_id = b.budget_id"
        " AND a.id < b.id AND a.period_end > b.period_start AND b.period_end > a.period_start"
    )
    assert overlaps[0] == 0
