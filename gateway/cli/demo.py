"""`gateway demo`: a running gateway seen through the clients that applications use."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx2
import openai
import typer
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent

from gateway.cli.output import JsonOption, console, errors, guarded, print_json, refuse, show
from gateway.config import load_settings
from gateway.tenancy.quickstart import quickstart_path

PROMPT = "A lighthouse at dawn, calm sea"
TIMEOUT_SECONDS = 120


def demo(
    output_dir: Annotated[Path, typer.Option(help="Where to save the images.")] = Path(),
    base_url: Annotated[str | None, typer.Option(help="Address of the gateway.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an image through the OpenAI client and one through an MCP client; show the usage.

    The API key is read from GATEWAY_API_KEY; without it the quick start's test key is used.
    """
    settings = guarded(load_settings)
    path = quickstart_path(settings)
    quickstart = json.loads(path.read_text()) if path.exists() else {}
    address = (base_url or quickstart.get("base_url") or settings.public_url).rstrip("/")
    given = settings.api_key.get_secret_value() if settings.api_key else None
    secret = str(given or quickstart.get("test_key", ""))
    if not secret:
        refuse("No API key: give one with GATEWAY_API_KEY (there is no quick start file here).")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"{output_dir} cannot be made: {error.strerror}.")
    say = (lambda _line: None) if as_json else console.print
    try:
        result = asyncio.run(_demonstrate(address, secret, output_dir, say))
    except (openai.APIConnectionError, httpx2.HTTPError):
        refuse(f"No gateway answers at {address}. Start one in another terminal: gateway serve")
    except openai.APIStatusError as error:
        refuse(f"{address} answered {error.status_code}: {_reason(error)}")
    if as_json:
        print_json(result)
        return
    console.print("\nUsage today, from the ledger:")
    show(result["usage"], as_json=False, right=("requests", "images", "cost_usd"))


async def _demonstrate(
    address: str, key: str, output_dir: Path, say: Callable[[str], None]
) -> dict[str, list[dict[str, object]]]:
    images: list[dict[str, object]] = []
    with errors.status("OpenAI client: making an image …"):
        images.append(await _through_openai(address, key, output_dir / "demo-openai.png"))
    say(_line("OpenAI client", images[-1]))
    with errors.status("MCP client: making an image …"):
        images.append(await _through_mcp(address, key, output_dir / "demo-mcp.png"))
    say(_line("MCP client", images[-1]))
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        report = await http.get(
            f"{address}/v1/usage",
            params={"group_by": "day,model", "start": time.strftime("%Y-%m-%d")},
        )
        report.raise_for_status()
    return {"images": images, "usage": report.json()["data"]}


async def _through_openai(address: str, key: str, path: Path) -> dict[str, object]:
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{address}/v1") as client:
        raw = await client.images.with_raw_response.generate(
            model="gpt-image-2.5-flare",
            prompt=PROMPT,
            size="1024x1024",
            quality="low",
            timeout=TIMEOUT_SECONDS,
        )
    data = raw.parse().data or []
    await asyncio.to_thread(path.write_bytes, base64.b64decode(data[0].b64_json or ""))
    return {"saved": str(path), "cost_usd": raw.headers["x-gateway-cost-usd"]}


async def _through_mcp(address: str, key: str, path: Path) -> dict[str, object]:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_SECONDS) as http:
        transport = streamable_http_client(f"{address}/mcp", http_client=http)
        async with Client(transport) as client:
            result = await client.call_tool(
                "generate_image",
                {"prompt": PROMPT, "model": "gpt-image-2.5-flare", "quality": "low"},
            )
        if not isinstance(result, CallToolResult) or result.is_error:
            refuse(f"The MCP tool refused: {result.structured_content}")
        full = await http.get(result.structured_content["url"])
        full.raise_for_status()
    await asyncio.to_thread(path.write_bytes, full.content)
    previews = [block for block in result.content if isinstance(block, ImageContent)]
    return {
        "saved": str(path),
        "cost_usd": result.structured_content["cost_usd"],
        "preview_bytes": sum(len(base64.b64decode(block.data)) for block in previews),
    }


def _reason(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message", error.message))


def _line(client: str, image: dict[str, object]) -> str:
    return f"{client:14} saved {image['saved']}, cost {image['cost_usd']} USD"
