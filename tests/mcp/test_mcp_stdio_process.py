"""`gateway mcp-stdio` as a process: its end, its refusals, its reports of failures."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Served, free_port, secret_of
from tests.money_helpers import until_states
from tests.serving import serving
from tests.stdio_helpers import WAIT_SECONDS, Answering, BridgeCommand, Send, error_of, request
from tests.stub_openai import Fault, Stub

INVALID_REQUEST, PARSE_ERROR, BRIDGE_ERROR = -32600, -32700, -32000
CALL = {
    "name": "generate_image",
    "arguments": {"prompt": "a red circle", "model": "gpt-image-2", "quality": "low"},
}
LARGE_BYTES = 30_000_000


class Turned:
    """An address at which one server replaces another."""

    turn: Answering

    async def __call__(self, scope: Any, receive: object, send: Send) -> None:
        await self.turn(scope, receive, send)


class Silent:
    """An HTTP server that never answers; it records the methods, and "gone" for a disconnect."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, _scope: object, receive: Any, _send: object) -> None:
        body = b""
        while (event := await receive())["type"] != "http.disconnect":
            body += event["body"]
            if not event["more_body"]:
                self.events.put_nowait(json.loads(body)["method"])
        self.events.put_nowait("gone")

    async def next(self, count: int) -> list[str]:
        """The next events, in alphabetical order: they cross each other."""
        async with asyncio.timeout(WAIT_SECONDS):
            return sorted([await self.events.get() for _ in range(count)])


async def call_and_hold(
    served: Served, stub: Stub, bridge: Any, body: dict[str, Any] | None = None
) -> None:
    """Send a call and wait until the provider has it."""
    stub.faults.add(Fault(hold=True))
    await bridge.send(request("tools/call", 1, **(body or CALL)))
    await stub.until_held(1)


@pytest.fixture
async def bridge(served: Served, tmp_path: Path) -> BridgeCommand:
    """The command with a live key of the served gateway."""
    return BridgeCommand(tmp_path, served.base_url, secret_of(await served.key()))


@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGINT])
async def test_it_ends_at_once_with_its_client_and_the_gateway_settles_what_was_under_way(
    served: Served, stub: Stub, bridge: BridgeCommand, end: signal.Signals | None
) -> None:
    async with bridge.process() as running:
        await call_and_hold(served, stub, running)
        if end is None:
            assert await running.close() == 0
        else:
            running.process.send_signal(end)
            assert await running.ended() == 0
    stub.release()
    await until_states(served, {"posted": 1})
    assert await served.ledger_total() == stub.totals.cost_nano_usd
    assert bridge.said() == []


def test_it_ends_when_its_client_reads_no_more(tmp_path: Path) -> None:
    command = BridgeCommand(tmp_path, f"http://127.0.0.1:{free_port()}")
    line = json.dumps(request("tools/list")).encode() + b"\n"
    with subprocess.Popen(
        [sys.executable, *command.arguments],
        env=os.environ | command.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdout.close()
        process.stdin.write(line)
        assert process.wait(WAIT_SECONDS) == 0


async def test_an_invalid_message_is_an_error_and_the_next_one_is_served(
    bridge: BridgeCommand,
) -> None:
    async with bridge.process() as running:
        for line in (b"hello\n", b"[]\n", b'{"jsonrpc":"2.0"}\n', b"\xff\n", b"[" * 9_000 + b"\n"):
            await running.send(line)
            assert error_of(await running.receive()) == (None, PARSE_ERROR, "invalid_message")
        await running.send(b"\n", b"  \r\n")
        assert (await running.ask("tools/list", "a"))["id"] == "a"
        assert await running.close() == 0
    assert len(bridge.said()) == 1


OVERLONG = [
    ('{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"x":"%s"}}', 7),
    ('{"method":"tools/call","params":{"x":"%s"},"jsonrpc":"2.0","id":"a-7"}', "a-7"),
    ('{"params":{"x":"%s","y":{"id":5}},"id":7, "jsonrpc": "2.0"}', 7),
    ('{"params":{"x":"%s","y":{"id":5}}}', None),
    ('{"params":{"id":5,"x":"%s"}}', None),
    ("%s", None),
]


async def test_a_line_over_the_limit_is_refused_under_its_own_id(bridge: BridgeCommand) -> None:
    small = replace(bridge, extra=(("GATEWAY_MAX_JSON_UPLOAD_BYTES", "30000"),))
    async with small.process() as running:
        for line, request_id in OVERLONG:
            for size in (30_000, 1_000_000):
                await running.send(line.replace("%s", "x" * size).encode() + b"\n")
                answer = error_of(await running.receive())
                assert answer == (request_id, INVALID_REQUEST, "message_too_large")
        assert "result" in await running.ask("tools/list", 8)


async def test_thirty_megabytes_pass_both_ways(tmp_path: Path) -> None:
    answer = {"jsonrpc": "2.0", "id": 1, "result": {"text": "y" * LARGE_BYTES}}
    server = Answering(200, "application/json", json.dumps(answer, indent=2).encode())
    async with BridgeCommand(tmp_path).in_front_of(server) as running:
        assert await running.ask("tools/call", name="x", text="x" * LARGE_BYTES) == answer
    [headers] = server.seen
    assert int(headers[b"content-length"]) > LARGE_BYTES


async def test_more_calls_at_once_than_are_passed_on_are_refused(tmp_path: Path) -> None:
    async with BridgeCommand(tmp_path).in_front_of(Silent()) as running:
        await running.send(*(request("tools/call", number, **CALL) for number in range(65)))
        assert error_of(await running.receive()) == (64, BRIDGE_ERROR, "too_many_requests")
        assert await running.close() == 0


def cancelled(request_id: int | str) -> dict[str, Any]:
    params = {"requestId": request_id}
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}


