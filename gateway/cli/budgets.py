"""Commands for budgets: of tenants, their users and keys, and of the house credentials."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from gateway.billing import budgets as budgeting
from gateway.billing.budgets import Budget
from gateway.billing.reports import render_budget
from gateway.cli.accounts import UserOption, find_owner
from gateway.cli.amounts import parse_duration
from gateway.cli.output import JsonOption, console, invoker, print_json, read, refuse, run, show
from gateway.core import Core, Reader
from gateway.errors import NotFound
from gateway.money import NanoUsd, format_usd_short, parse_usd
from gateway.tenancy import lookups

budgets = typer.Typer(
    help="Spending limits; each call reserves its worst-case cost.", no_args_is_help=True
)

OfTenantOption = Annotated[str | None, typer.Option("--tenant", help="Name or id of the tenant.")]
HouseOption = Annotated[
    bool, typer.Option("--house", help="For all calls with the house credentials.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", help="Only for this API key: id, name or last four characters."),
]
TestOption = Annotated[bool, typer.Option("--test", help="For test keys instead of live.")]
WindowOption = Annotated[str, typer.Option(help="day, week, month or total.")]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A session to change budgets in, and their owner."""

    session: budgeting.Session
    tenant_id: UUID | None
    key_id: UUID | None = None
    user_id: UUID | None = None


