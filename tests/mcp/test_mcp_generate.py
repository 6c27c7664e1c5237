"""The MCP tool `generate_image` through the official client, in both protocol eras."""

import asyncio
import base64
import io
import itertools
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, ResourceLink, TextContent
from PIL import Image

from gateway.config import Settings
from gateway.domain import Scope
from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, error_of, secret_of, served_gateway
from tests.image_helpers import download
from tests.mcp_helpers import error_of as tool_error_of
from tests.stub_openai import Fault, Stub

MODES = ["2026-07-28", "legacy"]
ARGUMENTS = {"prompt": "a red circle", "model": GPT2, "quality": "low"}
MAX_PREVIEW_BYTES = 40_000
MAX_RESULT_BYTES = 100_000


async def call(client: Client, **changes: Any) -> CallToolResult:
    """Call the tool with some arguments changed."""
    result = await client.call_tool("generate_image", {**ARGUMENTS, **changes})
    assert isinstance(result, CallToolResult)
    return result


async def make(
    served: Served, key: IssuedKey, mode: str = MODES[0], **changes: Any
) -> dict[str, Any]:
    """The structured content of a successful `generate_image` call."""
    async with served.mcp(key, mode) as client:
        result = await call(client, **changes)
    assert not result.is_error, result
    assert result.structured_content is not None
    return dict(result.structured_content)


def previews_of(result: CallToolResult) -> list[ImageContent]:
    return [block for block in result.content if isinstance(block, ImageContent)]


def links_of(result: CallToolResult) -> list[ResourceLink]:
    return [block for block in result.content if isinstance(block, ResourceLink)]


def urls_of(result: CallToolResult) -> list[str]:
    assert result.structured_content is not None
    return [image["url"] for image in result.structured_content["images"]]


async def open_link(served: Served, url: str) -> Image.Image:
    """The image behind a link, fetched without a key from this test's port."""
    link = urlsplit(url)
    async with served.http() as http:
        response = await http.get(f"{link.path}?{link.query}")
    assert response.status_code == 200
    return Image.open(io.BytesIO(response.content))


