"""Tenants help themselves with `tenant:admin`: keys, users, limits, webhooks, and a key's test."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.domain import Scope
from gateway.tenancy.api_keys import IssuedKey
from tests.admin_helpers import (
    LOW,
    NO_ID,
    Refusal,
    admin,
    answered,
    created,
    entries,
    every_page,
    refusal,
)
from tests.harness import GPT2, Served, make_settings, served_gateway
from tests.stub_openai import Stub

HOOK = {"url": "https://example.com/hook"}
ALL = [*Scope]
FORBIDDEN = Refusal(403, "insufficient_scope", None)
GONE = Refusal(404, "not_found", "key_id")


def at(served: Served, key: IssuedKey | str) -> httpx2.AsyncClient:
    """A tenant's client; paths begin behind /v1."""
    client = served.http(key)
    client.base_url = f"{served.base_url}/v1"
    return client


async def test_an_administrator_issues_names_rolls_and_revokes_keys(served: Served) -> None:
    async with at(served, await served.key(scopes=ALL, name="root")) as http:
        answer = await http.post("/keys", json={"name": "web", "scopes": ["usage:read"]})
        made = created(answer)
        assert answer.headers["cache-control"] == "no-store"
        assert made["secret"].startswith("igw_live_")
        path = f"/keys/{made['id']}"
        shown = {name: value for name, value in made.items() if name != "secret"}
        assert answered(await http.get(path)) == shown
        assert answered(await http.patch(path, json={"name": "site"})) == {**shown, "name": "site"}
        rolled = await http.post(f"{path}/roll", json={"grace_seconds": 60})
        assert rolled.headers["cache-control"] == "no-store"
        twin = created(rolled)
        assert (twin["name"], twin["root_id"]) == ("site", made["id"])
        answered(await http.delete(path))
        listed = await every_page(http, "/keys")
        assert [key["name"] for key in listed] == ["site", "site", "root"]
        assert "secret" not in listed[0]
    async with at(served, twin["secret"]) as own:
        answered(await own.get("/usage"))
    told = [e for e in await entries(served) if e["action"].startswith("api_key.")][1:]
    assert [e["action"] for e in told] == [
        *("api_key.issued", "api_key.renamed", "api_key.rolled", "api_key.revoked"),
    ]
    assert {e["actor"]["type"] for e in told} == {"api_key"}


async def test_a_key_without_the_scope_opens_no_such_route(served: Served) -> None:
    usual = await served.key()
    assert Scope.TENANT_ADMIN not in usual.scopes
    async with at(served, usual) as http:
        for path in ("/keys", "/users", "/limits", "/webhooks"):
            assert refusal(await http.get(path)) == FORBIDDEN, path
        assert refusal(await http.post("/keys", json={})) == FORBIDDEN
        assert refusal(await http.post("/webhooks", json=HOOK)) == FORBIDDEN
        assert refusal(await http.put("/limits", json={"kind": "images", "value": 1})) == FORBIDDEN


async def test_no_key_grants_a_scope_that_it_lacks(served: Served) -> None:
    some = await served.key(scopes=["tenant:admin", "images:read"], models=[GPT2])
    rich, other = await served.key(scopes=ALL), await served.key()
    model = Refusal(403, "model_not_allowed", None)
    async with at(served, some) as http:
        for body, expected in (
            ({"scopes": ["images:write"]}, FORBIDDEN),
            ({"scopes": ["images:read", "credentials:write"]}, FORBIDDEN),
            ({"models": ["gpt-image-2.5-flare"]}, model),
            ({"scopes": ["images:burn"]}, Refusal(400, "invalid_value", "scopes")),
        ):
            assert refusal(await http.post("/keys", json=body)) == expected, body
        # To roll a key shows a secret that may do what that key may.
        for key in (rich, other):
            assert refusal(await http.post(f"/keys/{key.id}/roll", json={})) == FORBIDDEN
        made = created(await http.post("/keys", json={}))
        assert (made["scopes"], made["models"]) == (["images:read"], [GPT2])
        second = created(await http.post("/keys", json={"scopes": ["tenant:admin"]}))
        assert second["models"] == [GPT2]


