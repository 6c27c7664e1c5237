"""The ways of asking for an image (REST, an edit, a stream, MCP), and the answer in each."""

from dataclasses import dataclass
from typing import Any

import httpx2

from gateway.tenancy.api_keys import IssuedKey
from tests import mcp_helpers
from tests.harness import Served, error_of, secret_of
from tests.image_helpers import png
from tests.stream_helpers import read_events

GENERATION, EDIT, STREAM, MCP = WAYS = ("generation", "edit", "stream", "MCP")


@dataclass(frozen=True)
class Answer:
    """The client's answer: its error's code or type, empty for an image, and advice on retries.

    `status` is 200 for a stream that ends with an error, and for a tool's error.
    """

    status: int
    code: str
    retry_after: bool = False
    should_retry: str | None = None


async def ask(
    served: Served, http: httpx2.AsyncClient, way: str, key: IssuedKey, body: dict[str, Any]
) -> Answer:
    """Ask for the image of `body` in one of the ways."""
    bearer = {"Authorization": f"Bearer {secret_of(key)}"}
    if way == MCP:
        async with served.mcp(key) as client:
            result = await mcp_helpers.call(client, "generate_image", **body)
        return Answer(200, _named(mcp_helpers.error_of(result)) if result.is_error else "")
    if way == EDIT:
        answer = await http.post(
            "/v1/images/edits",
            data={name: str(value) for name, value in body.items()},
            files={"image": ("i.png", png(64, 48), "image/png")},
            headers=bearer,
        )
        return _told(answer)
    path = "/v1/images/generations"
    async with http.stream("POST", path, json=body, headers=bearer) as answer:
        if way == STREAM and answer.is_success:
            last = (await read_events(answer))[-1]
            return Answer(200, _named(last.data["error"]) if last.name == "error" else "")
        await answer.aread()
        return _told(answer)


def _told(answer: httpx2.Response) -> Answer:
    return Answer(
        answer.status_code,
        "" if answer.is_success else _named(error_of(answer)),
        "retry-after" in answer.headers,
        answer.headers.get("x-should-retry"),
    )


def _named(error: dict[str, Any]) -> str:
    return str(error.get("code") or error.get("type") or "")
