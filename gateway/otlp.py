"""Sender of spans by OTLP over HTTP, in the event loop and encoded as they end.

The library's exporter encodes in a thread, which competes with the requests for the interpreter's
lock: it took a fifth of the CPU time of a request (docs/decisions/0062-traces.md).
https://opentelemetry.io/docs/specs/otlp/
"""

import asyncio
import gzip
import struct
from collections import deque
from collections.abc import Mapping
from functools import lru_cache

import aiohttp
import structlog

from gateway import telemetry
from gateway.background import repeat
from gateway.tracing import Attribute, Attributes, TracedStep

BATCH_SPANS = 512
MAX_WAITING = 8192
INTERVAL_SECONDS = 5.0
CLOSE_SECONDS = 5.0
INTERNAL, SERVER, CLIENT = 1, 2, 3
FAILED = b"\x7a\x02\x18\x02"
"""The field `status` with the code ERROR."""
_IDS = struct.Struct("=BB16sBB8s")
_PARENT = struct.Struct("=BB8s")
_TIMES = struct.Struct("<BQBQ")
log = structlog.get_logger(__name__)


@lru_cache(maxsize=2048)
def varint(number: int) -> bytes:
    """Encode a number of protobuf; a negative one as 64 bits."""
    number &= 0xFFFFFFFFFFFFFFFF
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def block(tag: int, content: bytes) -> bytes:
    """Encode a field of bytes: a text or a message."""
    return bytes((tag,)) + varint(len(content)) + content


def attribute(tag: int, key: str, value: Attribute) -> bytes:
    """Encode an attribute as the field `tag` of its message."""
    encoded = b"\x18" + varint(value) if isinstance(value, int) else block(0x0A, _utf8(value))
    return block(tag, _key(key) + block(0x12, encoded))


@lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    return block(0x0A, name.encode())


@lru_cache(maxsize=4096)
def described(name: str, kind: int, attributes: Attributes) -> bytes:
    """Encode the fields of a span that many have in common."""
    parts = [block(0x2A, _utf8(name)), bytes((0x30, kind))]
    return b"".join(parts + [attribute(0x4A, key, value) for key, value in attributes])


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def encode_span(  # noqa: PLR0917 - the fields of the message, in their order
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes | None,
    description: bytes,
    started_ns: int,
    ended_ns: int,
    *,
    is_failed: bool,
) -> bytes:
    """Encode a span, with its fields of `described`, as an element of `ScopeSpans`."""
    content = (
        _IDS.pack(0x0A, 16, trace_id, 0x12, 8, span_id)
        + (b"" if parent_id is None else _PARENT.pack(0x22, 8, parent_id))
        + description
        + _TIMES.pack(0x39, started_ns, 0x41, ended_ns)
        + (FAILED if is_failed else b"")
    )
    return b"\x12" + varint(len(content)) + content


def encode_step(step: TracedStep, ended_ns: int, *, is_failed: bool) -> bytes:
    """Encode a step."""
    description = described(step.name, CLIENT if step.is_call else INTERNAL, step.attributes)
    for key, value in step.noted.items():
        description += attribute(0x4A, key, value)
    return encode_span(
        step.parent.trace_id,
        step.span_id,
        step.parent.span_id,
        description,
        step.started_ns,
        ended_ns,
        is_failed=is_failed,
    )


class OtlpSender:
    """Sends encoded spans in batches: full ones at once, others every five seconds.

    While the collector does not answer, the newest are dropped beyond a bound, and counted.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        resource: Mapping[str, Attribute],
        scope: tuple[str, str],
        headers: Mapping[str, str],
        seconds: float,
        is_compressed: bool,
    ) -> None:
        self._endpoint = endpoint
        attributes = b"".join(attribute(0x0A, key, value) for key, value in resource.items())
        self._resource = block(0x0A, attributes)
        self._scope = block(0x0A, block(0x0A, scope[0].encode()) + block(0x12, scope[1].encode()))
        self._headers = {**headers, "content-type": "application/x-protobuf"}
        if is_compressed:
            self._headers["content-encoding"] = "gzip"
        self._is_compressed = is_compressed
        self._seconds = seconds
        self._waiting: deque[bytes] = deque()
        self._is_due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False

    def send(self, span: bytes) -> None:
        """Queue a span; never blocks."""
        if len(self._waiting) >= MAX_WAITING:
            telemetry.spans_dropped_total.inc()
            return
        self._waiting.append(span)
        if self._task is None:
            self._task = asyncio.create_task(repeat("traces", self._send_for_ever), name="traces")
        if len(self._waiting) >= BATCH_SPANS:
            self._is_due.set()

    async def close(self) -> None:
        """Send what is queued, for a bounded time, and stop."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            async with asyncio.timeout(CLOSE_SECONDS), self._session() as session:
                while self._waiting and await self._send_batch(session):
                    pass
        except TimeoutError:
            log.warning("traces_not_sent", reason="shutdown", spans=len(self._waiting))

    async def _send_for_ever(self) -> None:
        async with self._session() as session:
            while True:
                try:
                    async with asyncio.timeout(INTERVAL_SECONDS):
                        await self._is_due.wait()
                except TimeoutError:
                    pass
                self._is_due.clear()
                while self._waiting:
                    if not await self._send_batch(session):
                        await asyncio.sleep(INTERVAL_SECONDS)
                    elif len(self._waiting) < BATCH_SPANS:
                        break

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._seconds),
            trust_env=True,  # the operator's own proxy and certificates
        )

    async def _send_batch(self, session: aiohttp.ClientSession) -> bool:
        """Send the oldest spans; returns False where they have to wait."""
        count = min(len(self._waiting), BATCH_SPANS)
        spans = b"".join([self._waiting[index] for index in range(count)])
        body = block(0x0A, self._resource + block(0x12, self._scope + spans))
        if self._is_compressed:
            body = gzip.compress(body, 1)
        try:
            async with session.post(
                self._endpoint, data=body, headers=self._headers, allow_redirects=False
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._note(type(error).__name__)
            return False
        if status in {429, 502, 503, 504}:  # those that OTLP lets repeat
            self._note(str(status))
            return False
        for _ in range(count):
            self._waiting.popleft()
        if status >= 300:  # noqa: PLR2004 - refused for good, as a redirection is
            telemetry.spans_dropped_total.inc(count)
            self._note(str(status))
        else:
            self._is_failing = False
        return True

    def _note(self, reason: str) -> None:
        """Log the first failure of a row; the address may hold a secret and is left out."""
        if not self._is_failing:
            log.warning("traces_not_sent", reason=reason)
        self._is_failing = True
