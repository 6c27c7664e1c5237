"""`gateway mcp-stdio`, started by desktop MCP clients. Imports no database, to start quickly."""

import asyncio
import json
import os
from typing import Annotated

import httpx2
import typer
from pydantic import SecretStr

from gateway.config import SECRET_FORM, Settings, load_settings
from gateway.errors import ConfigurationError
from gateway.mcp_server.stdio import Bridge, refuse_client
from gateway.mcp_server.stdio_http import endpoint_url, open_http
from gateway.mcp_server.stdio_pipes import Pipes, stop_on_signals

REFUSED = 1
MAX_LINE_CHARACTERS = 1000


def mcp_stdio(
    url: Annotated[
        str | None, typer.Option(help="Address of the gateway. Default: GATEWAY_PUBLIC_URL.")
    ] = None,
) -> None:
    """Connect an MCP client that starts local programs to a gateway: MCP on stdin and stdout.

    The API key is read from GATEWAY_API_KEY. Default, on the machine of a quick start: its
    test key. No .env file is read: clients start this command in arbitrary folders.
    """
    try:
        settings = load_settings(read_env_file=False)
        endpoint, key = find_gateway(settings, url)
        http = open_http(endpoint, key)
    except ConfigurationError as error:
        message = " ".join(str(error).split())
        say(f"Refused: {message}")
        if not os.isatty(0):
            asyncio.run(_refuse(message))
        raise typer.Exit(REFUSED) from None
    if os.isatty(0):
        say(f"MCP clients start this command; it now waits for MCP messages for {endpoint}.")
    asyncio.run(_bridge(settings, http, endpoint))


def find_gateway(settings: Settings, url: str | None) -> tuple[str, SecretStr]:
    """Find the endpoint and its key.

    The quick start's key is sent to the quick start's own gateway only.

    Raises:
        ConfigurationError: no key is set, or a key may not be sent to the address.
    """
    quickstart = _read_quickstart(settings)
    named = settings.public_url if "public_url" in settings.model_fields_set else None
    own = quickstart.get("base_url")
    endpoint = endpoint_url(url or named or own or settings.public_url)
    key = settings.api_key
    if key is None and own is not None and endpoint == endpoint_url(own):
        key = SecretStr(quickstart["test_key"])
    secret = "" if key is None else key.get_secret_value().strip()
    if not secret:
        raise ConfigurationError(
            f"There is no API key for {endpoint}. Set GATEWAY_API_KEY in the environment that the "
            "client passes to this command."
        )
    if not SECRET_FORM.fullmatch(secret) or secret.startswith("${"):
        raise ConfigurationError(
            "GATEWAY_API_KEY is not a valid key: it contains spaces, or a ${variable} that "
            "the client did not replace."
        )
    return endpoint, SecretStr(secret)


def _read_quickstart(settings: Settings) -> dict[str, str]:
    """Address and test key of the quick start; empty without one."""
    if not settings.uses_embedded_postgres:
        return {}
    try:
        content = json.loads(settings.quickstart_file.read_text())
        return {name: str(content[name]) for name in ("base_url", "test_key")}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


async def _bridge(settings: Settings, http: httpx2.AsyncClient, endpoint: str) -> None:
    stop = stop_on_signals()
    max_bytes = settings.max_json_upload_bytes
    pipes = Pipes(max_line_bytes=max_bytes)
    async with http:
        await Bridge(pipes, http, endpoint, max_bytes=max_bytes, say=say).run(stop)


async def _refuse(message: str) -> None:
    pipes = Pipes(max_line_bytes=Settings.model_fields["max_json_upload_bytes"].default)
    await refuse_client(pipes, message, stop_on_signals())


def say(message: str) -> None:
    """Print one line on stderr, on behalf of any module: stdout belongs to the protocol."""
    shown = (sign if sign.isprintable() else " " for sign in message[:MAX_LINE_CHARACTERS])
    typer.echo("".join(shown), err=True)