@pytest.mark.parametrize("mode", MODES)
async def test_the_tool_describes_itself(served: Served, mode: str) -> None:
    async with served.mcp(await served.key(), mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    tool = tools["generate_image"]
    assert tool.title
    assert tool.description
    assert tool.annotations is not None
    assert tool.annotations.model_dump(exclude_none=True) == {
        "read_only_hint": False,
        "destructive_hint": False,
        "idempotent_hint": False,
        "open_world_hint": True,
    }
    assert tool.input_schema["required"] == ["prompt"]
    fields = tool.input_schema["properties"]
    assert {*ARGUMENTS, "size", "n", "background", "output_format"} <= set(fields)
    assert all(field.get("description") for field in fields.values())
    assert tool.output_schema is not None
    assert {"id", "url", "cost_usd", "model"} <= set(tool.output_schema["required"])


@pytest.mark.parametrize("mode", MODES)
async def test_three_large_images_fit_into_a_context_window(
    served: Served, stub: Stub, mode: str
) -> None:
    # Noise, as detailed as a photograph: what a preview of it weighs is the worst case.
    stub.configure(min_b64_bytes=12_000_000)
    async with served.mcp(await served.key(), mode) as client:
        result = await call(client, size="3840x2160", n=3)
    assert len(result.model_dump_json(by_alias=True)) < MAX_RESULT_BYTES
    previews, links = previews_of(result), links_of(result)
    assert (len(previews), len(links)) == (3, 3)
    for preview in previews:
        content = base64.b64decode(preview.data)
        assert len(content) < MAX_PREVIEW_BYTES
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert max(image.size) <= 256
            assert Image.MIME[image.format or ""] == preview.mime_type
    for url in urls_of(result):
        assert (await open_link(served, url)).size == (3840, 2160)


@pytest.mark.parametrize("mode", MODES)
async def test_the_result_is_a_preview_a_link_a_sentence_and_data(
    served: Served, stub: Stub, mode: str
) -> None:
    async with served.mcp(await served.key(), mode) as client:
        result = await call(client, size="1024x1024")
    assert [type(block) for block in result.content] == [ImageContent, ResourceLink, TextContent]
    [link], [url] = links_of(result), urls_of(result)
    full = await download(served, url)
    assert (link.uri, link.mime_type, link.size) == (url, "image/png", len(full))
    cost_usd = format_usd(stub.totals.cost_nano_usd)
    assert result.meta is not None
    assert result.meta["cost"] == {"usd": cost_usd, "model": GPT2, "provider": "openai"}
    assert result.structured_content is not None
    made = dict(result.structured_content)
    assert datetime.fromisoformat(made.pop("created_at")).utcoffset() == timedelta(0)
    [row] = await served.owner_sql("SELECT id FROM reservation")
    assert made == {
        "id": link.name,
        "generation_id": str(row.id),
        "url": url,
        "images": [
            {
                "id": link.name,
                "uri": f"generated-images://{link.name}",
                "url": url,
                "media_type": "image/png",
                "size_bytes": len(full),
                "width": 1024,
                "height": 1024,
                "seed": None,
            },
        ],
        "model": GPT2,
        "requested_model": GPT2,
        "size": "1024x1024",
        "quality": "low",
        "cost_usd": cost_usd,
        "cost_status": "actual",
        "replayed": False,
    }
    sentence = result.content[-1]
    assert isinstance(sentence, TextContent)
    assert url in sentence.text
    assert cost_usd in sentence.text
    assert await served.ledger_total() == stub.totals.cost_nano_usd


@pytest.mark.parametrize(
    ("changes", "media_type", "transparent"),
    [
        ({"output_format": "jpeg"}, "image/jpeg", False),
        ({"output_format": "webp", "background": "transparent"}, "image/webp", True),
        ({"background": "transparent"}, "image/png", True),
    ],
)
async def test_formats_and_transparency_reach_link_and_preview(
    served: Served, changes: dict[str, str], media_type: str, *, transparent: bool
) -> None:
    async with served.mcp(await served.key(livemode=False)) as client:
        result = await call(client, size="1024x1024", **changes)
    [link], [preview] = links_of(result), previews_of(result)
    full = await open_link(served, urls_of(result)[0])
    assert (link.mime_type, Image.MIME[full.format or ""]) == (media_type, media_type)
    small = Image.open(io.BytesIO(base64.b64decode(preview.data)))
    for image in (full, small):
        has_holes = "A" in image.getbands() and image.getchannel("A").getextrema()[0] == 0
        assert has_holes == transparent


async def test_omitted_arguments_mean_the_default_model_and_one_image(
    served: Served, stub: Stub
) -> None:
    async with served.mcp(await served.key()) as client:
        result = await client.call_tool("generate_image", {"prompt": "a red circle"})
    assert isinstance(result, CallToolResult)
    [line] = stub.bill
    assert (line.model, line.n) == (served.gateway.settings.default_model, 1)


REFUSED: list[dict[str, Any]] = [
    {"model": "gpt-image-99"},
    {"model": "dall-e-3"},
    {"size": "1000x1000"},
    {"quality": "best"},
    {"n": 11},
    {"n": 0},
    {"prompt": " "},
    {"prompt": "x" * 32_001},
    {"background": "transparent", "output_format": "jpeg"},
]


@pytest.mark.parametrize("mode", MODES)
async def test_refusals_carry_the_same_error_as_rest_and_buy_nothing(
    served: Served, stub: Stub, mode: str
) -> None:
    key = await served.key()
    async with served.mcp(key, mode) as client, served.http(key) as http:
        for changes in REFUSED:
            result = await call(client, **changes)
            answer = await http.post("/v1/images/generations", json={**ARGUMENTS, **changes})
            assert result.is_error
            assert tool_error_of(result) == error_of(answer)
    assert stub.calls == []


@pytest.mark.parametrize("changes", [{"prompt": None}, {"prompt": 3}, {"n": "many"}])
async def test_wrong_arguments_are_tool_errors_and_buy_nothing(
    served: Served, stub: Stub, changes: dict[str, Any]
) -> None:
    arguments = {k: v for k, v in {**ARGUMENTS, **changes}.items() if v is not None}
    async with served.mcp(await served.key()) as client:
        result = await client.call_tool("generate_image", arguments)
    assert isinstance(result, CallToolResult)
    assert result.is_error
    assert stub.calls == []


async def test_an_unknown_argument_is_refused_rather_than_ignored_and_paid_for(
    served: Served, stub: Stub
) -> None:
    """As over REST: a misspelt `quality` must not buy an image of another quality."""
    async with served.mcp(await served.key()) as client:
        result = await call(client, qualty="low")
    assert stub.calls == []
    assert result.is_error


async def error_code(served: Served, key: IssuedKey, mode: str) -> str:
    """The code of the tool error, which the text for the model names too."""
    async with served.mcp(key, mode) as client:
        result = await call(client)
    assert result.is_error
    assert result.meta is not None
    code = str(result.meta["error"]["code"])
    [block] = result.content
    assert isinstance(block, TextContent)
    assert block.text.startswith(f"{code}: ")
    return code


@pytest.mark.parametrize("mode", MODES)
async def test_insufficient_keys_and_budgets_are_tool_errors(
    served: Served, stub: Stub, mode: str
) -> None:
    reader = await served.key(scopes=[Scope.IMAGES_READ])
    narrow = await served.key(models=["gpt-image-2.5-flare"])
    poor = await served.key()
    await served.budget("0.0001", api_key_id=poor.id)
    assert [await error_code(served, key, mode) for key in (reader, narrow, poor)] == [
        "insufficient_scope",
        "model_not_allowed",
        "budget_exceeded",
    ]
    assert stub.calls == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"openai_api_key": None}, "no_credential"),
        ({"openai_base_url": "http://127.0.0.1:9/v1"}, "provider_unreachable"),
    ],
)
async def test_a_gateway_that_can_reach_no_provider_says_so(
    settings: Settings, change: dict[str, object], code: str
) -> None:
    async with served_gateway(settings.model_copy(update=change)) as served:
        assert await error_code(served, await served.key(), MODES[0]) == code


