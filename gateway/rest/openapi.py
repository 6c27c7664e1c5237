"""The OpenAPI description as served: FastAPI's own, with the parts that all routes share.

Keys, refusals, headers and bodies are components; a route names only its own.
"""

import asyncio
from collections.abc import Iterator

import orjson
from fastapi import FastAPI, Request, Response
from starlette.routing import Route

from gateway.errors import InvalidRequest
from gateway.rest.audiences import AUDIENCES, Description, part_for
from gateway.rest.refusals import REFUSALS, reference, shared_responses
from gateway.rest.schemas import ErrorAnswer
from gateway.web.routes import Access, find_route

SCHEMAS = "#/components/schemas/"
GUARDED = frozenset({400, 401, 403, 503})
"""The statuses of refusals that any route with a key can answer with."""
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
    "images": "Generate, edit, quote and download images.",
    "simple": "The same with fewer parameters: a prompt in, links out.",
    "history": "The images made so far.",
    "models": "Models, their capabilities and their shutdown dates.",
    "usage": "Usage, cost and budgets.",
    "requests": "Outcome, cost and provider id of each request, by any of its ids.",
    "credentials": "Your provider keys: stored, never returned.",
    "keys": "The tenant's API keys; needs the scope `tenant:admin`.",
    "users": "The tenant's users; needs the scope `tenant:admin`.",
    "limits": "Limits of the tenant, its users and keys; needs the scope `tenant:admin`.",
    "webhooks": "The tenant's webhooks; needs the scope `tenant:admin`.",
    "health": "For load balancers and Prometheus.",
    "admin: tenants": "Tenants. All admin routes need an admin key.",
    "admin: users": "The persons and applications of a tenant.",
    "admin: keys": "API keys: issue, roll, revoke.",
    "admin: credentials": "Provider keys of tenants and their users.",
    "admin: budgets": "Spending limits; each call reserves its worst-case cost.",
    "admin: limits": "Rate limits and concurrency limits.",
    "admin: webhooks": "Webhooks and their deliveries.",
    "admin: usage": "Usage reports over one tenant or all.",
    "admin: requests": "The request log of all tenants, and of requests without a valid key.",
    "admin: models": "All models, with prices, dates and readiness.",
    "admin: sessions": "Who is signed in to the console; ending a session at once.",
    "admin: prices": "Price versions; immutable.",
    "admin: reconciliation": "Calls of unknown cost, and consistency checks of the ledger.",
    "admin: audit": "The audit trail of changes.",
}


def _header(description: str, **schema: object) -> dict[str, object]:
    return {"description": description, "schema": {"type": "string", **schema}}


HEADERS = {
    "X-Request-Id": _header("Id of this request in the gateway's log."),
    "X-Client-Request-Id": _header("The client's own `X-Request-Id`, if it sent one."),
    "Retry-After": _header("Seconds to wait before a retry.", pattern="^[0-9]+$"),
    "X-Should-Retry": _header(
        "`false`: a retry could pay twice, or cannot succeed. OpenAI's SDKs obey it.",
        enum=["true", "false"],
    ),
    "WWW-Authenticate": _header("The authentication scheme; RFC 6750 and, for tokens, RFC 9728."),
    "Content-Range": _header("Position of these bytes in the file."),
    "Idempotent-Replayed": _header(
        "The answer repeats an earlier purchase with the same key.", const="true"
    ),
    "X-Gateway-Generation-Id": _header("Id of the purchase in the ledger.", format="uuid"),
    "X-Gateway-Cost-Usd": _header(
        "Cost of the request in US dollars.", pattern=r"^[0-9]+\.[0-9]{9}$"
    ),
    "X-Gateway-Cost-Status": _header(
        "Certainty of the cost.", enum=["actual", "estimated", "pending"]
    ),
    "X-Gateway-Requested-Model": _header("The requested model."),
    "X-Gateway-Served-Model": _header("The model that made the images."),
    "X-Gateway-Provider": _header("The provider of that model; `sandbox` for test keys."),
    "RateLimit": _header("Remaining units of the caller's limits."),
    "RateLimit-Policy": _header("The caller's limits."),
    "Deprecation": _header("Start of the model's deprecation; RFC 9745."),
    "Sunset": _header("Shutdown date of the model; RFC 8594."),
    "Link": _header("The model's successor."),
}


