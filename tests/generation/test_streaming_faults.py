"""Broken streams, clients that disconnect, slow providers: the error shown and the cost posted."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client import REGISTRY

from gateway.config import Settings
from tests.harness import GPT2, Served, error_of, served_gateway
from tests.image_helpers import expect_nothing_bought, expect_one_call_each, png
from tests.money_helpers import books, eventually, until_states
from tests.stream_helpers import (
    COMMENT,
    open_stream,
    read_event,
    read_events,
    read_image,
    read_rest,
)
from tests.stub_openai import Fault, Stub

both_endpoints = pytest.mark.parametrize("endpoint", ["generations", "edits"])
COMPLETED = {"generations": "image_generation.completed", "edits": "image_edit.completed"}


@pytest.fixture
async def lively(settings: Settings) -> AsyncIterator[Served]:
    """A gateway that sends keep-alive comments often and soon times out its provider."""
    changes = {"stream_keepalive_seconds": 0.2, "provider_read_timeout_seconds": 6.0}
    async with served_gateway(settings.model_copy(update=changes)) as served:
        yield served
        await served.check_invariants()


# Clients that leave


def ended(endpoint: str) -> float:
    """The number of streams that the gateway has ended, complete or broken off."""
    labels = {"route": f"/v1/images/{endpoint}", "method": "POST", "status": "200"}
    return REGISTRY.get_sample_value("gateway_requests_total", labels) or 0


async def until_ended(endpoint: str, count: float) -> None:
    """Wait until the gateway has noticed that its client left."""

    async def reached() -> bool:
        await asyncio.sleep(0)
        return ended(endpoint) >= count

    await eventually(reached)


@both_endpoints
async def test_a_client_that_leaves_after_an_image_pays_the_cost(
    lively: Served, stub: Stub, endpoint: str
) -> None:
    stub.faults.add(Fault("stream_hold"))
    before = ended(endpoint)
    async with open_stream(lively, await lively.key(), endpoint, partial_images=2) as response:
        first = await read_image(response.aiter_lines())
        assert first.data["partial_image_index"] == 0
        await stub.until_held(1)
    await until_ended(endpoint, before + 1)
    stub.release()
    await until_states(lively, {"posted": 1})
    assert await lively.ledger_total() == stub.totals.cost_nano_usd > 0
    await expect_one_call_each(lively, stub, requests=1)
    [row] = await lively.owner_sql("SELECT count(*) AS number FROM image")
    assert row.number == 1


@both_endpoints
async def test_a_client_that_leaves_before_the_first_event_pays_the_cost(
    served: Served, stub: Stub, endpoint: str
) -> None:
    stub.faults.add(Fault(hold=True))

    async def ask() -> None:
        async with open_stream(served, key, endpoint, partial_images=1):
            pass

    key = await served.key()
    asking = asyncio.create_task(ask())
    await stub.until_held(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    stub.release()
    await until_states(served, {"posted": 1})
    assert await served.ledger_total() == stub.totals.cost_nano_usd > 0
    await expect_one_call_each(served, stub, requests=1)


@both_endpoints
async def test_a_client_that_leaves_a_sandbox_stream_changes_nothing_about_it(
    served: Served, stub: Stub, endpoint: str
) -> None:
    key = await served.key(livemode=False)
    async with open_stream(served, key, endpoint, partial_images=3) as response:
        await read_event(response.aiter_lines())
    await until_states(served, {"posted": 1})
    [line] = await books(served)
    assert 0 < (line.final_nano or 0) <= line.held_nano


# Streams that break


BREAKS: dict[str, Any] = {
    "error event": Fault("stream_error"),
    "error event, billed": Fault("stream_error", billed=True),
    "cut in the middle": Fault("truncated_body"),
    "silence": Fault("hang_in_body"),
}


@both_endpoints
@pytest.mark.parametrize("name", BREAKS)
async def test_a_stream_that_breaks_ends_in_an_error_event(
    lively: Served, stub: Stub, endpoint: str, name: str
) -> None:
    stub.faults.add(BREAKS[name])
    async with open_stream(lively, await lively.key(), endpoint, partial_images=3) as response:
        *partial, last = await read_events(response)
    assert 1 <= len(partial) <= 3
    assert last.name == "error"
    assert last.data.keys() == {"type", "error", "gateway"}
    assert last.data["type"] == "error"
    assert last.data["error"].keys() == {"message", "type", "param", "code"}
    assert last.data["error"]["code"] == "outcome_unknown"
    assert [line.state for line in await books(lively)] == ["unknown"]
    assert stub.totals.calls == 1


async def test_the_official_client_raises_what_the_error_event_says(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("stream_error"))
    seen: list[str] = []

    async def read(stream: AsyncIterator[Any]) -> None:
        async for event in stream:
            seen.append(event.type)  # noqa: PERF401 - kept, what came before it broke

    async with served.openai(await served.key()) as client:
        stream = await client.images.generate(
            model=GPT2, prompt="a red fox", quality="low", stream=True, partial_images=2
        )
        with pytest.raises(openai.APIError) as caught:
            await read(stream)
    assert seen == ["image_generation.partial_image"] * 2
    assert caught.value.code == "outcome_unknown"


@both_endpoints
async def test_the_sandbox_breaks_a_stream_when_told_to(
    served: Served, stub: Stub, endpoint: str
) -> None:
    key = await served.key(livemode=False)
    prompt = "[sandbox:stream_error] a fox"
    async with open_stream(served, key, endpoint, partial_images=2, prompt=prompt) as response:
        events = await read_events(response)
    assert [event.name for event in events][-1] == "error"
    assert len(events) == 3
    assert events[-1].data["error"]["code"] == "outcome_unknown"
    assert [line.state for line in await books(served)] == ["unknown"]


NEVER_BEGUN: dict[str, Fault] = {
    "error event": Fault("stream_error"),
    "reset": Fault("reset_after_billing"),
    "reset after the head": Fault("reset_after_headers"),
    "closed": Fault("close_after_billing"),
    "server error": Fault("status", status=500),
}


@both_endpoints
@pytest.mark.parametrize("name", NEVER_BEGUN)
async def test_a_failure_before_the_first_event_is_an_ordinary_error(
    served: Served, stub: Stub, endpoint: str, name: str
) -> None:
    stub.faults.add(NEVER_BEGUN[name])
    async with open_stream(served, await served.key(), endpoint, partial_images=0) as response:
        await response.aread()
    assert (response.status_code, error_of(response)["code"]) == (504, "outcome_unknown")
    assert response.headers["x-should-retry"] == "false"
    assert [line.state for line in await books(served)] == ["unknown"]
    assert stub.totals.calls == 1


# Refusals


REFUSALS = {
    "moderation_blocked": (400, "moderation_blocked"),
    "bad_request": (400, "invalid_value"),
    "invalid_api_key": (503, "provider_unavailable"),
    # Must be the last one: the provider is not called until its retry time is over.
    "rate_limited": (429, "rate_limit_exceeded"),
}


@both_endpoints
async def test_a_refusal_before_the_first_event_is_an_ordinary_error_and_costs_nothing(
    served: Served, stub: Stub, endpoint: str
) -> None:
    found, key = {}, await served.key()
    for preset in REFUSALS:
        stub.faults.add(Fault("status", preset=preset))
        async with open_stream(served, key, endpoint, partial_images=1) as response:
            await response.aread()
        found[preset] = response.status_code, error_of(response)["code"]
        if preset == "rate_limited":
            assert response.headers["retry-after"] == "12"
    assert found == REFUSALS
    assert {line.state for line in await books(served)} == {"void"}
    assert (await served.ledger_total(), stub.bill) == (0, [])


@both_endpoints
async def test_a_short_budget_is_an_ordinary_error(
    served: Served, stub: Stub, endpoint: str
) -> None:
    await served.budget("0.0001")
    async with open_stream(served, await served.key(), endpoint) as response:
        await response.aread()
    assert (response.status_code, error_of(response)["code"]) == (402, "budget_exceeded")
    await expect_nothing_bought(served, stub)


async def test_a_wrong_key_is_an_ordinary_error(served: Served, stub: Stub) -> None:
    async with served.openai("sk-not-ours") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.images.edit(model=GPT2, image=png(), prompt="a red fox", stream=True)
    await expect_nothing_bought(served, stub)


# Slow providers


async def until_comment(lines: AsyncIterator[str]) -> None:
    """Read up to the next keep-alive comment; an event before it is a failure."""
    assert await read_event(lines) is COMMENT


@both_endpoints
@pytest.mark.parametrize("kind", ["answer", "stream_hold"])
async def test_a_slow_stream_sends_keep_alive_comments(
    lively: Served, stub: Stub, endpoint: str, kind: Any
) -> None:
    stub.faults.add(Fault(kind, hold=kind == "answer"))
    async with open_stream(lively, await lively.key(), endpoint, partial_images=1) as response:
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        lines = response.aiter_lines()
        if kind == "stream_hold":
            assert (await read_event(lines)).data["partial_image_index"] == 0
        await until_comment(lines)
        await until_comment(lines)
        stub.release()
        rest = await read_rest(lines)
    assert rest[-1].name == COMPLETED[endpoint]
    await expect_one_call_each(lively, stub, requests=1)


async def test_the_official_client_accepts_keep_alive_comments(lively: Served, stub: Stub) -> None:
    stub.faults.add(Fault(delay_seconds=0.7))
    async with lively.openai(await lively.key()) as client:
        stream = await client.images.generate(
            model=GPT2, prompt="a red fox", quality="low", stream=True, partial_images=1
        )
        kinds = [event.type async for event in stream]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


@both_endpoints
async def test_a_refusal_after_keep_alive_comments_is_an_error_event_and_costs_nothing(
    lively: Served, stub: Stub, endpoint: str
) -> None:
    stub.faults.add(Fault("status", preset="moderation_blocked", hold=True))
    async with open_stream(lively, await lively.key(), endpoint, partial_images=1) as response:
        lines = response.aiter_lines()
        await until_comment(lines)
        stub.release()
        [last] = await read_rest(lines)
    assert (last.name, last.data["error"]["code"]) == ("error", "moderation_blocked")
    assert [line.state for line in await books(lively)] == ["void"]
    assert (await lively.ledger_total(), stub.bill) == (0, [])


async def test_a_client_that_leaves_during_keep_alive_comments_pays_the_cost(
    lively: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    before = ended("generations")
    async with open_stream(lively, await lively.key(), "generations") as response:
        await until_comment(response.aiter_lines())
    await until_ended("generations", before + 1)
    stub.release()
    await until_states(lively, {"posted": 1})
    assert await lively.ledger_total() == stub.totals.cost_nano_usd > 0


async def test_a_plain_request_gets_no_comments(lively: Served, stub: Stub) -> None:
    stub.faults.add(Fault(delay_seconds=0.7))
    async with lively.http(await lively.key()) as http:
        response: httpx2.Response = await http.post(
            "/v1/images/generations", json={"model": GPT2, "prompt": "a red fox"}
        )
    assert response.content.startswith(b"{")
    await expect_one_call_each(lively, stub, requests=1)


@both_endpoints
async def test_a_client_that_leaves_leaves_no_task_behind(
    served: Served, stub: Stub, endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    stub.faults.add(Fault("stream_hold"))
    key = await served.key()
    async with open_stream(served, key, endpoint, partial_images=1) as response:
        await read_event(response.aiter_lines())
        await stub.until_held(1)
    stub.release()
    await until_states(served, {"posted": 1})
    gc.collect()
    assert [one.name for one in caplog.records if one.name == "asyncio"] == []
