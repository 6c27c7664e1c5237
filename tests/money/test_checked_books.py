"""The hourly check of the books reads what is new, and misses nothing of it."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import text

from gateway.billing import ledger, usage_sums
from gateway.billing.ledger import InvariantBreak
from gateway.billing.reconciliation import Resolution, resolve
from gateway.db.addresses import STATEMENT_TIMEOUT_MS, create_engine, database_url
from gateway.db.engine import DatabaseUnavailable
from gateway.money import NanoUsd
from tests.cli.test_cli_manners import RunningGateway, running_gateway
from tests.harness import Served
from tests.money_helpers import GENERATIONS, age_unknown, image_body, post_image
from tests.stub_openai import Fault, Stub

LEDGER_OPEN = "ALTER TABLE ledger DISABLE TRIGGER USER"
LEDGER_CLOSED = "ALTER TABLE ledger ENABLE TRIGGER USER"
# As if every call so far had been admitted two hours earlier.
MOVE_BACK = [
    LEDGER_OPEN,
    """
    UPDATE ledger l SET admitted_at = r.admitted_at - interval '2 hours'
    FROM reservation r WHERE r.id = l.reservation_id
    """,
    LEDGER_CLOSED,
    "UPDATE reservation SET admitted_at = admitted_at - interval '2 hours'",
    # In two steps: none may meet one that has not been moved yet.
    "UPDATE usage_slot SET slot = slot - interval '70000 days'",
    "UPDATE usage_slot SET slot = slot + interval '70000 days' - interval '2 hours'",
]
CHECKED = """
SELECT k.spent_nano, (SELECT sum(c.final_nano) FROM counted_call c WHERE c.key = k.period_key)
    AS counted_nano
