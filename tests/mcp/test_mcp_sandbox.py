"""Test keys and the magic prompts of the sandbox: the same over REST and MCP, and never live money.

The words are part of the public contract (docs/sandbox.md): applications test with them.
"""

import time
from dataclasses import dataclass

import pytest
from mcp.types import CallToolResult

from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, error_of
from tests.mcp_helpers import error_of as tool_error_of
from tests.stub_openai import Stub

ROUTE = "/v1/images/generations"


@dataclass(frozen=True)
class Magic:
    """A prompt that fails on purpose: the answer, and what the ledger keeps of it."""

    word: str
    status: int
    code: str
    state: str
    retry: str | None = None
    retry_after: str | None = None


MAGIC = [
    Magic("moderation", 400, "moderation_blocked", "void"),
    Magic("rejected", 400, "invalid_value", "void"),
    Magic("rate_limited", 429, "rate_limit_exceeded", "void", retry_after="1"),
    Magic("credential", 424, "credential_rejected", "void", retry="false"),
    Magic("unreachable", 502, "provider_unreachable", "void"),
    Magic("unknown", 504, "outcome_unknown", "unknown", retry="false"),
]


def body(prompt: str) -> dict[str, str]:
    return {"model": GPT2, "prompt": prompt, "quality": "low", "size": "1024x1024"}


async def states(served: Served) -> list[tuple[str, bool, str]]:
    """Every reservation so far: state, mode and provider."""
    rows = await served.owner_sql(
        "SELECT state, livemode, provider FROM reservation ORDER BY admitted_at"
    )
    return [(row.state, row.livemode, row.provider) for row in rows]


async def budget_amounts(served: Served, key: IssuedKey) -> list[tuple[str, str]]:
    """Spent and held of each budget that applies to a key."""
    async with served.http(key) as http:
        found = (await http.get("/v1/budgets")).json()["data"]
    return [(budget["spent_usd"], budget["held_usd"]) for budget in found]


@pytest.mark.parametrize("magic", MAGIC, ids=lambda magic: magic.word)
async def test_a_magic_prompt_fails_as_its_name_says(
    served: Served, stub: Stub, magic: Magic
) -> None:
    key = await served.key(livemode=False)
    prompt = f"a red circle [sandbox:{magic.word}]"
    async with served.http(key) as http, served.mcp(key) as client:
        answer = await http.post(ROUTE, json=body(prompt))
        result = await client.call_tool("generate_image", body(prompt))
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (magic.status, magic.code)
    assert answer.headers.get("x-should-retry") == magic.retry
    assert answer.headers.get("retry-after") == magic.retry_after
    assert isinstance(result, CallToolResult)
    assert result.is_error
    assert tool_error_of(result) == error
    assert await states(served) == [(magic.state, False, "sandbox")] * 2
    assert await served.ledger_total() == 0
    assert stub.calls == []


async def test_an_answer_without_usage_is_posted_as_an_estimate(served: Served) -> None:
    key = await served.key(livemode=False)
    async with served.http(key) as http:
        quote = await http.post("/v1/images/quotes", json=body("[sandbox:no_usage]"))
        answer = await http.post(ROUTE, json=body("[sandbox:no_usage]"))
    assert answer.status_code == 200
    assert "usage" not in answer.json()
    assert answer.headers["x-gateway-cost-status"] == "estimated"
    assert await states(served) == [("posted_est", False, "sandbox")]
    cost_usd = format_usd(await served.ledger_total())
    assert answer.headers["x-gateway-cost-usd"] == cost_usd
    assert cost_usd.startswith(quote.json()["cost_usd_max"])


async def test_a_slow_image_is_waited_for_and_posted(served: Served) -> None:
    started = time.monotonic()
    async with served.http(await served.key(livemode=False)) as http:
        answer = await http.post(ROUTE, json=body("[sandbox:slow]"))
    assert time.monotonic() - started >= 5
    assert (answer.status_code, answer.headers["x-gateway-cost-status"]) == (200, "actual")
    assert await states(served) == [("posted", False, "sandbox")]


async def test_the_same_prompt_draws_the_same_image_at_the_same_price(served: Served) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        answers = [await http.post(ROUTE, json=body("a lighthouse")) for _ in range(2)]
    first, second = (answer.json() for answer in answers)
    assert (first["data"], first["usage"]) == (second["data"], second["usage"])
    assert await states(served) == [("posted", False, "sandbox")] * 2


async def test_magic_prompts_have_no_effect_with_live_keys(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        answer = await http.post(ROUTE, json=body("[sandbox:moderation]"))
    assert answer.status_code == 200
    assert [line.prompt for line in stub.bill] == ["[sandbox:moderation]"]
    assert await states(served) == [("posted", True, "openai")]


async def test_test_keys_never_touch_a_live_budget(served: Served) -> None:
    live, test = await served.key(), await served.key(livemode=False)
    await served.budget("0.0001")
    async with served.http(test) as http:
        for prompt in ("a lighthouse", "[sandbox:unknown]", "[sandbox:no_usage]"):
            await http.post(ROUTE, json=body(prompt))
    rows = await served.owner_sql("SELECT DISTINCT livemode FROM ledger")
    assert [row.livemode for row in rows] == [False]
    assert await budget_amounts(served, live) == [("0.000000000", "0.000000000")]
    assert await budget_amounts(served, test) == []


async def test_live_keys_never_touch_a_test_budget_which_binds_test_keys(
    served: Served, stub: Stub
) -> None:
    live, test = await served.key(), await served.key(livemode=False)
    await served.budget("0.0001", livemode=False)
    async with served.http(live) as http:
        assert (await http.post(ROUTE, json=body("a lighthouse"))).status_code == 200
    async with served.http(test) as http:
        refused = await http.post(ROUTE, json=body("a lighthouse"))
    assert (refused.status_code, error_of(refused)["code"]) == (402, "budget_exceeded")
    assert len(stub.bill) == 1
    assert await budget_amounts(served, test) == [("0.000000000", "0.000000000")]


async def test_an_unknown_outcome_keeps_its_hold_on_the_test_budget(served: Served) -> None:
    test = await served.key(livemode=False)
    await served.budget("1", livemode=False)
    async with served.http(test) as http:
        quote = await http.post("/v1/images/quotes", json=body("[sandbox:unknown]"))
        await http.post(ROUTE, json=body("[sandbox:unknown]"))
    [(spent, held)] = await budget_amounts(served, test)
    assert spent == "0.000000000"
    assert held.startswith(quote.json()["cost_usd_max"])
