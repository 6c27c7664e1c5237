"""The API's own description: every reference leads somewhere, every body is described."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.harness import Served

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
UNDESCRIBED = {"/mcp", "/docs", "/metrics", "/admin/v1/"}
"""Paths of the page that the description leaves out, or has pages of their own for."""
MULTIPART = {"/v1/images/edits", "/v1/images/variations", "/edit_image"}
JSON = {
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/quotes",
    "/generate_image",
    "/mcp/v1/tools/generate_image",
    "/v1/credentials/{provider}",
}
SELF_SERVICE = {
    *("/v1/keys", "/v1/keys/{key_id}", "/v1/keys/{key_id}/roll", "/v1/users"),
    *("/v1/users/{user_id}", "/v1/limits", "/v1/webhooks", "/v1/webhooks/{webhook_id}"),
    "/v1/webhooks/{webhook_id}/roll",
}
SELF_SERVICE_ROOTS = ("/v1/keys", "/v1/users", "/v1/limits", "/v1/webhooks")
OPERATORS = {
    "/admin/v1/tenants",
    "/admin/v1/tenants/{tenant_id}",
    "/admin/v1/tenants/{tenant_id}/users",
    "/admin/v1/tenants/{tenant_id}/users/{user_id}",
    "/admin/v1/tenants/{tenant_id}/keys",
    "/admin/v1/tenants/{tenant_id}/keys/{key_id}",
    "/admin/v1/tenants/{tenant_id}/keys/{key_id}/roll",
    "/admin/v1/tenants/{tenant_id}/credentials/{provider}",
    "/admin/v1/tenants/{tenant_id}/budgets",
    "/admin/v1/tenants/{tenant_id}/budgets/{budget_id}/raise",
    "/admin/v1/budgets",
    "/admin/v1/budgets/{budget_id}/raise",
    "/admin/v1/tenants/{tenant_id}/limits",
    "/admin/v1/prices",
    "/admin/v1/reconciliation/{call_id}/resolve",
    "/admin/v1/admin-keys",
    "/admin/v1/admin-keys/{admin_key_id}/roll",
    *(
        f"/admin/v1{owner}/webhooks{rest}"
        for owner in ("", "/tenants/{tenant_id}")
        for rest in ("", "/{webhook_id}", "/{webhook_id}/roll")
    ),
}


def references(part: object) -> Iterator[str]:
    if isinstance(part, list):
        for item in part:
            yield from references(item)
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for item in part.values():
            yield from references(item)


def leads_somewhere(document: object, reference: str) -> bool:
    place: Any = document
    for name in reference.removeprefix("#/").split("/"):
        if not isinstance(place, dict) or name not in place:
            return False
        place = place[name]
    return True


async def test_every_reference_in_the_description_leads_somewhere(served: Served) -> None:
    async with served.http() as http:
        document = (await http.get("/openapi.json")).json()
    found = set(references(document))
    assert found
    assert {one for one in found if not leads_somewhere(document, one)} == set()


async def test_concurrent_requests_for_the_description_get_the_same(served: Served) -> None:
    async with served.http() as http:
        answers = await asyncio.gather(*(http.get("/openapi.json") for _ in range(5)))
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["components"]["securitySchemes"].keys() == {"key", "admin_key"}


def examples(part: object) -> Iterator[tuple[dict[str, Any], object]]:
    """Each schema that has examples, with each of them; a media type's have the schema beside."""
    if isinstance(part, list):
        for item in part:
            yield from examples(item)
    if isinstance(part, dict):
        found = part.get("examples", [])
        for one in found if isinstance(found, list) else found.values():
            yield (part, one) if isinstance(found, list) else (part["schema"], one["value"])
        for name, item in part.items():
            if name != "examples":
                yield from examples(item)


async def test_every_example_fits_the_schema_beside_it(served: Served) -> None:
    async with served.http() as http:
        document = (await http.get("/openapi.json")).json()
    found = [
        (schema.get("schema", schema) | {"components": document["components"]}, one)
        for schema, one in examples(document)
    ]
    assert len(found) > 100
    for schema, one in found:
        Draft202012Validator(schema).validate(one)


async def test_every_operation_says_who_may_call_it_and_how_it_refuses(served: Served) -> None:
    async with served.http() as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            refusals = {status for status in operation["responses"] if int(status) >= 400}
            if operation.get("security") == []:
                assert path.startswith(("/images/", "/health", "/ready")), path
            else:
                assert refusals >= {"400", "401", "403", "503"}, path
            assert "413" in refusals or "requestBody" not in operation, path
            assert "404" in refusals or "{" not in path, path


async def test_every_body_is_described(served: Served) -> None:
    async with served.http() as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    described: dict[str, set[str]] = {"multipart/form-data": set(), "application/json": set()}
    for path, methods in paths.items():
        for method in methods.values():
            for kind in method.get("requestBody", {}).get("content", {}):
                described[kind].add(path)
    assert described == {
        "multipart/form-data": MULTIPART,
        "application/json": JSON | SELF_SERVICE | OPERATORS,
    }


async def test_routes_that_buy_take_a_key_and_say_what_it_can_be_refused_for(
    served: Served,
) -> None:
    async with served.http() as http:
        document = (await http.get("/openapi.json")).json()
    buying = {
        path
        for path, methods in document["paths"].items()
        for method in methods.values()
        if any(one["name"] == "Idempotency-Key" for one in method.get("parameters", []))
        and {"409", "422"} <= method["responses"].keys()
    }
    assert buying == (MULTIPART | JSON) - {"/v1/images/quotes", "/v1/credentials/{provider}"}
    assert "HTTPValidationError" not in str(document["paths"])


async def test_the_page_of_the_api_names_every_route_of_tenants(served: Served) -> None:
    async with served.http() as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    cells = re.findall(r"^\| (`.*?) \|", PAGE.partition("## Parameters")[0], re.MULTILINE)
    named = {nameless(path) for cell in cells for path in re.findall(r"/[\w/{}]+", cell)}
    described = {nameless(path) for path in paths if not path.startswith("/admin/")}
    assert named - UNDESCRIBED <= described
    assert {path for path in described if not path.startswith(SELF_SERVICE_ROOTS)} <= named


def nameless(path: str) -> str:
    return re.sub(r"{\w+}", "{}", path)