@budgets.command("set")
def set_budget(
    limit_usd: Annotated[str, typer.Option(help="E.g. 50 or 12.50.")],
    tenant: OfTenantOption = None,
    house: HouseOption = False,
    window: WindowOption = "month",
    key: KeyOption = None,
    user: UserOption = None,
    test: TestOption = False,
    soft: Annotated[
        bool | None,
        typer.Option(
            "--soft/--hard", help="soft: warn, but refuse no calls. Default for a new budget: hard."
        ),
    ] = None,
    alert_at: Annotated[
        str | None, typer.Option(help="Percentages that trigger a warning: 50,80,100; '' for none.")
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(help="With --house: time zone of its days. Default for a new budget: UTC."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Limit the spending of a tenant, one of its users or keys, or the house credentials.

    Omitted options keep their value.
    """
    _check_owner(tenant, key, user, house=house, test=test)
    if time_zone is not None and not house:
        raise typer.BadParameter("--time-zone requires --house; a tenant has its own time zone")
    limit, percents = _amount(limit_usd), None if alert_at is None else _percents(alert_at)

    async def work(core: Core) -> Budget:
        async with _choose(core, tenant, key, user) as chosen:
            return await budgeting.set_limit(
                chosen.session,
                chosen.tenant_id,
                window=window,
                limit_nano=limit,
                livemode=not test,
                api_key_id=chosen.key_id,
                user_id=chosen.user_id,
                enforcement=None if soft is None else "soft" if soft else "hard",
                alert_percents=percents,
                time_zone=time_zone,
            )

    budget = run(work)
    if as_json:
        print_json(_row(budget))
        return
    alerts = ", ".join(f"{percent} %" for percent in budget.alert_percents)
    console.print(
        f"The {budget.owner} may spend {_per_window(budget, budget.limit_nano)}"
        + (f" (until {budget.resets_at:%Y-%m-%d %H:%M %Z})." if budget.resets_at else ".")
        + (" It is soft: calls beyond it are not refused." if budget.enforcement == "soft" else "")
        + (f" It warns at {alerts}." if alerts else " It gives no warnings.")
    )


@budgets.command("list")
def list_budgets(
    tenant: OfTenantOption = None, house: HouseOption = False, as_json: JsonOption = False
) -> None:
    """List the budgets of a tenant, or of the house credentials, and their remainders."""
    _check_owner(tenant, house=house)

    async def work(core: Reader) -> list[Budget]:
        async with _choose(core, tenant) as chosen:
            return await budgeting.list_budgets(chosen.session, chosen.tenant_id)

    found = read(work)
    if as_json:
        print_json([_row(budget) for budget in found])
        return
    spender = "all tenants together" if house else "this tenant"
    show(
        [
            {
                "of": f"{budget.owner} {budget.api_key_name or budget.user_name or ''}".strip(),
                "id": budget.api_key_id or budget.user_id,
                "mode": "live" if budget.livemode else "test",
                "per": budget.window,
                "limit": format_usd_short(budget.limit_in_force_nano),
                "spent": format_usd_short(budget.spent_nano),
                "held": format_usd_short(budget.held_nano),
                "left": format_usd_short(budget.remaining_nano),
                "resets": budget.resets_at,
                "remark": _remark(budget),
            }
            for budget in found
        ],
        as_json=False,
        title="Budgets, in US dollars",
        empty=f"No budgets: the spending of {spender} is not limited.",
        right=("limit", "spent", "held", "left"),
    )


@budgets.command("raise")
def raise_budget(
    to_usd: Annotated[str, typer.Option(help="The higher limit, e.g. 80.")],
    until: Annotated[
        str | None, typer.Option(help="End of the raise: 2026-12-01T09:00+01:00.")
    ] = None,
    lasting: Annotated[str | None, typer.Option("--for", help="Or its duration: 24h, 7d.")] = None,
    tenant: OfTenantOption = None,
    house: HouseOption = False,
    window: WindowOption = "month",
    key: KeyOption = None,
    user: UserOption = None,
    test: TestOption = False,
    as_json: JsonOption = False,
) -> None:
    """Raise a limit for a time; afterwards the usual limit applies again."""
    _check_owner(tenant, key, user, house=house, test=test)
    to_nano, end = _amount(to_usd), _end(until, lasting)

    async def work(core: Core) -> Budget:
        async with _choose(core, tenant, key, user) as chosen:
            found = await _find(chosen, window, test=test)
            return await budgeting.raise_limit(
                chosen.session, chosen.tenant_id, found.id, to_nano=to_nano, until=end
            )

    budget = run(work)
    if as_json:
        print_json(_row(budget))
        return
    console.print(
        f"Until {end:%Y-%m-%d %H:%M %Z} the {budget.owner} may spend "
        f"{_per_window(budget, to_nano)}; then {_per_window(budget, budget.limit_nano)} again."
    )


@budgets.command("remove")
def remove_budget(
    tenant: OfTenantOption = None,
    house: HouseOption = False,
    window: WindowOption = "month",
    key: KeyOption = None,
    user: UserOption = None,
    test: TestOption = False,
    only_raise: Annotated[
        bool, typer.Option("--raise", help="End only the raise: the usual limit applies again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a budget, or only end its raise."""
    _check_owner(tenant, key, user, house=house, test=test)

    async def work(core: Core) -> Budget:
        async with _choose(core, tenant, key, user) as chosen:
            found = await _find(chosen, window, test=test)
            if only_raise:
                return await budgeting.end_raise(chosen.session, chosen.tenant_id, found.id)
            await budgeting.remove(chosen.session, chosen.tenant_id, found.id)
            return found

    budget = run(work)
    limit = _per_window(budget, budget.limit_nano)
    if as_json:
        print_json(_row(budget))
    elif only_raise:
        console.print(f"The {budget.owner} may spend {limit} again.")
    else:
        console.print(f"Removed: the limit of {limit} for the {budget.owner}.")


@asynccontextmanager
async def _choose(
    core: Reader, tenant: str | None, key: str | None = None, user: str | None = None
) -> AsyncIterator[_Chosen]:
    """Open the tenant's budgets, or the house credentials' if no tenant is named."""
    if tenant is None:
        async with core.database.operator(by=invoker()) as everything:
            yield _Chosen(everything, None)
        return
    async with core.database.operator() as everything:
        owner = await lookups.find_tenant(everything, tenant)
    async with core.database.tenant(owner.id, by=invoker()) as session:
        yield _Chosen(session, owner.id, *await find_owner(session, owner.id, key, user))


async def _find(chosen: _Chosen, window: str, *, test: bool) -> Budget:
    for budget in await budgeting.list_budgets(chosen.session, chosen.tenant_id):
        if (
            (budget.api_key_id, budget.user_id) == (chosen.key_id, chosen.user_id)
            and budget.window == window
            and (budget.livemode is not test or chosen.key_id is not None)  # a key has one mode
        ):
            return budget
    raise NotFound("There is no such budget. `gateway budgets list` shows the existing ones.")


def _check_owner(
    tenant: str | None,
    key: str | None = None,
    user: str | None = None,
    *,
    house: bool,
    test: bool = False,
) -> None:
    if house is (tenant is not None):
        raise typer.BadParameter("give either --tenant NAME or --house")
    if house and (key is not None or user is not None or test):
        raise typer.BadParameter("--key, --user and --test require --tenant")


def _amount(text: str) -> NanoUsd:
    try:
        return parse_usd(text)
    except ValueError as error:
        refuse(str(error))


def _percents(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of percentages such as 50,80,100"
        ) from None


def _end(until: str | None, lasting: str | None) -> datetime:
    if (until is None) is (lasting is None):
        raise typer.BadParameter("give either --until DATE or --for DURATION")
    try:
        if lasting is not None:
            return datetime.now(UTC) + parse_duration(lasting)
        end = datetime.fromisoformat(until or "")
        if end.tzinfo is not None:
            return end.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # Refused below, like a time without an offset.
    raise typer.BadParameter(
        f"{until or lasting!r} is not a time with an offset, such as 2026-12-01T09:00+01:00"
    )


def _per_window(budget: Budget, limit_nano: int) -> str:
    when = "altogether" if budget.window == "total" else f"per {budget.window}"
    return f"{format_usd_short(limit_nano)} USD {when}"


def _remark(budget: Budget) -> str:
    raised = f"raised until {budget.raised_until:%Y-%m-%d %H:%M}" if budget.raised_until else ""
    return ", ".join(part for part in (raised, "soft" * (budget.enforcement == "soft")) if part)


def _row(budget: Budget) -> dict[str, Any]:
    row = {
        **render_budget(budget),
        "key": budget.api_key_id,
        "key_name": budget.api_key_name,
        "user": budget.user_id,
        "user_name": budget.user_name,
    }
    return row if budget.time_zone is None else {**row, "time_zone": budget.time_zone}
