"""M7, M18 and M20: a reservation resolves once, the ledger cannot be changed, and it suffices to
rebuild every budget.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from gateway.billing import prices
from gateway.billing.reconciliation import Resolution, Verdict, resolve
from gateway.billing.reservations import Reservations
from gateway.billing.reserving import ReservationRequest
from gateway.billing.settlement import Settlement
from gateway.billing.sweeping import sweep
from gateway.db.addresses import create_engine, database_url
from gateway.db.engine import APP_ROLE, AS_OPERATOR, AS_TENANT
from gateway.domain import Caller, Price, Quote, new_id
from gateway.errors import BudgetExceeded, Conflict
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome, Usage
from tests.harness import GPT2, Served
from tests.money_helpers import TERMS, post_image
from tests.stub_openai import Fault, Stub

HOLD = 1_000
"""Of every reservation here, in nano-USD; a post may be above it."""

# The events of a reservation: an outcome with its cost, or a deadline.
EVENTS = st.one_of(
    st.tuples(st.just(Outcome.SUCCESS), st.integers(0, 2 * HOLD)),
    st.tuples(st.just(Outcome.SUCCESS_NO_USAGE), st.just(HOLD)),
    st.tuples(st.sampled_from([Outcome.NOT_SENT, Outcome.REJECTED, Outcome.AMBIGUOUS]), st.just(0)),
    st.tuples(st.just("late"), st.just(0)),
    st.tuples(st.just("sweep"), st.just(0)),
    st.tuples(st.just("operator posts"), st.integers(0, 2 * HOLD)),
    st.tuples(st.sampled_from(["operator voids", "operator accepts"]), st.just(0)),
)
Event = tuple[Outcome | str, int]
COUNTED = "counted estimate"
"""An estimate of a call of which some tokens are known."""
VERDICTS: dict[str, Verdict] = {
    "operator posts": "post",
    "operator voids": "void",
    "operator accepts": "accept",
}


class Books:
    """The reservation writers of two gateways on one database, without the gateways."""

    def __init__(self, served: Served, caller: Caller, price: Price) -> None:
        self.served = served
        self.caller = caller
        self._price = price
        self._writers = [
            Reservations(
                served.gateway.database, instance=new_id(), max_batch=64, admission_timeout_ms=60000
            )
            for _ in range(2)
        ]

    async def hold(self, number: int = 0) -> UUID:
        """A new reservation."""
        held = ReservationRequest(
            id=new_id(),
            caller=self.caller,
            quote=Quote(self._price, NanoUsd(HOLD), TERMS),
            operation="generation",
            requested_model=GPT2,
            served_model=GPT2,
            provider="openai",
            credential="house",
            ttl_seconds=600,
        )
        await self._writers[number % 2].reserve(held)
        return held.id

    async def happen(self, reservation_id: UUID, event: Event, number: int = 0) -> None:
        """Apply one event to a reservation."""
        kind, amount = event
        if kind == "late":
            await self.served.owner_sql(
                "UPDATE reservation SET deadline_at = now() - interval '1 second',"
                " admitted_at = now() - interval '2 hours' WHERE id = :id",
                id=reservation_id,
            )
        elif kind == "sweep":
            models = self.served.gateway.core.catalog.models
            await sweep(self.served.gateway.database, models, estimate_after_seconds=3600)
        elif isinstance(kind, str) and kind in VERDICTS:
            await self.resolve(
                reservation_id, Resolution(VERDICTS[kind], "a test", NanoUsd(amount))
            )
        else:
            outcome = Outcome.SUCCESS_NO_USAGE if kind == COUNTED else Outcome(kind)
            counts = Usage(1, 2, 3, 4) if kind == COUNTED else None
            settlement = Settlement(
                reservation_id,
                outcome,
                NanoUsd(amount),
                images=4 if outcome in {Outcome.SUCCESS, Outcome.SUCCESS_NO_USAGE} else 0,
                usage=Usage(2, 3, 5, amount) if outcome is Outcome.SUCCESS else counts,
            )
            await self._writers[number % 2].settle(self.caller.tenant_id, settlement)

    async def resolve(self, reservation_id: UUID, resolution: Resolution) -> None:
        """Resolve a reservation as an operator, unless it is no longer open."""
        models = self.served.gateway.core.catalog.models
        with suppress(Conflict):
            async with self.served.gateway.database.operator() as session:
                await resolve(session, models, reservation_id, resolution)

    async def close(self) -> None:
        """Close both connections."""
        for writer in self._writers:
            await writer.close()


@pytest.fixture
async def books(served: Served) -> Books:
    key = await served.key(user="ann")
    [user] = await served.owner_sql("SELECT id FROM tenant_user")
    await served.budget("1000", window="month")
    await served.budget("1000", window="day", api_key_id=key.id)
    await served.budget("1000", window="total", user_id=user.id)
    async with served.gateway.database.operator() as session:
        price = next(p for p in await prices.list_prices(session) if p.model == GPT2)
    caller = Caller(
        tenant_id=served.tenant_id,
        user_id=user.id,
        api_key_id=key.id,
        livemode=True,
        scopes=frozenset(),
        models=None,
        expires_at=None,
        tenant_status="active",
    )
    return Books(served, caller, price)


async def state_of(served: Served, reservation_id: UUID) -> tuple[str, int | None]:
    """State and final cost."""
    [row] = await served.owner_sql(
        "SELECT state, final_nano FROM reservation WHERE id = :id", id=reservation_id
    )
    return row.state, row.final_nano


def follow(events: Sequence[Event]) -> tuple[str, int | None]:
    """The state and amount that these events lead to, by the diagram in docs/architecture.md."""
    state, final, late = "held", None, False
    for kind, amount in events:
        if kind == "late":
            late = state in {"held", "unknown"} or late
        elif kind == "sweep":
            if late and state in {"held", "unknown"}:
                state, final = "posted_est", HOLD
        elif kind is Outcome.SUCCESS and state != "posted":
            state, final = "posted", amount
        elif kind is Outcome.AMBIGUOUS and state == "held":
            state = "unknown"
        elif kind is Outcome.SUCCESS_NO_USAGE and state in {"held", "unknown"}:
            state, final = "posted_est", HOLD
        elif kind in {Outcome.NOT_SENT, Outcome.REJECTED} and state in {"held", "unknown"}:
            state, final = "void", 0
        elif kind in VERDICTS and (state != "held" or late):
            state, final = follow_operator(str(kind), amount, state, final)
    return state, final


def follow_operator(
    kind: str, amount: int, state: str, final: int | None
) -> tuple[str, int | None]:
    """The state after an operator's word: a cost replaces all but `posted`, a void only doubt."""
    if kind == "operator posts" and state != "posted":
        return "posted", amount
    if kind == "operator voids" and state not in {"posted", "void"}:
        return "void", 0
    if kind == "operator accepts" and state not in {"posted", "void"}:
        return "posted", HOLD
    return state, final


