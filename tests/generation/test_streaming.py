"""Streams: partial images, then the image and its usage, read by the official client."""

import asyncio
from typing import Any

import openai
import pytest

from tests.harness import GPT2, Served
from tests.image_helpers import (
    download,
    expect_books_to_agree,
    expect_nothing_bought,
    expect_one_call_each,
    file_bytes,
    load,
    load_base64,
    mask,
    old_client,
    png,
)
from tests.stream_helpers import Event, open_stream, read_event, read_events
from tests.stub_openai import Fault, Stub

BODY: dict[str, Any] = {
    "model": GPT2,
    "prompt": "a red fox",
    "size": "1536x1024",
    "quality": "low",
    "output_format": "webp",
    "background": "opaque",
}
SHAPE = {
    "size": "1536x1024",
    "quality": "low",
    "output_format": "webp",
    "background": "opaque",
}
KINDS = {"generations": "image_generation", "edits": "image_edit"}
both_modes = pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
both_endpoints = pytest.mark.parametrize("endpoint", KINDS)


def arguments_of(endpoint: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    """The client's method and its arguments."""
    if endpoint == "generations":
        return "generate", {**BODY, "stream": True, **changes}
    overlay = file_bytes(mask(64, 48, (0, 0, 8, 8)))
    images = {"image": [png(64, 48), png(32, 32)], "mask": overlay}
    return "edit", {**BODY, **images, "stream": True, **changes}


def expect_events(events: list[Any], endpoint: str, count: int) -> None:
    """Expect `count` partial images in order, then the final image with its usage."""
    kind = KINDS[endpoint]
    *partial, completed = events
    assert [event.type for event in partial] == [f"{kind}.partial_image"] * count
    assert [event.partial_image_index for event in partial] == list(range(count))
    assert completed.type == f"{kind}.completed"
    for event in events:
        image = load_base64(event.b64_json)
        assert (image.format, image.size) == ("WEBP", (1536, 1024))
        assert {name: getattr(event, name) for name in SHAPE} == SHAPE
        assert event.created_at > 1_700_000_000
    usage = completed.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    details = usage.input_tokens_details
    assert usage.input_tokens == details.text_tokens + details.image_tokens
    assert (details.image_tokens > 0) == (endpoint == "edits")


@both_modes
@both_endpoints
@pytest.mark.parametrize("count", [0, 1, 2, 3])
async def test_the_async_client_gets_its_images_on_their_way(
    served: Served, stub: Stub, endpoint: str, count: int, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    method, arguments = arguments_of(endpoint, partial_images=count)
    async with served.openai(key) as client:
        events = [event async for event in await getattr(client.images, method)(**arguments)]
    expect_events(events, endpoint, count)
    if livemode:
        [call] = stub.calls
        sent = call.json or call.form
        assert sent is not None
        streaming = str(sent["stream"]).lower(), int(str(sent["partial_images"]))
        assert streaming == ("true", count)
        assert stub.bill[0].output_tokens == events[-1].usage.output_tokens
    await expect_books_to_agree(served, stub, key, images=1)
    await expect_one_call_each(served, stub, requests=1)


@both_modes
@both_endpoints
async def test_the_sync_client_gets_its_images_on_their_way(
    served: Served, stub: Stub, endpoint: str, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    method, arguments = arguments_of(endpoint, partial_images=2)

    def program() -> list[Any]:
        with old_client(served, key) as client:
            return list(getattr(client.images, method)(**arguments))

    expect_events(await asyncio.to_thread(program), endpoint, 2)
    await expect_books_to_agree(served, stub, key, images=1)


@both_endpoints
async def test_the_first_bytes_come_with_what_is_known_already(
    served: Served, stub: Stub, endpoint: str
) -> None:
    method, arguments = arguments_of(endpoint, model="gpt-image-1")
    async with served.openai(await served.key()) as client:
        raw = await getattr(client.images.with_raw_response, method)(**arguments)
        events = [event async for event in raw.parse()]
    assert raw.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert raw.headers["x-gateway-requested-model"] == "gpt-image-1"
    assert raw.headers["x-gateway-served-model"] == "gpt-image-2.5-sunburst"
    assert raw.headers["sunset"] == "Fri, 23 Oct 2026 00:00:00 GMT"
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["cache-control"] == "no-cache"
    expect_events(events, endpoint, 0)


@both_endpoints
async def test_the_events_on_the_wire_are_openais(
    served: Served, stub: Stub, endpoint: str
) -> None:
    async with open_stream(served, await served.key(), endpoint, partial_images=1) as response:
        partial, completed = await read_events(response)
    kind = KINDS[endpoint]
    assert (partial.name, completed.name) == (f"{kind}.partial_image", f"{kind}.completed")
    assert (partial.data["type"], completed.data["type"]) == (partial.name, completed.name)
    shared = {"type", "b64_json", "background", "created_at", "output_format", "quality", "size"}
    assert partial.data.keys() == shared | {"partial_image_index"}
    assert completed.data.keys() - {"gateway", "safety_identifier"} == shared | {"usage"}
    usage = completed.data["usage"]
    assert usage["output_tokens"] == stub.bill[0].output_tokens
    assert usage["input_tokens_details"]["image_tokens"] == stub.bill[0].input_image_tokens


@both_endpoints
async def test_each_image_is_passed_on_as_it_comes(
    served: Served, stub: Stub, endpoint: str
) -> None:
    stub.faults.add(Fault("stream_hold"))
    async with open_stream(served, await served.key(), endpoint, partial_images=2) as response:
        lines = response.aiter_lines()
        first, second = await read_event(lines), await read_event(lines)
        await stub.until_held(1)
        assert [event.data["partial_image_index"] for event in (first, second)] == [0, 1]
        stub.release()
        assert (await read_event(lines)).name == f"{KINDS[endpoint]}.completed"
    await expect_one_call_each(served, stub, requests=1)


@both_modes
@both_endpoints
async def test_the_image_can_come_as_a_link(
    served: Served, stub: Stub, endpoint: str, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    async with open_stream(
        served, key, endpoint, partial_images=1, response_format="url"
    ) as response:
        partial, completed = await read_events(response)
    assert load_base64(partial.data["b64_json"]).size == (1536, 1024)
    assert "b64_json" not in completed.data
    image = load(await download(served, completed.data["url"]))
    assert (image.format, image.size) == ("WEBP", (1536, 1024))
    await expect_one_call_each(served, stub, requests=1)


async def test_an_image_without_usage_is_still_an_image(served: Served, stub: Stub) -> None:
    stub.faults.add(Fault("usage_missing"))
    async with open_stream(served, await served.key(), "generations") as response:
        [completed] = await read_events(response)
    assert load_base64(completed.data["b64_json"]).size == (1536, 1024)
    assert completed.data.get("usage") is None
    [row] = await served.owner_sql("SELECT state, held_nano = final_nano AS whole FROM reservation")
    assert (row.state, row.whole) == ("posted_est", True)


async def test_many_streams_at_once_get_their_own_images(served: Served, stub: Stub) -> None:
    key = await served.key(livemode=False)

    async def make(number: int) -> list[Event]:
        prompt = f"a fox, number {number}"
        async with open_stream(
            served, key, "generations", partial_images=1, prompt=prompt, size="816x816"
        ) as response:
            return await read_events(response)

    streams = await asyncio.gather(*(make(number) for number in range(6)))
    assert [len(events) for events in streams] == [2] * 6
    assert len({event.data["b64_json"] for events in streams for event in events}) == 12
    await expect_one_call_each(served, stub, requests=6)


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "two images": ({"n": 2}, ("invalid_value", "n")),
    "four partial images": ({"partial_images": 4}, ("integer_above_max_value", "partial_images")),
    "fewer than none": ({"partial_images": -1}, ("integer_below_min_value", "partial_images")),
    "size": ({"size": "512x512"}, ("invalid_value", "size")),
    "old model": ({"model": "dall-e-2", "size": "256x256"}, ("unknown_parameter", "stream")),
}


@both_endpoints
async def test_a_stream_that_is_not_supported_is_refused_at_once(
    served: Served, stub: Stub, endpoint: str
) -> None:
    found = {}
    async with served.openai(await served.key()) as client:
        for name, (changes, _) in REFUSED.items():
            method, arguments = arguments_of(endpoint, **changes)
            if name == "old model":
                del arguments["output_format"], arguments["background"]
            with pytest.raises(openai.BadRequestError) as caught:
                await getattr(client.images, method)(**arguments)
            found[name] = caught.value.code, caught.value.param
    assert found == {name: expected for name, (_, expected) in REFUSED.items()}
    await expect_nothing_bought(served, stub)


async def test_a_stream_must_be_true_or_false(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        odd: list[object] = ["true", 1, [], {}]
        for value in odd:
            response = await http.post(
                "/v1/images/generations", json={**BODY, "stream": value, "partial_images": 1}
            )
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "stream"
        response = await http.post("/v1/images/generations", json={**BODY, "stream": False})
        assert response.headers["content-type"] == "application/json"
    await expect_one_call_each(served, stub, requests=1)
