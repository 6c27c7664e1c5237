"""Error handlers: every error of a REST route is rendered in OpenAI's envelope."""

from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match

from gateway.config import Settings
from gateway.errors import GatewayError, InvalidRequest, NotFound, envelope, response_headers
from gateway.limits.enforcement import LimitReached
from gateway.request_record import note_error
from gateway.rest.answers import limit_headers
from gateway.web.authentication import challenge_headers

PREFIX = "/v1"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def install_error_handlers(app: FastAPI) -> None:
    """Render the gateway's and the framework's errors; instrumentation answers defects."""
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def error_response(error: GatewayError) -> Response:
    """Render the response for one error."""
    note_error(error)
    return Response(
        orjson.dumps(envelope(error)),
        status_code=error.status,
        media_type="application/json",
        headers=response_headers(error)
        | (limit_headers(error.standings) if isinstance(error, LimitReached) else {}),
    )


async def _gateway_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, GatewayError):
        raise error
    settings: Settings = request.app.state.gateway.settings
    response = error_response(error)
    response.headers.update(challenge_headers(error, settings, request.url.path))
    return response


async def _validation_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in {"body", "query", "path"}]
    return error_response(invalid_field(".".join(where), first["msg"], first["type"]))


def invalid_field(where: str, complaint: str, kind: str) -> InvalidRequest:
    """Build the refusal of a field that pydantic complains of; `kind` is its type of error."""
    code = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
    return InvalidRequest(
        f"{where or 'The request'}: {complaint}.",
        code=code.get(kind, "invalid_value"),
        param=where or None,
    )


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(_no_route(request))
    wrong_method = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
    if wrong_method and (elsewhere := _meant(request, literally=True)) is not None:
        return error_response(_no_route(request, elsewhere))
    refusal = InvalidRequest(str(error.detail), code="method_not_allowed")
    response = error_response(refusal)
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    if wrong_method:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _no_route(request: Request, elsewhere: str | None = None) -> NotFound:
    """Build the error for an unknown route, with a hint if the base URL has one /v1 too few or too
    many.
    """
    here, elsewhere = request.url.path, elsewhere or _meant(request)
    if elsewhere is None:
        return NotFound(f"There is no route {request.method} {here}.")
    settings: Settings = request.app.state.gateway.settings
    return NotFound(
        f"There is no route {request.method} {here}. Did you mean {elsewhere}? Set your client's "
        f"base URL to {settings.public_url.rstrip('/')}{PREFIX}."
    )


def _meant(request: Request, *, literally: bool = False) -> str | None:
    """The path with one /v1 more or less, if a route exists there.

    A path with a route of its own matches another only if that one has no parameter in it: the
    method is wrong in DELETE /images/{image_id}, the base URL in POST /images/generations.
    """
    here = request.url.path
    path = here.removeprefix(PREFIX) if here.startswith(PREFIX * 2) else PREFIX + here
    app: FastAPI = request.app
    if literally:
        is_route = any(
            route.path == path and request.method in (route.methods or ())
            for route in iter_route_contexts(app.router.routes)
        )
    else:
        scope = {**request.scope, "path": path}
        is_route = any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)
    return path if is_route else None


def _allowed_methods(request: Request) -> list[str]:
    """All methods of the resource; the router names those of a single route only."""
    app: FastAPI = request.app
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in app.router.routes
        )
    ]
