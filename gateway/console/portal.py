"""A tenant's portal: the mode that a page shows, and the caller as which its viewer acts.

    @router.get("/console/gallery")
    async def gallery(portal: ImagePortal) -> Response:
        caller = await portal.caller(whole_tenant=True)
        async with portal.reading(Permission.IMAGES_READ) as session: ...
        return portal.page("gallery.html", title="Gallery", images=images)

The mode is that of the address (`?mode=test`), else the one that was chosen last, which a cookie
keeps, else live. It selects what is shown and grants nothing.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.dependencies import Needs, ViewerDep
from gateway.console.new_secrets import Shown, made_once, shown_once
from gateway.console.render import Crumb, Flash, fragment, page
from gateway.console.shell import shell_of
from gateway.db.engine import TenantSession
from gateway.domain import Caller
from gateway.errors import Forbidden, InvalidRequest
from gateway.identity.callers import caller_of
from gateway.identity.sent_forms import FormSecret
from gateway.identity.transactions import changing_tenant, reading_tenant
from gateway.identity.viewers import Permission, Viewer
from gateway.rest.dependencies import GatewayDep

MODES: Mapping[str, bool] = {"live": True, "test": False}
COOKIE = "ig_mode"
COOKIE_SECONDS = 31_536_000
NO_CRUMBS: Sequence[Crumb] = ()


@dataclass(frozen=True, slots=True)
class Portal:
    """One request for a page of a tenant's portal.

    `was_chosen`: the address or the cookie names the mode.
    """

    gateway: Gateway
    request: Request
    viewer: Viewer
    livemode: bool
    was_chosen: bool

    @property
    def tenant_id(self) -> UUID:
        """The tenant whose portal it is."""
        if self.viewer.tenant_id is None:
            raise Forbidden("This page belongs to a tenant.", code="role_not_allowed")
        return self.viewer.tenant_id

    @property
    def mode(self) -> str:
        """The mode as addresses and forms name it."""
        return "live" if self.livemode else "test"

    def in_mode(self, *, livemode: bool) -> "Portal":
        """The same request, shown in another mode."""
        return replace(self, livemode=livemode)

    async def caller(self, *, whole_tenant: bool = False) -> Caller:
        """Build the caller as which the viewer acts; see `caller_of`."""
        return await caller_of(
            self.gateway.database, self.viewer, livemode=self.livemode, whole_tenant=whole_tenant
        )

    def reading(
        self, permission: Permission, *, is_report: bool = False
    ) -> AbstractAsyncContextManager[TenantSession]:
        """Open a transaction of the tenant, to read; with `is_report`, beside those of requests."""
        return reading_tenant(self.gateway, self.viewer, permission, is_report=is_report)

    def changing(self, permission: Permission) -> AbstractAsyncContextManager[TenantSession]:
        """Open a transaction of the tenant, to change; the audit trail names the viewer."""
        return changing_tenant(self.gateway, self.viewer, permission)

    async def made_once(
        self,
        session: TenantSession,
        form: Mapping[str, str],
        make: Callable[[], Awaitable[FormSecret]],
    ) -> str:
        """Make the secret of a form once; return the address of the page that shows it."""
        return await made_once(self.request, session, form, make)

    async def shown_once(self, form_id: UUID | None) -> Shown | None:
        """Take the new secret that the address names, for the one page that shows it."""
        return await shown_once(self.gateway, self.viewer, form_id)

    def page(
        self,
        template: str,
        *,
        title: str,
        lead: str = "",
        crumbs: Sequence[Crumb] = NO_CRUMBS,
        status: int = 200,
        flash: Flash | None = None,
        **context: object,
    ) -> Response:
        """Render a page of the portal. Templates also get `portal`, and `may` for buttons."""
        response = page(
            shell_of(self.viewer, self.request, livemode=self.livemode, flash=flash),
            template,
            title=title,
            lead=lead,
            crumbs=crumbs,
            status=status,
            headers=None,
            portal=self,
            may=self.viewer.may,
            **context,
        )
        self.keep_mode(response)
        return response

    def fragment(self, template: str, block: str, **context: object) -> str:
        """Render one block of a page's template, with what `page` would give it."""
        shell = shell_of(self.viewer, self.request, livemode=self.livemode)
        return fragment(shell, template, block, portal=self, may=self.viewer.may, **context)

    def keep_mode(self, response: Response) -> None:
        """Let the browser remember a mode that the address has named."""
        if "mode" in self.request.query_params:
            response.set_cookie(
                COOKIE,
                self.mode,
                max_age=COOKIE_SECONDS,
                path="/console",
                secure=self.gateway.settings.public_url.startswith("https://"),
                httponly=True,
                samesite="lax",
            )


class PortalNeeds:
    """A dependency that opens the portal for viewers with a permission."""

    def __init__(self, permission: Permission) -> None:
        self._needs = Needs(permission)

    async def __call__(self, viewer: ViewerDep, gateway: GatewayDep, request: Request) -> Portal:
        await self._needs(viewer)
        return portal_of(viewer, gateway, request)


def portal_of(viewer: Viewer, gateway: Gateway, request: Request) -> Portal:
    """Open the portal of the viewer's tenant in the mode of the request.

    Raises:
        Forbidden: an operator who has opened no portal, or a mode that the viewer's key lacks.
        InvalidRequest: there is no such mode.
    """
    if viewer.tenant_id is None:
        raise Forbidden(
            "This page belongs to a tenant. Open the portal of one first.", code="role_not_allowed"
        )
    asked = request.query_params.get("mode")
    if asked is not None:
        return Portal(gateway, request, viewer, _asked_mode(viewer, asked), was_chosen=True)
    kept = MODES.get(request.cookies.get(COOKIE, ""))
    was_chosen = kept is not None and kept in viewer.modes
    livemode = kept if kept is not None and was_chosen else viewer.modes[0]
    return Portal(gateway, request, viewer, livemode, was_chosen=was_chosen)


def _asked_mode(viewer: Viewer, asked: str) -> bool:
    livemode = MODES.get(asked)
    if livemode is None:
        raise InvalidRequest(f"mode must be live or test (got {asked[:20]!r}).", param="mode")
    if livemode not in viewer.modes:
        raise Forbidden(f"This API key does not see the {asked} mode.", code="role_not_allowed")
    return livemode


UsagePortal = Annotated[Portal, Depends(PortalNeeds(Permission.USAGE_READ))]
ImagePortal = Annotated[Portal, Depends(PortalNeeds(Permission.IMAGES_READ))]
MakerPortal = Annotated[Portal, Depends(PortalNeeds(Permission.IMAGES_MAKE))]
ReaderPortal = Annotated[Portal, Depends(PortalNeeds(Permission.TENANT_READ))]
ChangerPortal = Annotated[Portal, Depends(PortalNeeds(Permission.TENANT_CHANGE))]
CredentialPortal = Annotated[Portal, Depends(PortalNeeds(Permission.OWN_CREDENTIALS))]
