"""Budgets of a tenant, and of the house credentials: bars, set, raise for a time, remove."""

from collections.abc import Mapping
from functools import partial
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.billing import budgets
from gateway.billing.budgets import ENFORCEMENTS, WINDOWS, Budget
from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader
from gateway.console.forms import (
    UNTOUCHED,
    FormState,
    moment,
    one_of,
    sent,
    typed,
    usd,
)
from gateway.console.pages.operator_owners import OWNERS, owner_ids, row_id_of
from gateway.console.pages.operator_shared import (
    changing,
    operator_page,
    parts_of_list,
    reading,
    tenant_page,
    tenant_path,
)
from gateway.console.render import Flash
from gateway.db.pages import Page
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.transactions import changing_as_operator, reading_as_operator
from gateway.identity.viewers import Viewer
from gateway.money import format_usd_short
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import tenants

ROOT = "/console/tenants/{tenant_id}"
BUDGETS = "/budgets"
HOUSE = "/console/budgets"
MAX_REASON_CHARACTERS = 500
PAGE_SIZE = 50
WINDOW_NAMES = (
    ("month", "Each month"),
    ("week", "Each week"),
    ("day", "Each day"),
    ("total", "In total"),
)
ENFORCEMENT_NAMES = (("hard", "Hard: refuses calls beyond it"), ("soft", "Soft: warns alone"))
DONE = {
    "set": Flash("The budget is set. It applies from the next call on."),
    "raised": Flash("The budget is raised. The next call has it."),
    "ended": Flash("The raise has ended. The usual limit applies again."),
    "removed": Flash("The budget was removed."),
}

router = APIRouter()


@router.get(HOUSE)
async def show_house_budgets(
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: int | None = None,
    done: str = "",
) -> Response:
    """Show the budgets for all calls with a house credential."""
    return await _house_page(request, gateway, viewer, after=after, flash=DONE.get(done))


