"""M9: at any fault of the provider, a request buys at most once and its outcome is booked.

The table says for every fault what the client is told and what the ledger keeps.
"""

from dataclasses import dataclass

import openai
import pytest

from gateway.config import Settings
from tests.harness import GPT2, Served, error_of, free_port, served_gateway
from tests.money_helpers import (
    age_unknown,
    books,
    count_states,
    post_image,
)
from tests.stub_openai import Fault, Stub


@dataclass(frozen=True)
class Case:
    """A fault, and the status, code, state and outcome that must follow."""

    name: str
    fault: Fault
    status: int
    code: str
    state: str
    outcome: str
    should_retry: str | None = None


def unknown(name: str, fault: Fault) -> Case:
    """A case whose cost cannot be known."""
    return Case(name, fault, 504, "outcome_unknown", "unknown", "ambiguous", "false")


def void(name: str, fault: Fault, status: int, code: str, retry: str | None = None) -> Case:
    """A case that certainly cost nothing."""
    outcome = "moderation" if code in {"moderation_blocked", "content_policy_violation"} else None
    return Case(name, fault, status, code, "void", outcome or "rejected", retry)


CASES = [
    unknown("close unread", Fault("close_unread")),
    unknown("closed before billing", Fault("close_before_billing")),
    unknown("closed after billing", Fault("close_after_billing")),
    unknown("reset before billing", Fault("reset_before_billing")),
    unknown("reset after billing", Fault("reset_after_billing")),
    unknown("reset after headers", Fault("reset_after_headers")),
    unknown("truncated body", Fault("truncated_body")),
    unknown("hang before billing", Fault("hang_before_billing")),
    unknown("hang after billing", Fault("hang_after_billing")),
    unknown("hang in body", Fault("hang_in_body")),
    unknown("not JSON", Fault("unreadable_json")),
    *(unknown(str(status), Fault("status", status=status)) for status in (408, 409, 500, 502)),
    *(unknown(str(status), Fault("status", status=status)) for status in (503, 504)),
    unknown("billed 500", Fault("status", status=500, billed=True)),
    unknown("billed 504", Fault("status", status=504, billed=True)),
    unknown("a proxy's 429", Fault("status", status=429, html=True)),
    unknown("a proxy's 403", Fault("status", status=403, html=True)),
    void("429", Fault("status", status=429), 429, "rate_limit_exceeded"),
    void("400", Fault("status", status=400), 400, "invalid_value"),
    void("moderation", Fault("status", preset="moderation_blocked"), 400, "moderation_blocked"),
    void(
        "policy",
        Fault("status", preset="content_policy_violation"),
        400,
        "content_policy_violation",
    ),
    void("house 401", Fault("status", status=401), 503, "provider_unavailable"),
    void("house 403", Fault("status", status=403), 503, "provider_unavailable"),
    void("house 404", Fault("status", status=404), 503, "provider_unavailable"),
    void("house quota", Fault("status", preset="insufficient_quota"), 503, "provider_unavailable"),
    void("house limit", Fault("status", preset="billing_hard_limit"), 503, "provider_unavailable"),
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with which a provider that is silent for half a second counts as hung."""
    return settings.model_copy(update={"provider_read_timeout_seconds": 0.5})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_fault_buys_once_and_books_its_outcome(
    case: Case, served: Served, stub: Stub
) -> None:
    """The official client tries again whatever it may: an unknown outcome must stop it."""
    stub.faults.add(case.fault)
    await served.budget("1")
    retries = 2 if case.state == "unknown" else 0
    async with served.openai(await served.key()).with_options(max_retries=retries) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.images.generate(
                model=GPT2, prompt="a red circle", size="1024x1024", quality="low"
            )
    assert (caught.value.status_code, caught.value.code) == (case.status, case.code)
    assert caught.value.response.headers.get("x-should-retry") == case.should_retry
    assert len(stub.calls) == 1
    assert stub.faults.armed == []
    [booked] = await books(served)
    assert (booked.state, booked.outcome) == (case.state, case.outcome)
    await age_unknown(served)
    await served.sweep()
    [booked] = await books(served)
    expected = ("void", 0) if case.state == "void" else ("post_est", booked.held_nano)
    assert booked.lines == (expected,)
    assert await served.ledger_total() >= sum(line.cost_nano_usd for line in stub.bill)


@pytest.mark.parametrize("scheme", ["http", "https"], ids=["refused", "TLS to a plain port"])
async def test_a_connection_that_failed_is_void_and_answered_502(
    scheme: str, settings: Settings, stub: Stub
) -> None:
    port = free_port() if scheme == "http" else stub.port
    changed = settings.model_copy(update={"openai_base_url": f"{scheme}://127.0.0.1:{port}/v1"})
    async with served_gateway(changed) as served, served.http(await served.key()) as http:
        answer = await post_image(http)
        assert (answer.status_code, error_of(answer)["code"]) == (502, "provider_unreachable")
        [booked] = await books(served)
        assert (booked.state, booked.outcome, booked.lines) == ("void", "not_sent", (("void", 0),))
        assert [call for call in stub.calls if call.method] == []
        assert stub.bill == []
        await served.check_invariants()


async def test_trouble_with_a_tenants_own_key_does_not_use_the_house_key(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        stored = await http.put("/v1/credentials/openai", json={"secret": "sk-tenant-own-1234"})
        assert stored.status_code == 200
        for fault in (Fault("status", status=401), Fault("status", preset="insufficient_quota")):
            stub.faults.add(fault)
            answer = await post_image(http)
            assert (answer.status_code, error_of(answer)["code"]) == (424, "credential_rejected")
            assert answer.headers["x-should-retry"] == "false"
    assert {call.key for call in stub.calls} == {"sk-tenant-own-1234"}
    assert await count_states(served) == {"void": 2}
