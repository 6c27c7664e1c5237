"""Helpers for MCP tests: messages, results, gateways, and the strings that no answer may show."""

import base64
import itertools
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from mcp import Client
from mcp.shared.inbound import encode_header_value
from mcp.types import CallToolResult, ImageContent, ResourceLink, TextContent

from gateway.bootstrap import open_gateway
from gateway.config import Settings
from gateway.generation.image_references import InputImageFetcher
from gateway.generation.intake import Intake
from gateway.main import create_app
from gateway.mcp_server.tools import TOOLS
from gateway.net.downloads import Downloads
from gateway.tenancy import tenants
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import HOUSE_KEY, MASTER_KEY, Served
from tests.serving import serving

MODERN, LEGACY = "2026-07-28", "legacy"
MODES = [MODERN, LEGACY]
LEGACY_VERSION = "2025-11-25"
NEVER_SHOWN = re.compile(
    "|".join(
        (
            r"Traceback|File \"|\.py\b|site-packages|sqlalchemy|asyncpg|SELECT |/gateway/",
            re.escape(HOUSE_KEY),
            re.escape(MASTER_KEY),
            "sk-(house|proj|tenant)",
        )
    )
)
"""Of tracebacks, of this machine's paths, and of secrets."""
HISTORY, STORAGE = "image-history://recent", "storage-stats://overview"
IMAGE, MODEL = "generated-images://", "model-info://"
INVALID_PARAMS, INTERNAL_ERROR = -32602, -32603
Told = tuple[int, str, str | None]
_ids = itertools.count(1)


def expect_clean(text: str) -> None:
    """Expect no traceback, path or secret in an answer."""
    found = NEVER_SHOWN.search(text)
    assert found is None, text[max(0, found.start() - 500) : found.end() + 500]


# Through the official client


async def call(client: Client, tool: str, **arguments: Any) -> CallToolResult:
    """Call a tool; the result must be clean and, if it is no error, fit its schema."""
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    check(tool, result)
    return result


def check(tool: str, result: CallToolResult) -> None:
    """Expect a clean result that fits the announced schema, or an error that states its code."""
    expect_clean(result.model_dump_json(by_alias=True, exclude_none=True))
    if result.is_error:
        [block] = result.content
        assert isinstance(block, TextContent)
        assert block.text.startswith(f"{error_of(result)['code']}: ")
    else:
        schema = TOOLS[tool].announced.output_schema
        assert schema is not None
        Draft202012Validator(schema).validate(result.structured_content)


async def made(
    served: Served, key: IssuedKey, tool: str, mode: str = MODERN, **arguments: Any
) -> dict[str, Any]:
    """The structured content of a call that succeeds."""
    async with served.mcp(key, mode) as client:
        return content_of(await call(client, tool, **arguments))


async def refused(
    served: Served, key: IssuedKey, tool: str, mode: str = MODERN, **arguments: Any
) -> dict[str, Any]:
    """The error of a call that is refused."""
    async with served.mcp(key, mode) as client:
        return error_of(await call(client, tool, **arguments))


def content_of(result: CallToolResult) -> dict[str, Any]:
    """The structured content of a successful result."""
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return dict(result.structured_content)


