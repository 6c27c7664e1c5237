"""A repeated request is answered where a new one is refused, at the cost of one look-up."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from prometheus_client import REGISTRY

from gateway.config import Settings
from tests.harness import GPT2, Served, error_of
from tests.hosting_helpers import Hosted
from tests.image_helpers import png
from tests.limits_helpers import limit
from tests.mcp_helpers import call, content_of
from tests.mcp_helpers import error_of as tool_error_of
from tests.money_helpers import GENERATIONS, image_body
from tests.store_helpers import Away, hasty_gateway, make_known
from tests.stub_openai import Fault, Stub

EDITS = "/v1/images/edits"
FAILURES_THAT_OPEN = 10


@pytest.fixture
async def hosted(settings: Settings, away: Away) -> AsyncIterator[Hosted]:
    """A gateway that gives up a failing store quickly."""
    async with hasty_gateway(settings, away) as running:
        yield running


async def make(http: httpx2.AsyncClient, name: str | None, **body: Any) -> httpx2.Response:
    """Ask for images, under an idempotency key or without one."""
    headers = {} if name is None else {"Idempotency-Key": name}
    return await http.post(GENERATIONS, json=image_body(**body), headers=headers)


async def edit(http: httpx2.AsyncClient, name: str) -> httpx2.Response:
    """Ask for an edit under an idempotency key."""
    return await http.post(
        EDITS,
        data={"prompt": "a hat", "model": GPT2, "quality": "low"},
        files={"image": ("i.png", png(64, 64), "image/png")},
        headers={"Idempotency-Key": name},
    )


def said(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return answer.status_code, str(error_of(answer)["code"])


def is_replay(answer: httpx2.Response, first: httpx2.Response) -> bool:
    """Return True for an answer that repeats the first one."""
    return (
        answer.headers.get("idempotent-replayed") == "true"
        and (first.status_code, first.content) == (answer.status_code, answer.content)
        and "idempotent-replayed" not in first.headers
    )


def lookups() -> float:
    """The number of idempotency keys that this process has looked up on their own."""
    name = "gateway_group_commit_batch_size_sum"
    return REGISTRY.get_sample_value(name, {"kind": "look_up"}) or 0.0


async def test_a_repeated_request_is_answered_while_the_rate_limit_is_used_up(
    served: Served, stub: Stub
) -> None:
    await limit(served, "requests", 1)
    async with served.http(await served.key()) as http:
        first = await make(http, "one")
        again = await make(http, "one")
        refused = [await make(http, name) for name in ("two", None)]
    assert is_replay(again, first)
    assert "RateLimit" in first.headers
    assert "RateLimit" not in again.headers  # it is not counted
    assert [said(answer) for answer in refused] == [(429, "rate_limit_exceeded")] * 2
    assert len(stub.calls) == 1


async def test_a_stream_begins_with_its_limits_and_its_repetition_without_them(
    served: Served, stub: Stub
) -> None:
    await limit(served, "requests", 1)
    async with served.http(await served.key()) as http:
        first = await make(http, "one", stream=True, partial_images=1)
        again = await make(http, "one", stream=True, partial_images=1)
    assert first.headers["X-RateLimit-Remaining-Requests"] == "0"
    assert again.headers["idempotent-replayed"] == "true"
    assert "RateLimit" not in again.headers
    served_by = {answer.headers["X-Gateway-Served-Model"] for answer in (first, again)}
    assert served_by == {GPT2}
    assert again.text.count("event: ") == 1
    assert len(stub.calls) == 1


async def test_a_repeated_request_is_answered_though_it_is_above_a_limit_set_later(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        first = await make(http, "one", n=3)
        await limit(served, "images", 2)
        again = await make(http, "one", n=3)
        refused = await make(http, "two", n=3)
        one_less = await make(http, "three", n=2)
    assert is_replay(again, first)
    assert (said(refused), one_less.status_code) == ((429, "rate_limit_exceeded"), 200)
    assert len(stub.calls) == 2


async def test_a_repeated_request_gives_back_what_it_took_of_every_limit(
    served: Served, stub: Stub
) -> None:
    for kind, most in (("requests", 3), ("images", 4), ("concurrent", 1)):
        await limit(served, kind, most)
    async with served.http(await served.key()) as http:
        first = await make(http, "one", n=2)
        repeated = [await make(http, "one", n=2) for _ in range(5)]
        second = await make(http, "two", n=2)
        refused = await make(http, "three")
    assert all(is_replay(answer, first) for answer in repeated)
    assert second.headers["X-RateLimit-Remaining-Requests"] == "1"
    assert second.headers["X-RateLimit-Remaining-Images"] == "0"
    assert said(refused) == (429, "rate_limit_exceeded")
    assert len(stub.calls) == 2


async def test_a_repeated_request_is_told_of_its_own_call_that_takes_the_only_place(
    served: Served, stub: Stub
) -> None:
    await limit(served, "concurrent", 1)
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http:
        running = asyncio.create_task(make(http, "one"))
        await stub.until_held(1)
        again, other = await make(http, "one"), await make(http, "two")
        stub.release()
        first = await running
    assert said(again) == (409, "idempotency_in_flight")
    assert said(other) == (429, "rate_limit_exceeded")
    assert first.status_code == 200
    assert len(stub.calls) == 1


async def test_a_repeated_request_is_answered_while_the_circuit_is_open(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        first = await make(http, "one")
        stub.faults.add(Fault("status", status=500, times=None))
        failed = [await make(http, f"failed-{at}") for at in range(FAILURES_THAT_OPEN)]
        again = await make(http, "one")
        unknown = await make(http, "failed-0")
        refused = [await make(http, name) for name in ("two", None)]
    assert is_replay(again, first)
    assert {said(answer) for answer in (*failed, unknown)} == {(504, "outcome_unknown")}
    assert unknown.headers["idempotent-replayed"] == "true"
    assert [said(answer) for answer in refused] == [(503, "provider_unavailable")] * 2
    assert len(stub.calls) == 1 + FAILURES_THAT_OPEN


async def test_a_repeated_request_is_answered_while_the_budget_is_spent(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        first = await make(http, "one")
        await served.budget("0.000001")
        before = lookups()
        again = await make(http, "one")
        refused = await make(http, "two")
        # The reservation itself tells the two apart.
        assert lookups() == before
    assert is_replay(again, first)
    assert said(refused) == (402, "budget_exceeded")
    assert len(stub.calls) == 1


async def test_a_repeated_request_is_answered_from_the_spool_while_the_store_fails(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    key = await hosted.served.key()
    arguments = {"prompt": "a fox", "model": GPT2, "quality": "low", "idempotency_key": "one"}
    away.fail()
    await make_known(hosted, key)
    async with hosted.served.mcp(key) as client:
        first = content_of(await call(client, "generate_image", **arguments, full_image=True))
        # With a preview alone the image needs its link, which is refused for a new request.
        again = content_of(await call(client, "generate_image", **arguments))
        other = await call(client, "generate_image", **arguments | {"idempotency_key": "two"})
    assert (again["generation_id"], again["replayed"]) == (first["generation_id"], True)
    assert tool_error_of(other)["code"] == "storage_unavailable"
    assert len(stub.calls) == 1
    away.mend()
    await hosted.served.sweep()


async def test_a_repeated_request_is_told_that_the_failing_store_has_its_images(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    key = await hosted.served.key()
    async with hosted.served.http(key) as http:
        first = await make(http, "one", response_format="url")
        away.fail()
        await make_known(hosted, key)
        failing = await make(http, "one", response_format="url")
        refused = await make(http, "two", response_format="url")
        away.mend()
        await hosted.served.sweep()
        again = await make(http, "one", response_format="url")
    assert said(failing) == (503, "overloaded")
    assert "paid for" in error_of(failing)["message"]
    assert failing.headers["X-Gateway-Generation-Id"] == first.headers["X-Gateway-Generation-Id"]
    assert said(refused) == (503, "storage_unavailable")
    assert is_replay(again, first)
    assert len(stub.calls) == 1


async def test_an_idempotency_key_is_looked_up_separately_only_before_a_refusal(
    served: Served, stub: Stub
) -> None:
    await limit(served, "requests", 2)
    async with served.http(await served.key()) as http:
        counted = [lookups()]
        for name in ("one", "one", "two", "one", "three"):
            await make(http, name)
            counted.append(lookups())
    # New, repeated, new, repeated while the limit is used up, refused.
    assert [after - before for before, after in pairwise(counted)] == [0, 0, 0, 1, 1]
    assert len(stub.calls) == 2


async def test_the_key_of_an_edit_is_looked_up_once(served: Served, stub: Stub) -> None:
    await limit(served, "requests", 1)
    async with served.http(await served.key()) as http:
        counted, answers = [lookups()], []
        for name in ("one", "one", "two"):
            answers.append(await edit(http, name))
            counted.append(lookups())
    first, again, refused = answers
    assert [after - counted[0] for after in counted] == [0, 1, 2, 3]
    assert is_replay(again, first)
    assert said(refused) == (429, "rate_limit_exceeded")
    assert len(stub.calls) == 1


async def test_a_repeated_edit_over_mcp_is_answered_though_its_source_is_deleted(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    async with served.http(key) as http, served.mcp(key) as client:
        await make(http, None)
        [source] = (await http.get("/v1/images")).json()["data"]
        uri = f"generated-images://{source['id']}"
        arguments = {"prompt": "a hat", "model": GPT2, "quality": "low", "image": uri}
        first = content_of(await call(client, "edit_image", **arguments, idempotency_key="one"))
        await http.delete(f"/v1/images/{source['id']}")
        await limit(served, "requests", 0)
        again = content_of(await call(client, "edit_image", **arguments, idempotency_key="one"))
        other = await call(client, "edit_image", **arguments, idempotency_key="two")
    assert again == {**first, "replayed": True}
    assert tool_error_of(other)["code"] == "image_not_found"
    assert len(stub.calls) == 2
