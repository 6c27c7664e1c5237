"""Rate limits of the open pages of sign-in, per client address and process.

slowapi's decorators, not its middleware, which passes over included routers. They stand below the
route's own decorator, on functions that take `request`.
"""

from fastapi import FastAPI, Request
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.errors import RateLimited
from gateway.rest.errors import error_response
from gateway.tenancy.refused_keys import source_of

WINDOW_SECONDS = 60


def _key(request: Request) -> str:
    """The address, after the limit and the gateway that it belongs to."""
    gateway: Gateway = request.app.state.gateway
    address = request.client.host if request.client else ""
    return f"{gateway.settings.console_sign_ins_per_minute} {id(gateway)} {source_of(address)}"


def _limit(key: str) -> str:
    return f"{key.partition(' ')[0]}/minute"


_limiter = Limiter(key_func=_key, storage_uri="memory://", key_style="endpoint")
# The library would take this from a variable that is no setting of the gateway.
_limiter.enabled = True
limited = _limiter.limit(_limit)


def install_limit_page(app: FastAPI) -> None:
    """Answer requests beyond the limit as any other refusal: with a page, or JSON for programs."""
    app.add_exception_handler(RateLimitExceeded, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    if not isinstance(error, RateLimitExceeded):
        raise error
    gateway: Gateway = request.app.state.gateway
    refusal = RateLimited(
        "Too many sign-ins from your address: at most "
        f"{gateway.settings.console_sign_ins_per_minute} a minute.",
        retry_after_seconds=WINDOW_SECONDS,
        reason="sign_in_rate",
    )
    return error_response(refusal)
