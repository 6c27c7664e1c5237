"""Keys on every route: invalid keys, missing scopes, and the time until a key ends."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import httpx2
import pytest

from gateway.config import Settings
from gateway.domain import Scope
from gateway.errors import NotFound
from gateway.tenancy import api_keys, tenants
from gateway.tenancy.api_keys import IssuedKey
from gateway.vault import key_format
from gateway.web.routes import OTHER, find_route
from tests.harness import GPT2, HOUSE_KEY, Served, error_of, served_gateway
from tests.stub_openai import Stub

OPEN = {
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/ready"),
    ("GET", "/images/img_0"),
    ("GET", "/images/img_0/thumbnail"),
}
EXAMPLES = {"{image_id}": "img_0", "{rest}": "0", "{model_id}": GPT2, "{provider}": "openai"}
SCOPES = {
    ("POST", "/v1/images/generations"): Scope.IMAGES_WRITE,
    ("POST", "/v1/images/quotes"): Scope.IMAGES_WRITE,
    ("GET", "/v1/images"): Scope.IMAGES_READ,
    ("GET", "/v1/images/img_0"): Scope.IMAGES_READ,
    ("DELETE", "/v1/images/img_0"): Scope.IMAGES_WRITE,
    ("GET", "/v1/models"): Scope.IMAGES_READ,
    ("GET", f"/v1/models/{GPT2}"): Scope.IMAGES_READ,
    ("GET", "/v1/usage"): Scope.USAGE_READ,
    ("GET", "/v1/budgets"): Scope.USAGE_READ,
    ("GET", "/v1/credentials/openai"): Scope.CREDENTIALS_WRITE,
    ("PUT", "/v1/credentials/openai"): Scope.CREDENTIALS_WRITE,
    ("DELETE", "/v1/credentials/openai"): Scope.CREDENTIALS_WRITE,
}
REVOKED_WITHIN_SECONDS = 5
"""Long before the cache would look by itself (30 s), with patience for a busy machine."""
SHORT_LIVES_SECONDS = (0.5, 2, 4)
"""Lifetimes to try in turn, until a key is used before it expires."""
ROUTE_METHODS = {"get", "head", "post", "put", "patch", "delete"}


class Refusal(NamedTuple):
    """The status and code of a refused request."""

    status: int
    code: str


NO_KEY = Refusal(401, "invalid_api_key")
NO_SCOPE = Refusal(403, "insufficient_scope")


async def every_route(served: Served) -> set[tuple[str, str]]:
    """Method and an example path of all that the application answers."""
    async with served.http() as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    found = {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/mcp")}
    for path, operations in paths.items():
        example = path
        for parameter, value in EXAMPLES.items():
            example = example.replace(parameter, value)
        found |= {(method.upper(), example) for method in operations if method in ROUTE_METHODS}
    return found


def is_operators(path: str) -> bool:
    return path == "/metrics" or path.startswith("/admin/")


def refusal_of(response: httpx2.Response) -> Refusal:
    """Status and code; a refusal has the envelope and an id, whatever gave it."""
    assert response.headers["x-request-id"].startswith("req_")
    if not response.is_error or response.request.method == "HEAD":
        return Refusal(response.status_code, "")
    return Refusal(response.status_code, error_of(response)["code"])


async def refusals(
    served: Served, routes: set[tuple[str, str]], authorization: str | None
) -> dict[tuple[str, str], Refusal]:
    """The refusal of each route for this Authorization header."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with served.http() as http:
        return {
            (method, path): refusal_of(await http.request(method, path, headers=headers))
            for method, path in sorted(routes)
        }


async def until_refused(served: Served, key: IssuedKey, path: str = "/v1/models") -> Refusal:
    """Ask again and again until the key no longer opens; the time it may take is bounded."""
    async with served.http(key) as http, asyncio.timeout(REVOKED_WITHIN_SECONDS):
        while not (response := await http.get(path)).is_error:
            pass
    return refusal_of(response)


async def test_every_route_is_known_to_need_a_key_or_to_be_open(served: Served) -> None:
    routes = await every_route(served)
    answers = await refusals(served, routes, None)
    assert {route for route, refusal in answers.items() if refusal != NO_KEY} == OPEN
    assert SCOPES.keys() <= routes


async def test_every_route_is_in_the_table_of_routes(served: Served) -> None:
    """For a route outside it, metrics say `other` and an answer with a secret may be cached."""
    assert {path for _, path in await every_route(served) if find_route(path) is OTHER} == set()


