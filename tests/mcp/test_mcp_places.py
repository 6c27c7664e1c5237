"""Admission over MCP: large bodies, requests, and each tenant's share of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from gateway.config import Settings
from tests.harness import GPT2, LogAs, Served, secret_of, served_gateway
from tests.image_helpers import (
    data_url,
    expect_nothing_bought,
    expect_one_call_each,
    padded_png,
    png,
)
from tests.mcp_helpers import MODES, Message, post, tool_message
from tests.money_helpers import eventually, image_body
from tests.stub_openai import Fault, Stub


def rpc_code(answer: httpx2.Response) -> str:
    """The gateway's code in a refusal that came before the request was read."""
    error = answer.json()["error"]
    assert isinstance(error["code"], int)
    return str(error["data"]["code"])


MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}
LARGE = data_url(padded_png(png(), 300_000))
both_eras = pytest.mark.parametrize("mode", MODES)


@asynccontextmanager
async def narrow_gateway(settings: Settings, **limits: int) -> AsyncIterator[Served]:
    """A gateway with fewer places than usual."""
    async with served_gateway(settings.model_copy(update=limits)) as served:
        yield served
        await served.check_invariants()


async def send(http: httpx2.AsyncClient, message: Message) -> httpx2.Response:
    """Send a message; the answer as plain HTTP sees it."""
    return await http.post("/mcp", content=message.body, headers=message.headers)


def expect_overloaded(answer: httpx2.Response) -> None:
    assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert rpc_code(answer) == "overloaded"
    assert answer.headers["retry-after"] == "1"


def made_image(answer: httpx2.Response) -> bool:
    """Tell if a tool call succeeded and made an image."""
    return answer.status_code == HTTPStatus.OK and "generated-images://" in answer.text


async def until_admitted(http: httpx2.AsyncClient, message: Message) -> None:
    """Wait until places are free again."""

    async def admitted() -> bool:
        return (await send(http, message)).status_code == HTTPStatus.OK

    await eventually(admitted)


@both_eras
async def test_one_tenant_at_its_share_blocks_no_other(
    settings: Settings, stub: Stub, mode: str
) -> None:
    async with narrow_gateway(settings, max_concurrent_mcp_requests=4) as served:
        key = await served.key()
        other = await served.key(tenant_id=await served.tenant("other"))
        stub.faults.add(Fault(hold=True, times=3))
        paint, ask = tool_message("generate_image", mode, **MAKE), Message("tools/list", {}, mode)
        async with served.http(key) as http, served.http(other) as others:
            held = [asyncio.create_task(send(http, paint)) for _ in range(2)]
            await stub.until_held(2)
            for message in (ask, paint):
                expect_overloaded(await send(http, message))
            # A test key is of the same tenant: it has no share of its own.
            async with served.http(await served.key(livemode=False)) as sandbox:
                expect_overloaded(await send(sandbox, ask))
            held.append(asyncio.create_task(send(others, paint)))
            await stub.until_held(3)
            assert (await send(others, ask)).status_code == HTTPStatus.OK
            stub.release()
            assert all(map(made_image, await asyncio.gather(*held)))
            await until_admitted(http, ask)
        await expect_one_call_each(served, stub, requests=3)


@both_eras
async def test_few_large_bodies_are_let_in_and_small_ones_beside_them(
    settings: Settings, stub: Stub, mode: str
) -> None:
    async with narrow_gateway(settings, max_concurrent_large_mcp_requests=2) as served:
        key = await served.key()
        other = await served.key(tenant_id=await served.tenant("other"))
        stub.faults.add(Fault(hold=True, times=2))
        large = tool_message("edit_image", mode, **MAKE, image=LARGE)
        small = tool_message("edit_image", mode, **MAKE, image=data_url(png()))
        async with served.http(key) as http, served.http(other) as others:
            held = [asyncio.create_task(send(http, large))]
            await stub.until_held(1)
            expect_overloaded(await send(http, large))
            held.append(asyncio.create_task(send(others, large)))
            await stub.until_held(2)
            assert made_image(await send(http, small))
            stub.release()
            assert all(map(made_image, await asyncio.gather(*held)))
            await until_admitted(http, large)
    assert len(stub.bill) == len(stub.calls)


@both_eras
async def test_a_client_that_leaves_gives_its_place_back(
    settings: Settings, stub: Stub, mode: str
) -> None:
    async with narrow_gateway(settings, max_concurrent_mcp_requests=2) as served:
        key = await served.key()
        paint, ask = tool_message("generate_image", mode, **MAKE), Message("tools/list", {}, mode)
        for count in range(1, 4):
            stub.faults.add(Fault(hold=True))
            async with served.http(key) as http:
                leaving = asyncio.create_task(send(http, paint))
                await stub.until_held(count)
                leaving.cancel()
                await asyncio.wait([leaving])
            async with served.http(key) as http:
                await until_admitted(http, ask)
        stub.release()
        await stub.until_billed(3)
        await served.gateway.pipeline.drain(30)
        await expect_one_call_each(served, stub, requests=3)


