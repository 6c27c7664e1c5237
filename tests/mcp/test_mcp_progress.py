"""Progress over MCP: notifications and partial images for callers that ask for them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.mcp_server.progress import PREVIEW_KEY
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served
from tests.image_helpers import (
    data_url,
    expect_books_to_agree,
    expect_nothing_bought,
    expect_one_call_each,
    load,
    png,
)
from tests.mcp_helpers import MODERN, MODES, Message, expect_clean, post, tool_message
from tests.stub_openai import Fault, Stub

ARGUMENTS: dict[str, dict[str, Any]] = {
    "generate_image": {"model": GPT2, "prompt": "a red fox", "size": "1536x1024", "quality": "low"},
    "edit_image": {
        "model": GPT2,
        "prompt": "a red fox",
        "size": "1536x1024",
        "quality": "low",
        "image": data_url(png(64, 48)),
    },
}
both_eras = pytest.mark.parametrize("mode", MODES)
both_tools = pytest.mark.parametrize("tool", ARGUMENTS)


@asynccontextmanager
async def listening(
    served: Served, key: IssuedKey, message: Message
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Send a message; yield the parts of its answer as they arrive."""
    async with (
        served.http(key) as http,
        http.stream("POST", "/mcp", content=message.body, headers=message.headers) as response,
    ):
        assert response.status_code == 200

        async def messages() -> AsyncIterator[dict[str, Any]]:
            async for line in response.aiter_lines():
                expect_clean(line)
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

        yield messages()


def expect_preview(params: dict[str, Any], index: int, token: str) -> None:
    """A partial image as it is reported: a small image beside the sentence."""
    assert params["progressToken"] == token
    assert str(index + 1) in params["message"]
    head, _, encoded = params["_meta"][PREVIEW_KEY].partition(",")
    assert head == "data:image/webp;base64"
    content = base64.b64decode(encoded, validate=True)
    assert len(content) < 40_000
    assert (load(content).format, load(content).size) == ("WEBP", (256, 171))


@both_eras
@both_tools
async def test_partial_images_arrive_while_the_model_still_works(
    served: Served, stub: Stub, mode: str, tool: str
) -> None:
    stub.faults.add(Fault("stream_hold"))
    key = await served.key()
    arguments = {**ARGUMENTS[tool], "partial_images": 3}
    heard: list[float] = []
    asking = replace(tool_message(tool, mode, **arguments), meta={"progressToken": "t-1"})
    async with asyncio.timeout(30), listening(served, key, asking) as messages:
        async for message in messages:
            if message.get("method") != "notifications/progress":
                break
            params = message["params"]
            if PREVIEW_KEY in params.get("_meta", {}):
                expect_preview(params, len(heard), "t-1")
                assert stub.totals.held == 1
                heard.append(params["progress"])
                if len(heard) == 3:
                    stub.release()
    assert len(heard) == 3
    assert heard == sorted(set(heard))
    assert message["result"]["structuredContent"]["cost_status"] == "actual"
    [called] = stub.calls
    sent = called.json or called.form or {}
    assert str(sent["partial_images"]) == "3"
    await expect_books_to_agree(served, stub, key, images=1)
    await expect_one_call_each(served, stub, requests=1)


@both_tools
@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
async def test_partial_images_are_paid_for_whether_there_is_time_to_show_them_or_not(
    served: Served, stub: Stub, tool: str, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    arguments = {**ARGUMENTS[tool], "partial_images": 2}
    async with served.http(key) as http:
        asking = replace(tool_message(tool, MODERN, **arguments), meta={"progressToken": 7})
        answer = await post(http, asking)
    assert not answer.result.get("isError"), answer
    times = [params["progress"] for params in answer.progress]
    assert times == sorted(set(times))
    await expect_books_to_agree(served, stub, key, images=1)
    await expect_one_call_each(served, stub, requests=1)


async def test_partial_images_are_reported_only_on_request(served: Served, stub: Stub) -> None:
    key = await served.key()
    for mode in MODES:
        stub.faults.add(Fault("stream_hold"))
        message = tool_message(
            "generate_image", mode, **ARGUMENTS["generate_image"], partial_images=2
        )
        async with served.http(key) as http:
            answering = asyncio.create_task(post(http, message))
            await stub.until_held(1)
            stub.release()
            answer = await answering
        assert [m for m in answer.messages if "method" in m] == []
        assert not answer.result.get("isError")
    await expect_books_to_agree(served, stub, key, images=2)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no integer": ({"partial_images": "2"}, "invalid_type", "partial_images"),
    "a boolean": ({"partial_images": True}, "invalid_type", "partial_images"),
    "too many": ({"partial_images": 4}, "integer_above_max_value", "partial_images"),
    "negative": ({"partial_images": -1}, "integer_below_min_value", "partial_images"),
    "several images": ({"partial_images": 2, "n": 2}, "invalid_value", "n"),
    "a model that streams none": (
        {"partial_images": 2, "model": "dall-e-3", "quality": "hd", "size": "1024x1024"},
        "unknown_parameter",
        "partial_images",
    ),
}


async def test_unsupported_partial_images_are_refused(served: Served, stub: Stub) -> None:
    for mode in MODES:
        found = {}
        async with served.http(await served.key()) as http:
            for name, (changes, _, _) in REFUSED.items():
                arguments = {**ARGUMENTS["generate_image"], **changes}
                answer = await post(http, tool_message("generate_image", mode, **arguments))
                error = answer.result["_meta"]["error"]
                found[name] = (changes, error["code"], error["param"])
        assert found == REFUSED
        await expect_nothing_bought(served, stub)


async def test_no_partial_images_may_be_asked_for_of_any_model(served: Served, stub: Stub) -> None:
    arguments: dict[str, Any] = {"model": "dall-e-3", "prompt": "a red fox", "partial_images": 0}
    for mode in MODES:
        async with served.http(await served.key()) as http:
            answer = await post(http, tool_message("generate_image", mode, **arguments))
        assert not answer.result.get("isError"), answer
        called = stub.calls[-1].json
        assert called is not None
        assert "stream" not in called
