"""The guard around every page: cross-site requests are refused, and each answer has its headers.

There are no tokens against request forgery: browsers say where a request comes from
(docs/decisions/0053-console-sessions.md).
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from gateway.bootstrap import Gateway
from gateway.console.render import PAGE_HEADERS
from gateway.errors import Forbidden, InvalidRequest
from gateway.request_record import current
from gateway.web.instrumentation import App, Message, Receive, RequestScope, Send, send_error
from gateway.web.routes import Access, find_route

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITES = frozenset({"same-origin", "none"})
FRAMES = {"X-Frame-Options": "DENY"}
"""For browsers that do not know `frame-ancestors`."""
NUL_REFUSED = "contains the character NUL (%00), which no text may contain. Remove it."
HSTS = "max-age=31536000"


class CrossSite(Forbidden):
    """A form or script of another site sent this request."""

    code = "cross_site_request"


class ConsoleGuard:
    """Pure ASGI middleware; paths outside of the console pass untouched."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass a request of the console on, or refuse it."""
        if scope["type"] != "http" or find_route(scope["path"]).access is not Access.SESSION:
            await self._app(scope, receive, send)
            return
        gateway: Gateway = scope["app"].state.gateway
        current().sink = gateway.request_log.put
        is_https = gateway.settings.public_url.startswith("https://")

        async def send_page(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in (PAGE_HEADERS | FRAMES).items():
                    headers.setdefault(name, value)
                if is_https:
                    headers.setdefault("Strict-Transport-Security", HSTS)
                message["headers"] = headers.raw
            await send(message)

        if scope["method"] not in SAFE_METHODS and not is_own(
            Headers(scope=scope), scope["scheme"], gateway.settings.public_url
        ):
            refusal = CrossSite(
                "This request was sent by another site, or by a program. Open the console's page "
                "and try again there."
            )
            await send_error(refusal, send_page)
            return
        if b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            await send_error(InvalidRequest(f"The address {NUL_REFUSED}"), send_page)
            return
        await self._app(scope, receive, send_page)


def is_own(headers: Headers, scheme: str, public_url: str) -> bool:
    """Return True if a page of this console sent the request.

    By `Sec-Fetch-Site`, which no script can set. Browsers leave it out where the connection is
    neither HTTPS nor to this machine; then by `Origin`. A sibling domain (`same-site`) is foreign.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in OWN_SITES
    origin = headers.get("origin")
    return origin is not None and origin.lower() in {
        _origin(public_url),
        _origin(f"{scheme}://{headers.get('host', '')}"),
    }


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()
