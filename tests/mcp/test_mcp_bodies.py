"""Request bodies at /mcp: malformed ids, and large bodies that delay no other request."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import httpx2
import pytest

from tests.harness import GPT2, Served, secret_of
from tests.image_helpers import data_url, expect_nothing_bought, padded_png, png
from tests.mcp_helpers import (
    MODES,
    Message,
    call_by_http,
    content_of,
    error_of,
    read_messages,
    tool_message,
)
from tests.stub_openai import Stub

MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}
LARGE_CHARACTERS = 30_000_000
LOOP_SECONDS = 0.05
"""Of its own time on a processor, however busy the machine is; it was 0.11 and more."""


def with_id(message: Message, request_id: bytes) -> bytes:
    """The message with this JSON text as its id."""
    return replace(message, id=7).body.replace(b'"id": 7', b'"id": ' + request_id)


async def answers(
    http: httpx2.AsyncClient, message: Message, ids: list[bytes]
) -> list[tuple[int, object, object]]:
    """Status, error code and id of the answers to a message with each of `ids`."""
    found: list[tuple[int, object, object]] = []
    for request_id in ids:
        body = with_id(message, request_id)
        response = await http.post("/mcp", content=body, headers=message.headers)
        [said] = read_messages(response)
        found.append((response.status_code, said.get("error", {}).get("code"), said["id"]))
    return found


@pytest.mark.parametrize("mode", MODES)
async def test_a_request_with_an_invalid_id_is_refused(
    served: Served, stub: Stub, mode: str
) -> None:
    ids = [b"1.5", b"1.0", b"1e3", b"null", b"{}", b"[]", b"[1]", b"true", b"NaN", b"-Infinity"]
    async with served.http(await served.key()) as http:
        for message in (
            Message("tools/list", {}, mode),
            tool_message("generate_image", mode, **MAKE),
        ):
            found = await answers(http, message, ids)
            assert found == [(HTTPStatus.BAD_REQUEST, -32600, None)] * len(ids)
        whole = await answers(
            http, Message("tools/list", {}, mode), [b"0", b"-7", b'""', b'"a"', b"9" * 30]
        )
    assert whole == [(HTTPStatus.OK, None, one) for one in (0, -7, "", "a", int("9" * 30))]
    await expect_nothing_bought(served, stub)


@pytest.mark.parametrize("mode", MODES)
async def test_a_notification_and_a_clients_response_get_no_response(
    served: Served, mode: str
) -> None:
    headers = Message("tools/list", {}, mode).headers
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    async with served.http(await served.key()) as http:
        taken = await http.post("/mcp", json=notification, headers=headers)
    assert (taken.status_code, taken.content) == (HTTPStatus.ACCEPTED, b"")


@pytest.mark.parametrize("mode", MODES)
async def test_a_large_image_is_edited_and_errors_beside_it_are_named(
    served: Served, stub: Stub, mode: str
) -> None:
    """A lone surrogate too, which not every parser takes."""
    image = data_url(padded_png(png(), 3_000_000))
    async with served.http(await served.key()) as http:
        for prompt, code in (("a fox é", None), ("a fox \ud83e", "invalid_value")):
            arguments = {**MAKE, "prompt": prompt, "image": image}
            result = await call_by_http(http, tool_message("edit_image", mode, **arguments))
            if code is None:
                assert content_of(result)["model"] == GPT2
            else:
                assert (error_of(result)["code"], error_of(result)["param"]) == (code, "prompt")
    assert len(stub.calls) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_only_the_arguments_of_a_tool_may_be_large(
    served: Served, stub: Stub, mode: str
) -> None:
    long = "x" * 300_000
    messages = [
        Message("resources/read", {"uri": long}, mode),
        Message("prompts/get", {"name": "x", "arguments": {"a": long}}, mode),
        replace(tool_message("generate_image", mode, **MAKE), meta={"x": long}),
        Message("tools/kall", {"x": long}, mode),
    ]
    async with served.http(await served.key()) as http:
        for message in messages:
            headers = {k: v for k, v in message.headers.items() if k != "Mcp-Name"}
            response = await http.post("/mcp", content=message.body, headers=headers)
            assert response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            assert response.json()["error"]["data"]["code"] == "payload_too_large"
        garbage = b'{"jsonrpc":"2.0","id":1,"method":"' + long.encode()
        response = await http.post("/mcp", content=garbage, headers=messages[-1].headers)
        assert response.status_code == HTTPStatus.BAD_REQUEST
        assert response.json()["error"]["code"] == -32700
    await expect_nothing_bought(served, stub)


SENDER = """
import sys, urllib.request
address, body, *headers = sys.argv[1:]
content = open(body, "rb").read()
request = urllib.request.Request(address, content, dict(h.split(": ", 1) for h in headers))
sys.stdout.write(urllib.request.urlopen(request).read().decode())
"""


async def send_from_elsewhere(served: Served, key: str, message: Message, file: Path) -> str:
    """Send a message from another process, whose work does not count as the gateway's."""
    await asyncio.to_thread(file.write_bytes, message.body)
    headers = {**message.headers, "Authorization": f"Bearer {key}"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SENDER, f"{served.base_url}/mcp", str(file)),
        *(f"{name}: {value}" for name, value in headers.items()),
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return out.decode()


@asynccontextmanager
async def longest_work_of_the_loop() -> AsyncIterator[list[float]]:
    """The longest processor time, in seconds, for which other requests had to wait."""
    longest = [0.0]

    async def beat() -> None:
        worked = time.thread_time()
        while True:
            await asyncio.sleep(0)
            longest[0] = max(longest[0], time.thread_time() - worked)
            worked = time.thread_time()

    beating = asyncio.create_task(beat())
    try:
        yield longest
    finally:
        beating.cancel()


@pytest.mark.parametrize("mode", MODES)
async def test_thirty_megabytes_block_the_event_loop_only_briefly(
    served: Served, stub: Stub, mode: str, tmp_path: Path
) -> None:
    key = secret_of(await served.key())
    first = tool_message("edit_image", mode, **MAKE, image="x" * 300_000)
    await send_from_elsewhere(served, key, first, tmp_path / "body")  # what is made once is made
    cases = {
        "data:image/png;base64," + "A" * LARGE_CHARACTERS: "string_above_max_length",
        "\x7f" * (LARGE_CHARACTERS // 6): "string_above_max_length",
    }
    for image, code in cases.items():
        message = tool_message("edit_image", mode, **MAKE, image=image)
        async with longest_work_of_the_loop() as longest:
            answer = await send_from_elsewhere(served, key, message, tmp_path / "body")
        assert f"{code}: " in answer
        assert longest[0] < LOOP_SECONDS
    await expect_nothing_bought(served, stub)