FROM checked_period k
"""
NEWEST_FIRST = "ORDER BY admitted_at DESC LIMIT 1"
NEWEST = f"WHERE id = (SELECT id FROM reservation {NEWEST_FIRST})"  # noqa: S608 - a constant


async def buy(served: Served) -> None:
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 200
    await usage_sums.roll_up(served.gateway.database)


async def move_back(served: Served) -> None:
    for statement in MOVE_BACK:
        await served.owner_sql(statement)


async def check_all(served: Served) -> list[InvariantBreak]:
    named: list[str] = []
    found = await ledger.check_all(served.gateway.database, progress=named.append, remember=True)
    assert named == [*ledger.INVARIANTS, ledger.USAGE_INVARIANT]
    return list(found)


async def check_new(served: Served) -> set[str]:
    found = await ledger.new_breaks(served.gateway.database, remember=True)
    assert found is not None
    return {one.what for one in found}


@pytest.fixture
async def checked(served: Served) -> Served:
    """A gateway with a checked call of two hours ago, on budgets without end."""
    await served.budget("5", window="total")
    await served.house_budget("5", window="total")
    await buy(served)
    await move_back(served)
    assert await ledger.new_breaks(served.gateway.database, remember=True) is None
    assert await check_all(served) == []
    return served


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "UPDATE budget_period SET spent_nano = spent_nano + 1",
            {"I1 budget is not the sum of its reservations"},
        ),
        (
            "UPDATE house_budget_period SET spent_nano = spent_nano + 1 WHERE spent_nano > 0",
            {"I1 house budget is not the sum of its reservations"},
        ),
        (
            "UPDATE budget_period SET held_nano = held_nano + 1",
            {"I1 budget is not the sum of its reservations"},
        ),
        (
            "UPDATE budget_period SET ceiling_nano = 1",
            {"I1 budget overspent"},
        ),
        (
            f"UPDATE reservation SET held_nano = held_nano + 1 {NEWEST}",  # noqa: S608 - a constant
            {"I3 lines do not add up to the final cost"},
        ),
        (
            "UPDATE usage_slot SET images = images + 1 WHERE slot > now() - interval '1 hour'",
            {"I6 usage by slot is not the ledger"},
        ),
    ],
)
async def test_a_break_of_what_is_new_is_found_until_it_is_mended(
    checked: Served, statement: str, expected: set[str]
) -> None:
    await buy(checked)
    assert await check_new(checked) == set()
    await buy(checked)
    await checked.owner_sql(statement)
    assert await check_new(checked) == expected
    assert await check_new(checked) == expected
    for undone in (statement.replace("+ 1", "- 1"), statement.replace("= 1", "= 5000000000")):
        await checked.owner_sql(undone if undone != statement else "SELECT")
    assert await check_new(checked) == set()


@pytest.mark.parametrize("kind", ["hold", "void"])
async def test_a_second_line_that_begins_or_ends_a_new_call_is_a_break(
    checked: Served, kind: str
) -> None:
    await buy(checked)
    await checked.owner_sql(
        "INSERT INTO ledger SELECT (jsonb_populate_record(l, jsonb_build_object("  # noqa: S608
        f"'seq', 9, 'kind', '{kind}', 'amount_nano', 0, 'requests', 0, 'images', 0))).*"
        f" FROM ledger l WHERE l.reservation_id = (SELECT id FROM reservation {NEWEST_FIRST})"
        " LIMIT 1"
    )
    assert await check_new(checked) == {"I2 not exactly one hold line, or none that ends it"}
    for statement in (LEDGER_OPEN, "DELETE FROM ledger WHERE seq = 9", LEDGER_CLOSED):
        await checked.owner_sql(statement)
    assert await check_new(checked) == set()


async def test_a_line_that_waits_for_its_sum_is_no_break(checked: Served) -> None:
    await buy(checked)
    async with checked.http(await checked.key()) as http:
        assert (await post_image(http)).status_code == 200
    assert await check_new(checked) == set()
    await usage_sums.roll_up(checked.gateway.database)
    assert await check_new(checked) == set()


async def test_a_check_that_takes_too_long_is_given_up_at_its_own_limit(served: Served) -> None:
    url = served.gateway.settings.database_url
    assert url is not None
    engine = create_engine(database_url(url.get_secret_value()), role=None)
    async with engine.begin() as other:
        await other.execute(text("LOCK TABLE budget_period"))
        # Without a limit of its own, a statement is cancelled after ten seconds.
        async with asyncio.timeout(STATEMENT_TIMEOUT_MS / 1000 - 1):
            with pytest.raises(DatabaseUnavailable):
                await ledger.invariant_breaks(served.gateway.database, timeout_seconds=1)
    await engine.dispose()


async def test_what_was_checked_is_read_again_after_a_week_only(checked: Served) -> None:
    await checked.owner_sql("UPDATE reservation SET held_nano = held_nano + 1")
    await buy(checked)
    assert await check_new(checked) == set()
    assert [one.what for one in await check_all(checked)] == [
        "I3 lines do not add up to the final cost"
    ]
    await checked.owner_sql("UPDATE sweep SET whole_at = now() - interval '8 days'")
    assert await ledger.new_breaks(checked.gateway.database, remember=True) is None
    # Who only reads goes on with what is new.
    assert await ledger.new_breaks(checked.gateway.database, remember=False) == []
    await checked.owner_sql(
        "UPDATE reservation r SET held_nano = l.amount_nano FROM ledger l"
        " WHERE l.reservation_id = r.id AND l.kind = 'hold'"
    )


async def estimated_call(served: Served, stub: Stub) -> UUID:
    """Buy on a budget without end what comes to be estimated; return its id."""
    await served.budget("5", window="total")
    stub.faults.add(Fault("reset_after_headers"))
    async with served.http(await served.key()) as http:
        assert (await http.post(GENERATIONS, json=image_body())).status_code == 504
    await age_unknown(served)
    await served.sweep()
    [call] = await served.owner_sql("SELECT id FROM reservation")
    return UUID(str(call.id))


async def correct(served: Served, call: UUID) -> None:
    """Post the true cost of an estimated call."""
    async with served.gateway.database.operator() as session:
        await resolve(
            session,
            served.gateway.core.catalog.models,
            call,
            Resolution("post", "on the invoice", NanoUsd(100_000)),
        )


async def test_a_correction_of_a_checked_call_is_no_break(served: Served, stub: Stub) -> None:
    call = await estimated_call(served, stub)
    await served.house_budget("5", window="total")  # one that the correction does not concern
    await buy(served)
    await move_back(served)
    assert await check_all(served) == []
    await correct(served, call)
    await buy(served)
    assert await check_new(served) == set()
    await move_back(served)
    assert await check_new(served) == set()
    await buy(served)
    await served.owner_sql("UPDATE budget_period SET spent_nano = spent_nano - 1")
    assert await check_new(served) == {"I1 budget is not the sum of its reservations"}
    await served.owner_sql("UPDATE budget_period SET spent_nano = spent_nano + 1")


async def check_a_new_call(served: Served) -> None:
    """Check a call that is newer than the last check and older than a minute."""
    await buy(served)
    await move_back(served)
    # As if the check had been two hours ago too.
    await served.owner_sql("UPDATE sweep SET compared_to = compared_to - interval '2 hours'")
    assert await check_new(served) == set()
    sums = await served.owner_sql(CHECKED)
    assert [one.spent_nano for one in sums] == [one.counted_nano for one in sums]
    assert len(sums) >= 2


async def test_of_a_corrected_period_a_new_call_is_counted_once(served: Served, stub: Stub) -> None:
    call = await estimated_call(served, stub)
    await served.house_budget("5", window="total")
    await move_back(served)
    assert await check_all(served) == []
    await correct(served, call)
    await check_a_new_call(served)


async def test_each_check_adds_the_calls_since_the_one_before(checked: Served) -> None:
    for _ in range(2):
        await check_a_new_call(checked)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    with running_gateway() as gateway:
        yield gateway


def test_the_command_checks_the_whole_ledger_and_names_its_steps(running: RunningGateway) -> None:
    whole, new = running.command("ledger", "check"), running.command("ledger", "check", "--new")
    for ended in (whole, new):
        assert (ended.status, ended.out.strip()) == (
            0,
            "Budgets, reservations, ledger and sums agree.",
        )
    steps = [f"checking: {what} …" for what in (*ledger.INVARIANTS, ledger.USAGE_INVARIANT)]
    assert whole.err.splitlines() == steps
    assert running.command("ledger", "check", "--json").out.strip() == "[]"
