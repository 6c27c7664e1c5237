"""The stub as a server, with faults: `async with running_kserve() as stub`.

A model's name chooses its server: `/v1/models/demo:predict`, `/v2/models/triton/infer`.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.stub_kserve.api import KEY, SERVERS, BillLine, KServeCall, Refused, answer_of

STATUSES: dict[str, tuple[int, dict[str, object] | None]] = {
    "invalid": (400, {"error": "The prompt is too long."}),
    "validation": (422, {"detail": [{"loc": ["seed"], "msg": "Input should be an integer"}]}),
    "echo": (400, {"error": f"The token {KEY} may not do that."}),
    "denied": (403, {"error": "RBAC: access denied"}),
    "unknown_model": (404, {"error": "Model with name m does not exist."}),
    "not_ready": (503, {"error": "Model with name m is not ready."}),
    "internal": (500, {"error": "CUDA out of memory"}),
    "mesh": (503, None),
    "mesh_timeout": (504, None),
}
CHARGED_FAULTS = frozenset({"internal", "mesh", "mesh_timeout"})
"""The model may have run: the stub bills these, as the worst case."""


class StubKServe:
    """A running stub. `faults`: each call takes the next one; empty: none."""

    def __init__(self) -> None:
        self.calls: list[KServeCall] = []
        self.bill: list[BillLine] = []
        self.faults: list[str] = []
        self.questions: list[str] = []
        self.keys = {KEY}
        self.is_ready = True
        self.port = 0
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
        method, path, _ = first.split(" ")
        if method == "GET":
            return await self._tell(writer, path, headers)
        self.calls.append(KServeCall(path, json.loads(content), headers))
        if headers.get("authorization", "").removeprefix("Bearer ") not in self.keys:
            return await _send(writer, 401, {"error": "unauthorized"})
        return await self._predict(writer, path, self.calls[-1])

    async def _tell(self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str]) -> bool:
        self.questions.append(path)
        if headers.get("authorization", "").removeprefix("Bearer ") not in self.keys:
            return await _send(writer, 401, {"error": "unauthorized"})
        if path.startswith("/v1/models/"):
            return await _send(writer, 200, {"name": path[11:], "ready": self.is_ready})
        return await _send(writer, 200 if self.is_ready else 503, {})

    async def _predict(self, writer: asyncio.StreamWriter, path: str, call: KServeCall) -> bool:
        server = path.split("/")[3].partition(":")[0]
        fault = self.faults.pop(0) if self.faults else ""
        if fault in STATUSES:
            if fault in CHARGED_FAULTS:
                self.bill.append(BillLine(server))
            return await _send(writer, *STATUSES[fault])
        if server not in SERVERS:
            return await _send(writer, 404, {"error": f"Model with name {server} does not exist."})
        try:
            content, kind, line = answer_of(server, call.json)
        except Refused as refused:
            return await _send(writer, refused.status, refused.body)
        self.bill.append(line)
        return await self._answer(writer, fault, content, kind)

    async def _answer(
        self, writer: asyncio.StreamWriter, fault: str, content: bytes, kind: str
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
                return await _write(writer, 200, kind, content, cut=True)
            case "no_image":
                return await _send(writer, 200, {"predictions": [{"text": "sorry"}]})
            case "link":
                return await _send(writer, 200, {"predictions": [f"{self.base_url}/secret.png"]})
            case _:
                call_id = "mesh-1" if fault == "named" else ""
                return await _write(writer, 200, kind, content, call_id=call_id)

    def close(self) -> None:
        """End what hangs."""
        for writer in self._hanging:
            writer.close()


async def _send(writer: asyncio.StreamWriter, status: int, body: dict[str, object] | None) -> bool:
    if body is None:
        return await _write(writer, status, "text/plain", b"no healthy upstream")
    return await _write(writer, status, "application/json", json.dumps(body).encode())


async def _write(
    writer: asyncio.StreamWriter,
    status: int,
    kind: str,
    content: bytes,
    *,
    cut: bool = False,
    call_id: str = "",
) -> bool:
    """Write an answer, whole or its first half; `call_id`: as a mesh names a call."""
    head = f"HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}"
    head += f"\r\nx-request-id: {call_id}" if call_id else ""
    writer.write(head.encode() + b"\r\n\r\n" + (content[: len(content) // 2] if cut else content))
    await writer.drain()
    return not cut


@asynccontextmanager
async def running_kserve() -> AsyncIterator[StubKServe]:
    """Run a stub on a free port."""
    stub = StubKServe()
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=2**24)
    stub.port = server.sockets[0].getsockname()[1]
    try:
        yield stub
    finally:
        server.close()
        stub.close()
