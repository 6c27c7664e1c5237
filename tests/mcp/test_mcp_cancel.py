"""M10 over MCP: a client that cancels or disconnects at any point is charged its cost once."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.config import Settings
from gateway.tenancy.api_keys import IssuedKey
from tests.download_hosts import (
    NAME,
    PUBLIC,
    Dialled,
    Names,
    certificates,
    downloading,
    says_nothing,
    web_host,
)
from tests.harness import GPT2, Served, secret_of
from tests.image_helpers import data_url, expect_nothing_bought, padded_png, png
from tests.mcp_helpers import (
    MODES,
    Message,
    call,
    call_by_http,
    content_of,
    error_of,
    post,
    recent_ids,
    served_with_downloads,
    tool_message,
)
from tests.money_helpers import books, eventually, until_states
from tests.stub_openai import Fault, Stub

MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "generate_image": MAKE,
    "edit_image": {**MAKE, "image": data_url(padded_png(png(), 100_000))},
}
both_eras = pytest.mark.parametrize("mode", MODES)
both_tools = pytest.mark.parametrize("tool", ARGUMENTS)


@dataclass(frozen=True)
class Leaving:
    """A client on a bare connection, which the test cuts while its call runs."""

    served: Served
    key: IssuedKey
    stub: Stub

    def wire(self, message: Message) -> bytes:
        """A message with its head, as it goes over the wire."""
        lines = [f"{name}: {value}" for name, value in message.headers.items()]
        lines += [f"Authorization: Bearer {secret_of(self.key)}", "Host: 127.0.0.1"]
        lines += [f"Content-Length: {len(message.body)}", "", ""]
        return "\r\n".join(["POST /mcp HTTP/1.1", *lines]).encode() + message.body

    async def leave(
        self,
        sent: bytes,
        until: Callable[[asyncio.StreamReader], Awaitable[object]],
    ) -> None:
        """Send, wait for an event, and cut the connection."""
        address = urlsplit(self.served.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(sent)
        await writer.drain()
        await until(reader)
        writer.transport.abort()


def nameless_files() -> int:
    """Temporary files without a name that this process holds open."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return sum(link.endswith("(deleted)") for link in links)


async def expect_no_files(before: int) -> None:
    """Wait until all temporary files of a request are gone."""

    async def gone() -> bool:
        return await asyncio.to_thread(nameless_files) <= before

    await eventually(gone)


async def expect_settled(served: Served, stub: Stub, key: IssuedKey, mode: str) -> None:
    """Expect for each bill line a ledger line of the same cost and an image in the history."""
    await stub.until_idle()
    await until_states(served, {"posted": len(stub.bill)})
    booked = await books(served)
    assert [line.lines for line in booked] == [
        (("post", bill.cost_nano_usd),) for bill in stub.bill
    ]
    assert len(stub.calls) == len(stub.bill)

    async def kept() -> bool:
        async with served.http(key) as http:
            return len(await recent_ids(http, "?limit=100", mode)) == len(stub.bill)

    await eventually(kept)


