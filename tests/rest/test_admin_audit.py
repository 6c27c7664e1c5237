"""The audit trail: one row for each change, exact, in its transaction, without a secret."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.db.actors import Actor
from gateway.domain import Scope, SecretText
from gateway.tenancy import credentials, tenants
from tests.admin_helpers import (
    GENERATIONS,
    LOW,
    NO_ID,
    JsonObject,
    Refusal,
    admin,
    answered,
    created,
    entries,
    every_page,
    operator_actor,
    refusal,
)
from tests.harness import GPT2, HOUSE_KEY, MASTER_KEY, Served, secret_of
from tests.tenancy.test_security_canaries import dump, leaks
from tests.tenancy.test_security_isolation import ALLOWED, DENIED, as_role, state_of

FIRST, SECOND = "sk-audit-canary-1a2b3c4d5e", "sk-audit-canary-5e4d3c2b1a"
TENANT = {
    "name": "globex",
    "status": "active",
    "time_zone": "UTC",
    "continuity": True,
    "fallback": True,
    "stores_prompts": False,
    "image_retention_seconds": None,
    "max_image_bytes": None,
}


def told(found: list[JsonObject]) -> list[tuple[str, str, Any, Any]]:
    """Action, object, and the values before and after, of each entry."""
    return [(e["action"], e["object_id"], e["before"], e["after"]) for e in found]


def shown_key(key: JsonObject, **changes: Any) -> JsonObject:
    kept = (
        "root_id",
        "name",
        "user_id",
        "last4",
        "livemode",
        "scopes",
        "models",
        "expires_at",
        "revoked_at",
    )
    return {**{name: key[name] for name in kept}, **changes}


def same_moment(one: str, other: str) -> bool:
    return datetime.fromisoformat(one) == datetime.fromisoformat(other)


async def test_every_change_of_a_tenant_is_audited(served: Served) -> None:
    async with admin(served) as http:
        tenant = created(await http.post("/tenants", json={"name": "globex"}))
        path = f"/tenants/{tenant['id']}"
        for change in (
            {"max_image_bytes": 10, "stores_prompts": True},
            {"stores_prompts": True},
            {"status": "suspended", "name": "initech"},
            {"status": "suspended"},
            {"status": "active"},
            {},
        ):
            answered(await http.patch(path, json=change))
        alice = created(await http.post(f"{path}/users", json={"name": "alice"}))
    found = await entries(served, tenant=tenant["id"])
    stored = {**TENANT, "max_image_bytes": 10, "stores_prompts": True}
    paused = {**stored, "status": "suspended", "name": "initech"}
    assert told(found) == [
        ("tenant.created", tenant["id"], None, TENANT),
        ("tenant.updated", tenant["id"], TENANT, stored),
        ("tenant.suspended", tenant["id"], stored, paused),
        ("tenant.resumed", tenant["id"], paused, {**paused, "status": "active"}),
        ("user.created", alice["id"], None, {"name": "alice"}),
    ]


async def test_a_row_names_the_actor_the_time_and_the_request(served: Served) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    async with admin(served) as http:
        answer = await http.post("/tenants", json={"name": "globex"})
    tenant = created(answer)
    [entry] = await entries(served, tenant=tenant["id"])
    assert entry == {
        "id": entry["id"],
        "object": "audit_entry",
        "at": entry["at"],
        "actor": await operator_actor(served),
        "request_id": answer.headers["x-request-id"],
        "action": "tenant.created",
        "tenant_id": tenant["id"],
        "tenant_name": "globex",
        "object_id": tenant["id"],
        "object_name": "globex",
        "before": None,
        "after": TENANT,
    }
    assert before < datetime.fromisoformat(entry["at"]) < datetime.now(UTC) + timedelta(seconds=1)


async def test_every_change_of_a_key_is_audited(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}/keys"
    async with admin(served) as http:
        body = {"scopes": ["images:read"], "models": [GPT2], "livemode": False}
        key = created(await http.post(path, json=body))
        twin = created(await http.post(f"{path}/{key['id']}/roll", json={"grace_seconds": 60}))
        revoked = answered(await http.delete(f"{path}/{twin['id']}"))
        answered(await http.delete(f"{path}/{twin['id']}"))
        [_, old] = await every_page(http, path)
    issued, rolled, ended = (await entries(served, tenant=str(served.tenant_id)))[1:]
    assert told([issued]) == [("api_key.issued", key["id"], None, shown_key(key))]
    until = rolled["after"]["expires_at"]
    assert same_moment(until, old["expires_at"])
    assert told([rolled]) == [
        (
            "api_key.rolled",
            key["id"],
            shown_key(key),
            {**shown_key(key, expires_at=until), "twin": {"id": twin["id"], **shown_key(twin)}},
        )
    ]
    at = ended["after"]["revoked_at"]
    assert same_moment(at, revoked["revoked_at"])
    assert told([ended]) == [
        ("api_key.revoked", twin["id"], shown_key(twin), shown_key(twin, revoked_at=at))
    ]
    assert shown_key(key)["scopes"] == [Scope.IMAGES_READ]


async def test_credentials_budgets_and_prices_are_audited(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}"
    price = {"model": GPT2, "text_input": "5", "image_input": "8", "image_output": "28"}
    start = "2025-06-01T00:00:00+00:00"
    async with admin(served) as http:
        stored = created(await http.put(f"{path}/credentials/openai", json={"secret": FIRST}))
        answered(await http.put(f"{path}/credentials/openai", json={"secret": SECOND}))
        await http.delete(f"{path}/credentials/openai")
        budget = created(
            await http.put(f"{path}/budgets", json={"window": "day", "limit_usd": "5"})
        )
        for limit in ("5.00", "7.5"):
            body = {"window": "day", "limit_usd": limit}
            answered(await http.put(f"{path}/budgets", json=body))
        await http.delete(f"{path}/budgets/{budget['id']}")
        added = created(await http.post("/prices", json={**price, "effective_from": start}))
    credential = {"provider": "openai", "user_id": None, "last4": FIRST[-4:], "version": 1}
    replaced = {**credential, "last4": SECOND[-4:], "version": 2}
    first = {
        "api_key_id": None,
        "user_id": None,
        "livemode": True,
        "window": "day",
        "limit_usd": "5.00",
        "enforcement": "hard",
        "alert_percents": [50, 80, 100],
        "raise": None,
    }
    raised = {**first, "limit_usd": "7.50"}
    found = (await entries(served, tenant=str(served.tenant_id)))[1:]
    assert told(found) == [
        ("credential.stored", stored["id"], None, credential),
        ("credential.stored", stored["id"], credential, replaced),
        ("credential.deleted", stored["id"], replaced, None),
        ("budget.created", budget["id"], None, first),
        ("budget.updated", budget["id"], first, raised),
        ("budget.removed", budget["id"], raised, None),
    ]
    [version] = await entries(served, action="price.added")
    rates = {"text_input": "5.00", "image_input": "8.00", "image_output": "28.00"}
    expected = {
        "model": GPT2,
        "effective_from": start,
        **rates,
        "text_output": "28.00",
        "per_image": "0.00",
        "per_second": "0.00",
    }
    assert told([version]) == [("price.added", added["id"], None, expected)]
    assert version["tenant_id"] is None


async def test_a_tenants_own_change_is_audited_under_its_key(served: Served) -> None:
    key = await served.key(user="alice")
    async with served.http(key) as http:
        answered(await http.put("/v1/credentials/openai", json={"secret": FIRST}))
        assert (await http.delete("/v1/credentials/openai")).status_code == 204
        answered(await http.post(GENERATIONS, json=LOW))
        [image] = answered(await http.get("/v1/images"))["data"]
        gone = await http.delete(f"/v1/images/{image['id']}")
        assert refusal(await http.delete(f"/v1/images/{image['id']}")).status == 404
    found = (await entries(served, tenant=str(served.tenant_id)))[-3:]
    assert [entry["action"] for entry in found] == [
        "credential.stored",
        "credential.deleted",
        "image.deleted",
    ]
    actor = {"type": "api_key", "id": str(key.id), "name": None}
    assert [entry["actor"] for entry in found] == [actor] * 3
    deleted = found[-1]
    assert (deleted["object_id"], deleted["after"]) == (image["id"], None)
    assert set(deleted["before"]) == {"livemode", "user_id", "created_at"}
    assert deleted["request_id"] == gone.headers["x-request-id"]
    assert LOW["prompt"] not in json.dumps(found)


async def test_a_refused_change_leaves_no_row(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}"
    before = await entries(served)
    async with admin(served) as http:
        for method, target, body in (
            ("POST", "/tenants", {"name": "acme"}),
            ("PATCH", path, {"time_zone": "Mars/Olympus", "continuity": False}),
            ("POST", f"{path}/users", {"name": ""}),
            ("POST", f"{path}/keys", {"user_id": NO_ID}),
            ("DELETE", f"{path}/keys/{NO_ID}", None),
            ("PUT", f"{path}/credentials/acme", {"secret": FIRST}),
            ("DELETE", f"{path}/credentials/openai", None),
            ("PUT", f"{path}/budgets", {"window": "day", "limit_usd": "-5"}),
            ("DELETE", f"{path}/budgets/1", None),
            ("POST", "/prices", {"model": "nothing", "per_image": "1"}),
        ):
            refusal(await http.request(method, target, json=body))
        for reading in ("/tenants", path, f"{path}/keys", "/usage", "/prices", "/audit"):
            answered(await http.get(reading))
    assert await entries(served) == before


class Undo(Exception):
    """Rolls a transaction back."""


async def make_tenant_and_undo(served: Served, actor: Actor) -> None:
    async with served.gateway.database.operator(by=actor) as session:
        await tenants.create(session, "globex")
        raise Undo


async def store_credential_and_undo(served: Served, actor: Actor) -> None:
    async with served.gateway.database.tenant(served.tenant_id, by=actor) as session:
        await credentials.store(
            session,
            served.tenant_id,
            vault=served.gateway.core.vault,
            user_id=None,
            provider="openai",
            secret=SecretText(FIRST),
        )
        raise Undo


async def test_a_change_that_is_rolled_back_takes_its_row_with_it(served: Served) -> None:
    before = await entries(served)
    for change in (make_tenant_and_undo, store_credential_and_undo):
        with pytest.raises(Undo):
            await change(served, Actor("cli", "alice"))
    assert await entries(served) == before


async def test_the_trail_is_read_by_tenant_action_and_time(served: Served) -> None:
    async with admin(served) as http:
        globex = created(await http.post("/tenants", json={"name": "globex"}))
        for n in range(120):
            body = {"max_image_bytes": n}
            answered(await http.patch(f"/tenants/{globex['id']}", json=body))
        everything = await every_page(http, "/audit")
        for limit in (7, 100):
            assert await every_page(http, "/audit", limit=limit) == everything
        assert [entry["at"] for entry in everything] == sorted(
            (entry["at"] for entry in everything), reverse=True
        )
        updated = await every_page(http, "/audit", action="tenant.updated")
        assert updated == everything[:120]
        assert await every_page(http, "/audit", tenant=globex["id"]) == everything[:121]
        moment = everything[60]["at"]
        assert await every_page(http, "/audit", start=moment) == everything[:61]
        assert await every_page(http, "/audit", end=moment) == everything[61:]
        assert await every_page(http, "/audit", end="2020-12-31") == []
        assert await every_page(http, "/audit", tenant=NO_ID) == []
        for query in ("after=x", f"after={NO_ID}", "action=tenant", "start=x", "tenant=acme"):
            answer = refusal(await http.get(f"/audit?{query}"))
            assert answer == Refusal(400, "invalid_value", query.partition("=")[0])


async def test_the_first_start_is_audited(served: Served) -> None:
    found = [(e["action"], e["actor"]) for e in await entries(served)]
    gateway = {"type": "gateway", "id": "gateway", "name": None}
    assert found == [("operator_key.created", gateway), ("tenant.created", gateway)]


async def test_the_trail_holds_no_secret(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}"
    async with admin(served) as http:
        key = created(await http.post(f"{path}/keys", json={}))
        twin = created(await http.post(f"{path}/keys/{key['id']}/roll", json={}))
        await http.put(f"{path}/credentials/openai", json={"secret": FIRST})
        await http.put(f"{path}/credentials/openai", json={"secret": SECOND})
        await http.delete(f"{path}/credentials/openai")
        await http.put(f"{path}/credentials/openai", json={"secret": SECOND})
        answers = [await http.get("/audit"), await http.get(f"{path}/keys")]
    rows = await served.owner_sql(
        "SELECT encode(digest, 'hex') AS hidden FROM key_directory"
        " UNION ALL SELECT encode(digest, 'hex') FROM operator_key"
        " UNION ALL SELECT encode(sealed, 'hex') FROM credential"
        " UNION ALL SELECT encode(wrapped, 'hex') FROM data_key"
        " UNION ALL SELECT encode(sealed, 'hex') FROM sealed_secret"
    )
    core = served.gateway.core
    assert core.new_admin_key is not None
    secrets = {
        "key": key["secret"].encode(),
        "twin": twin["secret"].encode(),
        "first": FIRST.encode(),
        "second": SECOND.encode(),
        "admin key": secret_of(core.new_admin_key.reveal()).encode(),
        "house key": HOUSE_KEY.encode(),
        "master key": MASTER_KEY.encode(),
        "pepper": core.pepper.value,
        "link key": core.secrets.signing_link_key(time.time()),
        **{row.hidden[:12]: bytes.fromhex(row.hidden) for row in rows},
    }
    assert len(secrets) == 9 + len(rows)
    shown = {"answers": b"".join(answer.content for answer in answers)}
    trail = {"audit": (await dump(served))["audit"]}
    assert len(trail["audit"]) > 1000
    assert leaks(shown | trail, secrets) == set()


async def test_the_serving_role_can_only_add_and_read(served: Served) -> None:
    change = "UPDATE audit SET action = 'tenant.updated'"
    for statement in (change, "DELETE FROM audit", "TRUNCATE audit"):
        assert await state_of(served, statement, as_operator=True) == DENIED
    insert = (
        "INSERT INTO audit (id, actor_type, actor_id, action, tenant_id, object_id{})"
        " VALUES (gen_random_uuid(), 'cli', 'eve', 'tenant.created', :tenant, 'x'{})"
    )
    own, other = served.tenant_id, await served.tenant("other")
    for tenant, session_tenant, expected in (
        (own, own, ALLOWED),
        (other, own, DENIED),
        (None, own, DENIED),
    ):
        state = await state_of(
            served, insert.format("", ""), tenant_id=session_tenant, tenant=tenant
        )
        assert state == expected
    backdated = insert.format(", at", ", now() - interval '1 year'")
    assert await state_of(served, backdated, as_operator=True, tenant=own) == DENIED


async def test_not_even_its_owner_can_change_the_trail(served: Served) -> None:
    before = await entries(served)
    for statement in ("UPDATE audit SET actor_id = 'x'", "DELETE FROM audit", "TRUNCATE audit"):
        with pytest.raises(DBAPIError):
            await served.owner_sql(statement)
    assert await entries(served) == before


async def test_a_tenants_session_sees_its_own_rows_alone(served: Served) -> None:
    other = await served.tenant("other")
    await served.key(tenant_id=other)
    async with as_role(served, tenant_id=str(served.tenant_id)) as connection:
        rows = await connection.execute(text("SELECT tenant_id FROM audit"))
        assert {row.tenant_id for row in rows} == {served.tenant_id}
    async with as_role(served) as connection:
        assert (await connection.execute(text("SELECT 1 FROM audit"))).all() == []
