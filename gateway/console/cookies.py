"""The cookies of the console. They hold opaque tokens, and no API route reads them."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.config import Settings
from gateway.domain import SecretText

SESSION, SIGN_IN = "ig_session", "ig_sign_in"
HOST_PREFIX = "__Host-"
"""Browsers then accept the cookie over HTTPS alone, for this host alone, and for its whole path."""


def _name(settings: Settings, name: str) -> str:
    return f"{HOST_PREFIX}{name}" if _is_https(settings) else name


def _is_https(settings: Settings) -> bool:
    return settings.public_url.startswith("https://")


def read_cookie(request: Request, settings: Settings, name: str = SESSION) -> str:
    """Return the token in the cookie, or an empty string."""
    return request.cookies.get(_name(settings, name), "")


def set_cookie(
    response: Response,
    settings: Settings,
    token: SecretText,
    name: str = SESSION,
    *,
    seconds: int | None = None,
) -> None:
    """Give the browser a token, until it is closed or for some seconds."""
    response.set_cookie(
        _name(settings, name),
        token.reveal(),
        max_age=seconds,
        path="/",
        secure=_is_https(settings),
        httponly=True,
        samesite="lax",
    )


def drop_cookie(response: Response, settings: Settings, name: str = SESSION) -> None:
    """Remove a token from the browser."""
    response.delete_cookie(
        _name(settings, name),
        path="/",
        secure=_is_https(settings),
        httponly=True,
        samesite="lax",
    )
