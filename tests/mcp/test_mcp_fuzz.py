"""Any message to /mcp gets a valid answer or error, and the books agree."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any, TypeVar

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import Served
from tests.mcp_helpers import INTERNAL_ERROR, expect_clean, read_messages
from tests.mcp_messages import SENT, Sent

AT_ONCE = 25
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
Test = TypeVar("Test", bound=Callable[..., object])
MANY = st.lists(SENT, min_size=AT_ONCE, max_size=AT_ONCE)
seen: Counter[str] = Counter()
"""The number of answers of each kind, to read after a run."""


@pytest.fixture
async def key(served: Served) -> AsyncIterator[IssuedKey]:
    """A test key; the books are checked after all messages."""
    issued = await served.key(livemode=False)
    yield issued
    await expect_books(served, issued)


async def send(http: httpx2.AsyncClient, sent: Sent) -> None:
    """Send one and look at what comes back."""
    response = await http.post("/mcp", content=sent.body, headers=JSON | sent.headers)
    expect_clean(response.text)
    assert response.headers["x-request-id"].startswith("req_")
    seen[f"HTTP {response.status_code}"] += 1
    assert response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR, (sent, response.text)
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind not in {"application/json", "text/event-stream"}:  # a host, origin or type refused
        assert len(response.text) < 100, (sent, response.text)
        return
    for message in read_messages(response):
        expect_sense(sent, message)


def expect_sense(sent: Sent, message: dict[str, Any]) -> None:
    """Expect JSON-RPC without an internal error."""
    assert message["jsonrpc"] == "2.0"
    if "method" in message:
        assert message["method"] == "notifications/progress"
        return
    assert ("result" in message) != ("error" in message), message
    if "error" in message:
        code, said = message["error"]["code"], message["error"]["message"]
        seen[f"error {code}"] += 1
        assert code != INTERNAL_ERROR, (sent, said)
        assert not said.startswith("internal_error")
        return
    if message["result"].get("isError"):
        assert "structuredContent" not in message["result"]
        found = message["result"]["_meta"]
        seen[f"tool error {found['error']['code']}"] += 1
        assert found["error"]["code"] != "internal_error", (sent, found)
    else:
        seen["result"] += 1


async def expect_books(served: Served, key: IssuedKey) -> None:
    """Expect the report to equal the ledger, and a hold only where the outcome is unknown."""
    await served.check_invariants()
    rows = await served.owner_sql(
        "SELECT DISTINCT state, livemode FROM reservation WHERE state NOT IN ('posted', 'void')"
    )
    assert {(row.state, row.livemode) for row in rows} <= {
        ("unknown", False),
        ("posted_est", False),
    }
    async with served.http(key) as http:
        total = (await http.get("/v1/usage")).json()["total"]
    assert total["cost_usd"] == format_usd(await served.ledger_total())


def fuzz(examples: int) -> Callable[[Test], Test]:
    """Settings for so many rounds of messages."""
    return hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        # Each message stands for itself and is named where it fails: there is nothing to shrink.
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


async def expect_answers(served: Served, key: IssuedKey, messages: list[Sent]) -> None:
    """Send them all at once."""
    async with served.http(key) as http:
        await asyncio.gather(*(send(http, message) for message in messages))


@fuzz(40)
@given(messages=MANY)
async def test_a_thousand_messages_are_answered(
    served: Served, key: IssuedKey, messages: list[Sent]
) -> None:
    await expect_answers(served, key, messages)


@pytest.mark.full
@pytest.mark.timeout(1800)
@fuzz(800)
@given(messages=MANY)
async def test_twenty_thousand_messages_are_answered(
    served: Served, key: IssuedKey, messages: list[Sent]
) -> None:
    await expect_answers(served, key, messages)