quick = hypothesis_settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(events=st.lists(EVENTS, max_size=6))
async def test_successive_events_follow_the_state_diagram(
    books: Books, events: list[Event]
) -> None:
    reservation_id = await books.hold()
    for number, event in enumerate(events):
        await books.happen(reservation_id, event, number)
    assert await state_of(books.served, reservation_id) == follow(events)
    await books.served.check_invariants()
    await books.close()


def possible(events: Sequence[Event]) -> set[tuple[str, int | None]]:
    """The states that these events can lead to, in any order."""
    kinds = {kind for kind, _ in events}
    posts = {("posted", amount) for kind, amount in events if kind is Outcome.SUCCESS}
    # Refused while the call is under way, so each of these may have said nothing.
    said = {("posted", amount) for kind, amount in events if kind == "operator posts"}
    said |= {("posted", HOLD)} if "operator accepts" in kinds else set()
    if posts:
        return set[tuple[str, int | None]](posts | said)
    found: set[tuple[str, int | None]] = set()
    if Outcome.SUCCESS_NO_USAGE in kinds:
        found.add(("posted_est", HOLD))
    if kinds & {Outcome.NOT_SENT, Outcome.REJECTED}:
        found.add(("void", 0))
    resolves = bool(found)
    if {"late", "sweep"} <= kinds:
        found.add(("posted_est", HOLD))
    if not resolves:
        found.add(("unknown", None) if Outcome.AMBIGUOUS in kinds else ("held", None))
    return found | said | ({("void", 0)} if "operator voids" in kinds else set())


