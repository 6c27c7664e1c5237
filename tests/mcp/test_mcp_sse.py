"""The HTTP+SSE transport of 2024: off by default, with the same keys, bounds and books."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.sse import sse_client

from gateway.config import Settings
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import (
    GPT2,
    Served,
    gateway_process,
    process_environment,
    secret_of,
    served_gateway,
)
from tests.image_helpers import download
from tests.mcp_helpers import call, content_of, error_of
from tests.money_helpers import eventually, until_states
from tests.stub_openai import Fault, Stub

MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


@pytest.fixture
async def speaking(settings: Settings) -> AsyncIterator[Served]:
    """A gateway that also serves the old transport, with few places."""
    change = {"mcp_sse": True, "max_mcp_sse_streams": 4}
    async with served_gateway(settings.model_copy(update=change)) as served:
        yield served
        await served.check_invariants()


@asynccontextmanager
async def connected(served: Served, key: IssuedKey) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {secret_of(key)}"}
    async with Client(
        sse_client(f"{served.base_url}/sse", headers=headers), mode="legacy"
    ) as client:
        yield client


@asynccontextmanager
async def listening(http: httpx2.AsyncClient) -> AsyncIterator[tuple[str, httpx2.Response]]:
    """An open stream: the address for its messages, and the stream itself."""
    async with http.stream("GET", "/sse") as stream:
        assert stream.status_code == HTTPStatus.OK
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: "), stream
                return


async def test_it_is_off_unless_the_operator_wants_it(served: Served) -> None:
    async with served.http(await served.key()) as http:
        assert (await http.get("/sse")).status_code == HTTPStatus.NOT_FOUND
        assert (await http.post("/sse/messages", json=LIST)).status_code == HTTPStatus.NOT_FOUND


async def test_an_image_is_made_and_a_refusal_read_and_both_are_recorded(
    speaking: Served, stub: Stub
) -> None:
    key = await speaking.key()
    stub.faults.add(Fault("answer", delay_seconds=2.5))
    heard: list[object] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with connected(speaking, key) as client:
        assert len((await client.list_tools()).tools) == 6
        slow = await client.call_tool("generate_image", MAKE, progress_callback=hear)
        made = content_of(slow)
        assert await download(speaking, made["url"])
        refused = error_of(await call(client, "generate_image", **{**MAKE, "size": "1000x1000"}))
        assert (refused["code"], refused["param"]) == ("invalid_value", "size")
        history = await client.read_resource("image-history://recent")
        assert made["id"] in history.model_dump_json()
    assert heard
    assert len(stub.calls) == 1
    await speaking.gateway.request_log.flush()
    rows = await speaking.owner_sql(
        "SELECT generation_id, error_code FROM request_log WHERE route = '/sse/messages'"
        " AND (generation_id IS NOT NULL OR error_code IS NOT NULL) ORDER BY at"
    )
    assert [(str(row.generation_id), row.error_code) for row in rows] == [
        (made["generation_id"], None),
        ("None", "invalid_value"),
    ]


async def test_stream_and_messages_need_a_key_and_a_session_is_its_keys_alone(
    speaking: Served, stub: Stub
) -> None:
    alice, bob = await speaking.key(user="alice"), await speaking.key(user="bob")
    async with (
        speaking.http() as keyless,
        speaking.http(alice) as own,
        speaking.http(bob) as other,
    ):
        assert (await keyless.get("/sse")).status_code == HTTPStatus.UNAUTHORIZED
        async with listening(own) as (address, _):
            assert (await keyless.post(address, json=LIST)).status_code == HTTPStatus.UNAUTHORIZED
            assert (await other.post(address, json=LIST)).status_code == HTTPStatus.NOT_FOUND
            assert (await own.post(address, json=LIST)).status_code == HTTPStatus.ACCEPTED
        evil = {"Host": "evil.example"}
        assert (await own.get("/sse", headers=evil)).status_code == HTTPStatus.MISDIRECTED_REQUEST
        assert (await own.post("/sse")).status_code == HTTPStatus.METHOD_NOT_ALLOWED
        assert (await own.get("/sse/messages")).status_code == HTTPStatus.METHOD_NOT_ALLOWED
    assert stub.calls == []


async def test_an_invalid_message_is_refused_without_harm_to_its_session(
    speaking: Served, stub: Stub, capfd: pytest.CaptureFixture[str]
) -> None:
    long = {**LIST, "params": {"x": "x" * 300_000}}
    bodies = {
        b"{canary": (400, "invalid_json"),
        b'{"id": 1, "canary": 2}': (400, "invalid_json"),
        b'{"jsonrpc": "2.0", "id": 1.5, "method": "tools/list"}': (400, "invalid_request_id"),
        json.dumps(long).encode(): (413, "payload_too_large"),
    }
    async with speaking.http(await speaking.key()) as http, listening(http) as (address, _):
        for body, expected in bodies.items():
            answer = await http.post(address, content=body)
            code = answer.json()["error"]["data"]["code"]
            assert (answer.status_code, code) == expected
        assert (await http.post(address, json=LIST)).status_code == HTTPStatus.ACCEPTED
    logged = capfd.readouterr().err
    assert "Traceback" not in logged
    assert "canary" not in logged
    assert stub.calls == []


@pytest.mark.usefixtures("calm_log")
async def test_a_client_whose_stream_breaks_during_its_call_is_charged_once(
    speaking: Served, stub: Stub
) -> None:
    who = {"clientInfo": {"name": "leaving", "version": "1"}, "capabilities": {}}
    bodies: list[dict[str, object]] = [
        {"id": 1, "method": "initialize", "params": {"protocolVersion": "2024-11-05", **who}},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "generate_image", "arguments": MAKE}},
    ]
    key = await speaking.key()
    async with speaking.http(key) as http:
        for number in (1, 2, 3):
            stub.faults.add(Fault(hold=True))
            async with listening(http) as (address, _):
                for body in bodies:
                    answer = await http.post(address, json={"jsonrpc": "2.0", **body})
                    assert answer.status_code == HTTPStatus.ACCEPTED
                await stub.until_held(1)
            stub.release()
            await stub.until_billed(number)
    await until_states(speaking, {"posted": 3})
    assert len(stub.bill) == len(stub.calls) == 3


async def test_one_tenant_takes_half_of_the_streams_and_gives_them_back(speaking: Served) -> None:
    key = await speaking.key()
    other = await speaking.key(tenant_id=await speaking.tenant("other"))
    async with speaking.http(key) as http, speaking.http(other) as elsewhere:
        async with listening(http), listening(http):
            refused = await http.get("/sse")
            assert refused.status_code == HTTPStatus.SERVICE_UNAVAILABLE
            assert refused.headers["retry-after"] == "1"
            async with listening(elsewhere):
                pass

        async def is_free() -> bool:
            async with http.stream("GET", "/sse") as stream:
                return stream.status_code == HTTPStatus.OK

        await eventually(is_free)


async def test_streams_end_when_the_gateway_is_told_to_stop(speaking: Served) -> None:
    async with (
        speaking.http(await speaking.key()) as http,
        http.stream("GET", "/sse") as stream,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: endpoint"
        speaking.gateway.leaving.set()
        async with asyncio.timeout(5):
            async for _ in lines:
                pass


async def test_several_workers_are_refused_with_it(settings: Settings, tmp_path: Path) -> None:
    environment = process_environment(settings) | {"GATEWAY_MCP_SSE": "true"}
    log = tmp_path / "log"
    with gateway_process(environment, log, "--workers", "2") as running:
        assert await asyncio.to_thread(running.process.wait, 30) == 1
    assert "GATEWAY_MCP_SSE needs one process, and 2 workers were requested" in log.read_text()
