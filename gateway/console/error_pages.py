"""Errors as pages that a person can read; programs get the same errors as JSON.

One layer around all others: whichever of them refuses, a browser that asked for a page gets one.
"""

from dataclasses import dataclass
from http import HTTPStatus

import orjson
from starlette.datastructures import Headers, MutableHeaders

from gateway.console.paths import LEAVE_PORTAL, SIGN_OUT
from gateway.console.render import NO_SHELL, PAGE_HEADERS, fragment, render
from gateway.identity.viewers import Viewer
from gateway.web.instrumentation import App, Message, Receive, RequestScope, Send
from gateway.web.routes import OTHER, Access, find_route

FIRST_ERROR = 400
MAX_ERROR_BYTES = 65_536
JSON = "application/json"
IMAGES = "/images/"
CONSOLE = "/console"
DROPPED = ("content-length", "content-type", "www-authenticate", "transfer-encoding")
TEMPLATE = "error.html"
NO_ROUTE = "There is no route"
"""The begin of the API's own text for an unknown address."""


@dataclass(frozen=True, slots=True)
class Words:
    """The text of an error page. An empty `message` is the error's own."""

    title: str
    message: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class ErrorLink:
    """A way on from an error page. `is_form`: it changes something, and is sent by POST."""

    label: str
    path: str
    is_form: bool = False


BY_CODE = {
    "report_too_large": Words("This report is too large"),
    "report_archived": Words("This report needs archived entries"),
    "role_not_allowed": Words("You may not see this page"),
    "cross_site_request": Words("This form came from another site"),
    "another_sign_in": Words(
        "This page is out of date",
        advice="Reload the page that you sent it from, and look at whose it is.",
    ),
    "database_unavailable": Words(
        "The database does not answer",
        "The gateway cannot read its database at the moment. Nothing was changed.",
        "Try again in a few seconds.",
    ),
}
BY_STATUS = {
    HTTPStatus.BAD_REQUEST: Words("This request cannot be answered"),
    HTTPStatus.FORBIDDEN: Words("You may not see this page"),
    HTTPStatus.NOT_FOUND: Words(
        "There is no such page",
        "Nothing is at this address, or you may not see it.",
        "The link may be incomplete, or what it showed was deleted.",
    ),
    HTTPStatus.TOO_MANY_REQUESTS: Words("Too many requests"),
    HTTPStatus.INTERNAL_SERVER_ERROR: Words(
        "Something went wrong",
        "The gateway failed unexpectedly. Its log has the details under the id below.",
        "Try again. If it happens again, send this id to the operator.",
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: Words("The gateway is busy"),
}
BY_STATUS_OF_IMAGES = {
    HTTPStatus.FORBIDDEN: Words(
        "This link no longer works",
        "The link to this image has expired, or it was changed on its way.",
        "Links to images end after a time. Ask for a new one where you found this one.",
    ),
    HTTPStatus.NOT_FOUND: Words(
        "This image is gone", "", "It was deleted, or its time is over. No link brings it back."
    ),
}


def wants_page(scope: RequestScope) -> bool:
    """Tell whether a person waits for the answer: a browser, outside of the API."""
    if scope["type"] != "http":
        return False
    headers = Headers(scope=scope)
    if "text/html" not in headers.get("accept", "") or "authorization" in headers:
        return False
    route = find_route(scope["path"])
    return route is OTHER or route.access in {Access.OPEN, Access.SESSION}


class ErrorPages:
    """Pure ASGI middleware, outside of all others."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Answer the request; an error in JSON becomes a page where one was asked for."""
        if wants_page(scope):
            scope.setdefault("state", {})  # in which the console notes the viewer
            await self._app(scope, receive, _PageSend(scope, send))
        else:
            await self._app(scope, receive, send)


class _PageSend:
    """Sends an answer on, or keeps an error in JSON until it is complete and sends its page."""

    def __init__(self, scope: RequestScope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._is_error(message):
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body = (self._body + message.get("body", b""))[:MAX_ERROR_BYTES]
        if not message.get("more_body", False):
            await self._send_page(self._start)

    def _is_error(self, message: Message) -> bool:
        headers = Headers(raw=message.get("headers", []))
        is_json = headers.get("content-type", "").startswith(JSON)
        return bool(message["status"] >= FIRST_ERROR and is_json)

    async def _send_page(self, start: Message) -> None:
        status = int(start["status"])
        if status == HTTPStatus.UNAUTHORIZED and find_route(self._scope["path"]) is OTHER:
            # The API asks for a key before it says that there is nothing.
            status, self._body = HTTPStatus.NOT_FOUND, b""
        headers = MutableHeaders(raw=list(start.get("headers", [])))
        content = self._page(status, headers).encode()
        for name in DROPPED:
            del headers[name]
        headers.update(PAGE_HEADERS)
        headers["content-type"] = "text/html; charset=utf-8"
        headers["content-length"] = str(len(content))
        await self._send({**start, "status": status, "headers": headers.raw})
        is_head = self._scope["method"] == "HEAD"
        await self._send({"type": "http.response.body", "body": b"" if is_head else content})

    def _page(self, status: int, headers: MutableHeaders) -> str:
        code, message = _read(self._body)
        words = _words(self._scope["path"], status, code)
        advice = words.advice
        if wait := headers.get("retry-after", ""):
            advice = f"Try again in {wait} seconds." if wait.isdigit() else advice
        context = {
            "title": words.title,
            "status": status,
            "code": code,
            "message": _message(status, words, message),
            "advice": advice,
            "links": [*_links(self._scope["path"], status), *_ways_out(self._scope)],
            "request_id": headers.get("x-request-id", ""),
        }
        if Headers(scope=self._scope).get("hx-request"):
            return fragment(NO_SHELL, TEMPLATE, "fragment", **context)
        return render(NO_SHELL, TEMPLATE, **context)


def _read(body: bytes) -> tuple[str, str]:
    """Read code and message of OpenAI's envelope."""
    try:
        error = orjson.loads(body)["error"]
        return str(error["code"] or ""), str(error["message"] or "")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "", ""


def _words(path: str, status: int, code: str) -> Words:
    if path.startswith(IMAGES) and status in BY_STATUS_OF_IMAGES:
        return BY_STATUS_OF_IMAGES[HTTPStatus(status)]
    found = BY_CODE.get(code) or BY_STATUS.get(HTTPStatus(status))
    if found is not None:
        return found
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return BY_STATUS[HTTPStatus.SERVICE_UNAVAILABLE if is_ours else HTTPStatus.BAD_REQUEST]


def _message(status: int, words: Words, message: str) -> str:
    """Choose the text for people; an object that is missing is named, a route is not."""
    if status == HTTPStatus.NOT_FOUND and message and not message.startswith(NO_ROUTE):
        return message
    return words.message or message or "The gateway gave no reason."


def _links(path: str, status: int) -> list[ErrorLink]:
    if path.startswith(IMAGES):
        return []
    again = [ErrorLink("Try again", path)] if status >= HTTPStatus.INTERNAL_SERVER_ERROR else []
    return [*again, ErrorLink("Go to the console", CONSOLE)]


def _ways_out(scope: RequestScope) -> list[ErrorLink]:
    """The ways out of a portal or a session whose pages cannot be shown."""
    viewer = scope["state"].get("viewer")
    if not isinstance(viewer, Viewer):
        return []
    leave = [ErrorLink("Leave the portal", LEAVE_PORTAL, is_form=True)]
    return [*(leave if viewer.is_visiting else []), ErrorLink("Sign out", SIGN_OUT, is_form=True)]
