"""Output of commands: tables for people, JSON for programs, one sentence for a refusal."""

import asyncio
import dataclasses
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from gateway.config import load_settings
from gateway.core import Core, Reader
from gateway.db.actors import Actor
from gateway.db.postgres_account import login_of_this_process
from gateway.errors import ConfigurationError, GatewayError
from gateway.reading import open_reader
from gateway.redaction import RedactingFormatter

T = TypeVar("T")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-|\b(?:img|igw|req)_")
"""Columns that must not be folded or cut: ids of rows, images and requests, and keys."""
REFUSED = 1
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
# If the output is not a terminal (a pipe, a file), a table is as wide as it needs to be.
WIDTH = None if sys.stdout.isatty() else 200
# Names come from users, so markup in the output is never interpreted.
console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False, width=WIDTH)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def read(work: Callable[[Reader], Coroutine[Any, Any, T]]) -> T:
    """Run read-only work on the data of an existing gateway; refusals as in `run`."""

    async def opened() -> T:
        settings = load_settings()
        _log_warnings()
        async with open_reader(settings) as reader:
            return await work(reader)

    return guarded(lambda: asyncio.run(opened()))


def _log_warnings() -> None:
    """Send warnings to standard error as plain lines.

    Structured logs take a tenth of the time of a command that reads, and it has none.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def run(work: Callable[[Core], Coroutine[Any, Any, T]]) -> T:
    """Open the core, run the work, close; a refusal is one sentence and exit status 1."""

    async def opened() -> T:
        async with core() as opened_core:
            return await work(opened_core)

    return guarded(lambda: asyncio.run(opened()))


def invoker() -> Actor:
    """The operator who runs this command, by login on this machine, for the audit trail."""
    return Actor("cli", login_of_this_process())


@asynccontextmanager
async def core() -> AsyncIterator[Core]:
    """Open the core with the environment's settings."""
    settings = load_settings()
    # Imported here, so that read-only commands start faster.
    import_module("gateway.logs").configure_logging("WARNING", "console")
    open_core = import_module("gateway.opening").open_core
    async with open_core(settings) as opened:
        if opened.new_admin_key is not None and not settings.uses_embedded_postgres:
            errors.print(f"The first admin key is in {settings.quickstart_file}")
        yield opened


def guarded(work: Callable[[], T]) -> T:
    """Run `work`; print its refusal as one sentence."""
    try:
        return work()
    except (ConfigurationError, GatewayError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def refuse(message: str) -> NoReturn:
    """Print the reason and end with status 1."""
    errors.print("Refused: ", style="bold red", end="")
    errors.print(message)
    raise typer.Exit(REFUSED)


def confirm(consequence: str, name: str) -> None:
    """Let the user type the name of the object to delete; any other input ends the command."""
    errors.print(consequence)
    errors.print("Type its name to continue:", end=" ")
    # Not typer's prompt, which also writes to standard output, where programs read.
    if sys.stdin.readline().rstrip("\r\n") != name:
        refuse(f"The input does not match the name {name!r}; nothing was deleted.")


def show(
    rows: Sequence[Mapping[str, object]],
    *,
    as_json: bool,
    title: str | None = None,
    empty: str = "No entries yet.",
    right: Sequence[str] = (),
) -> None:
    """Print rows as a table, or as a JSON array."""
    if as_json:
        print_json([dict(row) for row in rows])
        return
    if not rows:
        console.print(empty)
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        cells = [_cell(row[name]) for row in rows]
        is_whole = any(_ID.search(cell) for cell in cells)
        table.add_column(
            name.replace("_", " "),
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=is_whole,
            min_width=max(map(len, cells)) if is_whole else None,
            header_style="dim",
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    # A folded or cut id cannot be copied, so a table may be wider than the terminal.
    console.print(table, soft_wrap=False, crop=False)


def print_json(value: object) -> None:
    """Print one JSON value."""
    sys.stdout.write(json.dumps(value, default=_jsonable, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def fields(value: object, *names: str) -> dict[str, object]:
    """Collect some attributes of a value, by name."""
    return {name: getattr(value, name) for name in names}


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(sorted(str(item) for item in value))
    return str(value)


def _jsonable(value: object) -> object:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID | Path):
        return str(value)
    if isinstance(value, tuple | set | frozenset):
        return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(type(value).__name__)
