"""Events of house budgets: thresholds over all shards, and the first refusal of each period."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.billing import budgets
from gateway.money import NanoUsd, format_usd
from tests.harness import Served, owner_connections
from tests.house_helpers import WORKERS, House, make_house
from tests.money_helpers import until_waiting


@pytest.fixture
async def house(served: Served) -> House:
    return await make_house(served, WORKERS)


async def told(served: Served) -> list[tuple[str, int | None, str]]:
    """The operator's events, oldest first."""
    rows = await served.owner_sql(
        "SELECT type, data FROM event WHERE tenant_id IS NULL ORDER BY created_at"
    )
    assert all(row.data["owner"] == "house" for row in rows)
    return [(row.type, row.data.get("threshold_percent"), row.data["spent_usd"]) for row in rows]


async def test_the_operator_is_warned_by_the_total_of_all_shards(
    house: House,
) -> None:
    await house.limit(1000)
    for worker in range(8):
        held = await house.hold(worker, 100)
        assert held is not None
        await house.settle(worker, held, 64)
    await house.served.sweep()
    await house.served.sweep()
    assert await told(house.served) == [("budget.threshold_reached", 50, format_usd(8 * 64))]
    for _ in range(6):
        held = await house.hold(3, 80)
        assert held is not None
        await house.settle(3, held, 80)
    await house.served.sweep()
    assert await house.hold(5, 100) is None
    assert await house.hold(6, 100) is None
    assert await told(house.served) == [
        ("budget.threshold_reached", 50, format_usd(512)),
        ("budget.threshold_reached", 80, format_usd(992)),
        ("budget.exceeded", None, format_usd(992)),
    ]
    await house.close()


async def test_a_warning_of_one_budget_leaves_those_of_another_as_they_are(house: House) -> None:
    await house.limit(1000)
    await house.limit(1700, window="month")
    for amount in (810, 50):
        held = await house.hold(2, amount)
        assert held is not None
        await house.settle(2, held, amount)
        await house.served.sweep()
    await house.served.sweep()
    assert await told(house.served) == [
        ("budget.threshold_reached", 50, format_usd(810)),
        ("budget.threshold_reached", 80, format_usd(810)),
        ("budget.threshold_reached", 50, format_usd(860)),
    ]
    await house.close()


async def test_a_limit_that_was_raised_and_is_lowered_again_warns_again(house: House) -> None:
    held = None
    for limit in (1000, 2000, 1000):
        await house.limit(limit)
        if held is None:
            held = await house.hold(0, 500)
            assert held is not None
            await house.settle(0, held, 500)
        await house.served.sweep()
    assert await told(house.served) == [("budget.threshold_reached", 50, format_usd(500))] * 2
    await house.close()


async def test_no_share_of_a_limit_of_nothing_is_reached(house: House) -> None:
    await house.limit(1000)
    held = await house.hold(0, 100)
    assert held is not None
    await house.settle(0, held, 100)
    await house.limit(0)
    await house.served.sweep()
    assert await told(house.served) == []
    await house.close()


async def test_a_threshold_between_two_nano_dollars_is_reached_by_the_higher_one(
    house: House,
) -> None:
    await house.limit(101)
    warned = []
    for amount in (50, 1):
        held = await house.hold(0, amount)
        assert held is not None
        await house.settle(0, held, amount)
        await house.served.sweep()
        warned.append(await told(house.served))
    assert warned == [[], [("budget.threshold_reached", 50, format_usd(51))]]
    await house.close()


async def test_a_settlement_after_a_house_period_still_warns(house: House) -> None:
    await house.limit(1000)
    held = await house.hold(0, 500)
    assert held is not None
    await house.served.owner_sql(
        "UPDATE house_budget_period SET period_end = clock_timestamp() - interval '1 minute'"
    )
    await house.settle(0, held, 500)
    await house.served.sweep()
    await house.served.sweep()
    assert await told(house.served) == [("budget.threshold_reached", 50, format_usd(500))]
    await house.close()


async def test_a_raised_limit_is_the_one_that_warns_until_the_raise_ends(house: House) -> None:
    await house.limit(1000)
    async with house.served.gateway.database.operator() as session:
        [budget] = await budgets.list_budgets(session, None)
        until = datetime.now(UTC) + timedelta(hours=1)
        await budgets.raise_limit(session, None, budget.id, to_nano=NanoUsd(2000), until=until)
    held = await house.hold(0, 900)
    assert held is not None
    await house.settle(0, held, 900)
    await house.served.sweep()
    assert await told(house.served) == []  # 45 percent
    await house.close()


async def test_two_house_budgets_tell_each_their_own_first_refusal(house: House) -> None:
    await house.limit(1000)
    first = await house.hold(0, 950)
    await house.limit(500, window="month")  # begins with nothing used
    second = await house.hold(0, 20)
    assert first is not None
    assert second is not None
    await house.settle(0, first, 940)
    await house.settle(0, second, 10)
    await house.served.check_invariants()
    assert await house.hold(0, 100) is None
    await house.limit(5000)
    assert await house.hold(0, 500) is None
    assert await told(house.served) == [
        ("budget.exceeded", None, format_usd(950)),
        ("budget.exceeded", None, format_usd(10)),
    ]
    await house.close()


async def test_two_gateways_that_look_at_the_same_time_warn_once(house: House) -> None:
    await house.limit(1000)
    held = await house.hold(0, 500)
    assert held is not None
    await house.settle(0, held, 500)
    settings, look = house.served.gateway.settings, "SELECT alert_house_budgets()"
    async with owner_connections(settings, 3) as (first, second, watcher):
        async with first.transaction():
            await first.execute(look)
            late = asyncio.create_task(second.execute(look))
            await until_waiting(watcher, look, late)
        await late
    assert await told(house.served) == [("budget.threshold_reached", 50, format_usd(500))]
    await house.close()
