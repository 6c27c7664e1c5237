"""docs/faults.md: every fault of every provider, through a served gateway with its Postgres."""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.harness import PostgresServer, served_gateway
from tests.providers.contract import DIALECTS
from tests.providers.fault_matrix import Observed, observe, settings_for, upstreams_of
from tests.providers.faults import ERROR_EVENT, FAULTS
from tests.providers.ways import EDIT, GENERATION, MCP, STREAM
from tests.stub_kserve.api import KEY as CLUSTER_KEY
from tests.tls_helpers import Authority
from tests.tooling.fault_table import PAGE, TABLES, facts_of, rendered, tables_of

ATTEMPTS = 2
"""A connection that could not be established is tried once more."""
STATES = {
    "not_sent": "void",
    "rejected": "void",
    "moderation": "void",
    "success": "posted",
    "refused_charged": "posted",
    "success_no_usage": "posted_est",
    "ambiguous": "unknown",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observed(
    postgres: PostgresServer,
    one_authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[list[Observed]]:
    """Every fault, at one gateway: the books hold them all at the end."""
    folder = tmp_path_factory.mktemp("faults")
    untrusted = Authority(folder, "another").server_context()
    database = await postgres.create()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLUSTER_TOKEN", CLUSTER_KEY)
        async with (
            upstreams_of(one_authority.server_context(), untrusted) as upstreams,
            served_gateway(settings_for(database, folder, upstreams)) as served,
        ):
            await served.budget("100")
            found = await observe(served, upstreams)
            await served.check_invariants()
    await postgres.drop(database)
    yield found


def expect_each(observed: list[Observed], is_kept: Callable[[Observed], bool]) -> None:
    """Expect a rule to be kept by every fault at every provider, and name those that break it."""
    assert observed
    assert [
        (one.vendor.title, one.fault.name, one.way) for one in observed if not is_kept(one)
    ] == []


def test_every_provider_and_every_fault_is_seen(observed: list[Observed]) -> None:
    assert {one.vendor.dialect.provider for one in observed} == {one.provider for one in DIALECTS}
    assert {one.fault.name for one in observed} == {fault.name for fault in FAULTS}


def test_a_call_is_made_once_and_only_an_unsent_one_is_tried_again(
    observed: list[Observed],
) -> None:
    def is_kept(one: Observed) -> bool:
        if one.entry.outcome != "not_sent":
            return one.arrived.calls == 1 and (one.fault.is_slow or one.arrived.connections == 1)
        attempts = 0 if one.fault.listens == "closed" else ATTEMPTS
        return (one.arrived.calls, one.arrived.connections) == (0, attempts)

    expect_each(observed, is_kept)


def test_edits_streams_and_mcp_have_the_calls_the_costs_and_the_code_of_a_generation(
    observed: list[Observed],
) -> None:
    generations = {
        (one.fault.name, one.vendor.title): one for one in observed if one.way == GENERATION
    }
    others = [one for one in observed if one.way != GENERATION and one.fault.name != ERROR_EVENT]
    assert {(one.way, one.vendor.title) for one in others} == {
        (way, title) for way in (EDIT, STREAM, MCP) for _, title in generations
    }
    expect_each(
        others,
        lambda one: facts_of(one) == facts_of(generations[one.fault.name, one.vendor.title]),
    )


def test_the_ledger_has_the_bill_or_the_reserved_amount(observed: list[Observed]) -> None:
    def is_kept(one: Observed) -> bool:
        billed, held = one.arrived.billed_nano, one.entry.held_nano
        lines = {
            "void": (("void", 0),),
            "posted": (("post", billed),),
            "posted_est": (("post_est", held),),
            "unknown": (),
        }[one.entry.state]
        final = lines or (("post_est", held),)
        is_bounded = billed <= (0 if one.entry.state == "void" else held)
        return is_bounded and (one.entry.lines, one.final.lines) == (lines, final)

    expect_each(observed, lambda one: one.entry.state == STATES[one.entry.outcome])
    expect_each(observed, is_kept)


def test_the_client_is_told_if_it_may_try_again(observed: list[Observed]) -> None:
    def is_kept(one: Observed) -> bool:
        answer, outcome = one.answer, one.entry.outcome
        if answer.status == 200:  # an image, the last event of a stream, or a tool's result
            is_unknown = answer.code == "outcome_unknown"
            return (is_unknown, answer.code == "provider_unreachable") == (
                *(outcome == "ambiguous", outcome == "not_sent"),
            )
        if outcome == "ambiguous":
            return (answer.status, answer.code, answer.should_retry, answer.retry_after) == (
                *(504, "outcome_unknown"),
                *("false", False),
            )
        is_away = (answer.status, answer.code) == (502, "provider_unreachable")
        is_charged = outcome == "refused_charged"
        is_later = answer.status in {429, 503} and not is_charged
        is_final = answer.status == 503 and is_charged
        return (is_away, answer.retry_after, answer.should_retry == "false") == (
            *(outcome == "not_sent", is_later),
            is_final or answer.should_retry == "false",
        )

    expect_each(observed, is_kept)


def test_trouble_with_the_operators_key_is_not_the_tenants(observed: list[Observed]) -> None:
    own = {one.answer.status for one in observed if one.fault.own_key}
    house = {
        one.answer.status for one in observed if one.way == GENERATION and not one.fault.own_key
    }
    assert own == {404, 424}
    assert house == {200, 400, 429, 500, 502, 503, 504}


def test_the_page_shows_what_happens(
    observed: list[Observed], record_property: Callable[[str, object], None]
) -> None:
    tables = rendered(observed)
    record_property(TABLES, tables)
    assert tables_of(PAGE.read_text()) == tables, "stale: run make faults"
