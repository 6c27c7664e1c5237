"""Commands for the sums of usage: compare them with the ledger, or make them anew."""

from typing import Annotated

import typer

from gateway.billing import usage_sums as sums
from gateway.cli.output import JsonOption, console, print_json, read, run, show
from gateway.core import Core, Reader
from gateway.tenancy import lookups

usage_sums = typer.Typer(
    help="The sums that reports read: compare them with the ledger, or make them anew.",
    no_args_is_help=True,
)


@usage_sums.command("check")
def check_sums(as_json: JsonOption = False) -> None:
    """Compare the sums with the whole ledger; exit status 1 if they differ."""

    async def work(core: Reader) -> tuple[list[sums.Difference], int]:
        async with core.database.operator() as session:
            return await sums.differences(session), await sums.count_pending(session)

    found, pending = read(work)
    if as_json:
        print_json({"differences": found, "pending_lines": pending})
    else:
        show(
            [{"tenant": one.tenant, "livemode": one.livemode, "sums": one.grain} for one in found],
            as_json=False,
            empty=f"The sums are the ledger; {pending} lines are still to be added.",
        )
    if found:
        raise typer.Exit(1)


@usage_sums.command("rebuild")
def rebuild_sums(
    tenant: Annotated[str, typer.Option("--tenant", help="Name, id or last four characters.")],
    as_json: JsonOption = False,
) -> None:
    """Discard a tenant's sums and make them from the ledger. Reports stay right meanwhile."""

    async def work(core: Core) -> int:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
            lines = await sums.recompute(session, owner.id)
        await sums.roll_up(core.database)
        return lines

    lines = run(work)
    if as_json:
        print_json({"lines": lines})
    else:
        console.print(f"Added {lines} ledger lines up again.")