async def turns(count: int, _reader: asyncio.StreamReader) -> None:
    """Let all other tasks run for this many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("calm_log")
@both_eras
@both_tools
async def test_a_client_that_vanishes_at_any_point_is_charged_once_what_it_cost(
    served: Served, stub: Stub, mode: str, tool: str
) -> None:
    key = await served.key()
    await served.budget("5")
    leaving = Leaving(served, key, stub)
    message = tool_message(tool, mode, **ARGUMENTS[tool])
    whole = leaving.wire(message)
    before = nameless_files()

    for share in (0, 10, 40, 70, 99):  # before the request is whole
        await leaving.leave(whole[: len(whole) * share // 100], partial(turns, 1))
    async with served.http(key) as http:
        assert (await post(http, Message("tools/list", {}, mode))).status == 200
    await expect_nothing_bought(served, stub)

    stub.faults.add(Fault(hold=True))  # while the provider works
    count = len(stub.bill)
    await leaving.leave(whole, lambda _: stub.until_held(1))
    stub.release()
    await stub.until_billed(count + 1)

    stub.faults.add(Fault(hold=True, bill_at_arrival=True))  # between the bill and the answer
    count = len(stub.bill)
    await leaving.leave(whole, lambda _: stub.until_billed(count + 1))
    await stub.until_held(1)
    stub.release()
    await stub.until_idle()

    stub.configure(min_b64_bytes=3_000_000)  # while the answer comes, is shown and is stored
    count = len(stub.bill)
    await leaving.leave(whole, lambda _: stub.until_billed(count + 1))
    await leaving.leave(whole, lambda _: stub.until_billed(count + 2))
    await leaving.leave(whole, lambda reader: reader.readuntil(b"generated-images://"))

    for yields in (0, 1, 2, 5, 10, 20, 50, 100):  # at whatever point this may be
        await leaving.leave(whole, partial(turns, yields))
    async with served.http(key) as http:  # by then, the others have been let in or not
        assert (await post(http, message)).status == 200
    await served.gateway.pipeline.drain(30)
    await expect_settled(served, stub, key, mode)
    assert len(stub.bill) >= 6
    await expect_no_files(before)


@pytest.mark.usefixtures("calm_log")
@both_eras
@both_tools
async def test_a_client_that_vanishes_while_partial_images_come_is_charged_for_them(
    served: Served, stub: Stub, mode: str, tool: str
) -> None:
    key = await served.key()
    leaving = Leaving(served, key, stub)
    message = tool_message(tool, mode, **ARGUMENTS[tool], partial_images=2)
    whole = leaving.wire(replace(message, meta={"progressToken": "t"}))
    before = nameless_files()
    stub.faults.add(Fault("stream_hold", times=3))
    # At once, with the first of them, and with the second.
    await leaving.leave(whole, lambda _: stub.until_held(1))
    for text in (b"Partial image 1", b"Partial image 2"):
        await leaving.leave(whole, lambda reader, text=text: reader.readuntil(text))  # type: ignore[misc]
    await stub.until_held(3)
    stub.release()
    await stub.until_billed(3)
    await expect_settled(served, stub, key, mode)
    assert len(stub.bill) == 3
    await expect_no_files(before)


@both_eras
@both_tools
async def test_a_call_that_the_official_client_cancels_is_charged_once_what_it_cost(
    served: Served, stub: Stub, mode: str, tool: str
) -> None:
    key = await served.key()
    before = nameless_files()
    stub.faults.add(Fault(hold=True, times=2), Fault(hold=True, bill_at_arrival=True, times=2))
    async with served.mcp(key, mode) as client:
        calls = [asyncio.create_task(call(client, tool, **ARGUMENTS[tool])) for _ in range(4)]
        await stub.until_held(4)
        for running in calls:
            running.cancel()
        await asyncio.wait(calls)
        assert all(running.cancelled() for running in calls)
        stub.release()
        await stub.until_billed(4)
        # The client's session goes on.
        assert len((await client.list_tools()).tools) == 6
    await expect_settled(served, stub, key, mode)
    await expect_no_files(before)


@pytest.mark.parametrize(("mode", "tool"), list(zip(MODES, ARGUMENTS, strict=True)))
async def test_a_client_that_returns_with_its_key_gets_the_bought_image(
    served: Served, stub: Stub, mode: str, tool: str
) -> None:
    key = await served.key()
    leaving = Leaving(served, key, stub)
    message = tool_message(tool, mode, **ARGUMENTS[tool], idempotency_key="purchase-1")
    stub.faults.add(Fault(hold=True))
    await leaving.leave(leaving.wire(message), lambda _: stub.until_held(1))
    async with served.http(key) as http:
        early = await call_by_http(http, message)
        assert error_of(early)["code"] == "idempotency_in_flight"
        stub.release()
        await stub.until_billed(1)
        await until_states(served, {"posted": 1})
        back = [content_of(await call_by_http(http, message)) for _ in range(2)]
        ids = await recent_ids(http, "", mode)
    assert back[0] == back[1]
    assert [image["id"] for image in back[0]["images"]] == ids
    await expect_settled(served, stub, key, mode)
    assert len(stub.bill) == 1


@both_eras
async def test_a_cancellation_message_from_any_client_stops_no_paid_call(
    served: Served, stub: Stub, mode: str
) -> None:
    """Requests are independent: a guessed number cancels no request of another client."""
    key, other = await served.key(), await served.key(tenant_id=await served.tenant("other"))
    stub.faults.add(Fault(hold=True))
    message = tool_message("generate_image", mode, **MAKE)
    async with served.http(key) as http:
        making = asyncio.create_task(post(http, message))
        await stub.until_held(1)
        for sender in (key, other):
            async with served.http(sender) as cancelling:
                params = {"requestId": message.id, "reason": "too slow"}
                body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
                headers = Message("notifications/cancelled", params, mode).headers
                answer = await cancelling.post(
                    "/mcp", content=json.dumps(body).encode(), headers=headers
                )
                assert answer.status_code == 202
        assert not making.done()
        stub.release()
        answered = await making
    assert answered.result["structuredContent"]["cost_status"] == "actual"
    await expect_settled(served, stub, key, mode)


@both_eras
async def test_a_client_that_vanishes_while_its_images_are_fetched_buys_nothing(
    settings: Settings, stub: Stub, tmp_path: Path, mode: str
) -> None:
    made = certificates(tmp_path, NAME)
    async with (
        web_host(says_nothing, made.server) as host,
        downloading(
            ssl_context=made.client, open_socket=Dialled(host.port), resolver=Names([[PUBLIC]])
        ) as downloads,
        served_with_downloads(settings, downloads) as served,
    ):
        key = await served.key()
        leaving = Leaving(served, key, stub)
        before = nameless_files()
        images = [data_url(padded_png(png(), 100_000)), f"https://{NAME}/a.png"]
        message = tool_message("edit_image", mode, **MAKE, image=images)

        async def asked(reader: asyncio.StreamReader) -> None:
            while not host.requests:
                await turns(1, reader)
            assert nameless_files() > before

        await leaving.leave(leaving.wire(message), asked)
        await expect_no_files(before)
        await expect_nothing_bought(served, stub)
