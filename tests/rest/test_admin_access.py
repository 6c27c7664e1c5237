"""Access to the operators' REST API, its refusals and its documentation."""

import re
from typing import Any

import pytest

from tests.admin_helpers import NO_ID, ROOT, JsonObject, Refusal, admin, admin_secret, refusal
from tests.harness import Served

EXAMPLES = {
    "{key_id}": NO_ID,
    "{admin_key_id}": NO_ID,
    "{provider}": "openai",
    "{budget_id}": "1",
    "{limit_id}": "1",
    "{webhook_id}": NO_ID,
    "{delivery_id}": NO_ID,
}
TENANTS_ROUTES = ("/v1/models", "/v1/images", "/v1/usage", "/v1/budgets", "/v1/credentials/openai")
METHODS = {"get", "post", "put", "patch", "delete"}
NO_ADMIN = Refusal(403, "insufficient_scope", None)
NOUNS = {
    *("tenants", "users", "keys", "credentials", "budgets", "limits"),
    *("webhooks", "usage", "requests", "prices", "reconciliation", "audit", "admin-keys"),
    *("models", "sessions"),
}


async def operations(served: Served) -> dict[tuple[str, str], JsonObject]:
    """Every operation under /admin, by method and path."""
    async with served.http() as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    return {
        (method.upper(), path): operation
        for path, methods in paths.items()
        if path.startswith(ROOT)
        for method, operation in methods.items()
        if method in METHODS
    }


def example(served: Served, path: str) -> str:
    for name, value in {**EXAMPLES, "{tenant_id}": str(served.tenant_id)}.items():
        path = path.replace(name, value)
    return path


async def test_a_tenants_key_reaches_no_operators_route(served: Served) -> None:
    routes = await operations(served)
    assert len(routes) > 50
    for key in (await served.key(), await served.key(livemode=False), await served.key(user="a")):
        async with served.http(key) as http:
            for method, path in routes:
                answer = await http.request(method, example(served, path), json={})
                assert refusal(answer) == NO_ADMIN, (method, path)
    async with served.http() as http:
        for method, path in routes:
            answer = await http.request(method, example(served, path), json={})
            assert refusal(answer) == Refusal(401, "invalid_api_key", None)


async def test_an_admin_key_reaches_no_tenants_route(served: Served) -> None:
    async with served.http(admin_secret(served)) as http:
        for path in TENANTS_ROUTES:
            assert refusal(await http.get(path)) == NO_ADMIN
        body = {"prompt": "a red circle"}
        for path in ("/v1/images/generations", "/v1/images/quotes", "/generate_image"):
            assert refusal(await http.post(path, json=body)) == NO_ADMIN
        assert refusal(await http.delete("/v1/images/img_0")) == NO_ADMIN


async def test_a_path_that_resembles_an_operators_route_is_refused(served: Served) -> None:
    key = await served.key()
    async with served.http(key) as http:
        for path in (
            "/admin/v1/tenants/",
            "/admin//v1/tenants",
            "//admin/v1/tenants",
            "/./admin/v1/tenants",
            "/v1/../admin/v1/tenants",
            "/ADMIN/v1/tenants",
            "/%61dmin/v1/tenants",
            "/mcp/../admin/v1/tenants",
        ):
            assert (await http.get(path)).status_code in {403, 404}, path


async def test_unknown_parameters_are_refused_on_every_route(served: Served) -> None:
    async with admin(served) as http:
        for method, path in await operations(served):
            target = example(served, path).removeprefix(ROOT)
            answer = refusal(await http.request(method, f"{target}?surprise=1", json={}))
            assert answer.code in {"unknown_parameter", "missing_required_parameter"}, (
                method,
                path,
            )
            if answer.code == "unknown_parameter":
                assert answer == Refusal(400, "unknown_parameter", "surprise")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"x"', "invalid_json"),
        (b"null", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"name": "\\ud800"}', "invalid_json"),
        (b"[" * 50_000, "invalid_json"),
        (b'{"name": "' + b"x" * 2_000_000 + b'"}', "payload_too_large"),
    ],
)
async def test_an_invalid_body_is_refused_on_every_route(
    unchanged: Served, content: bytes, code: str
) -> None:
    async with admin(unchanged) as http:
        for (method, path), operation in (await operations(unchanged)).items():
            if "requestBody" in operation:
                target = example(unchanged, path).removeprefix(ROOT)
                answer = await http.request(method, target, content=content)
                assert refusal(answer).code == code, (method, path)


async def test_an_unknown_method_or_path_is_refused_in_the_envelope(served: Served) -> None:
    async with admin(served) as http:
        for method, path, status in (
            ("DELETE", "/tenants", 405),
            ("POST", "/usage", 405),
            ("PUT", "/prices", 405),
            ("DELETE", "/audit", 405),
            ("GET", "/tenant", 404),
            ("GET", "", 404),
            ("GET", "/", 404),
        ):
            assert refusal(await http.request(method, path)).status == status


def shows_example(operation: JsonObject, document: JsonObject) -> bool:
    """Tell if the request body and every answer of an operation have an example."""
    contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
    answers = {
        status: resolved(answer, document) for status, answer in operation["responses"].items()
    }
    contents += [
        answer["content"]
        for status, answer in answers.items()
        if "content" in answer or not re.fullmatch("20[04]", status)
    ]
    return all(
        content.keys() & {"example", "examples"}
        or "examples" in resolved(content["schema"], document)
        for by_type in contents
        for content in by_type.values()
    )


def resolved(schema: JsonObject, document: JsonObject) -> JsonObject:
    if "$ref" in schema:
        _, _, kind, name = schema["$ref"].split("/")
        found: JsonObject = document["components"][kind][name]
        return found
    return schema


async def test_every_route_is_documented_with_examples(served: Served) -> None:
    async with served.http() as http:
        document: dict[str, Any] = (await http.get("/openapi.json")).json()
    found = await operations(served)
    assert {tag for op in found.values() for tag in op["tags"]} == {f"admin: {n}" for n in NOUNS}
    for route, operation in found.items():
        assert operation["summary"], route
        assert operation["description"], route
        assert set(operation["responses"]) >= {"400", "401", "403", "503"}, route
        assert operation["security"] == [{"admin_key": []}], route
        assert shows_example(operation, document), route
        says_all_by_itself = route[1].endswith(("/test", "/redeliver"))
        writes = route[0] in {"POST", "PUT", "PATCH"} and not says_all_by_itself
        assert ("requestBody" in operation) == writes, route