@quick
@given(histories=st.lists(st.lists(EVENTS, max_size=4), min_size=2, max_size=6))
async def test_concurrent_events_from_two_gateways_resolve_every_reservation_once(
    books: Books, histories: list[list[Event]]
) -> None:
    ids = await asyncio.gather(*(books.hold(number) for number in range(len(histories))))
    await asyncio.gather(
        *(
            books.happen(reservation_id, event, number)
            for reservation_id, history in zip(ids, histories, strict=True)
            for number, event in enumerate(history)
        )
    )
    # A sweep is for all: another history's sweep may have taken a late reservation.
    swept = any(kind == "sweep" for history in histories for kind, _ in history)
    for reservation_id, history in zip(ids, histories, strict=True):
        events = [*history, *([("sweep", 0)] if swept else [])]
        assert await state_of(books.served, reservation_id) in possible(events)
    await books.served.check_invariants()
    await books.close()


async def test_two_gateways_that_resolve_the_same_reservation_write_one_ending(
    books: Books,
) -> None:
    ids = await asyncio.gather(*(books.hold(number) for number in range(30)))
    for outcome in (Outcome.SUCCESS, Outcome.REJECTED, Outcome.SUCCESS_NO_USAGE):
        await asyncio.gather(
            *(
                books.happen(reservation_id, (outcome, HOLD), number)
                for reservation_id in ids
                for number in range(2)
            )
        )
    rows = await books.served.owner_sql(
        "SELECT count(*) FROM ledger WHERE kind <> 'hold' GROUP BY reservation_id"
    )
    assert [row[0] for row in rows] == [1] * 30
    await books.close()


# Successive events, and the lines behind the hold: kind, nano-USD, requests, images, and the tokens
# of text input, image input, text output and image output.
LINES: list[tuple[list[Event], list[tuple[str, *tuple[int, ...]]]]] = [
    ([(Outcome.SUCCESS, 700)], [("post", 700, 1, 4, 2, 3, 5, 700)]),
    ([(Outcome.REJECTED, 0)], [("void", 0, 0, 0, 0, 0, 0, 0)]),
    ([(Outcome.SUCCESS_NO_USAGE, HOLD)], [("post_est", HOLD, 1, 4, 0, 0, 0, 0)]),
    (
        [(Outcome.SUCCESS_NO_USAGE, HOLD), (Outcome.SUCCESS, 300)],
        [("post_est", HOLD, 1, 4, 0, 0, 0, 0), ("adjust", -700, 0, 0, 2, 3, 5, 300)],
    ),
    (
        [(Outcome.NOT_SENT, 0), (Outcome.SUCCESS, 300)],
        [("void", 0, 0, 0, 0, 0, 0, 0), ("adjust", 300, 1, 4, 2, 3, 5, 300)],
    ),
    (
        [("late", 0), ("sweep", 0), (Outcome.SUCCESS, 300)],
        [("post_est", HOLD, 1, 0, 0, 0, 0, 0), ("adjust", -700, 0, 4, 2, 3, 5, 300)],
    ),
    (
        [(COUNTED, HOLD), (Outcome.SUCCESS, 300)],
        [("post_est", HOLD, 1, 4, 1, 2, 3, 4), ("adjust", -700, 0, 0, 1, 1, 2, 296)],
    ),
    ([("late", 0), ("operator posts", 600)], [("post", 600, 1, 0, 0, 0, 0, 0)]),
    ([("late", 0), ("operator voids", 0)], [("void", 0, 0, 0, 0, 0, 0, 0)]),
    (
        [(Outcome.SUCCESS_NO_USAGE, HOLD), ("operator posts", 600)],
        [("post_est", HOLD, 1, 4, 0, 0, 0, 0), ("adjust", -400, 0, 0, 0, 0, 0, 0)],
    ),
    (
        [(Outcome.SUCCESS_NO_USAGE, HOLD), ("operator voids", 0)],
        [("post_est", HOLD, 1, 4, 0, 0, 0, 0), ("adjust", -HOLD, -1, -4, 0, 0, 0, 0)],
    ),
    # A repetition without usage and without images adds nothing.
    (
        [(Outcome.SUCCESS_NO_USAGE, HOLD), (Outcome.SUCCESS_NO_USAGE, 900)],
        [("post_est", HOLD, 1, 4, 0, 0, 0, 0)],
    ),
    (
        [(Outcome.REJECTED, 0), (Outcome.SUCCESS_NO_USAGE, HOLD)],
        [("void", 0, 0, 0, 0, 0, 0, 0)],
    ),
]


