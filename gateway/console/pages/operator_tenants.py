"""Tenants: the list with search, creation, and the overview of one tenant with its status."""

from functools import partial
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.billing import budgets, tenant_figures
from gateway.billing.tenant_figures import NO_FIGURES
from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader, redirect
from gateway.console.forms import UNTOUCHED, FormState, one_of, sent, typed
from gateway.console.pages.operator_shared import TENANTS, operator_page, tenant_page, tenant_path
from gateway.console.render import Flash
from gateway.db.audit import list_entries
from gateway.identity.transactions import changing_as_operator, reading_as_operator
from gateway.identity.viewers import Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import tenants

PAGE_SIZE = 50
MAX_BUDGETS = 6
MAX_CHANGES = 6
STATUSES = (
    ("", "Any status"),
    ("active", "Active"),
    ("suspended", "Disabled"),
    ("deleted", "Deleted"),
)
DONE = {
    "created": Flash("The tenant was created. Give it a budget, then an API key."),
    "suspended": Flash("The tenant is disabled: every key of it is refused from now on.", "warn"),
    "active": Flash("The tenant is enabled again."),
}

router = APIRouter()


class TenantsForm(BaseModel):
    """The filters of the list, all in the address."""

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)

    q: str = ""
    status: str = ""
    after: UUID | None = None

    def address(self, after: UUID | None) -> str:
        """Write the address of another page of the list."""
        fields = {"q": self.q, "status": self.status, "after": "" if after is None else str(after)}
        asked = {name: value for name, value in fields.items() if value}
        return f"{TENANTS}?{urlencode(asked)}" if asked else TENANTS


@router.get(TENANTS)
async def show_tenants(
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    form: Annotated[TenantsForm, Query()],
) -> Response:
    """List tenants, newest first, with their costs of this month and their last call."""
    return await _list(request, gateway, viewer, form)


@router.post(TENANTS)
async def create_tenant(
    request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Create a tenant."""

    async def change() -> str:
        async with changing_as_operator(gateway, viewer) as session:
            made = await tenants.create(
                session, typed(form, "name"), time_zone=typed(form, "time_zone") or "UTC"
            )
        return f"{tenant_path(made.id)}?done=created"

    show = partial(_list, request, gateway, viewer, TenantsForm())
    return await sent("create", form, change, show)


@router.get(TENANTS + "/{tenant_id}")
async def show_tenant(
    tenant_id: UUID, request: Request, viewer: OperatorReader, gateway: GatewayDep, done: str = ""
) -> Response:
    """Show one tenant: figures, budgets, settings, and its last changes."""
    async with reading_as_operator(gateway, viewer) as session:
        tenant = await tenants.get(session, tenant_id)
        figures = await tenant_figures.figures_of(session, [tenant_id])
        found = await budgets.list_most_used_of(session, tenant_id, limit=MAX_BUDGETS)
        changes = await list_entries(session, limit=MAX_CHANGES, tenant_id=tenant_id)
    return tenant_page(
        viewer,
        request,
        "tenant.html",
        tenant,
        "",
        flash=DONE.get(done),
        figures=figures.get(tenant_id, NO_FIGURES),
        budgets=found.items,
        has_more_budgets=found.has_more,
        changes=changes.items,
    )


@router.post(TENANTS + "/{tenant_id}/status")
async def set_status(
    tenant_id: UUID, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Disable or enable a tenant, from its next request on."""
    status = one_of(form, "status", tenants.STATUSES)
    async with changing_as_operator(gateway, viewer, clears=str(tenant_id)) as session:
        await tenants.set_status(session, str(tenant_id), status)
    return redirect(f"{tenant_path(tenant_id)}?done={status}")


async def _list(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    form: TenantsForm,
    *,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading_as_operator(gateway, viewer) as session:
        found = await tenants.search(
            session,
            limit=PAGE_SIZE,
            after=form.after,
            text=form.q,
            status=form.status if form.status in dict(STATUSES) and form.status else None,
        )
        figures = await tenant_figures.figures_of(session, [one.id for one in found.items])
    return operator_page(
        viewer,
        request,
        "tenants.html",
        title="Tenants",
        lead="Costs are those of live calls this month, in each tenant's time zone.",
        state=state,
        form=form,
        statuses=STATUSES,
        found=[(one, figures.get(one.id, NO_FIGURES)) for one in found.items],
        newest=form.address(None) if form.after else "",
        older=form.address(found.items[-1].id) if found.has_more else "",
    )
