"""House budgets: eight shards of one limit together admit exactly what the limit admits."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text
from structlog.testing import capture_logs

from gateway.billing import budgets
from gateway.billing.call_terms import read_terms
from gateway.billing.reserving import ClockSkewed
from gateway.db.addresses import create_engine, database_url
from gateway.domain import new_id
from gateway.money import format_usd
from tests.admin_helpers import admin, answered, created, refusal
from tests.harness import Served, error_of, owner_connections
from tests.house_helpers import WORKERS, House, make_house
from tests.money_helpers import post_image, quote_nano, until_states, until_waiting
from tests.stub_openai import Fault, Stub
from tests.usage_helpers import id_at

PATH = "/budgets"


@pytest.fixture
async def house(served: Served) -> House:
    return await make_house(served, WORKERS)


STEPS = st.one_of(
    st.tuples(st.just("hold"), st.integers(0, 7), st.integers(1, 400)),
    # In percents of the hold: a bound may have been wrong.
    st.tuples(st.just("settle"), st.integers(0, 7), st.integers(0, 100) | st.integers(0, 900)),
    st.tuples(st.just("limit"), st.just(0), st.integers(0, 1500)),
    st.tuples(st.sampled_from(budgets.ENFORCEMENTS), st.just(0), st.just(0)),
)


@hypothesis_settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=5, max_size=30))
async def test_shards_admit_exactly_what_one_number_would(
    house: House, steps: list[tuple[str, int, int]]
) -> None:
    await house.start_anew()
    await house.limit(1000)
    limit, used, enforcement = 1000, 0, "hard"
    held: list[tuple[UUID, int]] = []
    for what, number, amount in steps:
        if what == "limit":
            await house.limit(amount)
            limit = amount
        elif what in budgets.ENFORCEMENTS:
            await house.limit(limit, what)
            enforcement = what
        elif what == "hold":
            reservation_id = await house.hold(number, amount)
            fits = used + amount <= limit or enforcement == "soft"
            assert (reservation_id is not None) == fits, (used, amount, limit)
            if reservation_id is not None:
                held.append((reservation_id, amount))
                used += amount
        elif held:
            reservation_id, holds = held.pop(number % len(held))
            cost = holds * amount // 100
            await house.settle(number, reservation_id, cost)
            used += cost - holds
    await house.served.check_invariants()
    await house.close()


async def test_each_worker_holds_on_a_shard_of_its_own(house: House) -> None:
    await house.limit(1000)
    assert await house.hold(0, 1) is not None  # divides the limit
    for worker in range(8):
        assert await house.hold(worker, 10 + worker) is not None
    rows = await house.served.owner_sql("SELECT held_nano FROM house_budget_period ORDER BY shard")
    assert [row.held_nano for row in rows] == [11, *range(11, 18)]
    await house.close()


async def test_workers_that_start_together_are_spread_over_the_shards(served: Served) -> None:
    together = await make_house(served, [new_id() for _ in range(12)])
    await together.limit(1000)
    for worker in range(12):
        assert await together.hold(worker, 10) is not None
    rows = await served.owner_sql("SELECT 1 FROM house_budget_period WHERE held_nano > 0")
    assert len(rows) > 2
    await together.close()


async def test_workers_on_shards_of_their_own_admit_together_what_the_limit_does(
    house: House,
) -> None:
    await house.limit(1000)
    for round_ in range(6):
        held = await asyncio.gather(*(house.hold(worker % 8, 30) for worker in range(80)))
        admitted = [one for one in held if one is not None]
        assert len(admitted) == 1000 // 30, round_
        await asyncio.gather(
            *(house.settle(number % 8, one, 0) for number, one in enumerate(admitted))
        )
    await house.served.check_invariants()
    await house.close()


async def test_one_worker_spends_what_the_limit_admits_and_no_more(house: House) -> None:
    await house.limit(1000)
    for _ in range(100):
        reservation_id = await house.hold(0, 10)
        assert reservation_id is not None
        await house.settle(0, reservation_id, 10)
    assert await house.hold(0, 1) is None
    await house.close()


@pytest.mark.parametrize("distance", [timedelta(days=-8), timedelta(days=8)])
async def test_nothing_is_reserved_by_a_clock_that_is_a_week_off(
    house: House, distance: timedelta
) -> None:
    elsewhen = id_at(datetime.now(UTC) + distance)
    with capture_logs() as lines, pytest.raises(ClockSkewed):
        await house.hold(0, 1, reservation_id=elsewhen)
    assert [line["kind"] for line in lines if line["event"] == "alarm"] == ["clock_skewed"]
    assert await house.served.owner_sql("SELECT 1 FROM reservation") == []
    await house.close()


async def test_an_overdraft_of_one_shard_counts_for_that_shard_alone(house: House) -> None:
    await house.limit(1000)
    first = await house.hold(0, 100)
    assert first is not None
    await house.settle(0, first, 950)  # more than was held: the bound was wrong
    [breach] = await house.served.owner_sql("SELECT sum(breach_nano) FROM house_budget_period")
    assert breach[0] == 850
    assert await house.hold(1, 100) is None
    await house.limit(2000)
    assert await house.hold(0, 1) is not None
    await house.limit(2000, "soft")
    assert await house.hold(0, 5000) is not None
    await house.limit(2000, "hard")
    assert [await house.hold(worker, 100) for worker in range(8)] == [None] * 8
    await house.close()


async def test_two_house_budgets_of_the_same_limit_have_each_their_own_rest(house: House) -> None:
    await house.limit(1000)
    assert await house.hold(0, 900) is not None
    await house.limit(1000, window="month")  # begins with nothing used
    assert await house.hold(0, 1) is not None  # divides both
    held = [await house.hold(number % 8, 9) for number in range(24)]
    assert sum(one is not None for one in held) == 11
    soft = await house.served.owner_sql("SELECT sum(soft_nano) FROM house_budget_period")
    assert soft[0][0] == 0  # nothing was held beyond a hard limit
    await house.served.check_invariants()
    await house.close()


async def test_no_number_of_changes_makes_an_old_allotment_valid_again(house: House) -> None:
    await house.limit(1000)
    held = [await house.hold(0, amount) for amount in (1, 10, 10)]  # the first divides the limit
    await house.limit(1000, "soft")
    await house.limit(1000, "hard")
    for reservation_id in held[1:]:
        assert reservation_id is not None
        await house.settle(0, reservation_id, 490)  # more than was held
    assert [await house.hold(worker, 100) for worker in range(8)] == [None] * 8
    await house.close()


async def test_a_tenant_with_its_own_key_does_not_wait_for_the_houses_shards(
    house: House,
) -> None:
    await house.limit(1000)
    assert await house.hold(0, 1) is not None
    url = house.served.gateway.settings.database_url
    assert url is not None
    engine = create_engine(database_url(url.get_secret_value()), role=None)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1 FROM house_budget_period FOR UPDATE"))
        assert await house.hold(0, 100, credential="tenant") is not None
    async with engine.begin() as connection:
        await connection.execute(
            text("SELECT 1 FROM house_budget_period WHERE shard = 5 FOR UPDATE")
        )
        waiting = asyncio.create_task(house.hold(0, 500))
        for _ in range(3):
            assert await house.hold(0, 100, credential="tenant") is not None
        assert not waiting.done()
    assert await waiting is not None
    await engine.dispose()
    await house.close()


async def test_a_reservation_whose_request_was_cancelled_meanwhile_is_voided(house: House) -> None:
    await house.limit(1000)
    assert await house.hold(0, 1) is not None
    async with owner_connections(house.served.gateway.settings, 2) as (other, watcher):
        async with other.transaction():
            await other.execute("SELECT 1 FROM house_budget_period FOR UPDATE")
            late = asyncio.create_task(house.hold(0, 100))
            await until_waiting(watcher, "FROM reserve(", late)
            late.cancel()
            await asyncio.wait([late])
        await until_states(house.served, {"held": 1, "void": 1})
    await house.close()


async def test_a_call_with_the_tenants_own_key_leaves_the_houses_budget_in_any_batch(
    house: House,
) -> None:
    await house.limit(1000)
    batch = await asyncio.gather(
        house.hold(1, 100), house.hold(1, 600), house.hold(1, 600, credential="tenant")
    )
    assert None not in batch
    [held] = await house.served.owner_sql("SELECT sum(held_nano) AS nano FROM house_budget_period")
    assert held.nano == 700
    await house.close()


async def test_the_previous_releases_call_of_reserve_is_never_told_to_retry(house: House) -> None:
    await house.limit(1000)
    assert await house.hold(0, 1) is not None
    wanted = {
        "id": str(new_id()),
        "tenant_id": str(house.served.tenant_id),
        "livemode": True,
        "credential": "house",
        "amount_nano": 1000,
    }
    rows = await house.served.owner_sql(
        "SELECT outcome, owner, available"
        " FROM reserve(CAST(:wanted AS jsonb), CAST(:worker AS uuid), true)",
        wanted=orjson.dumps([wanted]).decode(),
        worker=str(WORKERS[1]),
    )
    assert [tuple(row) for row in rows] == [("budget_exceeded", "house", 999)]
    await house.close()


async def test_a_budget_of_the_house_is_made_raised_lowered_and_removed(served: Served) -> None:
    body = {"window": "month", "limit_usd": "5000", "time_zone": "Europe/Madrid"}
    until = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}"
    async with admin(served) as http:
        made = created(await http.put(PATH, json=body))
        path = f"{PATH}/{made['id']}"
        soft = answered(
            await http.put(
                PATH,
                json={
                    "window": "month",
                    "limit_usd": "10",
                    "enforcement": "soft",
                    "alert_percents": [90, 10, 90],
                },
            )
        )
        hundred = {"limit_usd": "100", "until": until}
        raised = answered(await http.put(f"{path}/raise", json=hundred))
        assert answered(await http.get(PATH))["data"] == [raised]
        ended = answered(await http.delete(f"{path}/raise"))
        assert (await http.delete(path)).status_code == 204
        assert answered(await http.get(PATH))["data"] == []
        assert refusal(await http.delete(path)).code == "not_found"
    assert made == {
        "id": made["id"],
        "object": "budget",
        "owner": "house",
        "livemode": True,
        "time_zone": "Europe/Madrid",
        "window": "month",
        "limit_usd": "5000.00",
        "raise": None,
        "enforcement": "hard",
        "alert_percents": [50, 80, 100],
        "spent_usd": "0.000000000",
        "held_usd": "0.000000000",
        "remaining_usd": "5000.000000000",
        "period_start": made["period_start"],
        "resets_at": made["resets_at"],
    }
    changed = {
        "limit_usd": "10.00",
        "remaining_usd": "10.000000000",
        "enforcement": "soft",
        "alert_percents": [10, 90],
    }
    assert soft == made | changed
    assert raised == soft | {
        "raise": {"limit_usd": "100.00", "until": until},
        "remaining_usd": "100.000000000",
    }
    assert ended == soft


async def test_the_houses_budget_binds_calls_with_its_credential_and_no_others(
    served: Served, stub: Stub
) -> None:
    live, test = await served.key(), await served.key(livemode=False)
    owner = await served.tenant("with a key of its own")
    own = await served.key(tenant_id=owner)
    async with admin(served) as http:
        created(await http.put(PATH, json={"window": "day", "limit_usd": "0.000001"}))
    async with served.http(own) as http:
        await http.put("/v1/credentials/openai", json={"secret": "sk-of-this-tenant-alone"})
        assert (await post_image(http)).status_code == 200
    async with served.http(test) as http:
        assert (await post_image(http)).status_code == 200
    async with served.http(live) as http:
        refused = await post_image(http)
    error = error_of(refused)
    assert (refused.status_code, error["code"]) == (402, "budget_exceeded")
    assert "0.000001" not in refused.text  # the house's limit is not disclosed
    assert refused.headers["x-should-retry"] == "false"
    assert [call.key for call in stub.calls] == ["sk-of-this-tenant-alone"]


async def test_a_new_house_period_begins_where_the_last_one_ended(house: House) -> None:
    await house.limit(1000, window="month")
    assert await house.hold(0, 500) is not None
    await house.served.owner_sql(
        "UPDATE house_budget_period SET period_end = now() - interval '1 second'"
    )
    assert await house.hold(1, 700) is not None
    assert await house.hold(1, 700) is None
    rows = await house.served.owner_sql(
        "SELECT shard, array_agg(period_start ORDER BY period_start) AS starts,"
        " array_agg(period_end ORDER BY period_start) AS ends"
        " FROM house_budget_period GROUP BY 1"
    )
    assert {(len(row.starts), row.starts[1] == row.ends[0]) for row in rows} == {(2, True)}
    [last] = await house.served.owner_sql(
        "SELECT current_house_periods(ARRAY[shard], ARRAY[budget_id], period_end) = ARRAY[id]"
        " AS has_its_end FROM house_budget_period ORDER BY id DESC LIMIT 1"
    )
    assert not last.has_its_end
    await house.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "body",
    [
        {"window": "month"},
        {"window": "year", "limit_usd": "5"},
        {"window": "month", "limit_usd": "-1"},
        {"window": "month", "limit_usd": "1000000001"},
        {"window": "month", "limit_usd": "5", "time_zone": "Europe/Atlantis"},
        {"window": "month", "limit_usd": "5", "enforcement": "gentle"},
        {"window": "month", "limit_usd": "5", "alert_percents": [0]},
        {"window": "month", "limit_usd": "5", "alert_percents": [101]},
        {"window": "month", "limit_usd": "5", "alert_percents": [True]},
        {"window": "month", "limit_usd": "5", "alert_percents": list(range(1, 12))},
        {"window": "month", "limit_usd": "5", "livemode": False},
        {"window": "month", "limit_usd": "5", "user_id": str(WORKERS[0])},
    ],
)
async def test_an_invalid_house_budget_is_refused(
    unchanged: Served, body: dict[str, object]
) -> None:
    async with admin(unchanged) as http:
        assert refusal(await http.put(PATH, json=body)).status == 400
        assert answered(await http.get(PATH))["data"] == []


async def test_tenants_see_no_budget_of_the_house(served: Served, stub: Stub) -> None:
    stub.faults.add(Fault(hold=True))
    async with admin(served) as http:
        created(await http.put(PATH, json={"window": "day", "limit_usd": "1"}))
    async with served.http(await served.key()) as http:
        waiting = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        quote = await quote_nano(http)
        assert (await http.get("/v1/budgets")).json()["data"] == []
        async with admin(served) as operator:
            [budget] = answered(await operator.get(PATH))["data"]
        stub.release()
        assert (await waiting).status_code == 200
    assert budget["held_usd"] == format_usd(quote)
    assert budget["remaining_usd"] == format_usd(10**9 - quote)


async def test_a_period_lies_between_its_neighbours_of_another_time_zone(served: Served) -> None:
    await served.budget("5")
    await served.house_budget("5")
    first, cut = "2030-03-01 00:00+00", "2030-03-10 00:00+00"
    for table, add in (
        ("budget_period", "add_period(b.tenant_id, b.id, %s) FROM budget b"),
        ("house_budget_period", "add_house_period(b.id, %s) FROM house_budget b"),
    ):
        await served.owner_sql("SELECT " + add % f"'{first}'")
        await served.owner_sql(
            f"UPDATE {table} SET period_end = '{cut}' WHERE period_start = '{first}'"  # noqa: S608
        )
        await served.owner_sql("SELECT " + add % f"'{cut}'")
        listed = (
            f"SELECT DISTINCT period_start, period_end FROM {table}"  # noqa: S608 - constants
            f" WHERE period_start >= '{first}' ORDER BY 1"
        )
        rows = await served.owner_sql(listed)
        assert [(one.period_start.day, one.period_end.day) for one in rows] == [(1, 10), (10, 1)]
        # The earlier one, had it not existed yet, ends where the later one begins.
        await served.owner_sql(f"DELETE FROM {table} WHERE period_start = '{first}'")  # noqa: S608
        await served.owner_sql("SELECT " + add % f"'{first}'")
        assert await served.owner_sql(listed) == rows


async def test_the_terms_of_a_call_name_the_houses_budget_of_any_shard(house: House) -> None:
    await house.limit(1000)
    for worker in (0, 5):
        call = await house.hold(worker, 100)
        assert call is not None
        async with house.served.gateway.database.operator() as session:
            terms = await read_terms(session, house.served.tenant_id, call)
        assert [(hold.owner, hold.limit_nano) for hold in terms.holds] == [("house", 1000)]
    await house.close()