async def test_a_body_that_never_ends_gives_its_place_back(settings: Settings, stub: Stub) -> None:
    limits: dict[str, Any] = {"max_concurrent_mcp_requests": 2, "upload_seconds": 0.3}
    async with narrow_gateway(settings, **limits) as served:
        key, message = await served.key(), Message("tools/list")
        lines = [f"{name}: {value}" for name, value in message.headers.items()]
        lines = [*lines, f"Authorization: Bearer {secret_of(key)}", "Content-Length: 1000"]
        address = urlsplit(served.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = ["POST /mcp HTTP/1.1", "Host: 127.0.0.1", *lines, "", "{"]
        writer.write("\r\n".join(head).encode())
        answer = await reader.readuntil(b"upload_too_slow")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        async with served.http(key) as http:
            assert (await send(http, message)).status_code == HTTPStatus.OK
        await expect_nothing_bought(served, stub)


@both_eras
async def test_a_body_as_large_as_allowed_is_read_and_one_byte_more_is_not(
    settings: Settings, stub: Stub, mode: str
) -> None:
    message = tool_message("edit_image", mode, **MAKE, image=data_url(padded_png(png(), 60_000)))
    size = len(message.body)
    async with narrow_gateway(settings, max_mcp_body_bytes=size) as served:
        async with served.http(await served.key()) as http:
            assert made_image(await send(http, message))
            longer = message.body + b" "
            refused = await http.post("/mcp", content=longer, headers=message.headers)
        assert (refused.status_code, rpc_code(refused)) == (413, "payload_too_large")
        await expect_one_call_each(served, stub, requests=1)


async def test_a_body_of_very_many_parts_is_refused_unparsed(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        for mode in MODES:
            message = tool_message("edit_image", mode, **MAKE, image=[[]] * 100_000)
            answer = await send(http, message)
            assert (answer.status_code, rpc_code(answer)) == (400, "invalid_json")
        nested = b"[" * 99_000
        answer = await http.post("/mcp", content=nested, headers=message.headers)
        assert answer.status_code == HTTPStatus.BAD_REQUEST
        assert (await post(http, Message("tools/list"))).result["tools"]
    await expect_nothing_bought(served, stub)


async def test_a_link_is_bounded_before_anybody_reads_it(served: Served, stub: Stub) -> None:
    key = await served.key()
    url = f"{served.gateway.settings.public_url}/images/x?" + "a=b&" * 100_000
    async with served.mcp(key) as client:
        for reference in (
            url,
            "https://example.com/" + "a" * 100_000,
            "generated-images://" * 9_000,
        ):
            result = await client.call_tool("edit_image", {"prompt": "x", "image": reference})
            assert result.meta is not None
            error = result.meta["error"]
            assert (error["code"], error["param"]) == ("string_above_max_length", "image")
    assert stub.calls == []


async def test_few_images_are_read_as_resources_at_once_and_each_wait_is_bounded(
    settings: Settings, stub: Stub, capfd: pytest.CaptureFixture[str], log_as: LogAs
) -> None:
    log_as("INFO", "json")
    change = {"max_concurrent_large_mcp_requests": 2, "mcp_send_seconds": 0.5}
    stub.configure(min_b64_bytes=8_000_000)
    async with served_gateway(settings.model_copy(update=change)) as served:
        key = await served.key()
        async with served.http(key) as http:
            made = await http.post("/v1/images/generations", json=image_body(response_format="url"))
            assert made.status_code == 200
            [image] = (await http.get("/v1/images")).json()["data"]
            uri = f"generated-images://{image['id']}"
            message = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "resources/read",
                "params": {"uri": uri},
            }
            headers = {"Accept": "application/json, text/event-stream"}
            async with http.stream("POST", "/mcp", json=message, headers=headers) as unread:
                assert unread.status_code == 200
                refused = await http.post("/mcp", json=message, headers=headers)
                assert (refused.status_code, rpc_code(refused)) == (503, "overloaded")

                async def free_again() -> bool:
                    answer = await http.post("/mcp", json=message, headers=headers)
                    return answer.status_code == 200

                await eventually(free_again)
    logged = capfd.readouterr().err
    assert "mcp_client_does_not_read" in logged
    assert "Traceback" not in logged
