"""The table of `docs/routes.md`, from the table of routes and the application that serves them."""

from collections.abc import Iterator
from pathlib import Path

from fastapi.routing import iter_route_contexts
from starlette.routing import Mount, compile_path

from gateway.config import Settings
from gateway.main import create_app
from gateway.web.routes import (
    MCP_PATH,
    ROUTES,
    SSE_MESSAGES_PATH,
    WELCOME,
    Access,
    AdmissionClass,
    WebRoute,
    find_route,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "routes.md"
MARKER = "<!-- `make generated` writes everything below from gateway/web/routes.py. -->\n"
HEAD = "| route | key | admission | secret | label |\n|---|---|---|---|---|\n"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
POSTED = frozenset({MCP_PATH, SSE_MESSAGES_PATH})
"""Routes without methods of their own are read by GET, except these."""
KEYS = {
    Access.OPEN: "none",
    Access.TENANT: "API key",
    Access.OPERATOR: "admin key",
    Access.SESSION: "console session",
}
ADMISSION = {
    AdmissionClass.ORDINARY: "ordinary",
    AdmissionClass.PURCHASE: "purchase",
    AdmissionClass.UPLOAD: "upload",
}
Served = dict[str, set[str]]
"""The methods of each path."""


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {PAGE: f"{by_hand}{MARKER}\n{table()}"}


def table() -> str:
    """One line for each path, in the order of the table of routes."""
    served = _served()
    return HEAD + "".join(
        f"| {' | '.join(_cells(route, path, methods))} |\n"
        for route in (WELCOME, *ROUTES)
        for path, methods in served.get(route, {}).items()
    )


def _served() -> dict[WebRoute, Served]:
    """The paths and methods that the application serves for each route."""
    settings = Settings(_env_file=None, mcp_sse=True)  # type: ignore[call-arg]
    found: dict[WebRoute, Served] = {}
    for context in iter_route_contexts(create_app(settings).routes):
        is_mount = isinstance(context.original_route, Mount)
        path = f"{context.path}/" if is_mount else compile_path(context.path or "/")[1]
        methods = context.methods or {"POST" if path in POSTED else "GET"}
        of_path = found.setdefault(find_route(path), {}).setdefault(path, set())
        of_path |= methods
    return found


def _cells(route: WebRoute, path: str, methods: set[str]) -> Iterator[str]:
    shown = ", ".join(f"`{method}`" for method in METHODS if method in methods)
    yield f"{shown} `{path}`"
    yield KEYS[route.access]
    yield ADMISSION[route.admission] if route.access is Access.TENANT else ""
    yield "`no-store`" if route.may_show_secret else ""
    yield f"`{route.label}`" + (", not logged" if route.is_quiet else "")