async def test_an_invalid_key_opens_no_route(served: Served) -> None:
    routes = await every_route(served) - OPEN
    good = (await served.key()).secret.reveal()
    wrong_checksum = good[:-1] + ("A" if good[-1] != "A" else "B")
    revoked, expired = (
        await served.key(),
        await served.key(expires_at=datetime.now(UTC) - timedelta(seconds=1)),
    )
    async with served.gateway.database.operator() as session:
        await api_keys.revoke(session, revoked.id)
    headers = [
        "",
        "Bearer",
        "Bearer  igw_live_",
        "Bearer null",
        f"Basic {good}",
        good,
        f"Bearer {good} {good}",
        f"Bearer {good}=",
        f"Bearer {good.replace('_live_', '_test_')}",
        f"Bearer {good.replace('_live_', '_admin_')}",
        f"Bearer {good.upper()}",
        f"Bearer {wrong_checksum}",
        f"Bearer {HOUSE_KEY}",
        f"Bearer {key_format.new_key('live').reveal()}",
        f"Bearer {key_format.new_key('admin').reveal()}",
        f"Bearer {revoked.secret.reveal()}",
        f"Bearer {expired.secret.reveal()}",
        "Bearer " + "9" * 20_000,
    ]
    for header in headers:
        assert await refusals(served, routes, header) == dict.fromkeys(routes, NO_KEY), header


async def test_a_refused_key_is_told_how_to_authenticate(served: Served) -> None:
    async with served.http() as http:
        response = await http.get("/v1/models")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert error_of(response)["type"] == "invalid_request_error"


async def test_a_key_without_scopes_opens_no_tenant_route(served: Served) -> None:
    every = await every_route(served)
    routes = {r for r in every - OPEN if not is_operators(r[1]) and r[1] != "/mcp"}
    key = await served.key(scopes=[])
    answers = await refusals(served, routes, f"Bearer {key.secret.reveal()}")
    assert answers == dict.fromkeys(routes, NO_SCOPE)


@pytest.mark.parametrize("needed", Scope)
async def test_only_its_own_scope_opens_a_route(served: Served, needed: Scope) -> None:
    routes = {route for route, scope in SCOPES.items() if scope == needed}
    every_other = await served.key(scopes=[scope for scope in Scope if scope != needed])
    alone = await served.key(scopes=[needed])
    refused = await refusals(served, routes, f"Bearer {every_other.secret.reveal()}")
    opened = await refusals(served, routes, f"Bearer {alone.secret.reveal()}")
    assert refused == dict.fromkeys(routes, NO_SCOPE)
    assert NO_SCOPE not in opened.values()


async def test_a_tool_needs_the_scope_of_its_route(served: Served, stub: Stub) -> None:
    key = await served.key(scopes=[Scope.IMAGES_READ])
    async with served.mcp(key) as client:
        result = await client.call_tool("generate_image", {"prompt": "a red circle"})
    assert result.is_error
    assert result.meta is not None
    assert result.meta["error"]["code"] == "insufficient_scope"
    assert stub.calls == []


async def test_an_admin_key_opens_the_operators_routes_and_no_others(served: Served) -> None:
    assert served.gateway.core.new_admin_key is not None
    header = f"Bearer {served.gateway.core.new_admin_key.reveal()}"
    routes = await every_route(served) - OPEN
    answers = await refusals(served, routes, header)
    tenants_routes = {route for route in routes if not is_operators(route[1])}
    assert {r: answers[r] for r in tenants_routes} == dict.fromkeys(tenants_routes, NO_SCOPE)
    assert answers["GET", "/metrics"] == Refusal(200, "")


async def test_a_tenants_key_opens_no_route_of_operators(served: Served) -> None:
    routes = {route for route in await every_route(served) if is_operators(route[1])}
    routes |= {("GET", "/admin/"), ("GET", "/admin/v1/tenants"), ("POST", "/admin/v1/tenants")}
    for livemode in (True, False):
        key = await served.key(livemode=livemode)
        answers = await refusals(served, routes, f"Bearer {key.secret.reveal()}")
        assert answers == dict.fromkeys(routes, NO_SCOPE)


async def test_a_suspended_tenants_keys_are_refused_until_it_is_resumed(served: Served) -> None:
    key = await served.key()
    async with served.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 200
    async with served.gateway.database.operator() as session:
        await tenants.set_status(session, "acme", "suspended")
    suspended = Refusal(403, "tenant_suspended")
    assert await until_refused(served, key) == suspended
    routes = {r for r in await every_route(served) - OPEN if not is_operators(r[1])}
    answers = await refusals(served, routes, f"Bearer {key.secret.reveal()}")
    assert answers == dict.fromkeys(routes, suspended)
    async with served.gateway.database.operator() as session:
        await tenants.set_status(session, "acme", "active")
    async with served.http(key) as http, asyncio.timeout(REVOKED_WITHIN_SECONDS):
        while (await http.get("/v1/models")).is_error:
            pass


async def test_a_revoked_key_ends_on_every_gateway_within_a_second(
    served: Served, settings: Settings, stub: Stub
) -> None:
    key = await served.key()
    async with served_gateway(settings) as other:
        for gateway in (served, other):
            async with gateway.http(key) as http:
                assert (await http.get("/v1/models")).status_code == 200
        async with served.gateway.database.operator() as session:
            await api_keys.revoke(session, key.id)
        found = await asyncio.gather(until_refused(served, key), until_refused(other, key))
        async with other.http(key) as http:
            late = await http.post("/v1/images/generations", json={"prompt": "a red circle"})
    assert [*found, refusal_of(late)] == [NO_KEY] * 3
    assert stub.calls == []


