"""The page of sign-in, one-time links, and sign-out."""

from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.cookies import drop_cookie, read_cookie, set_cookie
from gateway.console.dependencies import FormDep, ViewerDep, browser_of, redirect
from gateway.console.paths import LOGIN, SIGN_OUT, own_path
from gateway.console.render import NO_SHELL, page
from gateway.console.sign_in.limits import limited
from gateway.console.sign_in.provider import provider_of
from gateway.db.actors import Actor, ActorType
from gateway.errors import GatewayError, Unauthenticated
from gateway.identity import links, sessions
from gateway.identity.sessions import END_REASONS, SignedIn
from gateway.request_record import current, note_error
from gateway.rest.dependencies import GatewayDep
from gateway.webhooks.events import note_break_glass

router = APIRouter()


@router.get(LOGIN)
@limited
async def show_sign_in(request: Request, gateway: GatewayDep) -> Response:
    """Show the ways of sign-in."""
    ended = END_REASONS.get(request.query_params.get("ended", ""), "")
    return sign_in_page(request, gateway, notice=ended)


@router.get(links.LINK_PATH)
@limited
async def open_link(request: Request, gateway: GatewayDep, token: str = "") -> Response:
    """Sign in by a one-time link, or ask first where another site led here.

    A preview, a prefetch or another site's redirect must not use it up.
    """
    purpose = request.headers.get("sec-purpose", "") + request.headers.get("purpose", "")
    site = request.headers.get("sec-fetch-site", "none")
    if "prefetch" in purpose or site not in {"none", "same-origin"}:
        return page(
            NO_SHELL,
            "sign_in/link.html",
            title="Sign in",
            headers={"Referrer-Policy": "no-referrer"},
            token=token,
        )
    return await _sign_in_by_link(request, gateway, token)


@router.post(links.LINK_PATH)
@limited
async def use_link(request: Request, gateway: GatewayDep, form: FormDep) -> Response:
    """Sign in by a one-time link, from the page that asks first."""
    return await _sign_in_by_link(request, gateway, form.get("token", ""))


@router.post(SIGN_OUT)
async def sign_out(request: Request, viewer: ViewerDep, gateway: GatewayDep) -> Response:
    """End the session here, and at the identity provider that it came from."""
    actor = viewer.actor(current().request_id)
    async with gateway.operators_database.operator(by=actor) as session:
        token = await sessions.sign_out(
            session, viewer, sealing_key=gateway.core.secrets.console_key
        )
    provider = None if token is None else provider_of(request, gateway.settings)
    address = None if token is None or provider is None else await provider.sign_out_url(token)
    # Not a redirect: `form-action` forbids one that leaves for another site.
    response = (
        redirect(f"{LOGIN}?ended=signed_out")
        if address is None
        else page(NO_SHELL, "sign_in/signed_out.html", title="Signed out", address=address)
    )
    drop_cookie(response, gateway.settings)
    return response


async def _sign_in_by_link(request: Request, gateway: Gateway, token: str) -> Response:
    try:
        who = await links.use_link(gateway.database, token)
    except Unauthenticated as error:
        return refused(request, gateway, error)
    return await signed_in(request, gateway, who)


async def signed_in(
    request: Request, gateway: Gateway, who: SignedIn, next_path: str | None = None
) -> Response:
    """Begin a session with a new token, and lead the browser to where it wanted to go."""
    kind: ActorType = "operator_session" if who.role.is_operator else "session"
    actor = Actor(kind, who.via, current().request_id, who.name)
    async with gateway.operators_database.operator(by=actor) as session:
        # Whatever token the browser came with is not used any further.
        await sessions.replace(session, read_cookie(request, gateway.settings))
        token = await sessions.begin(
            session,
            who,
            browser_of(request),
            gateway.settings,
            sealing_key=gateway.core.secrets.console_key,
        )
        if who.via == "admin_key":
            address = browser_of(request).address
            await note_break_glass(session, name=who.name, role=who.role, address=address)
    response = redirect(own_path(next_path))
    set_cookie(response, gateway.settings, token)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def refused(
    request: Request, gateway: Gateway, error: GatewayError, *, next_path: str | None = None
) -> Response:
    """Show the ways of sign-in again, with the reason of a refusal."""
    note_error(error)
    answer = sign_in_page(request, gateway, error=error, next_path=next_path)
    if error.retry_after_seconds is not None:
        answer.headers["Retry-After"] = str(error.retry_after_seconds)
    return answer


def sign_in_page(
    request: Request,
    gateway: Gateway,
    *,
    notice: str = "",
    error: GatewayError | None = None,
    next_path: str | None = None,
) -> Response:
    """Render the ways of sign-in, with a notice or the reason of a refusal."""
    return page(
        NO_SHELL,
        "sign_in/login.html",
        title="Sign in",
        status=HTTPStatus.OK if error is None else error.status,
        headers={"Referrer-Policy": "no-referrer"},
        next_path=own_path(next_path or request.query_params.get("next")),
        break_glass=gateway.settings.console_break_glass,
        has_provider=provider_of(request, gateway.settings) is not None,
        provider_name=urlsplit(gateway.settings.oidc_issuer or "").hostname,
        notice=notice,
        error="" if error is None else error.message,
    )
