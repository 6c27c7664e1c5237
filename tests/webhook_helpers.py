"""Helpers for webhook tests: a receiver on loopback, events, and a fast clock."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2

from tests.admin_helpers import JsonObject, admin, answered, created
from tests.harness import Served

SECONDS = 30
"""The longest wait for any event, on a busy machine."""
EXCEEDED: JsonObject = {
    "budget_id": "7",
    "owner": "tenant",
    "api_key_id": None,
    "user_id": None,
    "window": "month",
    "enforcement": "hard",
    "limit_usd": "50.000000000",
    "spent_usd": "49.990000000",
    "held_usd": "0.000000000",
    "period_start": "2026-11-01T00:00:00+00:00",
    "resets_at": "2026-12-01T00:00:00+00:00",
}


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    head: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> JsonObject:
        event: JsonObject = json.loads(self.body)
        return event


@dataclass
class Receiver:
    """An endpoint's other side; answers with `statuses`, one after the other, then with 204.

    While `opened` is clear, requests are read and left without an answer.
    """

    statuses: list[int] = field(default_factory=list)
    location: str | None = None
    received: list[Received] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Condition = field(default_factory=asyncio.Condition)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks"

    async def until(self, count: int) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(SECONDS), self.came:
            await self.came.wait_for(lambda: len(self.received) >= count)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request, and answer it."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in lines if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            async with self.came:
                self.received.append(Received(head, headers, body))
                self.came.notify_all()
            await self.opened.wait()
            status = self.statuses.pop(0) if self.statuses else 204
            location = "" if self.location is None else f"Location: {self.location}\r\n"
            writer.write(f"HTTP/1.1 {status} x\r\n{location}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving(*statuses: int, silent: bool = False) -> AsyncIterator[Receiver]:
    """A receiver on loopback until the end of the block."""
    receiver = Receiver(list(statuses))
    if not silent:
        receiver.opened.set()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    yield receiver
    receiver.opened.set()
    server.close()


async def make_webhook(
    served: Served, url: str, *, tenant_id: UUID | None = None, **body: Any
) -> JsonObject:
    """A webhook of the operator's, or of a tenant; with its secret."""
    async with admin(served) as http:
        return created(await http.post(webhooks_of(tenant_id), json={"url": url, **body}))


def webhooks_of(tenant_id: UUID | None) -> str:
    return "/webhooks" if tenant_id is None else f"/tenants/{tenant_id}/webhooks"


async def make_event(
    served: Served,
    event_type: str = "budget.exceeded",
    *,
    tenant_id: UUID | None = None,
    livemode: bool = True,
    data: JsonObject | None = None,
) -> str:
    """An event as the money functions write it; returns its id."""
    rows = await served.owner_sql(
        "INSERT INTO event (tenant_id, livemode, type, data)"
        " VALUES (:tenant_id, :livemode, :type, CAST(:data AS jsonb)) RETURNING id",
        tenant_id=tenant_id,
        livemode=livemode,
        type=event_type,
        data=json.dumps(EXCEEDED if data is None else data),
    )
    return str(rows[0].id)


async def deliver(served: Served) -> None:
    """Let the dispatcher announce and deliver what is due, and wait for the answers."""
    async with asyncio.timeout(SECONDS):
        await served.gateway.webhooks.work()
        await served.gateway.webhooks.finish()


async def hasten(served: Served) -> None:
    """Let everything that waits be due: the hours between two tries are over."""
    await served.owner_sql(
        "UPDATE webhook_delivery SET next_attempt_at = now() WHERE status = 'pending'"
    )


async def deliveries_of(
    served: Served, webhook: JsonObject, tenant_id: UUID | None = None, **query: Any
) -> list[JsonObject]:
    """The deliveries of a webhook by the operators' REST API, newest first."""
    path = f"{webhooks_of(tenant_id)}/{webhook['id']}/deliveries"
    async with admin(served) as http:
        data: list[JsonObject] = answered(await http.get(path, params=query))["data"]
    return data


async def ask(served: Served, method: str, path: str, **options: Any) -> httpx2.Response:
    """One request of an operator."""
    async with admin(served) as http:
        return await http.request(method, path, **options)
