"""The clients of `gateway demo`: OpenAI's own, and an MCP client."""

import asyncio
import base64
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, TextContent

from gateway.cli.output import errors

PROMPT = "A lighthouse at dawn, calm sea"
TIMEOUT_SECONDS = 120


class DemoFailed(Exception):
    """The gateway does not answer, or refuses; the message says which."""


async def demonstrate(
    address: str, key: str, output_dir: Path, say: Callable[[str], None]
) -> dict[str, list[dict[str, object]]]:
    """Make an image with each client, save both in `output_dir`; return them and today's usage.

    Raises:
        DemoFailed: the gateway does not answer, or refuses.
    """
    try:
        return await _demonstrate(address, key, output_dir, say)
    except (openai.APIConnectionError, httpx2.HTTPError) as error:
        raise DemoFailed(
            f"No gateway answers at {address}. Start one in another terminal: gateway serve"
        ) from error
    except openai.APIStatusError as error:
        raise DemoFailed(f"{address} answered {error.status_code}: {_reason(error)}") from error


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
        if result.structured_content is None:
            raise DemoFailed(f"The MCP tool refused: {_text(result)}")
        full = await http.get(result.structured_content["url"])
        full.raise_for_status()
    await asyncio.to_thread(path.write_bytes, full.content)
    previews = [block for block in result.content if isinstance(block, ImageContent)]
    return {
        "saved": str(path),
        "cost_usd": result.structured_content["cost_usd"],
        "preview_bytes": sum(len(base64.b64decode(block.data)) for block in previews),
    }


def _text(result: CallToolResult) -> str:
    return " ".join(block.text for block in result.content if isinstance(block, TextContent))


def _reason(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message", error.message))


def _line(client: str, image: dict[str, object]) -> str:
    return f"{client:14} saved {image['saved']}, cost {image['cost_usd']} USD"
