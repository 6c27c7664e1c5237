"""Commands for the books."""

import csv
import sys
from collections.abc import Sequence
from datetime import date
from typing import Annotated

import typer

from gateway.billing import archive
from gateway.billing import ledger as books
from gateway.billing.ledger import InvariantBreak
from gateway.cli.output import JsonOption, console, print_json, read, refuse, run, show
from gateway.core import Core, Reader

ledger = typer.Typer(
    help="The books: check them; list, export and archive months.",
    no_args_is_help=True,
)
MonthArgument = Annotated[
    str, typer.Argument(metavar="MONTH", help="A month in UTC, such as 2026-01.")
]


@ledger.command("check")
def check_ledger(
    new: Annotated[
        bool,
        typer.Option("--new", help="Only what is new since the last check that found nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the invariants of the whole ledger; exit status 1 if one is broken.

    Names each invariant on standard error as its check begins: ten million entries take minutes.
    """

    async def work(core: Reader) -> Sequence[InvariantBreak]:
        found = await books.new_breaks(core.database, remember=False) if new else None
        if found is None:
            found = await books.check_all(core.database, progress=_note, remember=False)
        return found

    found = read(work)
    if as_json:
        print_json(found)
    else:
        rows: list[dict[str, object]] = [{"what": one.what, "id": one.id} for one in found]
        show(rows, as_json=False, empty="Budgets, reservations, ledger and sums agree.")
    if found:
        raise typer.Exit(1)


@ledger.command("months")
def list_months(as_json: JsonOption = False) -> None:
    """List the ledger's months: archived ones, and those that are kept with their size."""

    async def work(core: Reader) -> list[archive.LedgerMonth]:
        async with core.database.operator() as session:
            return await archive.list_months(session)

    found = read(work)
    if as_json:
        print_json(found)
        return
    rows: list[dict[str, object]] = [
        {
            "month": f"{one.month:%Y-%m}",
            "state": "archived" if one.is_archived else "kept",
            "entries": one.lines,
            "bytes": one.bytes,
            "cannot be archived": one.obstacle and archive.OBSTACLES[one.obstacle],
        }
        for one in found
    ]
    show(rows, as_json=False, right=("entries", "bytes"))


@ledger.command("archive")
def archive_month(month: MonthArgument, as_json: JsonOption = False) -> None:
    """Archive the oldest month that is kept: keep its sums, drop its entries for ever.

    Reports still have its sums. Export its entries before, if you need them.
    """

    async def work(core: Core) -> None:
        await archive.archive_month(core.database, _month(month))

    run(work)
    if as_json:
        print_json({"month": month, "state": "archived"})
    else:
        console.print(f"{month} is archived.")


@ledger.command("export")
def export_month(month: MonthArgument) -> None:
    """Write the entries of a month as CSV to standard output; amounts are nano-dollars."""

    async def work(core: Reader) -> None:
        async with core.database.operator() as session:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            entries = archive.export_month(session, _month(month))
            is_first = True
            async for entry in entries:
                if is_first:
                    writer.writerow(archive.EXPORTED)
                    is_first = False
                writer.writerow(entry)

    read(work)


def _month(value: str) -> date:
    found = archive.parse_month(value)
    if found is None:
        refuse(f"{value!r} is not a month: give one such as 2026-01.")
    return found


def _note(what: str) -> None:
    typer.echo(f"checking: {what} …", err=True)
