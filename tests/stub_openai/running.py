"""A stub inside the running event loop: `async with running_stub() as stub`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from tests.stub_openai.bill import BillLine
from tests.stub_openai.config import StubConfig, patched
from tests.stub_openai.connection import Connection
from tests.stub_openai.control import DEFAULT_TIMEOUT_SECONDS, serve_control
from tests.stub_openai.exchange import serve_api
from tests.stub_openai.faults import FaultQueue
from tests.stub_openai.state import Call, State, Totals


class Stub:
    """A running stub. Every `until_*` raises TimeoutError after `timeout_seconds`."""

    def __init__(self, state: State, host: str, port: int) -> None:
        self._state = state
        self.host = host
        self.port = port

    @property
    def root_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The `base_url` for an OpenAI client."""
        return f"{self.root_url}/v1"

    @property
    def bill(self) -> list[BillLine]:
        return list(self._state.bill.lines)

    @property
    def calls(self) -> list[Call]:
        return list(self._state.calls)

    @property
    def files(self) -> list[tuple[bytes, ...]]:
        """The uploads of each multipart call, in order, made while `keep_files` was set."""
        return list(self._state.files)

    @property
    def faults(self) -> FaultQueue:
        return self._state.faults

    @property
    def config(self) -> StubConfig:
        return self._state.config

    @property
    def totals(self) -> Totals:
        return self._state.totals()

    def configure(self, **settings: object) -> StubConfig:
        """Change settings of `StubConfig` by name; ValueError for one that does not exist."""
        self._state.config = patched(self._state.config, settings)
        return self._state.config

    def release(self, count: int | None = None) -> int:
        """Release the `count` calls that were held longest (None: all); return their number."""
        return self._state.release(count)

    async def reset(self) -> None:
        """Forget calls, bill and faults; abort open calls uncharged. Settings stay."""
        await self._state.reset()

    async def until_in_flight(
        self, count: int, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> None:
        """Wait until at least `count` requests have arrived and are not answered yet."""
        await self._state.until(lambda: self._state.in_flight >= count, timeout_seconds)

    async def until_held(
        self, count: int, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> None:
        """Wait until at least `count` calls are held."""
        await self._state.until(lambda: self._state.held >= count, timeout_seconds)

    async def until_billed(
        self, count: int, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> None:
        """Wait until the bill has at least `count` lines."""
        await self._state.until(lambda: len(self._state.bill.lines) >= count, timeout_seconds)

    async def until_idle(self, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Wait until no request is in flight."""
        await self._state.until(lambda: self._state.in_flight == 0, timeout_seconds)


@asynccontextmanager
async def running_stub(
    *,
    config: StubConfig | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    bill_file: Path | None = None,
) -> AsyncIterator[Stub]:
    """Serve on `host`:`port` (0: any free port) until the block ends."""
    state = State(config or StubConfig(), bill_file)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(state, partial(serve_api, state), partial(serve_control, state)),
        host,
        port,
        backlog=4096,
    )
    try:
        yield Stub(state, host, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await state.reset()
        for connection in list(state.connections):
            connection.reset()
        state.bill.close()
