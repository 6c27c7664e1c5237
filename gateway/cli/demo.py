"""`gateway demo`: try a running gateway with the clients that applications use."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.output import JsonOption, console, guarded, print_json, refuse, show
from gateway.config import load_settings

SHOWN = ("day", "model", "requests", "images", "cost_usd")
"""The columns of the usage."""


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for the images.")] = Path(),
    base_url: Annotated[str | None, typer.Option(help="Address of the gateway.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an image with the OpenAI client and one with an MCP client; show the usage.

    The API key is read from GATEWAY_API_KEY. Default: the quick start's test key.
    """
    settings = guarded(load_settings)
    path = settings.quickstart_file
    quickstart = json.loads(path.read_text()) if path.exists() else {}
    address = (base_url or quickstart.get("base_url") or settings.public_url).rstrip("/")
    given = settings.api_key.get_secret_value() if settings.api_key else None
    secret = str(given or quickstart.get("test_key", ""))
    if not secret:
        refuse("No API key: set GATEWAY_API_KEY (there is no quick start file here).")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"{output_dir} cannot be created: {error.strerror}.")
    # These clients take a third of a second and 13 MB, and no other command needs them.
    from gateway.cli.demo_clients import DemoFailed, demonstrate  # noqa: PLC0415

    say = (lambda _line: None) if as_json else console.print
    try:
        result = asyncio.run(demonstrate(address, secret, output_dir, say))
    except DemoFailed as failed:
        refuse(str(failed))
    if as_json:
        print_json(result)
        return
    console.print("\nUsage today, from the ledger:")
    rows = [{name: row[name] for name in SHOWN} for row in result["usage"]]
    show(rows, as_json=False, right=SHOWN[2:])