async def test_a_test_key_sees_and_changes_test_mode_alone(served: Served) -> None:
    live = await served.key(scopes=ALL, user="alice")
    test = await served.key(livemode=False, scopes=ALL)
    async with at(served, live) as http:
        hook = created(await http.post("/webhooks", json=HOOK))
        body = {"kind": "images", "value": 5, "api_key_id": str(live.id)}
        limit = created(await http.put("/limits", json=body))
        assert [key["id"] for key in await every_page(http, "/keys")] == [str(live.id)]
        of_test = await every_page(http, "/keys", livemode=False)
        assert [key["id"] for key in of_test] == [str(test.id)]
    async with at(served, test) as http:
        assert [key["id"] for key in await every_page(http, "/keys")] == [str(test.id)]
        path = f"/keys/{live.id}"
        for asked in (
            http.get(path),
            http.patch(path, json={"name": "mine"}),
            http.post(f"{path}/roll", json={}),
            http.delete(path),
            http.put("/limits", json=body),
        ):
            assert refusal(await asked) == GONE
        for asked in (
            http.get("/keys?livemode=true"),
            http.post("/keys", json={"livemode": True}),
            http.get("/limits?livemode=true"),
            http.post("/webhooks", json={**HOOK, "livemode": None}),
            http.post("/webhooks", json={**HOOK, "livemode": True}),
            http.patch(f"/users/{live.user_id}", json={"status": "disabled"}),
            http.delete(f"/users/{live.user_id}"),
        ):
            assert refusal(await asked) == FORBIDDEN
        hidden = Refusal(404, "not_found", "webhook_id")
        assert refusal(await http.get(f"/webhooks/{hook['id']}")) == hidden
        assert refusal(await http.delete(f"/webhooks/{hook['id']}")) == hidden
        gone = Refusal(404, "not_found", "limit_id")
        assert refusal(await http.delete(f"/limits/{limit['id']}")) == gone
        assert await every_page(http, "/webhooks") == []
        assert await every_page(http, "/limits") == []
        mine = created(await http.post("/webhooks", json=HOOK))
        assert mine["livemode"] is False
        made = created(await http.post("/keys", json={}))
        assert (made["livemode"], made["secret"][:9]) == (False, "igw_test_")
        widened = await http.patch(f"/webhooks/{mine['id']}", json={"livemode": None})
        assert refusal(widened) == FORBIDDEN


async def test_another_tenants_ids_are_not_found(served: Served) -> None:
    other = await served.tenant("other")
    theirs = await served.key(tenant_id=other, scopes=ALL, user="bob")
    async with at(served, theirs) as http:
        hook = created(await http.post("/webhooks", json=HOOK))
        body = {"kind": "images", "value": 5, "user_id": str(theirs.user_id)}
        limit = created(await http.put("/limits", json=body))
    async with at(served, await served.key(scopes=ALL)) as http:
        key, user = f"/keys/{theirs.id}", f"/users/{theirs.user_id}"
        webhook = f"/webhooks/{hook['id']}"
        answers = [
            await http.get(key),
            await http.patch(key, json={"name": "mine"}),
            await http.post(f"{key}/roll", json={}),
            await http.delete(key),
            await http.get(user),
            await http.patch(user, json={"status": "disabled"}),
            await http.delete(user),
            await http.get(webhook),
            await http.patch(webhook, json={"disabled": True}),
            await http.post(f"{webhook}/roll", json={}),
            await http.post(f"{webhook}/test"),
            await http.get(f"{webhook}/deliveries"),
            await http.delete(webhook),
            await http.put("/limits", json=body),
            await http.put("/limits", json={**body, "user_id": None, "api_key_id": str(theirs.id)}),
            await http.delete(f"/limits/{limit['id']}"),
            await http.post("/keys", json={"user_id": str(theirs.user_id)}),
        ]
        assert [answer.status_code for answer in answers] == [404] * len(answers)
        for path in ("/users", "/limits", "/webhooks"):
            assert await every_page(http, path) == []
    async with at(served, theirs) as http:
        assert answered(await http.get(webhook))["disabled_at"] is None


