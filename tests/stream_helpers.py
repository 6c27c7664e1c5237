"""Server-sent events as they come over the wire."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served
from tests.image_helpers import png


@dataclass(frozen=True)
class Event:
    """One event: its name and its JSON; a comment has the name ":" and no data."""

    name: str
    data: dict[str, Any]


COMMENT = Event(":", {})


@asynccontextmanager
async def open_stream(
    served: Served, key: IssuedKey, endpoint: str, **changes: Any
) -> AsyncIterator[httpx2.Response]:
    """Ask for a stream; the answer's head has come, nothing of its body is read."""
    fields: dict[str, Any] = {
        "model": GPT2,
        "prompt": "a red fox",
        "size": "1536x1024",
        "quality": "low",
        "output_format": "webp",
        "stream": True,
        **changes,
    }
    body: dict[str, Any] = {"json": fields}
    if endpoint == "edits":
        texts = {name: json.dumps(value).strip('"') for name, value in fields.items()}
        body = {"data": texts, "files": {"image": ("i.png", png(64, 48), "image/png")}}
    async with (
        served.http(key) as http,
        http.stream("POST", f"/v1/images/{endpoint}", **body) as response,
    ):
        yield response


async def read_event(lines: AsyncIterator[str]) -> Event:
    """The next event or comment.

    Raises:
        StopAsyncIteration: there is none.
    """
    name, data = "", ""
    while True:
        line = await anext(lines)
        if line.startswith(":"):
            return COMMENT
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data += line.removeprefix("data: ")
        elif not line and name:
            return Event(name, json.loads(data))


async def read_image(lines: AsyncIterator[str]) -> Event:
    """The next event, past all signs of life: on a busy machine some come first."""
    while (event := await read_event(lines)) is COMMENT:
        pass
    return event


async def read_events(response: httpx2.Response) -> list[Event]:
    """All events until the stream's end, without comments."""
    assert response.status_code == 200, await response.aread()
    return await read_rest(response.aiter_lines())


async def read_rest(lines: AsyncIterator[str]) -> list[Event]:
    """All events that are still to come, without comments."""
    found: list[Event] = []
    while True:
        try:
            event = await read_event(lines)
        except StopAsyncIteration:
            return found
        if event is not COMMENT:
            found.append(event)
