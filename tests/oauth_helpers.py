"""Helpers for OAuth tests: a gateway that trusts an identity provider, and parsed refusals."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2

from gateway.config import Settings
from tests.harness import GPT2, Served, error_of, free_port, served_gateway
from tests.identity_provider import Issuer

LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
GENERATIONS = "/v1/images/generations"
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
METADATA = "/.well-known/oauth-protected-resource"
USUAL = "images:read images:write usage:read"


class Refused(NamedTuple):
    """Status, code of the envelope, and the fields of the challenge without its description."""

    status: int
    code: str
    challenge: dict[str, str]


@asynccontextmanager
async def trusting_gateway(
    settings: Settings, issuer: Issuer, **changes: Any
) -> AsyncIterator[Served]:
    """Serve a gateway whose public address is its real one."""
    port = free_port()
    change = {"oidc_issuer": issuer.url, "public_url": f"http://127.0.0.1:{port}", **changes}
    async with served_gateway(settings.model_copy(update=change), port=port) as running:
        yield running


def challenge_of(answer: httpx2.Response) -> dict[str, str]:
    """The fields of WWW-Authenticate; the whole header must be well-formed."""
    header = answer.headers.get("www-authenticate")
    if header is None:
        return {}
    field = r'([a-z_]+)="([\x20\x21\x23-\x5b\x5d-\x7e]*)"'
    assert re.fullmatch(rf"Bearer {field}(, {field})*", header), header
    return dict(re.findall(field, header))


def refusal(answer: httpx2.Response) -> Refused:
    """The status, code and challenge of a refused request."""
    challenge = challenge_of(answer)
    if "error" in challenge:
        assert challenge.pop("error_description")
    return Refused(answer.status_code, error_of(answer)["code"], challenge)


def challenge(
    served: Served, error: str | None = None, *, scope: str = USUAL, path: str = "/v1"
) -> dict[str, str]:
    """The fields that a challenge must have."""
    fields = {"realm": "image-gateway"} | ({} if error is None else {"error": error})
    tail = "/mcp" if path == "/mcp" else ""
    return fields | {"scope": scope, "resource_metadata": f"{served.base_url}{METADATA}{tail}"}


async def get(served: Served, token: str, path: str = "/v1/models") -> httpx2.Response:
    """Ask with this token."""
    async with served.http(token) as http:
        return await http.get(path)


async def make_image(served: Served, token: str, **changes: Any) -> httpx2.Response:
    """Ask for a cheap image with this token."""
    async with served.http(token) as http:
        return await http.post(GENERATIONS, json=LOW | changes)


async def list_tools(served: Served, token: str) -> httpx2.Response:
    """Ask the MCP endpoint for its tools with this token."""
    async with served.http(token) as http:
        return await http.post("/mcp", json=LIST_TOOLS, headers=JSON)