async def test_the_last_administrator_is_not_revoked_even_by_two_at_once(served: Served) -> None:
    last = Refusal(409, "last_admin_key", "key_id")
    one, other = await served.key(scopes=ALL), await served.key(scopes=ALL)
    # No help: a test key administers test mode alone, an ended one nothing.
    await served.key(scopes=ALL, livemode=False)
    await served.key(scopes=ALL, expires_at=datetime.now(UTC) - timedelta(days=1))
    async with at(served, one) as first, at(served, other) as second:
        answers = await asyncio.gather(
            first.delete(f"/keys/{other.id}"), second.delete(f"/keys/{one.id}")
        )
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses in ([200, 401], [200, 409])
        left = first if answers[0].status_code == 200 else second
        kept = one if left is first else other
        assert refusal(await left.delete(f"/keys/{kept.id}")) == last
        made = created(await left.post("/keys", json={"scopes": ["tenant:admin"]}))
        answered(await left.delete(f"/keys/{kept.id}"))
    async with at(served, made["secret"]) as http:
        assert refusal(await http.delete(f"/keys/{made['id']}")) == last
    # The operator may.
    async with admin(served) as http:
        answered(await http.delete(f"/tenants/{served.tenant_id}/keys/{made['id']}"))


async def test_users_are_made_disabled_and_deleted_but_not_the_own_one(served: Served) -> None:
    root = await served.key(scopes=ALL, user="root")
    async with at(served, root) as http:
        alice = created(await http.post("/users", json={"name": "alice"}))
        taken = await http.post("/users", json={"name": "alice"})
        assert refusal(taken) == Refusal(409, "already_exists", "name")
        async with at(served, await served.key(scopes=ALL)) as other:
            key = created(await other.post("/keys", json={"user_id": alice["id"]}))
        path = f"/users/{alice['id']}"
        disabled = answered(await http.patch(path, json={"status": "disabled"}))
        assert disabled == {**alice, "status": "disabled"}
        async with at(served, key["secret"]) as own:
            assert refusal(await own.get("/models")) == Refusal(403, "user_disabled", None)
        assert answered(await http.get(path)) == disabled
        assert answered(await http.delete(path))["status"] == "deleted"
        assert [u["status"] for u in await every_page(http, "/users")] == ["deleted", "active"]
        mine = f"/users/{root.user_id}"
        assert refusal(await http.patch(mine, json={"status": "disabled"})) == FORBIDDEN
        assert refusal(await http.delete(mine)) == FORBIDDEN
        assert answered(await http.patch(mine, json={"name": "chief"}))["name"] == "chief"


async def test_limits_are_set_up_to_the_tenants_own(served: Served) -> None:
    key = await served.key(user="alice")
    async with admin(served) as operator:
        tenants_own = {"kind": "images", "value": 20}
        own = created(await operator.put(f"/tenants/{served.tenant_id}/limits", json=tenants_own))
    async with at(served, await served.key(scopes=ALL)) as http:
        of_user = {"kind": "images", "value": 20, "user_id": str(key.user_id)}
        made = created(await http.put("/limits", json=of_user))
        assert (made["user_name"], made["value"]) == ("alice", 20)
        above = await http.put("/limits", json={**of_user, "value": 21})
        assert refusal(above) == Refusal(400, "invalid_value", "value")
        lower = answered(await http.put("/limits", json={**of_user, "value": 0}))
        listed = await every_page(http, "/limits")
        assert [(one["owner"], one["value"]) for one in listed] == [("user", 0), ("tenant", 20)]
        assert refusal(await http.put("/limits", json=tenants_own)) == FORBIDDEN
        assert refusal(await http.delete(f"/limits/{own['id']}")) == FORBIDDEN
        async with at(served, key) as user:
            assert refusal(await user.post("/images/generations", json=LOW)).status == 429
        assert (await http.delete(f"/limits/{lower['id']}")).status_code == 204


