"""Sign-in by a form with a key: break-glass with an admin key, or a tenant's API key."""

from ipaddress import ip_address

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.config import Settings
from gateway.console.dependencies import FormDep, browser_of
from gateway.console.sign_in.limits import limited
from gateway.console.sign_in.pages import refused, signed_in
from gateway.errors import Forbidden, GatewayError
from gateway.identity import failures, keys
from gateway.rest.dependencies import GatewayDep

router = APIRouter()
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@router.post("/console/login/admin-key")
@limited
async def use_admin_key(request: Request, gateway: GatewayDep, form: FormDep) -> Response:
    """Sign in with an admin key, where the settings allow it."""
    text, account = form.get("key", "").strip(), f"admin_key {browser_of(request).address}"
    try:
        refuse_break_glass(request, gateway.settings)
        await failures.begin_attempt(gateway.database, account, gateway.settings)
        who = await keys.by_admin_key(gateway.api_keys, text, address=_address(request))
    except GatewayError as error:
        return refused(request, gateway, error, next_path=form.get("next"))
    await failures.forget(gateway.database, account)
    return await signed_in(request, gateway, who, form.get("next"))


@router.post("/console/login/api-key")
@limited
async def use_api_key(request: Request, gateway: GatewayDep, form: FormDep) -> Response:
    """Sign in with a tenant's API key."""
    text, account = form.get("key", "").strip(), f"api_key {browser_of(request).address}"
    try:
        await failures.begin_attempt(gateway.database, account, gateway.settings)
        who = await keys.by_api_key(
            gateway.operators_database,
            gateway.api_keys,
            text,
            address=_address(request),
            pepper=gateway.core.pepper,
        )
    except GatewayError as error:
        return refused(request, gateway, error, next_path=form.get("next"))
    await failures.forget(gateway.database, account)
    return await signed_in(request, gateway, who, form.get("next"))


def refuse_break_glass(request: Request, settings: Settings) -> None:
    """Refuse sign-in with an admin key where the settings do not allow it.

    Raises:
        Forbidden: it is off, or for this machine only and the request came from elsewhere.
    """
    mode = settings.console_break_glass
    if mode == "off":
        raise Forbidden(
            "Sign-in with an admin key is switched off (GATEWAY_CONSOLE_BREAK_GLASS).",
            code="break_glass_refused",
        )
    if mode == "loopback" and not is_local(request):
        raise Forbidden(
            "Sign-in with an admin key is allowed from the gateway's own machine only. Open the "
            "console there as http://127.0.0.1, or set GATEWAY_CONSOLE_BREAK_GLASS=on.",
            code="break_glass_refused",
        )


def is_local(request: Request) -> bool:
    """Return True if the browser runs on this machine and no proxy stands between.

    A reverse proxy on this machine has a local address too: it is known by the name that the
    browser asked for, or by the headers that it adds.
    """
    try:
        client_is_local = ip_address(_address(request)).is_loopback
    except ValueError:
        return False
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    return (
        client_is_local
        and name.lower() in LOCAL_NAMES
        and not any(header in request.headers for header in FORWARDED)
        and _is_local_origin(request.headers.get("origin"))
    )


def _is_local_origin(origin: str | None) -> bool:
    if origin is None:
        return True
    name = origin.partition("://")[2]
    name = name.rpartition(":")[0] if ":" in name and not name.endswith("]") else name
    return name.lower() in LOCAL_NAMES


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
