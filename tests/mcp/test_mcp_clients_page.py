"""The configurations and programs of docs/mcp-clients.md work when pasted."""

import asyncio
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from tests.harness import Served, secret_of

PAGE = Path(__file__).resolve().parents[2] / "docs/mcp-clients.md"
ADDRESS = "https://images.example.com"
# Each client's notation for the value of a variable; the key itself if it has none.
KEY = re.compile(
    r"\$\{(?:env:)?GATEWAY_API_KEY\}|\$GATEWAY_API_KEY|\$\{input:gateway-api-key\}|igw_live_…"
)
SERVERS = ("mcpServers", "servers", "context_servers", "mcp_servers")


@dataclass(frozen=True)
class Block:
    """A fenced block: the section it stands in, its language, its text."""

    section: str
    language: str
    text: str


def read_blocks() -> Iterator[Block]:
    section = language = ""
    lines: list[str] = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("```") and language:
            yield Block(section, language, "\n".join(lines) + "\n")
            language, lines = "", []
        elif line.startswith("```"):
            language = line[3:]
        elif language:
            lines.append(line)
        elif line.startswith("## "):
            section = line[3:]


BLOCKS = list(read_blocks())
CONFIGURATIONS = [block for block in BLOCKS if block.language in {"json", "toml"}]
PROGRAMS = [
    block for block in BLOCKS if block.language == "python" and "from mcp import" in block.text
]


def filled_in(text: str, served: Served, key: str) -> str:
    return KEY.sub(key, text).replace(ADDRESS, served.base_url)


def servers_of(block: Block, text: str) -> list[dict[str, Any]]:
    read = json.loads if block.language == "json" else tomllib.loads
    content = read(text)
    [name] = set(SERVERS).intersection(content)
    return list(content[name].values())


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `gateway` is this checkout's."""
    program = tmp_path / "gateway"
    here, python = shlex.quote(str(Path.cwd())), shlex.quote(sys.executable)
    program.write_text(f'#!/bin/sh\ncd {here} && exec {python} -m gateway "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


async def tools_over_stdio(server: dict[str, Any], path: str, key: str) -> list[str]:
    handed_on = dict.fromkeys(server.get("env_vars", ["GATEWAY_API_KEY"]), key)
    parameters = StdioServerParameters(
        command=server["command"],
        args=server["args"],
        env={"PATH": path, **server.get("env", handed_on)},
    )
    async with Client(stdio_client(parameters)) as client:
        return [tool.name for tool in (await client.list_tools()).tools]


async def tools_over_http(server: dict[str, Any], key: str) -> list[str]:
    [url] = [server[name] for name in ("url", "serverUrl", "httpUrl") if name in server]
    if "bearer_token_env_var" in server:
        assert server["bearer_token_env_var"] == "GATEWAY_API_KEY"
    headers = server.get("headers", {"Authorization": f"Bearer {key}"})
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        return [tool.name for tool in (await client.list_tools()).tools]


async def test_every_configuration_reaches_the_gateway(
    served: Served, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path)  # where the client looks for the program
    key = secret_of(await served.key())
    found: dict[str, set[str]] = {}
    for block in CONFIGURATIONS:
        for server in servers_of(block, filled_in(block.text, served, key)):
            is_local = "command" in server
            tools = await (
                tools_over_stdio(server, path, key) if is_local else tools_over_http(server, key)
            )
            assert "generate_image" in tools, block
            found.setdefault(block.section, set()).add("stdio" if is_local else "http")
    assert found.pop("Claude Desktop") == {"stdio"}
    assert len(found) == 9
    assert all(ways == {"stdio", "http"} for ways in found.values()), found


@pytest.mark.parametrize("block", PROGRAMS, ids=["http", "stdio"])
async def test_every_program_makes_an_image(
    served: Served, path: str, tmp_path: Path, block: Block
) -> None:
    key = secret_of(await served.key(livemode=False))
    program = tmp_path / "program.py"
    program.write_text(filled_in(block.text, served, "unused"))
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        env={"PATH": path, "GATEWAY_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await running.communicate()
    assert (running.returncode, err) == (0, b"")
    assert b"cost_usd" in out


def test_every_python_block_is_python() -> None:
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.section, "exec")


def test_no_key_stands_on_the_page_nor_in_a_command() -> None:
    assert re.findall(r"igw_(?:live|test)_\w+", PAGE.read_text()) == []
    for block in BLOCKS:
        assert "--header" not in block.text