ON_EVERY_ANSWER = ("X-Request-Id", "X-Client-Request-Id")


def shared_headers(*names: str) -> dict[str, object]:
    """Reference the documentation of these headers of a response."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def describe(app: FastAPI) -> None:
    """Serve the complete description in place of FastAPI's own.

    It is built on the first request, since most processes never need it, and in a thread: it takes
    half a second. The serialized result is kept. `?audience=tenant` and `?audience=operator` are
    the parts for the pages of /docs; without it, the description is whole.
    """
    make_schema = app.openapi
    # https://fastapi.tiangolo.com/how-to/extending-openapi/
    app.openapi = lambda: app.openapi_schema or complete(make_schema())  # type: ignore[method-assign]
    making = asyncio.Lock()
    made: dict[str, bytes] = {}

    async def description(request: Request) -> Response:
        audience = request.query_params.get("audience", "")
        if audience and audience not in AUDIENCES:
            raise InvalidRequest(
                f"audience must be one of {', '.join(AUDIENCES)}.", param="audience"
            )
        async with making:
            if audience not in made:
                made[audience] = await asyncio.to_thread(_serialized, app, audience)
        return Response(made[audience], media_type="application/json")

    app.router.routes.insert(0, Route("/openapi.json", description, include_in_schema=False))


def _serialized(app: FastAPI, audience: str) -> bytes:
    whole = app.openapi()
    return orjson.dumps(part_for(audience, whole) if audience else whole)


def complete(schema: Description) -> Description:
    """Add to FastAPI's schema, in place, the parts that it cannot know; return it."""
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
    for one in schemas.values():
        _restore_nulls(one.get("examples", ()), {"items": one}, schemas)
    used = {tag for item in _operations(schema) for tag in item.get("tags", ())}
    schema["tags"] = [
        {"name": name, "description": text} for name, text in TAGS.items() if name in used
    ]
    return schema


def _restore_nulls(example: object, schema: Description, schemas: Description) -> None:
    """Put required fields that are null back into an example: FastAPI drops every null."""
    schema = next((one for one in schema.get("anyOf", ()) if one != {"type": "null"}), schema)
    if "$ref" in schema:
        schema = schemas[schema["$ref"].removeprefix(SCHEMAS)]
    if isinstance(example, list):
        for item in example:
            _restore_nulls(item, schema.get("items", {}), schemas)
    if isinstance(example, dict):
        for name, field in schema.get("properties", {}).items():
            if name in schema.get("required", ()):
                example.setdefault(name, None)
            _restore_nulls(example.get(name), field, schemas)


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
            del told[status]  # never sent: FastAPI's validation errors are answered with 400
        elif "$ref" in response or "ErrorAnswer" in str(response):
            told[status] = {"$ref": reference(int(status))}
    for status in sorted(_implied(path, operation)):
        told.setdefault(str(status), {"$ref": reference(status)})
    operation["responses"] = dict(sorted(told.items()))


def _implied(path: str, operation: Description) -> set[int]:
    """The refusals implied by a route's path and parameters."""
    implied = set() if find_route(path).access is Access.OPEN else set(GUARDED)
    if "{" in path:
        implied.add(404)
    if operation.get("parameters"):
        implied.add(400)
    if "requestBody" in operation:
        implied |= {400, 413}
    return implied & REFUSALS.keys()


def _shared_body(body: Description, schemas: Description) -> Description:
    """Move a body's schema, and the schemas it references, to the components."""
    schemas |= body.pop("$defs", {})
    if "title" not in body:
        return body
    schemas[body["title"]] = body
    return {"$ref": SCHEMAS + body["title"]}
