"""Commands for calls of unknown cost: list, show, sweep, and resolve."""

import dataclasses
from enum import StrEnum
from typing import Annotated

import typer

from gateway.billing import ledger
from gateway.billing import reconciliation as calls
from gateway.billing.dead_journals import DeadJournals, RecoveredCalls
from gateway.billing.ledger import OpenCall, OpenState
from gateway.billing.reconciliation import CallRecord, Resolution, Verdict
from gateway.billing.sweeping import SweptReservations, sweep
from gateway.catalog.opening import open_catalog
from gateway.cli.output import JsonOption, console, invoker, print_json, read, run, show
from gateway.core import Core, Reader
from gateway.db.listed_calls import render_calls
from gateway.money import NanoUsd, format_usd, parse_usd

reconcile = typer.Typer(
    help="Calls of unknown cost: list, show and resolve them.", no_args_is_help=True
)
SHOWN_AT_MOST = 1000
IdArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of the call's generation, or its first or last four characters."
    ),
]


class Which(StrEnum):
    """A filter on the state of calls."""

    OPEN = "open"
    HELD = "held"
    UNKNOWN = "unknown"
    ESTIMATED = "estimated"


_STATES: dict[Which, tuple[OpenState, ...]] = {
    Which.OPEN: ("unknown", "estimated"),
    Which.HELD: ("held",),
    Which.UNKNOWN: ("unknown",),
    Which.ESTIMATED: ("estimated",),
}


