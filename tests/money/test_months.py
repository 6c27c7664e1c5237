"""Partitions by month: each call lies in one, whatever the clocks, and no month is ever missing."""

from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import pytest
from sqlalchemy.exc import DBAPIError

from gateway.billing import ledger, usage_sums
from tests.harness import Served, served_gateway
from tests.hosting_helpers import hold_request
from tests.stub_openai import Stub
from tests.usage_helpers import id_at

DAY = timedelta(days=1)
RESERVE = (
    "SELECT outcome FROM reserve(CAST(:requests AS jsonb), '00000000-0000-7000-8000-000000000001',"
    " false)"
)
BOUNDS = {
    "UTC": ("2024-03-01", "2024-02-29"),
    "Europe/Madrid": ("2026-03-29T03:00", "2026-10-25T02:00", "2026-11-01"),
    "America/New_York": ("2024-03-10T03:00", "2024-11-03T01:00", "2024-03-01"),
    "Pacific/Kiritimati": ("2024-02-29", "2025-01-01"),
}
"""Local times at which days, months or hours begin, are skipped or come twice; one leap day."""


async def reserve_at(served: Served, moment: datetime) -> str:
    """Reserve a call whose id was made at a moment; return the result."""
    [price] = await served.owner_sql("SELECT min(id) AS id FROM price")
    wanted = hold_request(
        served.tenant_id, price.id, id=str(id_at(moment)), credential="tenant", amount_nano=5
    )
    [row] = await served.owner_sql(RESERVE, requests=orjson.dumps([wanted]).decode())
    return str(row.outcome)


async def test_a_gateways_clock_may_be_six_days_off_and_not_eight(served: Served) -> None:
    now = datetime.now(UTC)
    outcomes = [await reserve_at(served, now + days * DAY) for days in (-8, -6, -1, 1, 6, 8)]
    assert outcomes == ["clock", "held", "held", "held", "held", "clock"]


async def test_every_moment_around_a_boundary_is_in_one_month_and_one_day(served: Served) -> None:
    moments = sorted(
        (zone, datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) + step)
        for zone, times in BOUNDS.items()
        for local in times
        for step in (-DAY, -timedelta(milliseconds=1), timedelta(0), timedelta(milliseconds=1), DAY)
    )
    for month in sorted({moment.date().replace(day=1) for _, moment in moments}):
        await served.owner_sql("SELECT add_month(CAST(:month AS date))", month=month)
    tenants = {zone: await served.tenant(zone, time_zone=zone) for zone in BOUNDS}
    calls = {}
    for zone, moment in moments:
        call = id_at(moment)
        calls[call] = (zone, moment)
        await served.owner_sql(CALL, id=call, tenant_id=tenants[zone], at=moment)
        await served.owner_sql(LINES, id=call)
    await usage_sums.roll_up(served.gateway.database)
    rows = await served.owner_sql(
        "SELECT reservation_id AS id, seq, tableoid::regclass::text AS month FROM ledger"
    )
    assert {(row.id, row.seq): row.month for row in rows} == {
        (call, seq): f"ledger_{moment:%Y%m}"
        for call, (_, moment) in calls.items()
        for seq in (0, 1)
    }
    sums = await served.owner_sql(
        "SELECT t.name AS zone, d.day, sum(d.calls)::int AS calls FROM usage_day d"
        " JOIN tenant t ON t.id = d.tenant_id GROUP BY 1, 2"
    )
    expected: dict[tuple[str, object], int] = {}
    for zone, moment in calls.values():
        day = (zone, moment.astimezone(ZoneInfo(zone)).date())
        expected[day] = expected.get(day, 0) + 1
    assert {(row.zone, row.day): row.calls for row in sums} == expected


async def test_a_line_without_a_month_is_refused_by_the_table_too(served: Served) -> None:
    await served.owner_sql(CALL, id=UUID(int=7), tenant_id=served.tenant_id, at=datetime.now(UTC))
    with pytest.raises(DBAPIError) as refused:
        await served.owner_sql(LINES, id=UUID(int=7))
    assert getattr(refused.value.orig, "sqlstate", None) == "23514"
    await served.owner_sql("DELETE FROM reservation")