async def test_every_line_holds_exactly_the_counts_that_its_event_added(books: Books) -> None:
    found = []
    for events, _ in LINES:
        reservation_id = await books.hold()
        for event in events:
            await books.happen(reservation_id, event)
        rows = await books.served.owner_sql(
            "SELECT kind, amount_nano, requests, images, text_input_tokens, image_input_tokens,"
            " text_output_tokens, image_output_tokens FROM ledger WHERE reservation_id = :id"
            " ORDER BY seq",
            id=reservation_id,
        )
        found.append((events, [tuple(row) for row in rows]))
    hold = ("hold", HOLD, 0, 0, 0, 0, 0, 0)
    assert found == [(events, [hold, *lines]) for events, lines in LINES]
    await books.close()


async def test_a_budget_records_by_how_much_costs_exceeded_their_holds(books: Books) -> None:
    histories: list[tuple[list[Event], int]] = [
        ([(Outcome.SUCCESS, 0)], 0),
        ([(Outcome.SUCCESS, HOLD)], 0),
        ([(Outcome.SUCCESS, HOLD + 1)], 1),
        ([(Outcome.AMBIGUOUS, 0), (Outcome.SUCCESS, HOLD + 20)], 20),
        # Its hold was given back before: all of the cost is beyond what is held.
        ([(Outcome.REJECTED, 0), (Outcome.SUCCESS, 300)], 300),
        ([(Outcome.SUCCESS_NO_USAGE, HOLD), (Outcome.SUCCESS, HOLD - 400)], 0),
        ([(Outcome.SUCCESS_NO_USAGE, HOLD), (Outcome.SUCCESS, HOLD + 4_000)], 4_000),
    ]
    total = 0
    for events, breach in histories:
        reservation_id = await books.hold()
        with capture_logs() as lines:
            for event in events:
                await books.happen(reservation_id, event)
        alarms = [line["nano"] for line in lines if line.get("kind") == "bound_breach"]
        total += breach
        rows = await books.served.owner_sql("SELECT breach_nano, soft_nano FROM budget_period")
        assert alarms == ([breach] if breach else [])
        # Nothing else may exceed a hard limit.
        assert {tuple(row) for row in rows} == {(total, 0)}
    await books.close()


REBUILT = """
SELECT p.id, p.spent_nano, p.held_nano,
    coalesce(sum(l.amount_nano) FILTER (WHERE l.kind <> 'hold'), 0) AS spent,
    coalesce(sum(l.amount_nano) FILTER (WHERE l.kind = 'hold' AND NOT EXISTS (
        SELECT 1 FROM ledger x WHERE x.reservation_id = r.id AND x.kind <> 'hold')), 0) AS held
FROM budget_period p
LEFT JOIN reservation r ON r.tenant_id = p.tenant_id AND p.id = ANY (r.periods)
LEFT JOIN ledger l ON l.reservation_id = r.id
GROUP BY p.tenant_id, p.id ORDER BY p.id
"""