async def test_a_revocation_without_a_notification_counts_after_the_time_to_live(
    settings: Settings,
) -> None:
    # Thirty seconds as it is delivered; that these are counted is for the tests of the cache.
    async with served_gateway(settings.model_copy(update={"cache_ttl_seconds": 0.5})) as served:
        key = await served.key()
        async with served.http(key) as http:
            assert (await http.get("/v1/models")).status_code == 200
        await served.owner_sql("ALTER TABLE api_key DISABLE TRIGGER USER")
        await served.owner_sql("UPDATE api_key SET revoked_at = now() WHERE id = :id", id=key.id)
        assert await until_refused(served, key) == NO_KEY


async def test_a_key_that_is_known_already_ends_when_it_expires(served: Served) -> None:
    for seconds in SHORT_LIVES_SECONDS:
        expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
        key = await served.key(expires_at=expires_at)
        async with served.http(key) as http:
            first = await http.get("/v1/models")
        if first.is_success or refusal_of(first) != NO_KEY:
            break
    assert first.status_code == 200
    assert await until_refused(served, key) == NO_KEY
    assert datetime.now(UTC) >= expires_at


async def test_a_rolled_key_and_its_twin_both_work_during_the_grace(served: Served) -> None:
    old = await served.key(scopes=[Scope.IMAGES_READ], models=[GPT2])
    async with served.gateway.database.operator() as session:
        twin = await api_keys.roll(
            session, old.id, pepper=served.gateway.core.pepper, grace=timedelta(hours=1)
        )
    assert (twin.scopes, twin.models, twin.livemode) == (old.scopes, old.models, old.livemode)
    for key in (old, twin):
        async with served.http(key) as http:
            listed = (await http.get("/v1/models")).json()["data"]
            assert [model["id"] for model in listed] == [GPT2]
            assert refusal_of(await http.get("/v1/usage")) == NO_SCOPE


async def test_a_rolled_key_ends_with_its_grace_and_its_twin_stays(served: Served) -> None:
    old = await served.key()
    async with served.http(old) as http:
        assert (await http.get("/v1/models")).status_code == 200
    async with served.gateway.database.operator() as session:
        twin = await api_keys.roll(
            session, old.id, pepper=served.gateway.core.pepper, grace=timedelta(milliseconds=300)
        )
    assert await until_refused(served, old) == NO_KEY
    async with served.http(twin) as http:
        assert (await http.get("/v1/models")).status_code == 200


async def test_a_key_that_has_ended_cannot_be_rolled_back_to_life(served: Served) -> None:
    expired = await served.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked = await served.key()
    async with served.gateway.database.operator() as session:
        await api_keys.revoke(session, revoked.id)
    for key in (expired, revoked):
        with pytest.raises(NotFound):
            async with served.gateway.database.operator() as session:
                await api_keys.roll(
                    session, key.id, pepper=served.gateway.core.pepper, grace=timedelta(hours=1)
                )
    async with served.gateway.database.tenant(served.tenant_id) as session:
        known = await api_keys.list_keys(session, served.tenant_id)
    assert {key.id for key in known} == {expired.id, revoked.id}


async def test_rolling_does_not_lengthen_the_life_of_a_key(served: Served) -> None:
    ends_at = datetime.now(UTC) + timedelta(minutes=5)
    old = await served.key(expires_at=ends_at)
    async with served.gateway.database.operator() as session:
        twin = await api_keys.roll(
            session, old.id, pepper=served.gateway.core.pepper, grace=timedelta(days=30)
        )
    async with served.gateway.database.tenant(served.tenant_id) as session:
        known = await api_keys.list_keys(session, served.tenant_id)
    assert {key.id: key.expires_at for key in known} == {old.id: ends_at, twin.id: ends_at}


async def test_a_key_limited_to_models_uses_and_sees_no_others(served: Served, stub: Stub) -> None:
    key = await served.key(models=[GPT2])
    not_allowed = Refusal(403, "model_not_allowed")
    async with served.http(key) as http:
        for body in (
            {"prompt": "x", "model": "gpt-image-2.5-flare"},
            {"prompt": "x", "model": "gpt-image-2-2026-04-21"},
            {"prompt": "x"},
        ):
            for path in ("/v1/images/generations", "/v1/images/quotes"):
                response = await http.post(path, json=body)
                assert refusal_of(response) == not_allowed
                assert error_of(response)["param"] == "model"
        assert refusal_of(await http.get("/v1/models/gpt-image-2.5-flare")) == not_allowed
        assert [m["id"] for m in (await http.get("/v1/models")).json()["data"]] == [GPT2]
    assert stub.calls == []
    async with served.mcp(key) as client:
        result = await client.call_tool(
            "generate_image", {"prompt": "x", "model": "gpt-image-2.5-flare"}
        )
    assert result.meta is not None
    assert result.meta["error"]["code"] == "model_not_allowed"
    assert stub.calls == []
