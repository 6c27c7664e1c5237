"""The state of one running stub: configuration, calls, bill, faults, waiting tests."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.stub_openai.bill import Bill
from tests.stub_openai.config import StubConfig
from tests.stub_openai.faults import FaultQueue

KEPT_HEADERS = (b"x-stainless-", b"openai-", b"cookie", b"idempotency-key", b"traceparent")


class Resettable(Protocol):
    """The one method of a connection that a shutdown needs."""

    def reset(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it arrived, control requests excepted.

    `json` is None if the body is not JSON. A multipart form is in `form` (plain fields) and
    `files` (field name, declared content type, size in bytes). A connection closed by
    `close_unread` leaves a call whose method and path are empty.
    """

    seq: int
    time: float
    method: str
    path: str
    key: str
    json: dict[str, object] | None
    form: dict[str, str] | None
    files: tuple[tuple[str, str, int], ...]
    stainless: dict[str, str]
    """The headers that begin with one of KEPT_HEADERS, names in lower case."""
    in_flight: int
    """The number of requests in flight when this one arrived, itself included."""

    @property
    def key_last4(self) -> str:
        return self.key[-4:]


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the last reset."""

    calls: int
    image_calls: int
    in_flight: int
    max_in_flight: int
    held: int
    bill_lines: int
    cost_nano_usd: int


class State:
    """The state that all connections of one stub share; used only from its event loop."""

    def __init__(self, config: StubConfig, bill_file: Path | None) -> None:
        self.config = config
        self.faults = FaultQueue()
        self.calls: list[Call] = []
        self.files: list[tuple[bytes, ...]] = []
        self.bill = Bill(bill_file, time.time)
        self.tasks: set[asyncio.Task[None]] = set()
        self.control_tasks: set[asyncio.Task[None]] = set()
        self.connections: set[Resettable] = set()
        self.in_flight = 0
        self.max_in_flight = 0
        self.call_count = 0
        self.image_call_count = 0
        self._held: list[asyncio.Future[None]] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._request_prefix = os.urandom(8).hex()
        self._request_count = 0

    def next_request_id(self) -> str:
        self._request_count += 1
        return f"req_{self._request_prefix}{self._request_count:016x}"

    def arrive(self) -> None:
        self.call_count += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.changed()

    def record(
        self,
        *,
        method: str,
        path: str,
        key: str = "",
        json: dict[str, object] | None = None,
        form: dict[str, str] | None = None,
        files: tuple[tuple[str, str, int], ...] = (),
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        if not self.config.record_calls:
            return
        kept = {
            name.lower().decode("latin-1"): value.decode("latin-1")
            for name, value in headers or ()
            if name.lower().startswith(KEPT_HEADERS)
        }
        self.calls.append(
            Call(
                seq=self.call_count,
                time=time.time(),
                method=method,
                path=path,
                key=key,
                json=json,
                form=form,
                files=files,
                stainless=kept,
                in_flight=self.in_flight,
            )
        )

    def leave(self) -> None:
        self.in_flight -= 1
        self.changed()

    @property
    def held(self) -> int:
        return len(self._held)

    async def hold(self) -> None:
        """Wait until `release` is called."""
        gate = asyncio.get_running_loop().create_future()
        self._held.append(gate)
        self.changed()
        try:
            await gate
        finally:
            if gate in self._held:
                self._held.remove(gate)

    def release(self, count: int | None = None) -> int:
        """Release the `count` calls that were held longest (None: all); return their number."""
        released, self._held = self._held[:count], self._held[len(self._held[:count]) :]
        for gate in released:
            if not gate.done():
                gate.set_result(None)
        return len(released)

    def changed(self) -> None:
        """Wake the waiters whose condition now holds."""
        if not self._waiters:
            return
        for reached, waiter in self._waiters:
            if not waiter.done() and reached():
                waiter.set_result(None)

    async def until(self, reached: Callable[[], bool], timeout_seconds: float) -> None:
        """Return once `reached()` is true; TimeoutError after `timeout_seconds`."""
        if reached():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (reached, waiter)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter
        finally:
            self._waiters.remove(entry)

    def totals(self) -> Totals:
        return Totals(
            calls=self.call_count,
            image_calls=self.image_call_count,
            in_flight=self.in_flight,
            max_in_flight=self.max_in_flight,
            held=self.held,
            bill_lines=len(self.bill.lines),
            cost_nano_usd=self.bill.total_nano_usd,
        )

    async def reset(self) -> None:
        """Forget calls, bill and faults; abort requests in flight without charging them."""
        running = list(self.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self.faults.clear()
        self.calls = []
        self.files = []
        self.bill.forget()
        self.call_count = self.image_call_count = 0
        self.max_in_flight = self.in_flight
