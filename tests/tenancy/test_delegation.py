"""A key with `tenant:admin` makes no key that outlives it or escapes what holds it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.domain import LimitKind, Scope
from gateway.tenancy import limit_rows
from gateway.tenancy.api_keys import IssuedKey
from tests.admin_helpers import answered, created, refusal
from tests.harness import Served
from tests.tenancy.test_self_service import ALL, FORBIDDEN, at


async def limit(served: Served, **owner: Any) -> limit_rows.StoredLimit:
    async with served.gateway.database.tenant(served.tenant_id) as session:
        return await limit_rows.set_limit(
            session, served.tenant_id, kind=LimitKind.REQUESTS, value=1000, **owner
        )


async def refused_to_give(served: Served, key: IssuedKey | str, *others: IssuedKey) -> None:
    """Neither makes a key nor rolls these, which would show a secret of theirs."""
    async with at(served, key) as http:
        assert refusal(await http.post("/keys", json={})) == FORBIDDEN
        for other in others:
            assert refusal(await http.post(f"/keys/{other.id}/roll", json={})) == FORBIDDEN


async def test_a_key_that_expires_makes_none_that_lives_longer(served: Served) -> None:
    ends_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)
    brief, endless = await served.key(scopes=ALL, expires_at=ends_at), await served.key()
    day = timedelta(days=1)
    async with at(served, brief) as http:
        later = {"expires_at": (ends_at + day).isoformat()}
        answer = await http.post("/keys", json=later)
        assert refusal(answer) == FORBIDDEN
        assert f"{ends_at:%Y-%m-%dT%H:%M:%SZ}" in answer.json()["error"]["message"]
        assert refusal(await http.post(f"/keys/{endless.id}/roll", json={})) == FORBIDDEN
        earlier = {"expires_at": (ends_at - day).isoformat()}
        for body, expected in (({}, ends_at), (earlier, ends_at - day)):
            made = created(await http.post("/keys", json=body))
            assert datetime.fromisoformat(made["expires_at"]) == expected
        twin = created(await http.post(f"/keys/{brief.id}/roll", json={}))
        assert datetime.fromisoformat(twin["expires_at"]) == ends_at


async def test_in_its_grace_a_rolled_key_makes_none_that_lives_longer(served: Served) -> None:
    key = await served.key(scopes=ALL)
    async with at(served, key) as http:
        twin = created(await http.post(f"/keys/{key.id}/roll", json={"grace_seconds": 3600}))
        assert refusal(await http.post(f"/keys/{twin['id']}/roll", json={})) == FORBIDDEN
        made = created(await http.post("/keys", json={}))
    assert datetime.fromisoformat(made["expires_at"]) < datetime.now(UTC) + timedelta(hours=2)


async def test_a_users_key_makes_keys_of_that_user_alone(served: Served) -> None:
    alice, bob = await served.key(scopes=ALL, user="alice"), await served.key(user="bob")
    tenants_own = await served.key()
    async with at(served, alice) as http:
        for body in ({}, {"user_id": str(alice.user_id)}):
            made = created(await http.post("/keys", json=body))
            assert made["user_id"] == str(alice.user_id)
        answer = await http.post("/keys", json={"user_id": str(bob.user_id)})
        assert refusal(answer) == FORBIDDEN
        for other in (bob, tenants_own):
            assert refusal(await http.post(f"/keys/{other.id}/roll", json={})) == FORBIDDEN
        created(await http.post(f"/keys/{made['id']}/roll", json={}))


async def test_a_key_with_a_budget_or_a_limit_gives_no_other(served: Served) -> None:
    other = await served.key()
    with_budget, with_limit = [await served.key(scopes=ALL) for _ in range(2)]
    await served.budget("5", api_key_id=with_budget.id)
    await limit(served, api_key_id=with_limit.id)
    for key in (with_budget, with_limit):
        await refused_to_give(served, key, other)
        async with at(served, key) as http:
            twin = created(await http.post(f"/keys/{key.id}/roll", json={}))
        # Its twin is held as it is.
        await refused_to_give(served, twin["secret"], other)
    # A limit of a user applies to all of the user's keys.
    alice = await served.key(scopes=ALL, user="alice")
    await served.budget("5", user_id=alice.user_id)
    async with at(served, alice) as http:
        created(await http.post("/keys", json={}))


async def test_a_removed_budget_binds_no_longer(served: Served) -> None:
    key = await served.key(scopes=ALL)
    await served.budget("5", api_key_id=key.id)
    await refused_to_give(served, key)
    await served.owner_sql("UPDATE budget SET removed_at = now(), limit_nano = 1000000000000000000")
    async with at(served, key) as http:
        created(await http.post("/keys", json={}))


async def test_a_key_cannot_loosen_its_own_limits(served: Served) -> None:
    alice = await served.key(scopes=ALL, user="alice")
    bob = await served.key(scopes=[Scope.TENANT_ADMIN], user="bob")
    for owner in ({"api_key_id": alice.id}, {"user_id": alice.user_id}):
        stored = await limit(served, **owner)
        body = {"kind": "requests", **{name: str(one) for name, one in owner.items()}}
        async with at(served, alice) as http:
            assert refusal(await http.put("/limits", json={**body, "value": 1001})) == FORBIDDEN
            assert refusal(await http.delete(f"/limits/{stored.id}")) == FORBIDDEN
            answered(await http.put("/limits", json={**body, "value": 900}))
        async with at(served, bob) as http:
            answered(await http.put("/limits", json={**body, "value": 1001}))
            assert (await http.delete(f"/limits/{stored.id}")).status_code == 204
