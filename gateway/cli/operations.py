"""Operational commands: migrate, doctor, maintain."""

import asyncio
from collections.abc import Sequence

import typer

from gateway.billing import ledger
from gateway.bootstrap import open_gateway
from gateway.cli.output import (
    JsonOption,
    console,
    guarded,
    print_json,
    run,
    show,
)
from gateway.config import Settings, load_settings
from gateway.core import Core
from gateway.errors import ConfigurationError, GatewayError
from gateway.examination import Note, examine
from gateway.logs import configure_logging
from gateway.maintenance import Sweeper
from gateway.reading import open_reader


def migrate(as_json: JsonOption = False) -> None:
    """Migrate the database to the newest schema; concurrent runs wait for each other."""

    async def work(core: Core) -> str:
        return core.revision

    revision = run(work)
    if as_json:
        print_json({"revision": revision})
    else:
        console.print(f"The database is at revision {revision}.")


def doctor(as_json: JsonOption = False) -> None:
    """Check configuration, database, storage and keys; report what to fix."""
    checks: list[dict[str, object]] = []

    def note(what: str, state: str, detail: str) -> None:
        checks.append({"check": what, "state": state, "detail": detail})

    try:
        settings = load_settings()
        configure_logging("WARNING", "console")
        note("configuration", "ok", "the environment is valid")
        asyncio.run(_examine(settings, note))
    except (ConfigurationError, GatewayError) as error:
        # The first failure ends the checks: later ones depend on it.
        note("configuration" if not checks else "start", "wrong", str(error))
    show(checks, as_json=as_json)
    if any(check["state"] == "wrong" for check in checks):
        raise typer.Exit(1)


def maintain(as_json: JsonOption = False) -> None:
    """Do the periodic work once; exit status 1 if the books are broken.

    Every running gateway does this work by itself. The command is for schedulers of one's own, and
    for what must be done now. Names each part on standard error as it begins.
    """

    async def work() -> Sequence[ledger.InvariantBreak]:
        settings = load_settings()
        configure_logging("WARNING", "console")
        async with open_reader(settings):
            pass  # refuses if there is no data to maintain
        async with open_gateway(settings) as gateway:
            return await Sweeper(gateway).run(lambda what: typer.echo(f"{what} …", err=True))

    found = guarded(lambda: asyncio.run(work()))
    if as_json:
        print_json({"breaks": found})
    else:
        rows: list[dict[str, object]] = [{"what": one.what, "id": one.id} for one in found]
        show(rows, as_json=False, empty="Everything is done; the books agree.")
    if found:
        raise typer.Exit(1)


async def _examine(settings: Settings, note: Note) -> None:
    async with open_reader(settings):
        pass  # refuses if there is no data to examine; opening a gateway would create it
    async with open_gateway(settings) as gateway:
        await examine(gateway, note)
