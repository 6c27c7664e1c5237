"""Commands for the request log: outcome, cost and provider id of a call."""

from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

import typer

from gateway.billing.usage import parse_moment
from gateway.cli.output import JsonOption, console, print_json, read, show
from gateway.core import Reader
from gateway.db.listed_calls import ListedCall
from gateway.db.pages import Page
from gateway.errors import NotFound
from gateway.money import NanoUsd, format_usd
from gateway.request_log import queries
from gateway.request_log.queries import (
    LoggedRequest,
    RequestDetail,
    RequestFilter,
    RequestReservation,
)
from gateway.request_log.rendering import render_for_operators, render_outcome
from gateway.tenancy.lookups import find_line, find_tenant

requests = typer.Typer(help="Outcome, cost and provider id of each request.", no_args_is_help=True)


@requests.command("list")
def list_requests(
    tenant: Annotated[
        str | None,
        typer.Option(help="Name, id or last four characters of the tenant. Default: all."),
    ] = None,
    status: Annotated[int | None, typer.Option(help="HTTP status, e.g. 402.")] = None,
    error_code: Annotated[str | None, typer.Option(help="E.g. budget_exceeded.")] = None,
    model: Annotated[str | None, typer.Option(help="Requested or served model.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Only this API key: id, name or last four characters.")
    ] = None,
    client_id: Annotated[str | None, typer.Option(help="The client's own X-Request-Id.")] = None,
    generation: Annotated[UUID | None, typer.Option(help="Id of a generation.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="First day (UTC), or a date-time.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Last day, or a date-time.")] = None,
    livemode: Annotated[bool | None, typer.Option("--live/--test", help="Default: both.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number.")] = 20,
    after: Annotated[
        str | None, typer.Option(help="Only requests older than the one with this X-Request-Id.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List requests, newest first."""

    async def work(core: Reader) -> Page[LoggedRequest]:
        async with core.database.operator() as session:
            owner = None if tenant is None else (await find_tenant(session, tenant)).id
            # Requests, like reports, refer to the first key of a rolled line.
            line = None if key is None else await find_line(session, owner, key, param="--key")
            chosen = RequestFilter(
                status=status,
                error_code=error_code,
                model=model,
                api_key_id=line,
                client_request_id=client_id,
                generation_id=generation,
                start=parse_moment(start, "--from", "UTC", is_end=False) if start else None,
                end=parse_moment(end, "--to", "UTC", is_end=True) if end else None,
            )
            return await queries.list_all(
                session, chosen, tenant_id=owner, livemode=livemode, limit=limit, after=after
            )

    page = read(work)
    if as_json:
        print_json([render_for_operators(one) for one in page.items])
        return
    show([_row(one) for one in page.items], as_json=False, empty="No matching requests.")
    if page.has_more:
        console.print(f"For older requests: --after {page.items[-1].row.id}")


@requests.command("show")
def show_request(
    request_id: Annotated[
        str,
        typer.Argument(help="X-Request-Id (the gateway's or the client's) or a generation's id."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show outcome, cost and provider id of one request."""

    async def work(core: Reader) -> RequestDetail:
        async with core.database.operator() as session:
            try:
                return await queries.find_any(session, request_id)
            except NotFound as error:
                raise NotFound(f"{error.message} Is GATEWAY_REQUEST_LOG off?") from None

    detail = read(work)
    if as_json:
        print_json(render_for_operators(detail.request) | render_outcome(detail))
        return
    for name, value in _facts(detail):
        console.print(f"{name:<14}{value}")
    if detail.others:
        console.print(f"{detail.others} more with this id: gateway requests list")


def _row(logged: LoggedRequest) -> dict[str, object]:
    row = logged.row
    return {
        "at": f"{row.at:%m-%d %H:%M:%S}",
        "request": row.id,
        "route": row.tool or row.route,
        "status": row.status,
        "error": row.error_code,
        "tenant": logged.tenant,
        "model": row.requested_model,
        "cost_usd": _cost(row.cost_nano, row.cost_status),
        "ms": row.milliseconds,
    }


def _facts(detail: RequestDetail) -> Iterator[tuple[str, str]]:
    """List the known facts, in the order in which an operator needs them."""
    logged, row = detail.request, detail.request.row
    yield "request", row.id
    if row.client_request_id is not None:
        yield "client's id", row.client_request_id
    if row.trace_id is not None:
        yield "trace", row.trace_id
    yield "at", f"{row.at:%Y-%m-%d %H:%M:%S} UTC, {row.milliseconds} ms"
    yield "route", f"{row.method} {row.route}" + (f", tool {row.tool}" if row.tool else "")
    yield "answer", str(row.status) + (f" {row.error_code}" if row.error_code else "")
    if row.reason is not None or row.error_param is not None:
        param = f"parameter {row.error_param}" if row.error_param else None
        yield "cause", ", ".join(part for part in (row.reason, param) if part)
    yield from _caller(logged)
    if row.requested_model is not None:
        served = row.served_model
        by = f", served by {served}" if served and served != row.requested_model else ""
        yield "model", f"{row.requested_model}{by}"
    if row.provider is not None:
        yield "provider", f"{row.provider}, with the credential of: {row.credential}"
    if row.provider_milliseconds is not None:
        status = row.provider_status or "no answer"
        calls = f", {row.provider_calls} calls" if (row.provider_calls or 1) > 1 else ""
        yield "provider said", f"{status}, after {row.provider_milliseconds} ms{calls}"
    if row.model_version is not None:
        yield "model version", row.model_version
    if row.provider_request_id is not None:
        yield "provider's id", row.provider_request_id
    yield from _money(logged, detail.purchase)


def _caller(logged: LoggedRequest) -> Iterator[tuple[str, str]]:
    row = logged.row
    mode = "" if row.livemode is None else " (live)" if row.livemode else " (test)"
    if row.tenant_id is not None:
        yield "tenant", f"{logged.tenant or row.tenant_id}{mode}"
    if row.api_key_id is not None:
        last4 = f"…{logged.key_last4} " if logged.key_last4 else ""
        yield "key", f"{logged.key_name + ' ' if logged.key_name else ''}{last4}{row.api_key_id}"
    if row.user_id is not None:
        yield "user", logged.user or str(row.user_id)
    if row.operator_key_id is not None:
        yield "admin key", str(row.operator_key_id)
    if row.session_id is not None:
        yield "console session", str(row.session_id)
    if row.tenant_id is None and row.operator_key_id is None and row.session_id is None:
        yield "caller", "not known: no valid key"


def _money(logged: LoggedRequest, purchase: RequestReservation | None) -> Iterator[tuple[str, str]]:
    row = logged.row
    if purchase is None:
        yield "cost", "nothing was reserved or bought"
        return
    replayed = ", bought by an earlier request" if row.replayed else ""
    yield "generation", f"{purchase.id}{replayed}"
    final = "not known yet" if purchase.final_nano is None else _usd(purchase.final_nano)
    yield "cost", f"{final} ({purchase.state}), at most {_usd(purchase.held_nano)}"
    if len(purchase.calls or ()) > 1:
        for call in purchase.calls or ():
            yield "call", _call(call)
    for line in purchase.lines:
        yield "ledger", f"{line.at:%Y-%m-%d %H:%M:%S} {line.kind} {_usd(line.amount_nano)}"


def _call(call: ListedCall) -> str:
    """One of several provider calls, for which the vendor's support asks by its id."""
    version = f" ({call.version})" if call.version not in {None, call.model} else ""
    shown = f"{call.provider} {call.model}{version}: {call.outcome}"
    return shown if call.request_id is None else f"{shown}, {call.request_id}"


def _cost(nano: int | None, status: str | None) -> str | None:
    return status if nano is None else format_usd(NanoUsd(nano))


def _usd(nano: int) -> str:
    return f"{format_usd(NanoUsd(nano))} USD"