async def test_a_cancelled_call_makes_room(tmp_path: Path) -> None:
    async with BridgeCommand(tmp_path).in_front_of(Silent()) as running:
        await running.send(*(request("tools/call", number, **CALL) for number in range(64)))
        await running.send(cancelled(5))
        await running.send(request("tools/call", 64, **CALL), request("tools/list", 65))
        assert error_of(await running.receive())[0] == 65


async def test_cancelling_closes_the_stream_and_is_a_message_to_earlier_eras_only(
    tmp_path: Path,
) -> None:
    server = Silent()
    older = {"jsonrpc": "2.0", "id": "1", "method": "tools/call", "params": CALL}
    async with BridgeCommand(tmp_path).in_front_of(server) as running:
        await running.send(request("tools/call", 1, **CALL))
        assert await server.next(1) == ["tools/call"]
        await running.send(cancelled(1), cancelled(1))
        assert await server.next(1) == ["gone"]
        await running.send(older)
        assert await server.next(1) == ["tools/call"]
        await running.send(cancelled(1), cancelled("1"))
        assert await server.next(2) == ["gone", "notifications/cancelled"]


async def test_headers_repeat_what_each_message_says(tmp_path: Path) -> None:
    handshake = {"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "2025-06-18"}}
    server = Answering(200, "application/json", json.dumps(handshake).encode())
    older = [
        {"jsonrpc": "2.0", "id": 1, "method": method} for method in ("initialize", "tools/list")
    ]
    newer = [
        request("tools/list"),
        request("tools/call", name="ü"),
        request("resources/read", uri="a:b"),
    ]
    async with BridgeCommand(tmp_path).in_front_of(server) as running:
        for message in (*older, *newer):
            await running.send(message)
            assert await running.receive() == handshake
    names = (b"mcp-protocol-version", b"mcp-method", b"mcp-name")
    assert [tuple(seen.get(name) for name in names) for seen in server.seen] == [
        (None, None, None),
        (b"2025-06-18", None, None),
        (b"2026-07-28", b"tools/list", None),
        (b"2026-07-28", b"tools/call", b"=?base64?w7w=?="),
        (b"2026-07-28", b"resources/read", b"a:b"),
    ]
    assert {seen[b"authorization"] for seen in server.seen} == {b"Bearer any"}


FAILURES = {
    "html": (Answering(200, "text/html", b"<p>Welcome"), "no_mcp_endpoint"),
    "not_found": (Answering(404, "text/plain", b"Not Found"), "no_mcp_endpoint"),
    "accepted": (Answering(202, "text/plain", b""), "no_mcp_endpoint"),
    "another_answer": (
        Answering(200, "application/json", b'{"jsonrpc":"2.0","id":99,"result":{}}'),
        "no_mcp_endpoint",
    ),
    "proxy_page": (Answering(502, "text/html", b"<p>Bad Gateway"), "refused"),
    "unauthorized": (Answering(401, "text/html", b""), "invalid_api_key"),
    "too_large": (Answering(413, "text/plain", b""), "message_too_large"),
    "envelope": (
        Answering(
            503,
            "application/json",
            b'{"error":{"message":"Busy.\\u001b[31m\\nWait.","type":"server_error","param":null,"code":"overloaded"}}',
        ),
        "overloaded",
    ),
    "broken_stream": (Answering(200, "text/event-stream", b": ping\r\n\r\n"), "outcome_unknown"),
    "redirect": (
        Answering(307, "text/plain", b"", location="https://elsewhere.example/mcp?secret=1"),
        "redirected",
    ),
}


async def test_an_invalid_answer_is_explained_to_the_client_and_once_on_stderr(
    tmp_path: Path,
) -> None:
    messages = []
    servers = Turned()
    async with serving(servers) as base_url:
        command = BridgeCommand(tmp_path, base_url)
        async with command.process() as running:
            for servers.turn, code in FAILURES.values():
                await running.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
                answers = [await running.ask("tools/call", number, **CALL) for number in (1, 2)]
                assert list(map(error_of, answers)) == [
                    (1, BRIDGE_ERROR, code),
                    (2, BRIDGE_ERROR, code),
                ]
                messages.append(answers[0]["error"]["message"])
            assert await running.close() == 0
    shown = [message.replace("\x1b", " ").replace("\n", " ") for message in messages]
    assert command.said() == [message for message, _ in itertools.groupby(shown)]
    assert "secret" not in command.log.read_text()


async def test_an_error_without_an_id_gets_that_of_its_request(tmp_path: Path) -> None:
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32020,"message":"No."}}'
    async with BridgeCommand(tmp_path).in_front_of(
        Answering(400, "application/json", body)
    ) as running:
        answer = await running.ask("tools/list", "mine")
    assert answer == {
        "jsonrpc": "2.0",
        "id": "mine",
        "error": {"code": -32020, "message": "No."},
    }