async def test_the_providers_failures_are_tool_errors(served: Served, stub: Stub) -> None:
    key = await served.key()
    failures = [
        (Fault("status", preset="moderation_blocked"), "moderation_blocked"),
        (Fault("status", preset="rate_limited", retry_after="0"), "rate_limit_exceeded"),
        (Fault("status", preset="insufficient_quota"), "provider_unavailable"),
        (Fault("reset_after_billing"), "outcome_unknown"),
    ]
    for fault, code in failures:
        stub.faults.add(fault)
        assert await error_code(served, key, MODES[0]) == code
    assert len(stub.bill) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_progress_arrives_while_the_provider_still_works(
    served: Served, stub: Stub, mode: str
) -> None:
    stub.faults.add(Fault(hold=True))
    held_when_heard: list[int] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        held_when_heard.append(stub.totals.held)
        stub.release()

    async with served.mcp(await served.key(), mode) as client:
        result = await client.call_tool("generate_image", ARGUMENTS, progress_callback=hear)
    assert isinstance(result, CallToolResult)
    assert not result.is_error
    assert held_when_heard[0] == 1


async def test_an_image_whose_client_left_is_still_paid_for_and_settled(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    key = await served.key()
    async with served.mcp(key) as client:
        leaving = asyncio.create_task(call(client))
        await stub.until_held(1)
        leaving.cancel()
    stub.release()
    await stub.until_billed(1)
    await stub.until_idle()
    await served.gateway.pipeline.drain(30)
    assert await served.ledger_total() == stub.totals.cost_nano_usd


class Alternating(httpx2.AsyncBaseTransport):
    """A load balancer that sends each request to the next of several gateways."""

    def __init__(self, *gateways: Served) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self._ports = itertools.cycle(httpx2.URL(gateway.base_url).port for gateway in gateways)
        self.used: list[int | None] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.used.append(next(self._ports))
        request.url = request.url.copy_with(port=self.used[-1])
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_two_gateways_on_one_database_answer_alternate_requests_of_one_client(
    settings: Settings, stub: Stub, mode: str
) -> None:
    async with served_gateway(settings) as one, served_gateway(settings) as two:
        headers = {"Authorization": f"Bearer {secret_of(await one.key())}"}
        balancer = Alternating(one, two)
        async with httpx2.AsyncClient(headers=headers, timeout=60, transport=balancer) as http:
            transport = streamable_http_client(f"{one.base_url}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:
                made = [await call(client) for _ in range(4)]
        assert not any(result.is_error for result in made)
        assert len(set(balancer.used)) == 2
        # Whichever made it, either serves it.
        [url] = urls_of(made[0])
        for gateway in (one, two):
            assert (await open_link(gateway, url)).format == "PNG"
        assert await one.ledger_total() == stub.totals.cost_nano_usd
        await one.check_invariants()
