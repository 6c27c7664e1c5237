"""Bodies of requests, read alike by every front: bounded, in a given time, and to their end."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.config import Settings
from tests.harness import Served, secret_of, served_gateway
from tests.money_helpers import eventually
from tests.request_log_helpers import rows_of
from tests.stub_openai import Stub

BOUNDS = {
    "max_body_bytes": 50_000,
    "max_upload_bytes": 50_000,
    "max_json_upload_bytes": 50_000,
    "max_mcp_body_bytes": 50_000,
}
JSON, FORM = "application/json", "multipart/form-data; boundary=b"
PART = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'
FRONTS: list[tuple[str, str, bytes]] = [
    ("/v1/images/generations", JSON, b'{"prompt": "'),
    ("/v1/images/edits", JSON, b'{"prompt": "'),
    ("/v1/images/edits", FORM, PART),
    ("/mcp", JSON, b'{"jsonrpc": "2.0", "method": "'),
]
fronts = pytest.mark.parametrize(("path", "content_type", "beginning"), FRONTS)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def begin(served: Served, path: str, content_type: str, body: bytes, length: str) -> Streams:
    """Send a request's headers with a framing of its body, and the body's beginning."""
    address = urlsplit(served.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content_type}\r\n"
        "accept: application/json, text/event-stream\r\n"
        f"authorization: Bearer {secret_of(await served.key())}\r\n{length}\r\n\r\n".encode()
        + body
    )
    return reader, writer


async def answer_of(streams: Streams, code: bytes) -> bytes:
    """The answer's first line; the answer must contain the code."""
    reader, writer = streams
    answer = await reader.readuntil(b'"' + code + b'"')
    writer.close()
    return answer.partition(b"\r\n")[0]


@fronts
async def test_a_length_beyond_the_bound_is_refused_before_the_body_comes(
    settings: Settings, stub: Stub, path: str, content_type: str, beginning: bytes
) -> None:
    async with served_gateway(settings.model_copy(update=BOUNDS)) as served:
        streams = await begin(served, path, content_type, beginning, "content-length: 50001")
        assert await answer_of(streams, b"payload_too_large") == (
            b"HTTP/1.1 413 Request Entity Too Large"
        )
    assert stub.calls == []


@fronts
async def test_a_body_without_a_length_is_refused_once_it_exceeds_the_bound(
    settings: Settings, stub: Stub, path: str, content_type: str, beginning: bytes
) -> None:
    async with served_gateway(settings.model_copy(update=BOUNDS)) as served:
        body = beginning + b"a" * 50_000
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
        streams = await begin(served, path, content_type, chunk, "transfer-encoding: chunked")
        assert await answer_of(streams, b"payload_too_large") == (
            b"HTTP/1.1 413 Request Entity Too Large"
        )
    assert stub.calls == []


@fronts
async def test_a_stalled_body_is_given_up(
    settings: Settings, stub: Stub, path: str, content_type: str, beginning: bytes
) -> None:
    async with served_gateway(settings.model_copy(update={"upload_seconds": 0.2})) as served:
        streams = await begin(served, path, content_type, beginning, "content-length: 1000")
        assert await answer_of(streams, b"upload_too_slow") == b"HTTP/1.1 400 Bad Request"
    assert stub.calls == []


@fronts
async def test_a_body_that_breaks_off_is_recorded_and_buys_nothing(
    served: Served, stub: Stub, path: str, content_type: str, beginning: bytes
) -> None:
    _, writer = await begin(served, path, content_type, beginning, "content-length: 1000")
    writer.close()
    rows: list[dict[str, Any]] = []

    async def recorded() -> bool:
        rows[:] = await rows_of(served)
        return bool(rows)

    await eventually(recorded)
    [row] = rows
    expected = "client_disconnected" if path == "/mcp" else "incomplete_body"
    assert (row["route"], row["error_code"]) == (path, expected)
    assert stub.calls == []
