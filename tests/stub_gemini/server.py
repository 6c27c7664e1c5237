"""The stub as a server, with faults: `async with running_gemini() as stub`."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.stub_gemini.api import (
    KEY,
    MAX_REQUEST_BYTES,
    MODELS,
    BillLine,
    GeminiCall,
    Refused,
    answer_of,
)

STATUSES: dict[str, Refused] = {
    "invalid": Refused(400, "INVALID_ARGUMENT", "The prompt is not supported."),
    "echo": Refused(400, "INVALID_ARGUMENT", f"The key {KEY} may not do that."),
    "key_invalid": Refused(
        400,
        "INVALID_ARGUMENT",
        "API key not valid. Please pass a valid API key.",
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
    ),
    "precondition": Refused(
        400, "FAILED_PRECONDITION", "User location is not supported for the API use."
    ),
    "unauthenticated": Refused(401, "UNAUTHENTICATED", "Request had invalid credentials."),
    "denied": Refused(403, "PERMISSION_DENIED", "The caller does not have permission."),
    "not_found": Refused(404, "NOT_FOUND", "models/x is not found for API version v1beta."),
    "minute": Refused(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota.",
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}],
        },
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"},
    ),
    "day": Refused(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota.",
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}],
        },
    ),
    "internal": Refused(500, "INTERNAL", "An internal error has occurred."),
    "unavailable": Refused(503, "UNAVAILABLE", "The model is overloaded."),
    "deadline": Refused(504, "DEADLINE_EXCEEDED", "Deadline expired."),
}
CHARGED_FAULTS = frozenset({"internal", "unavailable", "deadline"})
"""Google does not say if these are billed; the stub bills them, as the worst case."""
BROKEN = frozenset({"reset", "half", "hang", "wrong_type"})
"""Answers that are made and billed, and do not arrive as they should."""


class StubGemini:
    """A running stub. `faults`: each call takes the next one; empty: none."""

    def __init__(self) -> None:
        self.calls: list[GeminiCall] = []
        self.bill: list[BillLine] = []
        self.faults: list[str] = []
        self.keys = {KEY}
        self.unlisted: set[str] = set()
        self.port = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.held = asyncio.Event()
        self.held.set()
        self.arrived = asyncio.Semaphore(0)
        self._hanging: set[asyncio.StreamWriter] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._serve_one(reader, writer):
                pass
        writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = first.split(" ")
        if method == "GET":
            return await self._list(writer, headers)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._generate(writer, target, headers, content)
        finally:
            self.in_flight -= 1

    async def _list(self, writer: asyncio.StreamWriter, headers: dict[str, str]) -> bool:
        if headers.get("x-goog-api-key") not in self.keys:
            return await _send(writer, 400, STATUSES["key_invalid"].body)
        methods = ["generateContent", "countTokens"]
        models = [
            {"name": f"models/{name}", "supportedGenerationMethods": methods}
            for name in MODELS
            if name not in self.unlisted
        ]
        return await _send(writer, 200, {"models": models})

    async def _generate(
        self, writer: asyncio.StreamWriter, target: str, headers: dict[str, str], content: bytes
    ) -> bool:
        model = target.removeprefix("/v1beta/models/").removesuffix(":generateContent")
        body = json.loads(content)
        self.calls.append(GeminiCall(model, headers.get("x-goog-api-key", ""), body, headers))
        fault = self.faults.pop(0) if self.faults else ""
        self.arrived.release()
        await self.held.wait()
        if headers.get("x-goog-api-key") not in self.keys:
            return await _send(writer, 400, STATUSES["key_invalid"].body)
        if len(content) > MAX_REQUEST_BYTES:
            return await _send(writer, 400, STATUSES["invalid"].body)
        if fault in STATUSES:
            if fault in CHARGED_FAULTS:
                self.bill.append(answer_of(model, body)[1] or BillLine(model, 0, 0))
            return await _send(writer, STATUSES[fault].code, STATUSES[fault].body)
        twist = "" if fault in BROKEN or fault == "gzip" else fault
        try:
            answer, line = answer_of(model, body, seed=len(self.calls), twist=twist)
        except Refused as refused:
            return await _send(writer, refused.code, refused.body)
        if line is not None:
            self.bill.append(line)
        return await self._answer(writer, fault, answer)

    async def _answer(
        self, writer: asyncio.StreamWriter, fault: str, answer: dict[str, object]
    ) -> bool:
        match fault:
            case "reset":
                writer.transport.abort()
                return False
            case "hang":
                self._hanging.add(writer)
                await writer.wait_closed()
                return False
            case "half":
                return await _send(writer, 200, answer, cut=2)
            case "wrong_type":
                return await _send(writer, 200, None)
            case "gzip":
                return await _send(writer, 200, answer, compressed=True)
            case _:
                return await _send(writer, 200, answer)

    def end(self) -> None:
        for writer in self._hanging:
            writer.transport.abort()


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    body: object,
    *,
    cut: int = 1,
    compressed: bool = False,
) -> bool:
    """Write an answer, whole or its first half; return True if the connection may go on."""
    content = b"<html>Bad gateway</html>" if body is None else json.dumps(body).encode()
    kind = "text/html" if body is None else "application/json; charset=UTF-8"
    content = gzip.compress(content) if compressed else content
    writer.write(
        f"HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\n"
        f"{'content-encoding: gzip' if compressed else 'server: scaffolding on HTTPServer2'}\r\n"
        f"content-length: {len(content)}\r\n\r\n".encode()
        + content[: len(content) // cut]
    )
    await writer.drain()
    return cut == 1


@asynccontextmanager
async def running_gemini() -> AsyncIterator[StubGemini]:
    """Run a stub on a free port of loopback."""
    stub = StubGemini()
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=2**26)
    stub.port = server.sockets[0].getsockname()[1]
    try:
        yield stub
    finally:
        stub.end()
        server.close()