@reconcile.command("list")
def list_calls(
    state: Annotated[
        Which, typer.Option(help="open: unknown and estimated. held: in progress.")
    ] = Which.OPEN,
    limit: Annotated[
        int,
        typer.Option(
            min=1, max=SHOWN_AT_MOST, help="At most this many of each state, newest first."
        ),
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """List the calls of unknown cost."""

    async def work(core: Reader) -> list[OpenCall]:
        async with core.database.operator() as session:
            return [
                call
                for one in _STATES[state]
                for call in (await ledger.list_open(session, state=one, limit=limit)).items
            ]

    show(
        [
            {
                "id": call.id,
                "tenant": call.tenant_name,
                "mode": "live" if call.livemode else "test",
                "state": call.state,
                "outcome": call.outcome,
                "model": call.served_model,
                "amount_usd": format_usd(call.amount_nano),
                "admitted_at": call.admitted_at,
            }
            for call in read(work)
        ],
        as_json=as_json,
        empty="There are no calls of unknown cost.",
        right=("amount_usd",),
    )


@reconcile.command("show")
def show_call(call_id: IdArgument, as_json: JsonOption = False) -> None:
    """Show one call: its amounts, its ledger entries, and how it was resolved."""

    async def work(core: Reader) -> CallRecord:
        catalog = open_catalog(core.settings)
        async with core.database.operator() as session:
            found = await calls.find_call(session, call_id)
            return await calls.show(session, catalog.models, found)

    _print_call(read(work), as_json=as_json)


@reconcile.command("resolve")
def resolve_call(
    call_id: IdArgument,
    reason: Annotated[str, typer.Option(help="Recorded in the audit trail.")],
    cost_usd: Annotated[
        str | None, typer.Option(help="Post this cost, e.g. 0.0059. Final.")
    ] = None,
    void: Annotated[
        bool, typer.Option("--void", help="The call cost nothing: release the reservation.")
    ] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Accept the estimate. Final.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Resolve a call of unknown cost: one of --cost-usd, --void, --accept, and a reason."""
    chosen: list[Verdict] = []
    chosen += ["post"] if cost_usd is not None else []
    chosen += ["void"] if void else []
    chosen += ["accept"] if accept else []
    if len(chosen) != 1:
        raise typer.BadParameter("give exactly one of --cost-usd, --void and --accept")
    resolution = Resolution(chosen[0], reason, None if cost_usd is None else _amount(cost_usd))

    async def work(core: Core) -> CallRecord:
        async with core.database.operator(by=invoker()) as session:
            found = await calls.find_call(session, call_id)
            return await calls.resolve(session, core.catalog.models, found, resolution)

    _print_call(run(work), as_json=as_json)


@reconcile.command("run")
def run_sweep(as_json: JsonOption = False) -> None:
    """Sweep now, once: settle the calls of killed workers, expire late calls, estimate unknown
    ones.
    """

    async def work(core: Core) -> tuple[RecoveredCalls, SweptReservations]:
        journals = DeadJournals(core.database, core.settings.resolved_journal_dir)
        recovered = await journals.settle()
        return recovered, await sweep(
            core.database,
            core.catalog.models,
            estimate_after_seconds=core.settings.estimate_after_seconds,
        )

    recovered, swept = run(work)
    if as_json:
        print_json({**dataclasses.asdict(recovered), **dataclasses.asdict(swept)})
    else:
        console.print(
            f"Calls of killed workers: {recovered.settled} settled by their journal, "
            f"{recovered.voided} void, {recovered.unknown} unknown. "
            f"Expired and now unknown: {swept.expired}. Estimated: {swept.estimated}."
        )


def _amount(text: str) -> NanoUsd:
    try:
        return parse_usd(text)
    except ValueError as error:
        raise typer.BadParameter(f"--cost-usd: {error}") from None


def _print_call(call: CallRecord, *, as_json: bool) -> None:
    row = _row(call)
    if as_json:
        print_json(row)
        return
    show(
        [
            {"field": name, "value": value}
            for name, value in row.items()
            if name not in {"lines", "resolutions", "calls"}
        ],
        as_json=False,
    )
    console.print()
    if call.calls:
        show(_calls(call), as_json=False, title="Provider calls", right=("tokens",))
        console.print()
    show(_lines(call), as_json=False, title="Ledger", right=("amount_usd",))
    if call.entries:
        console.print()
        show(_resolutions(call), as_json=False, title="Resolved")


def _row(call: CallRecord) -> dict[str, object]:
    return {
        "id": call.id,
        "tenant": call.tenant_name,
        "tenant_id": call.tenant_id,
        "livemode": call.livemode,
        "api_key_id": call.api_key_id,
        "api_key_name": call.api_key_name,
        "user_id": call.user_id,
        "user_name": call.user_name,
        "state": call.state,
        "outcome": call.outcome,
        "operation": call.operation,
        "requested_model": call.requested_model,
        "served_model": call.served_model,
        "provider": call.provider,
        "credential": call.credential,
        "held_usd": format_usd(call.held_nano),
        "cost_usd": None if call.cost_nano is None else format_usd(call.cost_nano),
        "estimate_usd": None if call.estimate_nano is None else format_usd(call.estimate_nano),
        "admitted_at": call.admitted_at,
        "deadline_at": call.deadline_at,
        "resolved_at": call.resolved_at,
        **render_calls(call.calls),
        "lines": _lines(call),
        "resolutions": _resolutions(call),
    }


def _lines(call: CallRecord) -> list[dict[str, object]]:
    return [
        {"at": line.at, "kind": line.kind, "amount_usd": format_usd(line.amount_nano)}
        for line in call.lines
    ]


def _calls(call: CallRecord) -> list[dict[str, object]]:
    return [
        {
            "provider": one.provider,
            "model": one.version or one.model,
            "outcome": one.outcome,
            "status": one.status,
            "id": one.request_id,
            "images": one.images,
            "tokens": None
            if one.usage is None
            else one.usage.input_tokens + one.usage.output_tokens,
        }
        for one in call.calls or ()
    ]


def _resolutions(call: CallRecord) -> list[dict[str, object]]:
    return [
        {
            "at": entry.at,
            "by": f"{entry.actor_type} {entry.actor_name or entry.actor_id}",
            "verdict": (entry.after or {}).get("verdict"),
            "reason": (entry.after or {}).get("reason"),
        }
        for entry in call.entries
    ]