def error_of(result: CallToolResult) -> dict[str, Any]:
    """The error that a tool answered with, as REST's envelope holds it.

    Nothing stands in the structured content, which clients check against the output schema.
    """
    assert result.is_error, result.content
    assert result.structured_content is None
    assert result.meta is not None
    error: dict[str, Any] = result.meta["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def text_of(result: CallToolResult) -> str:
    """The text of a result, as a model reads it."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def images_of(result: CallToolResult) -> list[ImageContent]:
    """The image blocks of a result: previews, or whole images."""
    return [block for block in result.content if isinstance(block, ImageContent)]


def links_of(result: CallToolResult) -> list[ResourceLink]:
    """The links of a result to what it made."""
    return [block for block in result.content if isinstance(block, ResourceLink)]


def shown_bytes(image: ImageContent) -> bytes:
    """An image block's file."""
    return base64.b64decode(image.data, validate=True)


# As it goes over the wire


@dataclass(frozen=True)
class Answer:
    """The answer to one message: the messages of its stream, the response last."""

    status: int
    messages: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        """The result of the request."""
        found: dict[str, Any] = self.messages[-1]["result"]
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The JSON-RPC error."""
        found: dict[str, Any] = self.messages[-1]["error"]
        return found

    @property
    def progress(self) -> list[dict[str, Any]]:
        """The parameters of the progress notifications, in order."""
        return [m["params"] for m in self.messages if m.get("method") == "notifications/progress"]


@dataclass(frozen=True)
class Message:
    """One JSON-RPC request with the headers of its era."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    mode: str = MODERN
    meta: Mapping[str, Any] = field(default_factory=dict)
    id: int = field(default_factory=lambda: next(_ids))

    @property
    def headers(self) -> dict[str, str]:
        """As the official client sends them."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": LEGACY_VERSION,
        }
        if self.mode != LEGACY:
            headers |= {"MCP-Protocol-Version": self.mode, "Mcp-Method": self.method}
            name = self.params.get("name", self.params.get("uri"))
            headers |= {} if name is None else {"Mcp-Name": encode_header_value(str(name))}
        return headers

    @property
    def body(self) -> bytes:
        """The JSON of the message."""
        meta = dict(self.meta)
        if self.mode != LEGACY:
            meta |= {
                "io.modelcontextprotocol/protocolVersion": self.mode,
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            }
        params = {**self.params, "_meta": meta} if meta else dict(self.params)
        message = {"jsonrpc": "2.0", "id": self.id, "method": self.method, "params": params}
        return json.dumps(message).encode()


def tool_message(tool: str, mode: str, **arguments: Any) -> Message:
    """A call of a tool."""
    return Message("tools/call", {"name": tool, "arguments": arguments}, mode)


async def call_by_http(http: httpx2.AsyncClient, message: Message) -> CallToolResult:
    """Call a tool without the extra requests that a client sends before and after."""
    result = CallToolResult.model_validate((await post(http, message)).result, by_name=False)
    check(message.params["name"], result)
    return result


async def post(http: httpx2.AsyncClient, message: Message) -> Answer:
    """Send a message and read all that comes back."""
    response = await http.post("/mcp", content=message.body, headers=message.headers)
    expect_clean(response.text)
    return Answer(response.status_code, read_messages(response))


def read_messages(response: httpx2.Response) -> list[dict[str, Any]]:
    """The messages of an answer, which is JSON or a stream of events."""
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        return [json.loads(response.content)] if response.content else []
    lines = re.split(r"\r\n|\r|\n", response.text)  # and nothing else ends a line of a stream
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


# Resources


async def read(http: httpx2.AsyncClient, uri: str, mode: str = MODERN) -> dict[str, Any]:
    """The one content of a resource."""
    result = (await post(http, Message("resources/read", {"uri": uri}, mode))).result
    if mode != LEGACY:
        assert (result["cacheScope"], result["ttlMs"]) == ("private", 0)
    [content] = result["contents"]
    assert content["uri"] == uri
    found: dict[str, Any] = content
    return found


async def read_json(http: httpx2.AsyncClient, uri: str, mode: str = MODERN) -> dict[str, Any]:
    """A resource that is data."""
    content = await read(http, uri, mode)
    assert content["mimeType"] == "application/json"
    found: dict[str, Any] = json.loads(content["text"])
    return found


async def refusal(http: httpx2.AsyncClient, uri: str, mode: str = MODERN) -> Told:
    """The error that reading this resource address returns."""
    return told((await post(http, Message("resources/read", {"uri": uri}, mode))).error)


def told(error: Mapping[str, Any]) -> Told:
    """A JSON-RPC error: its code, and REST's code and param from its data."""
    assert error["message"].startswith(f"{error['data']['code']}: ")
    assert len(error["message"]) < 1500
    return error["code"], error["data"]["code"], error["data"]["param"]


async def resource_pages(
    http: httpx2.AsyncClient, mode: str = MODERN
) -> list[list[dict[str, Any]]]:
    """The list of resources to its end."""
    found: list[list[dict[str, Any]]] = []
    params: dict[str, Any] = {}
    while True:
        result = (await post(http, Message("resources/list", params, mode))).result
        if mode != LEGACY:
            assert (result["cacheScope"], result["ttlMs"]) == ("private", 0)
        found.append(result["resources"])
        if "nextCursor" not in result:
            return found
        params = {"cursor": result["nextCursor"]}


async def recent_ids(http: httpx2.AsyncClient, query: str = "", mode: str = MODERN) -> list[str]:
    """The ids that the history shows."""
    found = await read_json(http, HISTORY + query, mode)
    return [image["id"] for image in found["images"]]


# Gateways


@asynccontextmanager
async def served_with_downloads(settings: Settings, downloads: Downloads) -> AsyncIterator[Served]:
    """A served gateway that fetches its callers' links with `downloads`."""
    async with open_gateway(settings) as opened:
        fetcher = InputImageFetcher(
            database=opened.database,
            store=opened.store,
            links=opened.links,
            downloads=downloads,
            settings=settings,
        )
        intake = Intake(opened.pipeline, fetcher, opened.decoder)
        gateway = replace(opened, intake=intake)
        async with gateway.database.operator() as session:
            tenant = await tenants.create(session, "acme")
        app = create_app(settings, gateway)
        async with serving(app, lifespan="on") as base_url:
            served = Served(gateway, base_url, tenant.id, app)
            yield served
            await served.check_invariants()
