"""The API's description as it is served: FastAPI's own, and what all routes share, said once.

Keys, refusals, headers and bodies are components; a route names only what is its own.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.routing import Route

from gateway.rest.refusals import REFUSALS, reference, shared_responses
from gateway.rest.schemas import ErrorAnswer
from gateway.web.routes import Access, find_route

Description = dict[str, Any]
"""A JSON object of OpenAPI 3.1: whatever is in it is written out and read by programs."""
SCHEMAS = "#/components/schemas/"
GUARDED = frozenset({400, 401, 403, 503})
"""What the way to any route that needs a key can end with."""
FIRST_REFUSAL = 400
KEYS = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "igw_test_… or igw_live_…, or a token of the operator's identity provider",
    },
    "admin_key": {"type": "http", "scheme": "bearer", "description": "igw_admin_…"},
}
TAGS = {
    "images": "Made, edited, quoted and served.",
    "simple": "The same with fewer words: a prompt goes in, links come out.",
    "history": "The images made so far.",
    "models": "What may be asked for, and until when.",
    "usage": "What was spent, and what may be spent.",
    "requests": "Outcome, cost and provider id of each request, by any of its ids.",
    "credentials": "The own provider key: written, never read.",
    "keys": "The tenant's own API keys, with the scope `tenant:admin`.",
    "users": "The tenant's own users, with the scope `tenant:admin`.",
    "limits": "The limits of the tenant, its users and keys, with the scope `tenant:admin`.",
    "webhooks": "Where the tenant's events are sent, with the scope `tenant:admin`.",
    "health": "For load balancers and Prometheus.",
    "admin: tenants": "The operators' routes, with an admin key: customers.",
    "admin: users": "The persons and applications of a tenant.",
    "admin: keys": "API keys: issued, rolled, revoked.",
    "admin: credentials": "Provider keys of tenants and their users.",
    "admin: budgets": "Limits of money, held against before each call.",
    "admin: limits": "Limits of pace.",
    "admin: webhooks": "Where events are sent, and what came of it.",
    "admin: usage": "Reports over one tenant or all.",
    "admin: requests": "The same, of any tenant or none.",
    "admin: prices": "Versions of prices; none is ever edited.",
    "admin: reconciliation": "What is open, and whether the books agree.",
    "admin: audit": "Who changed what.",
}


def _header(description: str, **schema: object) -> dict[str, object]:
    return {"description": description, "schema": {"type": "string", **schema}}


HEADERS = {
    "X-Request-Id": _header("This request, as the gateway's log names it."),
    "X-Client-Request-Id": _header("The client's own `X-Request-Id`, where it sent one."),
    "Retry-After": _header("Seconds until it is worth trying again.", pattern="^[0-9]+$"),
    "X-Should-Retry": _header(
        "`false`: a retry could pay twice, or cannot help. OpenAI's SDKs obey it.",
        enum=["true", "false"],
    ),
    "WWW-Authenticate": _header("How to send a key; RFC 6750 and, for tokens, RFC 9728."),
    "Content-Range": _header("Where in the file these bytes stand."),
    "Idempotent-Replayed": _header("Bought before, answered again.", const="true"),
    "X-Gateway-Generation-Id": _header("Names the purchase in the ledger.", format="uuid"),
    "X-Gateway-Cost-Usd": _header("What it cost.", pattern=r"^[0-9]+\.[0-9]{9}$"),
    "X-Gateway-Cost-Status": _header(
        "Whether that is final.", enum=["actual", "estimated", "pending"]
    ),
    "X-Gateway-Requested-Model": _header("The model that was asked for."),
    "X-Gateway-Served-Model": _header("The model that drew."),
    "RateLimit": _header("How the caller's limits stand."),
    "RateLimit-Policy": _header("The caller's limits."),
    "Deprecation": _header("Since when the model is deprecated; RFC 9745."),
    "Sunset": _header("When the model ends; RFC 8594."),
    "Link": _header("The model's successor."),
}


ON_EVERY_ANSWER = ("X-Request-Id", "X-Client-Request-Id")


def shared_headers(*names: str) -> dict[str, object]:
    """A response's documentation of its headers."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def describe(app: FastAPI) -> None:
    """Serve the complete description in place of FastAPI's own.

    It is made when it is first asked for, since most processes never are, and beside the loop:
    it takes half a second. Then it is kept as it is sent.
    """
    make_schema = app.openapi
    # https://fastapi.tiangolo.com/how-to/extending-openapi/
    app.openapi = lambda: app.openapi_schema or complete(make_schema())  # type: ignore[method-assign]
    making = asyncio.Lock()
    made: list[bytes] = []

    async def description(_request: Request) -> Response:
        async with making:
            if not made:
                made.append(await asyncio.to_thread(lambda: orjson.dumps(app.openapi())))
        return Response(made[0], media_type="application/json")

    app.router.routes.insert(0, Route("/openapi.json", description, include_in_schema=False))


def complete(schema: Description) -> Description:
    """Add to FastAPI's schema, in its place, what it cannot know; returns it."""
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    error = ErrorAnswer.model_json_schema(ref_template=SCHEMAS + "{model}")
    schemas |= error.pop("$defs") | {"ErrorAnswer": error}
    components |= {
        "securitySchemes": KEYS,
        "responses": shared_responses(),
        "headers": HEADERS,
    }
    schema["security"] = [{"key": []}]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _complete_operation(path, operation)
            for body in operation.get("requestBody", {}).get("content", {}).values():
                body["schema"] = _shared_body(body["schema"], schemas)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    used = {tag for item in _operations(schema) for tag in item.get("tags", ())}
    schema["tags"] = [
        {"name": name, "description": text} for name, text in TAGS.items() if name in used
    ]
    return schema


def _operations(schema: Description) -> Iterator[Description]:
    for operations in schema["paths"].values():
        yield from operations.values()


def _complete_operation(path: str, operation: Description) -> None:
    access = find_route(path).access
    if access is Access.OPERATOR:
        operation["security"] = [{"admin_key": []}]
    if access is Access.OPEN:
        operation["security"] = []
    told = operation["responses"]
    for status, response in list(told.items()):
        if int(status) < FIRST_REFUSAL:
            response.setdefault("headers", {}).update(shared_headers(*ON_EVERY_ANSWER))
        elif "HTTPValidationError" in str(response):
            del told[status]  # never sent: what FastAPI finds wrong is answered with 400
        elif "$ref" in response or "ErrorAnswer" in str(response):
            told[status] = {"$ref": reference(int(status))}
    for status in sorted(_implied(path, operation)):
        told.setdefault(str(status), {"$ref": reference(status)})
    operation["responses"] = dict(sorted(told.items()))


def _implied(path: str, operation: Description) -> set[int]:
    """The refusals that follow from where a route is and what it takes."""
    implied = set() if find_route(path).access is Access.OPEN else set(GUARDED)
    if "{" in path:
        implied.add(404)
    if operation.get("parameters"):
        implied.add(400)
    if "requestBody" in operation:
        implied |= {400, 413}
    return implied & REFUSALS.keys()


def _shared_body(body: Description, schemas: Description) -> Description:
    """Move a body's schema, and what it refers to, among the components."""
    schemas |= body.pop("$defs", {})
    if "title" not in body:
        return body
    schemas[body["title"]] = body
    return {"$ref": SCHEMAS + body["title"]}
