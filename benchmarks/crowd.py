"""An open-loop load generator: requests are sent on schedule, however long answers take.

A client that waits for its answer slows down with the server and hides the latency of others.
Latencies count from the time at which a request was due.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httptools

TICK_SECONDS = 0.002
ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The due time in seconds from the start, the status, and the latency of a request."""

    due: float
    status: int
    milliseconds: float


CUT_OFF = 0
"""The status of a request whose connection ended without an answer."""


@dataclass(slots=True)
class _Pool:
    """The idle connections, and the answers of all connections."""

    port: int
    began: float
    idle: "list[_Connection]" = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    open_requests: int = 0


class _Connection(asyncio.Protocol):
    """A connection that sends one request at a time."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        keeps = self._parser.should_keep_alive()
        self._ended(self._parser.get_status_code())
        if keeps:
            self._pool.idle.append(self)
        else:
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self in self._pool.idle:
            self._pool.idle.remove(self)
        self._ended(CUT_OFF)

    def close(self) -> None:
        self._transport.close()

    def _ended(self, status: int) -> None:
        if self._due is None:
            return
        took = (time.perf_counter() - self._pool.began - self._due) * 1000
        self._pool.answers.append(Answer(self._due, status, took))
        self._pool.open_requests -= 1
        self._due = None


async def run_crowd(
    port: int, requests: Sequence[bytes], *, per_second: float, seconds: float
) -> list[Answer]:
    """Send `requests` in turn at an even rate, and wait for every answer."""
    pool = _Pool(port, time.perf_counter())
    starting: set[asyncio.Task[None]] = set()
    sent = 0
    total = int(per_second * seconds)
    while sent < total:
        while sent < total and sent / per_second <= time.perf_counter() - pool.began:
            due = sent / per_second
            request = requests[sent % len(requests)]
            pool.open_requests += 1
            if pool.idle:
                pool.idle.pop().send(request, due)
            else:
                task = asyncio.create_task(_connect_and_send(pool, request, due))
                starting.add(task)
                task.add_done_callback(starting.discard)
            sent += 1
        await asyncio.sleep(TICK_SECONDS)
    async with asyncio.timeout(ANSWER_SECONDS):
        while pool.open_requests:  # noqa: ASYNC110 - counted in callbacks
            await asyncio.sleep(TICK_SECONDS)
    for connection in list(pool.idle):
        connection.close()
    return pool.answers


async def _connect_and_send(pool: _Pool, request: bytes, due: float) -> None:
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(
            lambda: _Connection(pool), "127.0.0.1", pool.port
        )
    except OSError:
        pool.answers.append(Answer(due, CUT_OFF, 0.0))
        pool.open_requests -= 1
        return
    connection.send(request, due)


def statuses(answers: Sequence[Answer]) -> dict[int, int]:
    """Count the answers of each status."""
    return dict(sorted(Counter(answer.status for answer in answers).items()))


def percentile(answers: Sequence[Answer], share: float) -> float:
    """Compute the latency in milliseconds within which this share of answers came."""
    found = sorted(answer.milliseconds for answer in answers)
    return found[min(len(found) - 1, int(len(found) * share))] if found else 0.0
