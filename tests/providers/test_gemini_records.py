"""Records of a call of Gemini: its id in the request log, and its cost in an agent's result."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.money import NanoUsd, format_usd
from tests.harness import Served, make_settings
from tests.mcp_helpers import call, error_of, text_of
from tests.request_log_helpers import rows_of
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY

BANANA = "gemini-nano-banana-2.1"
ASKED = {"model": BANANA, "prompt": "a red circle"}


@pytest.fixture
def settings(database: str, gemini: StubGemini, tmp_path: Path) -> Settings:
    changes = {"GEMINI_API_KEY": SecretStr(KEY), "GEMINI_BASE_URL": gemini.base_url}
    return make_settings(database, tmp_path, **changes)


async def test_the_id_of_an_answer_is_in_the_request_log_charged_refusals_included(
    served: Served, gemini: StubGemini
) -> None:
    gemini.faults += ["", "refused_image", "no_image", "invalid"]
    async with served.http(await served.key()) as http:
        for _ in range(4):
            await http.post("/v1/images/generations", json=ASKED)
    rows = [
        (row["provider_status"], row.get("provider_request_id")) for row in await rows_of(served)
    ]
    assert rows == [(200, "r-1"), (200, "r-2"), (200, "r-3"), (400, None)]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("refused_image", "moderation_blocked"),
        ("no_image", "image_unfinished"),
        ("limited", "provider_unavailable"),
    ],
)
async def test_mcp_shows_the_cost_of_a_call_that_was_charged_and_failed(
    served: Served, gemini: StubGemini, fault: str, code: str
) -> None:
    gemini.faults += [fault, "invalid"]
    asked = ASKED | {"idempotency_key": "once"}
    async with served.mcp(await served.key()) as client:
        first, again = [await call(client, "generate_image", **asked) for _ in range(2)]
        uncharged = await call(client, "generate_image", **asked | {"idempotency_key": "other"})
    assert error_of(again) == error_of(first)
    [line] = gemini.bill
    paid = {"usd": format_usd(NanoUsd(line.cost_nano_usd)), "model": BANANA, "provider": "gemini"}
    assert error_of(first)["code"] == code
    for result in (first, again):
        assert (result.meta or {})["cost"] == paid
        assert "Nothing was bought" not in text_of(result)
    assert "cost" not in (uncharged.meta or {})
    assert await served.ledger_total() == line.cost_nano_usd


async def test_a_charged_refusal_of_the_operators_account_is_repeated_as_it_was(
    served: Served, gemini: StubGemini
) -> None:
    gemini.faults.append("limited")
    async with served.http(await served.key()) as http:
        http.headers["Idempotency-Key"] = "once"
        first, again = [await http.post("/v1/images/generations", json=ASKED) for _ in range(2)]
    assert (first.status_code, first.json()["error"]["code"]) == (503, "provider_unavailable")
    assert (again.status_code, again.json()) == (503, first.json())
    for answer in (first, again):
        # Another call would be charged again, and this key has its answer.
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert len(gemini.calls) == 1
    assert await served.ledger_total() == gemini.bill[0].cost_nano_usd


async def test_a_users_key_comes_before_the_tenants_and_both_before_the_operators(
    served: Served, gemini: StubGemini
) -> None:
    own = {"anna": "AIzaSy-the-users-own", None: "AIzaSy-the-tenants-own"}
    gemini.keys |= set(own.values())
    for user, secret in own.items():
        async with served.http(await served.key(user=user)) as http:
            stored = await http.put("/v1/credentials/gemini", json={"secret": secret})
        assert stored.status_code == 200, stored.text
    other = await served.key(tenant_id=await served.tenant("other"))
    for key in (await served.key(user="anna"), await served.key(user="ben"), other):
        async with served.http(key) as http:
            assert (await http.post("/v1/images/generations", json=ASKED)).status_code == 200
    assert [call.key for call in gemini.calls] == [*own.values(), KEY]
    rows = await served.owner_sql("SELECT credential FROM reservation ORDER BY id")
    assert [row.credential for row in rows] == ["user", "tenant", "house"]
