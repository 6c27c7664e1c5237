"""A tenant's budgets and limits: the operator sets its own, it sets those of users and keys."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.billing import budgets, own_budgets
from gateway.billing.budgets import WINDOWS, Budget
from gateway.console import forms
from gateway.console.dependencies import FormDep, redirect
from gateway.console.forms import UNTOUCHED, FormState, typed
from gateway.console.portal import ChangerPortal, Portal, UsagePortal
from gateway.console.tenant_forms import (
    PAGE_SIZE,
    REFUSALS,
    administrator,
    find_user,
    flash_of,
    state_of,
)
from gateway.db.engine import TenantSession
from gateway.db.pages import Page
from gateway.domain import Caller, LimitKind
from gateway.errors import InvalidRequest
from gateway.identity.viewers import Permission
from gateway.rest.admin.schemas import RowId
from gateway.rest.tenant.limits import default_limit
from gateway.tenancy import lookups, self_service
from gateway.tenancy.limit_rows import StoredLimit
from gateway.tenancy.lookups import KeyScope

PATH = "/console/portal/budgets"
WINDOW_NAMES = {"day": "per day", "week": "per week", "month": "per month", "total": "in total"}
KINDS = {
    LimitKind.REQUESTS: "Requests a minute",
    LimitKind.IMAGES: "Images a minute",
    LimitKind.CONCURRENT: "Calls at once",
}
DONE = {
    "set": "The budget was set. It applies from the next call on.",
    "removed": "The budget was removed.",
    "limited": "The limit was set. It applies from the next request on.",
    "unlimited": "The limit was removed.",
}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """A limit of the whole tenant: the value that was set, else the gateway's default, if any."""

    name: str
    value: int | None
    is_default: bool


@router.get(PATH)
async def show_budgets(
    portal: UsagePortal,
    key: Annotated[str, Query(max_length=100)] = "",
    user: Annotated[str, Query(max_length=255)] = "",
    after: Annotated[int | None, Query(ge=1, le=budgets.MAX_ID)] = None,
    done: str = "",
) -> Response:
    """Show budgets as bars, and the limits beside them; `key` and `user` fill in the forms."""
    return await _page(portal, key=key, user=user, after=after, done=done)


@router.post(PATH)
async def set_budget(portal: ChangerPortal, form: FormDep) -> Response:
    """Set the budget of a user or a key."""
    caller = await administrator(portal)
    try:
        window = forms.one_of(form, "window", WINDOWS)
        limit_nano = forms.usd(form, "limit_usd")
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            key_id, user_id = await _owner(session, portal, form)
            await own_budgets.set_own_budget(
                session,
                caller,
                window=window,
                limit_nano=limit_nano,
                livemode=portal.livemode,
                api_key_id=key_id,
                user_id=user_id,
            )
    except REFUSALS as error:
        return await _page(portal, state_of("budget", form, error, fields=_FIELDS))
    return redirect(f"{PATH}?mode={portal.mode}&done=set")


@router.post(PATH + "/{budget_id}/remove")
async def remove_budget(portal: ChangerPortal, budget_id: RowId) -> Response:
    """Remove the budget of a user or a key."""
    caller = await administrator(portal)
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await own_budgets.remove_own_budget(session, caller, budget_id)
    except REFUSALS as error:
        return await _page(portal, state_of("remove", {}, error))
    return redirect(f"{PATH}?mode={portal.mode}&done=removed")


@router.post(PATH + "/limits")
async def set_limit(portal: ChangerPortal, form: FormDep) -> Response:
    """Set a limit of a user or a key."""
    caller = await administrator(portal)
    try:
        kind = LimitKind(forms.one_of(form, "kind", tuple(LimitKind)))
        value = forms.whole(form, "value")
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            key_id, user_id = await _owner(session, portal, form)
            await self_service.set_limit(
                session,
                caller,
                kind=kind,
                value=value,
                livemode=portal.livemode,
                api_key_id=key_id,
                user_id=user_id,
                tenant_default=default_limit(portal.gateway.settings, kind),
            )
    except REFUSALS as error:
        return await _page(portal, state_of("limit", form, error, fields=_FIELDS))
    return redirect(f"{PATH}?mode={portal.mode}&done=limited#limits")