async def test_the_ledger_alone_rebuilds_every_budget(books: Books) -> None:
    """Held is what has a hold line and no other; spent is the sum of the others."""
    endings: list[list[Event]] = [
        [],
        [(Outcome.SUCCESS, 700)],
        [(Outcome.SUCCESS, 0)],
        [(Outcome.SUCCESS, 1900)],
        [(Outcome.REJECTED, 0)],
        [(Outcome.AMBIGUOUS, 0)],
        [(Outcome.SUCCESS_NO_USAGE, HOLD)],
        [(Outcome.SUCCESS_NO_USAGE, HOLD), (Outcome.SUCCESS, 300)],
        [(Outcome.NOT_SENT, 0), (Outcome.SUCCESS, 300)],
    ]
    for events in endings:
        reservation_id = await books.hold()
        for event in events:
            await books.happen(reservation_id, event)
    rows = await books.served.owner_sql(REBUILT)
    assert len(rows) == 3
    assert [(row.spent_nano, row.held_nano) for row in rows] == [
        (row.spent, row.held) for row in rows
    ]
    assert {(row.spent_nano, row.held_nano) for row in rows} == {
        (700 + 1900 + 1000 + 600, 2 * HOLD)
    }
    await books.close()


FORBIDDEN = [
    "UPDATE ledger SET amount_nano = 0",
    "DELETE FROM ledger",
    "TRUNCATE ledger",
    "INSERT INTO ledger SELECT * FROM ledger",
    "UPDATE reservation SET state = 'void'",
    "DELETE FROM reservation",
    "TRUNCATE reservation CASCADE",
    "INSERT INTO reservation SELECT * FROM reservation",
    "UPDATE budget_period SET spent_nano = 0",
    "DELETE FROM budget_period",
    "INSERT INTO budget_period (budget_id, tenant_id) SELECT id, tenant_id FROM budget",
    "DELETE FROM budget",
    "UPDATE house_budget_period SET spent_nano = 0",
    "DELETE FROM house_budget_period",
    "DELETE FROM house_budget",
    "UPDATE idempotency_claim SET answer = NULL",
    "DELETE FROM idempotency_claim",
    "UPDATE budget SET period = 'total'",
    "UPDATE price SET image_output_nano = 0",
    "DELETE FROM price",
    "TRUNCATE price CASCADE",
    "ALTER TABLE ledger DISABLE TRIGGER ALL",
    "DROP TABLE ledger",
    "DROP TRIGGER ledger_append_only ON ledger",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE sql AS 'SELECT NULL'",
]


@pytest.mark.parametrize("mode", ["operator", "tenant"])
async def test_the_serving_role_may_not_change_what_was_booked(
    mode: str, served: Served, stub: Stub
) -> None:
    await served.budget("1")
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 200
    url = served.gateway.settings.database_url
    assert url is not None
    engine = create_engine(database_url(url.get_secret_value()), role=APP_ROLE)
    begin = AS_OPERATOR
    if mode == "tenant":
        begin = AS_TENANT.bindparams(tenant_id=str(served.tenant_id))
    refused: list[str | None] = []
    for statement in FORBIDDEN:
        async with engine.connect() as connection:
            await connection.execute(begin)
            with pytest.raises(DBAPIError) as caught:
                await connection.execute(text(statement))
            refused.append(getattr(caught.value.orig, "sqlstate", None))
    await engine.dispose()
    assert refused == ["42501"] * len(FORBIDDEN)


async def test_even_the_owner_cannot_edit_the_ledger_or_a_price(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 200
    for statement in (
        "UPDATE ledger SET amount_nano = 0",
        "DELETE FROM ledger",
        "TRUNCATE ledger",
        "UPDATE price SET image_output_nano = 0",
        "DELETE FROM price",
    ):
        with pytest.raises(DBAPIError):
            await served.owner_sql(statement)
    assert await served.ledger_total() == stub.bill[0].cost_nano_usd


async def test_a_price_changed_in_mid_flight_leaves_the_call_at_the_price_it_was_quoted_with(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http:
        asking = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        await served.owner_sql(
            "INSERT INTO price (model, effective_from, text_input_nano, image_input_nano,"
            " image_output_nano, text_output_nano) SELECT model, now(), text_input_nano * 9,"
            " image_input_nano * 9, image_output_nano * 9, text_output_nano * 9 FROM price"
        )
        stub.release()
        assert (await asking).status_code == 200
    assert await served.ledger_total() == stub.bill[0].cost_nano_usd


async def test_a_hold_beyond_a_budget_is_refused_by_the_database_itself(books: Books) -> None:
    await books.served.budget("0.000001500", window="month")
    await books.hold()
    with pytest.raises(BudgetExceeded):
        await books.hold()
    await books.close()
