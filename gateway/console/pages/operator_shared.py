"""The frame of the operators' pages, and of those of one tenant with their tabs."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypedDict, TypeVar
from uuid import UUID

from fastapi import Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.forms import UNTOUCHED, FormState
from gateway.console.render import Crumb, Flash, page
from gateway.console.shell import shell_of
from gateway.db.engine import TenantSession
from gateway.db.pages import Page
from gateway.identity.transactions import changing_tenant, reading_tenant
from gateway.identity.viewers import Permission, Viewer
from gateway.tenancy.tenants import Tenant


class HasId(Protocol):
    """A row of a list, which has an id."""

    @property
    def id(self) -> UUID | int: ...


class ListParts(TypedDict):
    """The rows of a page of a list, and the addresses of its newest and older ones."""

    found: object
    newest: str
    older: str


Row = TypeVar("Row", bound=HasId)
TENANTS = "/console/tenants"
TABS = (
    ("", "Overview"),
    ("/keys", "API keys"),
    ("/users", "Users"),
    ("/budgets", "Budgets"),
    ("/limits", "Limits"),
    ("/credentials", "Credentials"),
    ("/webhooks", "Webhooks"),
    ("/settings", "Settings"),
    ("/audit", "Audit"),
)


def reading(
    gateway: Gateway, viewer: Viewer, tenant_id: UUID
) -> AbstractAsyncContextManager[TenantSession]:
    """Open a transaction that reads one tenant, for operators."""
    return reading_tenant(gateway, viewer, Permission.OPERATOR_READ, tenant_id=tenant_id)


def changing(
    gateway: Gateway, viewer: Viewer, tenant_id: UUID
) -> AbstractAsyncContextManager[TenantSession]:
    """Open a transaction that changes one tenant, for operators."""
    return changing_tenant(gateway, viewer, Permission.OPERATOR_CHANGE, tenant_id=tenant_id)


def parts_of_list(found: Page[Row], here: str, after: object) -> ListParts:
    """The rows of a page of a list, and the addresses of its newest and older ones."""
    joint = "&" if "?" in here else "?"
    return {
        "found": found.items,
        "newest": here if after else "",
        "older": f"{here}{joint}after={found.items[-1].id}" if found.has_more else "",
    }


def operator_page(
    viewer: Viewer,
    request: Request,
    template: str,
    *,
    title: str,
    lead: str = "",
    crumbs: tuple[Crumb, ...] = (),
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
    **context: object,
) -> Response:
    """Render a page of templates/operator; `may_change`: the viewer may use its forms."""
    return page(
        shell_of(viewer, request, flash=flash),
        f"operator/{template}",
        title=title,
        lead=lead,
        crumbs=crumbs,
        status=state.status,
        headers=None,
        state=state,
        may_change=viewer.may(Permission.OPERATOR_CHANGE),
        **context,
    )


def tenant_path(tenant_id: UUID, tab: str = "") -> str:
    """The address of a tenant's page."""
    return f"{TENANTS}/{tenant_id}{tab}"


def tenant_page(
    viewer: Viewer,
    request: Request,
    template: str,
    tenant: Tenant,
    tab: str,
    *,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
    **context: object,
) -> Response:
    """Render a tab of a tenant's page."""
    return operator_page(
        viewer,
        request,
        template,
        title=tenant.name,
        lead="",
        crumbs=(Crumb("Tenants", TENANTS),),
        flash=flash,
        state=state,
        tenant=tenant,
        may_visit=viewer.may(Permission.PORTAL_VISIT) and tenant.status != "deleted",
        tabs=[(label, tenant_path(tenant.id, path), path == tab) for path, label in TABS],
        **context,
    )
