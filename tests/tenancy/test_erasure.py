"""Users disabled and deleted, tenants deleted: access ends, secrets are gone, the books stay."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx2
import pytest

from gateway.config import Settings
from gateway.domain import SecretText
from gateway.errors import NotFound
from gateway.tenancy import credentials, erasure, tenants
from gateway.vault.sealing import SealBroken
from tests.admin_helpers import (
    GENERATIONS,
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
from tests.harness import Served, served_gateway
from tests.stub_openai import Fault, Stub

HOOK = {"url": "https://example.com/hook"}
CANARY = "sk-erased-canary-0123456789"


@pytest.fixture
async def second(settings: Settings, served: Served) -> AsyncIterator[Served]:
    """Another gateway at the same database, as one of several workers."""
    async with served_gateway(settings) as running:
        yield running


async def user_named(served: Served, name: str) -> str:
    async with admin(served) as http:
        [user] = await every_page(http, f"/tenants/{served.tenant_id}/users", name=name)
    return str(user["id"])


async def until(served: Served, key: Any, status: int) -> Any:
    """The first answer with this status; another process made the change, so it takes a moment."""
    async with asyncio.timeout(5), served.http(key) as http:
        while (answer := await http.get("/v1/models")).status_code != status:
            pass
    return answer


async def test_a_disabled_user_is_refused_by_every_worker_until_enabled(
    served: Served, second: Served
) -> None:
    alice, other = await served.key(user="alice"), await served.key()
    path = f"/tenants/{served.tenant_id}/users/{await user_named(served, 'alice')}"
    for worker in (served, second):
        await until(worker, alice, 200)
    async with admin(served) as http:
        disabled = answered(await http.patch(path, json={"status": "disabled"}))
        assert disabled["status"] == "disabled"
        async with served.http(alice) as own:
            assert refusal(await own.get("/v1/models")) == Refusal(403, "user_disabled", None)
        told = await until(second, alice, 403)
        assert refusal(told) == Refusal(403, "user_disabled", None)
        await until(second, other, 200)
        answered(await http.patch(path, json={"status": "active", "name": "Alice"}))
    for worker in (served, second):
        await until(worker, alice, 200)
    changes = [e for e in await entries(served) if e["action"].startswith("user.")]
    assert [(e["action"], e["before"], e["after"]) for e in changes[1:]] == [
        (
            "user.disabled",
            {"name": "alice", "status": "active"},
            {"name": "alice", "status": "disabled"},
        ),
        (
            "user.enabled",
            {"name": "alice", "status": "disabled"},
            {"name": "Alice", "status": "active"},
        ),
    ]


async def test_a_users_name_cannot_become_anothers(served: Served) -> None:
    await served.key(user="alice")
    await served.key(user="bob")
    path = f"/tenants/{served.tenant_id}/users/{await user_named(served, 'alice')}"
    async with admin(served) as http:
        taken = refusal(await http.patch(path, json={"name": "bob"}))
        assert taken == Refusal(409, "already_exists", "name")
        gone = refusal(await http.patch(f"{path[:-36]}{NO_ID}", json={"name": "carol"}))
        assert gone == Refusal(404, "not_found", "user_id")


async def test_what_was_deleted_while_no_gateway_ran_is_erased(served: Served) -> None:
    alice = await served.key(user="alice")
    async with admin(served) as http, served.http(alice) as own:
        answered(await own.post(GENERATIONS, json=LOW))
        users = f"/tenants/{served.tenant_id}/users"
        answered(await http.delete(f"{users}/{await user_named(served, 'alice')}"))
    # As if that had been a month ago, and the last sweep a day before.
    await served.owner_sql(
        "UPDATE tenant_user SET deleted_at = now() - interval '30 days' WHERE deleted_at < now()"
    )
    await served.owner_sql(
        "UPDATE sweep SET compared_to = now() - interval '31 days' WHERE name = 'erasures'"
    )
    await served.sweep()
    [image] = await served.owner_sql("SELECT deleted_at FROM image")
    assert image.deleted_at is not None


async def test_no_name_prevents_a_deletion(served: Served) -> None:
    names = ("alice", "bob", "carol")
    for name in names:
        await served.key(user=name)
    ids = {name: await user_named(served, name) for name in names}
    users = f"/tenants/{served.tenant_id}/users"
    async with admin(served) as http:
        # Each has the name that the deletion gives to the one before.
        for name, other in (("bob", "alice"), ("alice", "bob"), ("carol", "alice")):
            given = f"deleted-{ids[other]}" if name != "carol" else "carol of old"
            answered(await http.patch(f"{users}/{ids[name]}", json={"name": given}))
        deleted = answered(await http.delete(f"{users}/{ids['alice']}"))
        assert (deleted["status"], deleted["name"][:8]) == ("deleted", "deleted-")
        answered(await http.delete(f"/tenants/{served.tenant_id}"))
    rows = await served.owner_sql("SELECT DISTINCT status FROM tenant_user")
    assert [row.status for row in rows] == ["deleted"]


async def test_a_deleted_user_is_gone_and_the_costs_stay(served: Served, stub: Stub) -> None:
    async with admin(served) as http:
        answered(await http.patch(f"/tenants/{served.tenant_id}", json={"stores_prompts": True}))
        alice, bob = await served.key(user="alice", name="hers"), await served.key(user="bob")
        for key in (alice, bob):
            async with served.http(key) as own:
                answered(await own.post(GENERATIONS, json=LOW))
        spent = await served.ledger_total()
        user_id = await user_named(served, "alice")
        path = f"/tenants/{served.tenant_id}/users/{user_id}"
        deleted = answered(await http.delete(path))
        assert (deleted["status"], deleted["name"]) == ("deleted", f"deleted-{user_id}")
        assert answered(await http.delete(path)) == deleted
        assert answered(await http.get(path)) == deleted
        changed = refusal(await http.patch(path, json={"status": "active"}))
        assert changed == Refusal(404, "user_deleted", "user_id")
        again = await http.post(f"/tenants/{served.tenant_id}/keys", json={"user_id": user_id})
        assert refusal(again) == Refusal(404, "not_found", "user_id")
    async with served.http(alice) as own:
        assert refusal(await own.get("/v1/models")).status == 401
    await served.sweep()
    rows = await served.owner_sql(
        "SELECT user_id::text, deleted_at IS NOT NULL AS is_gone, prompt, prompt_hash FROM image"
    )
    assert {row.user_id: (row.is_gone, row.prompt) for row in rows} == {
        user_id: (True, None),
        str(bob.user_id): (False, LOW["prompt"]),
    }
    assert await served.ledger_total() == spent
    assert [e["action"] for e in await entries(served)].count("user.deleted") == 1
    # The name is free again, for a user of its own.
    assert (await served.key(user="alice")).user_id != UUID(user_id)


async def test_kept_answers_lose_the_prompts_of_who_is_deleted_alone(
    served: Served, stub: Stub
) -> None:
    for name in ("alice", "bob"):
        async with served.http(await served.key(user=name)) as own:
            answered(await own.post(GENERATIONS, json=LOW, headers={"Idempotency-Key": name}))
    # As if the model had revised the prompts.
    await served.owner_sql(
        """UPDATE idempotency_claim SET answer = jsonb_set(answer, '{revised_prompts}', '["x"]')"""
    )
    path = f"/tenants/{served.tenant_id}"
    kept = []
    for deleted in (f"{path}/users/{await user_named(served, 'alice')}", path):
        async with admin(served) as http:
            answered(await http.delete(deleted))
        await served.sweep()
        rows = await served.owner_sql(
            "SELECT key, answer -> 'revised_prompts' AS prompts FROM idempotency_claim"
        )
        kept.append({row.key: row.prompts for row in rows})
    assert kept == [{"alice": [], "bob": ["x"]}, {"alice": [], "bob": []}]


async def expect_unchangeable(http: httpx2.AsyncClient, path: str) -> None:
    """Every change of what a deleted tenant has is refused."""
    for change in (
        http.patch(path, json={"status": "active"}),
        http.post(f"{path}/keys", json={}),
        http.post(f"{path}/webhooks", json=HOOK),
        http.put(f"{path}/credentials/openai", json={"secret": CANARY}),
        http.post(f"{path}/users", json={"name": "bob"}),
    ):
        assert refusal(await change) == Refusal(404, "tenant_deleted", "tenant_id")


async def test_a_deleted_tenant_is_shredded_and_the_books_stay(
    served: Served, second: Served, stub: Stub
) -> None:
    doomed = await served.tenant("doomed")
    key = await served.key(tenant_id=doomed, user="alice", name="hers")
    test = await served.key(tenant_id=doomed, livemode=False)
    path = f"/tenants/{doomed}"
    async with admin(served) as http:
        answered(await http.patch(path, json={"stores_prompts": True}))
        created(await http.put(f"{path}/credentials/openai", json={"secret": CANARY}))
        created(await http.post(f"{path}/webhooks", json=HOOK))
        async with served.http(key) as own:
            made = answered(
                await own.post(
                    GENERATIONS,
                    json={**LOW, "response_format": "url"},
                    headers={"Idempotency-Key": "once"},
                )
            )
        await until(second, test, 200)
        spent = await served.ledger_total()
        [sealed] = await served.owner_sql("SELECT * FROM credential")
        deleted = answered(await http.delete(path))
        assert (deleted["status"], deleted["name"]) == ("deleted", f"deleted-{doomed}")
        assert answered(await http.delete(path)) == deleted
        await expect_unchangeable(http, path)
        assert await every_page(http, f"{path}/webhooks") == []
        users = await every_page(http, f"{path}/users")
        keys = await every_page(http, f"{path}/keys")
        # The name is free again.
        created(await http.post("/tenants", json={"name": "doomed"}))
    assert [user["status"] for user in users] == ["deleted"]
    assert {(k["name"], k["revoked_at"] is None) for k in keys} == {(None, False)}
    for worker, secret in ((served, key), (served, test), (second, test)):
        await until(worker, secret, 401)
    # The row of a backup opens no more, with the master key at hand.
    with pytest.raises(SealBroken):
        await served.gateway.core.vault.open_for_tenant(
            served.gateway.database,
            doomed,
            sealed.data_key_version,
            sealed.sealed,
            "credential",
            sealed.id,
            sealed.user_id,
            sealed.provider,
            sealed.version,
        )
    await served.sweep()
    async with served.http() as http:
        url = made["data"][0]["url"].removeprefix(served.gateway.settings.public_url)
        assert (await http.get(url)).status_code == 404
    gone = (
        "SELECT 1 FROM data_key WHERE tenant_id = :doomed",
        "SELECT 1 FROM credential WHERE tenant_id = :doomed",
        "SELECT 1 FROM webhook_secret WHERE tenant_id = :doomed",
        "SELECT 1 FROM image WHERE tenant_id = :doomed AND deleted_at IS NULL",
        "SELECT 1 FROM image WHERE tenant_id = :doomed AND prompt IS NOT NULL",
        "SELECT 1 FROM image WHERE tenant_id = :doomed AND prompt_hash IS NOT NULL",
    )
    for statement in gone:
        assert await served.owner_sql(statement, doomed=doomed) == [], statement
    assert await served.ledger_total() == spent
    told = [e["action"] for e in await entries(served, tenant=str(doomed))]
    assert told.count("tenant.deleted") == 1
    async with admin(served) as http:
        report = answered(await http.get(f"/usage?tenant={doomed}&group_by=user"))
    assert [row["requests"] for row in report["data"]] == [1]


@pytest.mark.parametrize("deletes_tenant", [True, False])
async def test_a_paid_call_settles_though_its_owner_is_deleted_meanwhile(
    served: Served, stub: Stub, *, deletes_tenant: bool
) -> None:
    doomed = await served.tenant("doomed")
    key = await served.key(tenant_id=doomed, user="alice")
    path = f"/tenants/{doomed}" if deletes_tenant else f"/tenants/{doomed}/users/{key.user_id}"
    stub.faults.add(Fault(hold=True))
    async with admin(served) as http, served.http(key) as own:
        answered(await http.patch(f"/tenants/{doomed}", json={"stores_prompts": True}))
        calling = asyncio.create_task(own.post(GENERATIONS, json=LOW))
        await stub.until_held(1)
        answered(await http.delete(path))
        stub.release()
        made = await calling
        assert refusal(await own.get("/v1/models")).status == 401
    assert made.status_code == 200
    assert len(stub.calls) == 1
    [call] = await served.owner_sql("SELECT state, final_nano FROM reservation")
    assert (call.state, call.final_nano) == ("posted", await served.ledger_total())
    # The image came after the deletion, and goes with the next sweep.
    await served.sweep()
    [image] = await served.owner_sql("SELECT deleted_at, prompt, prompt_hash FROM image")
    assert image.deleted_at is not None
    assert (image.prompt, image.prompt_hash) == (None, None)


async def test_nothing_is_sealed_for_a_tenant_that_is_deleted_meanwhile(served: Served) -> None:
    doomed = await served.tenant("doomed")
    database = served.gateway.database
    committed = asyncio.Event()

    async def store() -> None:
        async with database.tenant(doomed) as session:
            # Within the transaction of a request that was let in before.
            await tenants.get(session, doomed)
            async with database.operator() as other:
                await erasure.delete_tenant(other, doomed)
            committed.set()
            await credentials.store(
                session,
                doomed,
                vault=served.gateway.core.vault,
                user_id=None,
                provider="openai",
                secret=SecretText(CANARY),
            )

    with pytest.raises(NotFound) as refused:
        await store()
    assert committed.is_set()
    assert refused.value.code == "tenant_deleted"
    assert await served.owner_sql("SELECT 1 FROM data_key WHERE tenant_id = :id", id=doomed) == []