@router.post(HOUSE)
async def set_house_budget(
    request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Set a budget for all calls with a house credential."""

    async def change() -> str:
        async with changing_as_operator(gateway, viewer) as session:
            await budgets.set_limit(
                session,
                None,
                window=one_of(form, "window", WINDOWS),
                limit_nano=usd(form, "limit_usd"),
                enforcement=one_of(form, "enforcement", ENFORCEMENTS),
                alert_percents=_percents(form),
                time_zone=typed(form, "time_zone") or None,
            )
        return f"{HOUSE}?done=set"

    show = partial(_house_page, request, gateway, viewer)
    return await sent(_name_of(form), form, change, show)


@router.post(HOUSE + "/{budget_id}/{action}")
async def change_house_budget(
    *,
    budget_id: int,
    action: str,
    request: Request,
    viewer: OperatorChanger,
    gateway: GatewayDep,
    form: FormDep,
) -> Response:
    """Raise a budget of the house credentials, end its raise, or remove it."""

    async def change() -> str:
        async with changing_as_operator(gateway, viewer) as session:
            return HOUSE + await _change(session, viewer, None, budget_id, action, form)

    show = partial(_house_page, request, gateway, viewer)
    return await sent(f"raise-{budget_id}", form, change, show)


@router.get(ROOT + BUDGETS)
async def show_budgets(
    *,
    tenant_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: int | None = None,
    done: str = "",
) -> Response:
    """Show the budgets of a tenant, its users and keys, as bars."""
    return await _page(request, gateway, viewer, tenant_id, after=after, flash=DONE.get(done))


@router.post(ROOT + BUDGETS)
async def set_budget(
    tenant_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Set a budget of the tenant, of a user or of a key."""

    async def change() -> str:
        async with changing(gateway, viewer, tenant_id) as session:
            livemode = one_of(form, "mode", ("live", "test")) == "live"
            key_id, user_id = await owner_ids(session, tenant_id, form, livemode=livemode)
            await budgets.set_limit(
                session,
                tenant_id,
                window=one_of(form, "window", WINDOWS),
                limit_nano=usd(form, "limit_usd"),
                livemode=livemode,
                api_key_id=key_id,
                user_id=user_id,
                enforcement=one_of(form, "enforcement", ENFORCEMENTS),
                alert_percents=_percents(form),
            )
        return f"{tenant_path(tenant_id, BUDGETS)}?done=set"

    show = partial(_page, request, gateway, viewer, tenant_id)
    return await sent(_name_of(form), form, change, show)


@router.post(ROOT + BUDGETS + "/{budget_id}/{action}")
async def change_budget(
    *,
    tenant_id: UUID,
    budget_id: int,
    action: str,
    request: Request,
    viewer: OperatorChanger,
    gateway: GatewayDep,
    form: FormDep,
) -> Response:
    """Raise a budget, end its raise, or remove it."""

    async def change() -> str:
        async with changing(gateway, viewer, tenant_id) as session:
            done = await _change(session, viewer, tenant_id, budget_id, action, form)
        return tenant_path(tenant_id, BUDGETS) + done

    show = partial(_page, request, gateway, viewer, tenant_id)
    return await sent(f"raise-{budget_id}", form, change, show)


async def _change(  # noqa: PLR0917 - as the path and the form have them
    session: budgets.Session,
    viewer: Viewer,
    tenant_id: UUID | None,
    budget_id: int,
    action: str,
    form: Mapping[str, str],
) -> str:
    """Change a budget; return the part of the address that names the page's message."""
    row_id = row_id_of(budget_id)
    if action == "raise":
        await budgets.raise_limit(
            session,
            tenant_id,
            row_id,
            to_nano=usd(form, "limit_usd"),
            until=moment(form, "until", viewer.time_zone),
            reason=_reason(form),
        )
        return "?done=raised"
    if action == "end-raise":
        await budgets.end_raise(session, tenant_id, row_id)
        return "?done=ended"
    if action == "remove":
        await budgets.remove(session, tenant_id, row_id)
        return "?done=removed"
    raise NotFound(f"A budget has no action {action[:20]!r}.")


def _name_of(form: Mapping[str, str]) -> str:
    """Name the form that sets a budget: a listed budget has its own, with its values."""
    changed = typed(form, "change")
    return f"change-{changed}" if changed else "set"


def _percents(form: Mapping[str, str]) -> list[int]:
    """Read the percents at which a budget warns; none if the field is empty."""
    texts = typed(form, "alert_percents").replace(",", " ").replace("%", " ").split()
    if not all(text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 100 for text in texts):  # noqa: PLR2004 - a percentage
        raise InvalidRequest(
            "Enter whole percents from 1 to 100, such as 50, 80, 100.", param="alert_percents"
        )
    return [int(text) for text in texts]


def _reason(form: Mapping[str, str]) -> str:
    reason = typed(form, "reason")
    if not 0 < len(reason) <= MAX_REASON_CHARACTERS or not reason.isprintable():
        raise InvalidRequest(
            f"Enter a reason of 1 to {MAX_REASON_CHARACTERS} characters in one line.",
            param="reason",
        )
    return reason


async def _page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    tenant_id: UUID,
    *,
    after: int | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading(gateway, viewer, tenant_id) as session:
        tenant = await tenants.get(session, tenant_id)
        found = await budgets.list_page(
            session, tenant_id, limit=PAGE_SIZE, after=None if after is None else row_id_of(after)
        )
    return tenant_page(
        viewer,
        request,
        "tenant_budgets.html",
        tenant,
        BUDGETS,
        flash=flash,
        state=state,
        **_context(found, tenant_path(tenant_id, BUDGETS), after),
    )


async def _house_page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    *,
    after: int | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading_as_operator(gateway, viewer) as session:
        found = await budgets.list_page(
            session, None, limit=PAGE_SIZE, after=None if after is None else row_id_of(after)
        )
    return operator_page(
        viewer,
        request,
        "house_budgets.html",
        tenant=None,
        title="House budgets",
        crumbs=(),
        lead="For all live calls of all tenants that use a house credential.",
        flash=flash,
        state=state,
        **_context(found, HOUSE, after),
    )


def _context(found: Page[Budget], here: str, after: int | None) -> dict[str, object]:
    return {
        "here": here,
        **parts_of_list(found, here, after),
        "limits": {one.id: format_usd_short(one.limit_nano) for one in found.items},
        "owners": OWNERS,
        "windows": WINDOW_NAMES,
        "enforcements": ENFORCEMENT_NAMES,
    }
