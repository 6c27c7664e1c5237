"""`gateway mcp-stdio` under the official client, in both protocol eras."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import (
    CallToolResult,
    Completion,
    CompletionArgument,
    CompletionContext,
    ImageContent,
    PromptReference,
    ResourceTemplateReference,
    TextContent,
)

from gateway.config import Settings
from gateway.vault import key_format
from tests.harness import GPT2, Served, secret_of, served_gateway
from tests.money_helpers import until_states
from tests.serving import serving
from tests.stdio_helpers import MODES, BridgeCommand, door_to
from tests.stub_openai import Fault, Stub

ARGUMENTS = {"prompt": "a red circle", "model": GPT2, "quality": "low"}
LARGE_BYTES = 30_000_000
IMAGE_BYTES = 3_000_000


async def bridge_to(
    served: Served, folder: Path, *, url: str | None = None, livemode: bool = False
) -> BridgeCommand:
    """The command for a served gateway, with a key for it."""
    key = secret_of(await served.key(livemode=livemode))
    return BridgeCommand(folder, url or served.base_url, key)


async def make_image(client: Client, **options: Any) -> CallToolResult:
    result = await client.call_tool("generate_image", ARGUMENTS, **options)
    assert isinstance(result, CallToolResult)
    return result


async def error_of_call(client: Client) -> MCPError:
    with pytest.raises(MCPError) as caught:
        await make_image(client)
    return caught.value


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_sees_what_it_would_see_over_http(
    served: Served, tmp_path: Path, mode: str
) -> None:
    bridge = await bridge_to(served, tmp_path)
    assert bridge.key is not None
    async with bridge.client(mode) as local, served.mcp(bridge.key, mode) as remote:
        assert await local.list_tools() == await remote.list_tools()
        assert local.protocol_version == remote.protocol_version
        assert local.server_capabilities == remote.server_capabilities
        made = [await make_image(client) for client in (local, remote)]
    assert [result.is_error for result in made] == [False, False]
    kinds = [[type(block) for block in result.content] for result in made]
    assert kinds[0] == kinds[1]
    assert bridge.said() == []


async def test_a_client_that_may_choose_speaks_the_modern_era(
    served: Served, tmp_path: Path
) -> None:
    async with (await bridge_to(served, tmp_path)).client("auto") as client:
        assert client.protocol_version == "2026-07-28"
        assert not (await make_image(client)).is_error


@pytest.mark.parametrize("mode", MODES)
async def test_progress_arrives_while_the_model_works(
    served: Served, stub: Stub, tmp_path: Path, mode: str
) -> None:
    stub.faults.add(Fault(hold=True))
    noted = []

    async def finish(progress: float, total: float | None, message: str | None) -> None:
        noted.append((progress, total, message))
        stub.release()

    bridge = await bridge_to(served, tmp_path, livemode=True)
    async with bridge.client(mode) as client:
        result = await make_image(client, progress_callback=finish)
    assert not result.is_error
    assert noted


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_error_keeps_its_code(served: Served, tmp_path: Path, mode: str) -> None:
    async with (await bridge_to(served, tmp_path)).client(mode) as client:
        result = await client.call_tool("generate_image", {"prompt": "x", "model": "no-such"})
    assert isinstance(result, CallToolResult)
    assert result.is_error
    assert result.meta is not None
    assert result.meta["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("mode", MODES)
async def test_giving_up_a_call_closes_its_stream_and_the_call_is_settled_once(
    served: Served, stub: Stub, tmp_path: Path, mode: str
) -> None:
    stub.faults.add(Fault(hold=True))
    async with door_to(served.base_url) as door:
        bridge = await bridge_to(served, tmp_path, url=door.base_url, livemode=True)
        async with bridge.client(mode) as client:
            call = asyncio.create_task(make_image(client))
            await stub.until_held(1)
            closed = door.closed
            call.cancel()
            await door.until_closed(closed + 1)
            stub.release()
            await stub.until_billed(1)
            await until_states(served, {"posted": 1})
            assert not (await make_image(client)).is_error
    assert bridge.said() == []
    assert await served.ledger_total() == stub.totals.cost_nano_usd


@pytest.mark.parametrize("mode", MODES)
async def test_calls_of_one_client_run_at_the_same_time(
    served: Served, stub: Stub, tmp_path: Path, mode: str
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    async with (await bridge_to(served, tmp_path, livemode=True)).client(mode) as client:
        calls = [asyncio.create_task(make_image(client)) for _ in range(5)]
        await stub.until_held(5)
        stub.release()
        made = await asyncio.gather(*calls)
    assert len({result.structured_content["id"] for result in made}) == 5


@pytest.mark.parametrize("mode", MODES)
async def test_a_gateway_that_goes_away_fails_its_calls_and_serves_again_when_it_is_back(
    served: Served, stub: Stub, tmp_path: Path, mode: str
) -> None:
    stub.faults.add(Fault(hold=True))
    async with door_to(served.base_url) as door:
        bridge = await bridge_to(served, tmp_path, url=door.base_url, livemode=True)
        async with bridge.client(mode) as client:
            broken = asyncio.create_task(error_of_call(client))
            await stub.until_held(1)
            await door.shut()
            errors = [await broken, await error_of_call(client), await error_of_call(client)]
            await door.open()
            stub.release()
            assert not (await make_image(client)).is_error
    codes = [error.error.data["code"] for error in errors]
    assert codes == ["outcome_unknown", "gateway_unreachable", "gateway_unreachable"]
    assert len(bridge.said()) == 2  # each of the two once
    await until_states(served, {"posted": 2})
    assert await served.ledger_total() == stub.totals.cost_nano_usd


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_is_told_that_its_key_is_wrong(
    served: Served, tmp_path: Path, mode: str
) -> None:
    key = key_format.new_key("test").reveal()
    bridge = BridgeCommand(tmp_path, served.base_url, key)
    with pytest.RaisesGroup(MCPError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        async with bridge.client(mode) as client:
            await client.list_tools()
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert isinstance(error, MCPError)
    assert error.error.data == {"code": "invalid_api_key"}
    [line] = bridge.said()
    assert "GATEWAY_API_KEY" in line
    assert key not in line


@pytest.mark.parametrize("mode", MODES)
async def test_thirty_megabytes_pass_in_an_argument(
    settings: Settings, tmp_path: Path, mode: str
) -> None:
    change = {"max_body_bytes": settings.max_json_upload_bytes}
    async with served_gateway(settings.model_copy(update=change)) as served:
        bridge = await bridge_to(served, tmp_path)
        async with bridge.client(mode) as client:
            result = await client.call_tool("generate_image", {"prompt": "x" * LARGE_BYTES})
    assert isinstance(result, CallToolResult)
    assert result.meta is not None
    assert result.meta["error"]["code"] == "string_above_max_length"


def other_server() -> MCPServer:
    """A server with one of everything, under names that a header cannot hold unencoded."""
    server = MCPServer(name="other")

    @server.tool()
    async def echo(ctx: Context, text: str) -> ImageContent:
        await ctx.report_progress(1, 2, "½ fertig\u2028")
        return ImageContent(type="image", data=text, mime_type="image/png")

    @server.resource("bild://{name}")
    def image(name: str) -> bytes:
        return name.encode() * 500_000

    @server.prompt(name="für Plakate")
    def poster(subject: str) -> str:
        return f"Ein Plakat:\n{subject}"

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # of the SDK
    async def complete(
        _reference: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        _context: CompletionContext | None,
    ) -> Completion:
        return Completion(values=[argument.value + "…"])

    return server


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("json_response", [True, False])
async def test_every_message_of_a_server_passes_through(
    tmp_path: Path, mode: str, *, json_response: bool
) -> None:
    app = other_server().streamable_http_app(
        stateless_http=True, json_response=json_response, max_request_body_size=2 * IMAGE_BYTES
    )
    large = base64.b64encode(bytes(IMAGE_BYTES)).decode()
    noted = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        noted.append((progress, total, message))

    async with (
        serving(app, lifespan="on") as url,
        BridgeCommand(tmp_path, url).client(mode) as client,
    ):
        called = await client.call_tool("echo", {"text": large}, progress_callback=note)
        read = await client.read_resource("bild://möwe")
        prompt = await client.get_prompt("für Plakate", {"subject": "Möwe"})
        completed = await client.complete(
            PromptReference(name="für Plakate"), {"name": "subject", "value": "M"}
        )
        templates = (await client.list_resource_templates()).resource_templates
    assert isinstance(called, CallToolResult)
    assert [block.data for block in called.content if isinstance(block, ImageContent)] == [large]
    assert noted == ([] if json_response else [(1, 2, "½ fertig\u2028")])
    blob = base64.b64decode(read.contents[0].blob)  # type: ignore[union-attr]
    assert blob == "möwe".encode() * 500_000
    assert prompt.messages[0].content == TextContent(type="text", text="Ein Plakat:\nMöwe")
    assert completed.completion.values == ["M…"]
    assert [template.uri_template for template in templates] == ["bild://{name}"]