async def test_months_are_made_ahead_and_again_if_one_is_missing(
    served: Served, stub: Stub
) -> None:
    database = served.gateway.database
    assert await ledger.add_missing_months(database) == 0
    ahead = f"{(datetime.now(UTC).replace(day=15) + 31 * DAY):%Y%m}"
    drop = f"DROP TABLE audit_{ahead}, ledger_{ahead}"
    await served.owner_sql(drop)
    assert await ledger.add_missing_months(database) == 1
    for one in ("audit", "ledger"):
        await served.owner_sql(f"DROP TABLE {one}_{ahead}")
        assert await ledger.add_missing_months(database) == 1
    await served.owner_sql(drop)
    async with served_gateway(served.gateway.settings) as other:  # starts
        rows = await other.owner_sql(
            "SELECT count(*) AS number FROM pg_inherits"
            " WHERE inhparent IN ('audit'::regclass, 'ledger'::regclass)"
        )
    assert [row.number for row in rows] == [8]


async def test_even_the_owner_cannot_edit_a_month_of_the_ledger_or_of_the_trail(
    served: Served,
) -> None:
    await served.owner_sql("SELECT add_month('2020-02-01')")
    for month in (f"{datetime.now(UTC):%Y%m}", "202002"):
        for table in ("ledger", "audit"):
            name = f"{table}_{month}"
            for change in ("DELETE FROM {}", "TRUNCATE {}", "UPDATE {} SET tenant_id = NULL"):
                with pytest.raises(DBAPIError) as refused:
                    await served.owner_sql(change.format(name))
                assert getattr(refused.value.orig, "sqlstate", None) == "42501", change


async def test_days_of_other_tables_are_not_guarded_like_months(served: Served) -> None:
    ahead = f"{(datetime.now(UTC).replace(day=15) + 31 * DAY):%Y%m}"
    await served.owner_sql("SELECT add_request_log_day(current_date)")
    await served.owner_sql(f"DROP TABLE audit_{ahead}, ledger_{ahead}")
    assert await ledger.add_missing_months(served.gateway.database) == 1
    rows = await served.owner_sql(
        "SELECT i.inhparent::regclass::text AS of, count(t.oid) = count(*) AS is_guarded"
        " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND c.relkind = 'r'"
        " LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'append_only' GROUP BY 1"
    )
    assert {row.of: row.is_guarded for row in rows} == {
        "audit": True,
        "ledger": True,
        "request_log": False,
    }


async def test_a_report_of_months_without_partitions_is_empty(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for group in ("day", "quality", "key,day"):
            query = f"start=2019-01-01&end=2019-03-01&group_by={group}"
            answer = await http.get(f"/v1/usage?{query}")
            assert (answer.status_code, answer.json()["data"]) == (200, [])


CALL = """
INSERT INTO reservation (
    id, tenant_id, livemode, periods, operation, requested_model, served_model, provider,
    credential, price_id, held_nano, state, final_nano, instance, admitted_at, deadline_at
)
SELECT :id, :tenant_id, true, '{}', 'generation', 'm', 'm', 'openai', 'house', min(id), 5, 'posted',
    5, gen_random_uuid(), CAST(:at AS timestamptz), CAST(:at AS timestamptz) FROM price
"""
LINES = """
WITH line AS (
    INSERT INTO ledger (
        reservation_id, seq, at, admitted_at, tenant_id, livemode, requested_model, served_model,
        kind, amount_nano, requests, images, text_input_tokens, image_input_tokens,
        text_output_tokens, image_output_tokens
    )
    SELECT r.id, s.seq, r.admitted_at, r.admitted_at, r.tenant_id, true, 'm', 'm',
        CASE s.seq WHEN 0 THEN 'hold' ELSE 'post' END, 5, s.seq, s.seq, 0, 0, 0, 0
    FROM reservation r CROSS JOIN (VALUES (0), (1)) s(seq) WHERE r.id = :id
    RETURNING tenant_id, reservation_id, seq
)
INSERT INTO usage_pending (tenant_id, reservation_id, seq)
SELECT tenant_id, reservation_id, seq FROM line WHERE seq = 1
"""