async def test_webhooks_are_the_tenants_own(served: Served) -> None:
    async with admin(served) as operator:
        created(await operator.post("/webhooks", json=HOOK))
    async with at(served, await served.key(scopes=ALL)) as http:
        answer = await http.post("/webhooks", json=HOOK)
        made = created(answer)
        assert answer.headers["cache-control"] == "no-store"
        assert made["secret"].startswith("whsec_")
        assert made["tenant_id"] == str(served.tenant_id)
        [listed] = await every_page(http, "/webhooks")
        assert listed["id"] == made["id"]
        path = f"/webhooks/{made['id']}"
        rolled = await http.post(f"{path}/roll", json={})
        assert (rolled.status_code, rolled.headers["cache-control"]) == (201, "no-store")
        assert (await http.delete(path)).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/keys", {"scope": ["images:read"]}),
        ("PATCH", f"/keys/{NO_ID}", {"name": "web", "revoked": True}),
        ("POST", "/users", {"name": "alice", "status": "active"}),
        ("PUT", "/limits", {"kind": "images", "value": 1, "tenant_id": NO_ID}),
        ("POST", "/webhooks", {**HOOK, "secret": "whsec_x"}),
        ("GET", "/keys?page=2", None),
        ("GET", "/limits?kind=images", None),
    ],
)
async def test_unknown_fields_are_refused(
    served: Served, method: str, path: str, body: dict[str, Any] | None
) -> None:
    async with at(served, await served.key(scopes=ALL)) as http:
        answer = await http.request(method, path, json=body)
        assert (answer.status_code, refusal(answer).code) == (400, "unknown_parameter")


async def test_a_stored_key_is_tested_without_buying_anything(served: Served, stub: Stub) -> None:
    path = "/credentials/openai"
    async with at(served, await served.key()) as http:
        missing = Refusal(404, "not_found", "provider")
        assert refusal(await http.post(f"{path}/test")) == missing
        await http.put(path, json={"secret": "sk-own-canary-4b8e2d6f1a"})
        tested = answered(await http.post(f"{path}/test"))
        assert tested == {
            "object": "credential_test",
            "provider": "openai",
            "owner": "tenant",
            "last4": "6f1a",
            "status": "valid",
        }
        again = await http.post(f"{path}/test")
        assert refusal(again) == Refusal(429, "rate_limit_exceeded", None)
        assert int(again.headers["retry-after"]) >= 1
    async with at(served, await served.key(livemode=False)) as http:
        assert refusal(await http.post(f"{path}/test")) == FORBIDDEN
    assert [(call.method, call.path) for call in stub.calls] == [("GET", "/v1/models")]
    assert await served.ledger_total() == 0


async def test_a_key_that_the_provider_refuses_is_invalid(served: Served, stub: Stub) -> None:
    stub.configure(accepted_keys=["another"])
    async with at(served, await served.key(user="alice")) as http:
        await http.put("/credentials/openai", json={"secret": "sk-own-canary-4b8e2d6f1a"})
        tested = answered(await http.post("/credentials/openai/test"))
    assert (tested["owner"], tested["status"]) == ("user", "invalid")


async def test_an_unreachable_provider_does_not_make_a_key_invalid(
    database: str, tmp_path: Path
) -> None:
    async with (
        served_gateway(make_settings(database, tmp_path)) as served,
        at(served, await served.key()) as http,
    ):
        await http.put("/credentials/openai", json={"secret": "sk-own-canary-4b8e2d6f1a"})
        assert answered(await http.post("/credentials/openai/test"))["status"] == "unreachable"


async def test_keys_cannot_be_tried_out_one_after_the_other(served: Served, stub: Stub) -> None:
    async with at(served, await served.key()) as http:
        statuses = []
        for _ in range(11):
            await http.put("/credentials/openai", json={"secret": "sk-own-canary-4b8e2d6f1a"})
            statuses.append((await http.post("/credentials/openai/test")).status_code)
            await http.delete("/credentials/openai")
    assert statuses == [200] * 10 + [429]
