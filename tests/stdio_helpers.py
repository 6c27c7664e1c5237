"""`gateway mcp-stdio` as clients start it and line by line, and a door to cut its gateway off."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.serving import serving

MODES = ["2026-07-28", "legacy"]
WAIT_SECONDS = 30
Send = Callable[[dict[str, Any]], Awaitable[None]]
MAX_LINE_BYTES = 2**27
DISCOVER_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass(frozen=True)
class BridgeCommand:
    """The command with its environment; a folder of its own stands for the user's data."""

    folder: Path
    url: str | None = None
    key: str | None = "any"
    extra: tuple[tuple[str, str], ...] = ()
    working_folder: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """The arguments of the Python interpreter."""
        return ["-m", "gateway", "mcp-stdio", *(["--url", self.url] if self.url else [])]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the client's configuration would set."""
        key = {} if self.key is None else {"GATEWAY_API_KEY": self.key}
        here = {"GATEWAY_DATA_DIR": str(self.folder), "PYTHONPATH": str(Path.cwd())}
        return {**here, **key, **dict(self.extra)}

    @property
    def log(self) -> Path:
        """The file that its stderr is written to."""
        return self.folder / "bridge.log"

    def said(self) -> list[str]:
        """The lines on stderr."""
        return self.log.read_text().splitlines()

    @asynccontextmanager
    async def client(self, mode: str = "auto") -> AsyncIterator[Client]:
        """The official client, with this command for its server."""
        parameters = StdioServerParameters(
            command=sys.executable, args=self.arguments, env=self.environment
        )
        with self.log.open("a") as log:
            async with Client(stdio_client(parameters, errlog=log), mode=mode) as client:
                yield client

    @asynccontextmanager
    async def in_front_of(self, app: object) -> AsyncIterator["BridgeProcess"]:
        """The process, with an application for its gateway."""
        async with serving(app) as url, replace(self, url=url).process() as running:
            yield running

    @asynccontextmanager
    async def process(self) -> AsyncIterator["BridgeProcess"]:
        """The bare process, killed at the end if it is still there."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.arguments,
                env=kept | self.environment,
                cwd=self.working_folder,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=MAX_LINE_BYTES,
            )
        try:
            yield BridgeProcess(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@dataclass(frozen=True)
class BridgeProcess:
    """A running bridge and its two pipes."""

    process: asyncio.subprocess.Process

    async def send(self, *messages: object) -> None:
        """Write messages; bytes go as they are."""
        assert self.process.stdin is not None
        for message in messages:
            is_line = isinstance(message, bytes)
            line = message if is_line else json.dumps(message).encode() + b"\n"
            self.process.stdin.write(line)  # type: ignore[arg-type]  # bytes either way
        await self.process.stdin.drain()

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            message: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return message

    async def ask(self, method: str, request_id: int | str = 1, **params: object) -> dict[str, Any]:
        """Send a modern request and take what comes next."""
        await self.send(request(method, request_id, **params))
        return await self.receive()

    async def ended(self) -> int:
        """The exit status; nothing but messages may have been on stdout."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            for line in (await self.process.stdout.read()).splitlines():
                assert json.loads(line)["jsonrpc"] == "2.0"
            return await self.process.wait()

    async def close(self) -> int:
        """Close stdin, as a client does that is done; the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.ended()


def request(method: str, request_id: int | str = 1, **params: object) -> dict[str, Any]:
    """A request of the modern era."""
    body = {**params, "_meta": DISCOVER_META}
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": body}


def error_of(message: dict[str, Any]) -> tuple[object, int, str]:
    """The id of the request, the JSON-RPC code and the gateway's code."""
    error = message["error"]
    return message["id"], error["code"], error["data"]["code"]


class Answering:
    """An HTTP server that gives every request the same answer, and remembers what it was sent."""

    def __init__(self, status: int, media_type: str, body: bytes, **headers: str) -> None:
        self._status = status
        self._headers = {"content-type": media_type, **headers}
        self._body = body
        self.seen: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Any, _receive: object, send: Send) -> None:
        self.seen.append(dict(scope["headers"]))
        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        start = {"type": "http.response.start", "status": self._status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": self._body})


class Door:
    """A port in front of a server. Shut, it breaks what runs through it and takes nothing more."""

    def __init__(self, base_url: str) -> None:
        self._target = int(base_url.rpartition(":")[2])
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._closed = 0
        self._change = asyncio.Condition()

    @property
    def base_url(self) -> str:
        """The address of the door."""
        return f"http://127.0.0.1:{self._port}"

    async def open(self) -> None:
        """Let connections through, at the same address every time."""
        self._server = await asyncio.start_server(self._admit, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Break what is open."""
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def until_closed(self, count: int) -> None:
        """Return when so many connections have come to their end."""
        async with asyncio.timeout(WAIT_SECONDS), self._change:
            await self._change.wait_for(lambda: self._closed >= count)

    @property
    def closed(self) -> int:
        """Connections that came to their end."""
        return self._closed

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        ends = {writer, back}
        self._open |= ends
        ways = {
            asyncio.create_task(_pass_on(reader, back)),
            asyncio.create_task(_pass_on(there, writer)),
        }
        self._passing |= ways
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.close()
        await asyncio.wait(ways)
        self._open -= ends
        self._passing -= ways
        async with self._change:
            self._closed += 1
            self._change.notify_all()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        return  # the other side was cut off


@asynccontextmanager
async def door_to(base_url: str) -> AsyncIterator[Door]:
    """An open door."""
    door = Door(base_url)
    await door.open()
    try:
        yield door
    finally:
        await door.shut()
