"""Configurations and programs to paste, with this gateway's address. They hold no secret of ours.

docs/mcp-clients.md has the same for more clients, and says what each of them expects.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

KEY = "GATEWAY_API_KEY"
PLACEHOLDER = "igw_live_…"
PROMPT = "a lighthouse at dawn, watercolour"
MODEL = "gpt-image-2"


@dataclass(frozen=True, slots=True)
class Snippet:
    """A text to paste. `id` is unique on its page; `place`: the file or shell it belongs to."""

    id: str
    title: str
    place: str
    text: str
    note: str = ""


def curl_of(base_url: str, key: str = PLACEHOLDER) -> str:
    """Write a call for one image with curl."""
    body = {"model": MODEL, "prompt": PROMPT, "size": "1024x1024", "quality": "low"}
    return (
        f"curl {base_url}/v1/images/generations \\\n"
        f"  -H 'Authorization: Bearer {key}' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(body | {'response_format': 'url'})}'"
    )


def python_of(base_url: str) -> str:
    """Write a call for one image with OpenAI's SDK for Python."""
    return f"""import os

from openai import OpenAI

client = OpenAI(
    api_key=os.environ["{KEY}"],
    base_url="{base_url}/v1",
    max_retries=0,  # a retry could pay twice
    timeout=300,
)
answer = client.images.generate(
    model="{MODEL}",
    prompt="{PROMPT}",
    size="1024x1024",
    quality="low",
    response_format="url",
)
print(answer.data[0].url)"""


def typescript_of(base_url: str) -> str:
    """Write a call for one image with OpenAI's SDK for TypeScript."""
    return f"""import OpenAI from "openai";

const client = new OpenAI({{
  apiKey: process.env.{KEY},
  baseURL: "{base_url}/v1",
  maxRetries: 0, // a retry could pay twice
  timeout: 300_000,
}});
const answer = await client.images.generate({{
  model: "{MODEL}",
  prompt: "{PROMPT}",
  size: "1024x1024",
  quality: "low",
  response_format: "url",
}});
console.log(answer.data?.[0]?.url);"""


def sdks(base_url: str) -> list[Snippet]:
    """The programs for OpenAI's SDKs and curl."""
    return [
        Snippet(
            "python",
            "Python",
            "pip install openai",
            python_of(base_url),
            "A program that calls OpenAI already needs the two lines with api_key and base_url "
            "alone.",
        ),
        Snippet("typescript", "TypeScript", "npm install openai", typescript_of(base_url)),
        Snippet("curl", "curl", "a shell", curl_of(base_url, f"'\"${KEY}\"'")),
    ]


def mcp_clients(base_url: str) -> list[Snippet]:
    """The configurations of MCP clients; docs/mcp-clients.md has more of them."""
    bearer = {"Authorization": f"Bearer ${{{KEY}}}"}
    return [
        Snippet(
            "claude-code",
            "Claude Code",
            ".mcp.json of a project",
            _servers({"type": "http", "url": f"{base_url}/mcp", "headers": bearer}),
        ),
        Snippet(
            "claude-desktop",
            "Claude Desktop",
            "claude_desktop_config.json (Settings, Developer, Edit config)",
            _servers(
                {
                    "command": "gateway",
                    "args": ["mcp-stdio", "--url", base_url],
                    "env": {KEY: PLACEHOLDER},
                }
            ),
            "It starts the program gateway of this product's Python package on your machine; write "
            "its full path if it is not on the PATH.",
        ),
        Snippet(
            "cursor",
            "Cursor",
            "~/.cursor/mcp.json",
            _servers(
                {
                    "url": f"{base_url}/mcp",
                    "headers": {"Authorization": f"Bearer ${{env:{KEY}}}"},
                }
            ),
        ),
        Snippet("vs-code", "VS Code", ".vscode/mcp.json", _vs_code(base_url)),
        Snippet(
            "codex",
            "Codex",
            "~/.codex/config.toml",
            f'[mcp_servers.images]\nurl = "{base_url}/mcp"\nbearer_token_env_var = "{KEY}"\n'
            "tool_timeout_sec = 300",
        ),
    ]


def _servers(server: Mapping[str, object]) -> str:
    return json.dumps({"mcpServers": {"images": server}}, indent=2, ensure_ascii=False)


def _vs_code(base_url: str) -> str:
    asked = {
        "type": "promptString",
        "id": "gateway-api-key",
        "description": "API key of the image gateway",
        "password": True,
    }
    server = {
        "type": "http",
        "url": f"{base_url}/mcp",
        "headers": {"Authorization": "Bearer ${input:gateway-api-key}"},
    }
    return json.dumps(
        {"inputs": [asked], "servers": {"images": server}}, indent=2, ensure_ascii=False
    )