@router.post(PATH + "/limits/{limit_id}/remove")
async def remove_limit(portal: ChangerPortal, limit_id: RowId) -> Response:
    """Remove the limit of a user or a key."""
    caller = await administrator(portal)
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await self_service.remove_limit(session, caller, limit_id)
    except REFUSALS as error:
        return await _page(portal, state_of("unlimit", {}, error))
    return redirect(f"{PATH}?mode={portal.mode}&done=unlimited#limits")


_FIELDS = {"api_key_id": "key", "user_id": "user"}


async def _owner(
    session: TenantSession, portal: Portal, form: FormDep
) -> tuple[UUID | None, UUID | None]:
    """Read the key or the user that a form names.

    Raises:
        InvalidRequest: neither or both, or several match.
        NotFound: none matches.
    """
    key, user = typed(form, "key"), typed(form, "user")
    if bool(key) == bool(user):
        raise InvalidRequest("Name a key or a user, and only one of them.", param="key")
    if not key:
        return None, await find_user(session, portal.tenant_id, user)
    among = KeyScope(livemode=portal.livemode)
    return (await lookups.find_key(session, portal.tenant_id, key, among=among)).id, None


async def _page(
    portal: Portal,
    state: FormState = UNTOUCHED,
    *,
    key: str = "",
    user: str = "",
    after: int | None = None,
    done: str = "",
) -> Response:
    viewer = portal.viewer
    caller = await portal.caller()
    async with portal.reading(Permission.USAGE_READ) as session:
        of_tenant, others = await _budgets(session, portal, caller, after=after)
        limits: tuple[StoredLimit, ...] = ()
        if viewer.may(Permission.TENANT_READ):
            listed = await self_service.list_limits(
                session, caller, livemode=portal.livemode, limit=4 * PAGE_SIZE
            )
            limits = listed.items
    return portal.page(
        "tenant/budgets.html",
        title="Budgets and limits",
        sees_all=caller.user_id is None,
        lead="A call is refused before it is bought if it could cost more than a budget has left. "
        f"Days, weeks and months are those of {viewer.time_zone}.",
        status=state.status,
        flash=flash_of(DONE, done),
        state=state,
        key=key,
        user=user,
        of_tenant=of_tenant,
        of_others=others.items,
        newest=f"{PATH}?mode={portal.mode}" if after is not None else "",
        older=f"{PATH}?mode={portal.mode}&after={others.items[-1].id}" if others.has_more else "",
        tenant_limits=_tenant_limits(portal, caller, limits),
        limits=[limit for limit in limits if limit.owner != "tenant"],
        kinds=[(kind.value, text) for kind, text in KINDS.items()],
        kind_names=KINDS,
        windows=[(window, text.capitalize()) for window, text in WINDOW_NAMES.items()],
        window_names=WINDOW_NAMES,
        own_ids={caller.api_key_id, caller.user_id} - {None},
    )


async def _budgets(
    session: TenantSession, portal: Portal, caller: Caller, *, after: int | None
) -> tuple[list[Budget], Page[Budget]]:
    """The tenant's budgets of one mode, and a page of others: the viewer's own, or all."""
    applying = await budgets.for_caller(session, caller)
    of_tenant = [budget for budget in applying if budget.owner == "tenant"]
    is_restricted = portal.viewer.own_user_id is not None or portal.viewer.key is not None
    if is_restricted and not portal.viewer.may(Permission.TENANT_READ):
        return of_tenant, Page(
            tuple(one for one in applying if one.owner != "tenant"), has_more=False
        )
    return of_tenant, await budgets.list_owned(session, caller, limit=PAGE_SIZE, after=after)


def _tenant_limits(
    portal: Portal, caller: Caller, limits: tuple[StoredLimit, ...]
) -> list[TenantLimit]:
    """The tenant's limits: those listed, else those that apply to the caller, else defaults."""
    stored = {limit.kind: limit.value for limit in limits if limit.owner == "tenant"}
    stored |= {limit.kind: limit.value for limit in caller.limits if limit.owner == "tenant"}
    return [
        TenantLimit(
            text,
            stored.get(kind, default_limit(portal.gateway.settings, kind)),
            is_default=kind not in stored,
        )
        for kind, text in KINDS.items()
    ]
