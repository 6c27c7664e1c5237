"""The first page of a tenant's portal."""

from dataclasses import dataclass

from starlette.responses import Response

from gateway.console.portal import Portal
from gateway.console.shown_images import show_images
from gateway.console.tenant_home import Home, read_home
from gateway.identity.viewers import Permission


@dataclass(frozen=True, slots=True)
class Step:
    """One of the first steps of a new tenant."""

    title: str
    text: str
    label: str
    path: str
    icon: str


TRY = Step(
    "Make a test image",
    "The sandbox draws it at once. It needs no credential and costs nothing.",
    "Open the playground",
    "/console/playground?mode=test",
    "wand-sparkles",
)
KEY = Step(
    "Create an API key",
    "A test key for trying, a live key for real images. Each can be limited by a budget.",
    "Go to keys",
    "/console/keys",
    "key-round",
)
CONNECT = Step(
    "Connect your application",
    "OpenAI's SDKs, MCP clients and curl work with two changed lines.",
    "Show me how",
    "/console/connect",
    "plug",
)


async def show_home(portal: Portal) -> Response:
    """Show budgets, this month's costs, the last images and what needs attention."""
    if not portal.viewer.may(Permission.USAGE_READ):
        held = "This API key sees" if portal.viewer.key is not None else "You see"
        return portal.page(
            "tenant_start.html",
            title="Home",
            lead=f"{held} no usage, so there are no figures here.",
        )
    caller = await portal.caller(whole_tenant=True)
    async with portal.reading(Permission.USAGE_READ, is_report=True) as session:
        home = await read_home(session, portal.viewer, caller, portal.gateway.core.catalog)
    shown = show_images(portal.gateway, home.images or ())
    whose = "Your own usage" if caller.user_id is not None else f"{portal.viewer.tenant_name}"
    return portal.page(
        "tenant_home.html",
        title="Home",
        lead=f"{whose}, {'live' if portal.livemode else 'test'} mode. Days begin in "
        f"{portal.viewer.time_zone}.",
        home=home,
        sees_all=caller.user_id is None,
        images=shown,
        steps=_steps(portal, home),
    )


def _steps(portal: Portal, home: Home) -> tuple[Step, ...]:
    """The first steps that this viewer can take, until the tenant has made something."""
    if home.month.requests or home.month.failed_requests or home.images:
        return ()
    allowed = {TRY: Permission.IMAGES_MAKE, KEY: Permission.TENANT_CHANGE, CONNECT: None}
    return tuple(
        step
        for step, needed in allowed.items()
        if needed is None or portal.viewer.may(needed)
        if step is not TRY or False in portal.viewer.modes
    )
