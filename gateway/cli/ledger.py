"""Commands for the books."""

from collections.abc import Sequence
from typing import Annotated

import typer

from gateway.billing import ledger as books
from gateway.billing.ledger import InvariantBreak
from gateway.cli.output import JsonOption, print_json, read, show
from gateway.core import Reader

ledger = typer.Typer(
    help="The books: check that budgets, calls and entries agree.", no_args_is_help=True
)


@ledger.callback()
def group() -> None:
    """Keep `check` a subcommand."""


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


def _note(what: str) -> None:
    typer.echo(f"checking: {what} …", err=True)
