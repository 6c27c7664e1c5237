"""Ways to connect: configurations and programs to paste, and the rights of the key in use."""

from datetime import datetime
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gateway.billing import budgets, usage
from gateway.billing.budgets import Budget
from gateway.billing.usage_queries import ReportQuery, UsageFilters
from gateway.console import connection_snippets, periods
from gateway.console.dependencies import ViewerDep
from gateway.console.pages.tenant_keys import SCOPES
from gateway.console.portal import Portal, portal_of
from gateway.domain import LimitKind
from gateway.errors import NotFound
from gateway.identity.transactions import reading_tenant
from gateway.identity.viewers import Permission
from gateway.request_log import queries
from gateway.request_log.queries import LoggedRequest, RequestFilter
from gateway.rest.dependencies import GatewayDep

PATH = "/console/connect"
THIS_KEY = "/console/this-key"
LAST_REQUESTS = 10

router = APIRouter()


async def any_portal(viewer: ViewerDep, gateway: GatewayDep, request: Request) -> Portal:
    """Open the portal for every viewer of a tenant."""
    return portal_of(viewer, gateway, request)


AnyPortal = Annotated[Portal, Depends(any_portal)]


@router.get(PATH)
async def show_connect(portal: AnyPortal) -> Response:
    """Show what to paste into SDKs, a shell and MCP clients."""
    address = portal.gateway.settings.public_url
    return portal.page(
        "tenant/connect.html",
        title="Connect",
        lead="Paste one of these into your program or assistant, and put a key in.",
        address=address,
        sdks=connection_snippets.sdks(address),
        clients=connection_snippets.mcp_clients(address),
        variable=connection_snippets.KEY,
        placeholder=connection_snippets.PLACEHOLDER,
    )


@router.get(THIS_KEY)
async def show_this_key(portal: AnyPortal) -> Response:
    """Show the holder of an API key what it may do, and what it has used.

    Raises:
        NotFound: the session was not opened by an API key.
    """
    viewer = portal.viewer
    if viewer.key is None:
        raise NotFound("You have signed in as a person; this page is about an API key.")
    caller = await portal.caller()
    sees_usage = viewer.may(Permission.USAGE_READ)
    report, applying = None, list[Budget]()
    last: tuple[LoggedRequest, ...] = ()
    days = periods.parse_days(
        "month", "", "", datetime.now(ZoneInfo(viewer.time_zone)).date(), viewer.time_zone
    )
    if sees_usage:
        async with reading_tenant(
            portal.gateway, viewer, Permission.USAGE_READ, is_report=True
        ) as session:
            report = await usage.report(
                session,
                ReportQuery(
                    caller.tenant_id,
                    UsageFilters(key_id=viewer.key.root_id, user_id=caller.user_id),
                    caller.livemode,
                    days.period,
                    ("model",),
                ),
            )
            applying = await budgets.for_caller(session, caller)
            page = await queries.list_own(
                session,
                caller,
                RequestFilter(is_api=True, api_key_id=viewer.key.root_id),
                limit=LAST_REQUESTS,
            )
            last = page.items
    return portal.page(
        "tenant/this_key.html",
        title=viewer.name,
        lead="The key that you have signed in with: what it may do, and what it has used.",
        key=viewer.key,
        scopes=[(scope, text) for scope, text in SCOPES.items() if scope in viewer.key.scopes],
        expires_at=viewer.expires_at,
        sees_usage=sees_usage,
        report=report,
        days=days,
        budgets=applying,
        sees_all=caller.user_id is None,
        limits=[
            (limit, {LimitKind.CONCURRENT: "at once"}.get(limit.kind, "a minute"))
            for limit in caller.limits
        ],
        requests=last,
    )
