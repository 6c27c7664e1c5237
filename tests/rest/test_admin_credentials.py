"""Operators' provider keys of tenants over REST: written, replaced, deleted, never read."""

from typing import Any

import pytest

from tests.admin_helpers import (
    GENERATIONS,
    LOW,
    NO_ID,
    Refusal,
    admin,
    answered,
    created,
    every_page,
    refusal,
)
from tests.harness import HOUSE_KEY, Served
from tests.stub_openai import Stub

FIRST, SECOND, OF_ALICE = "sk-canary-first-1f2e3d", "sk-canary-second-4c5b6a", "sk-alice-9z8y7x"


async def test_a_stored_key_pays_for_the_next_call(served: Served, stub: Stub) -> None:
    path = f"/tenants/{served.tenant_id}/credentials"
    key, of_alice = await served.key(), await served.key(user="alice")
    async with admin(served) as http:
        [alice] = await every_page(http, f"/tenants/{served.tenant_id}/users")
        async with served.http(key) as tenant, served.http(of_alice) as user:
            for method, target, secret in (
                ("PUT", "/openai", FIRST),
                ("PUT", "/openai", SECOND),
                ("PUT", f"/openai?user_id={alice['id']}", OF_ALICE),
                ("DELETE", f"/openai?user_id={alice['id']}", None),
                ("DELETE", "/openai", None),
            ):
                body = None if secret is None else {"secret": f"  {secret}\n"}
                answer = await http.request(method, path + target, json=body)
                assert answer.status_code < 300, answer.text
                for client in (tenant, user):
                    answered(await client.post(GENERATIONS, json=LOW))
    pairs = [FIRST, FIRST, SECOND, SECOND, SECOND, OF_ALICE, SECOND, SECOND, HOUSE_KEY, HOUSE_KEY]
    assert [call.key for call in stub.calls] == pairs


async def test_a_stored_credential_is_shown_without_the_secret(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}/credentials"
    async with admin(served) as http:
        users = f"/tenants/{served.tenant_id}/users"
        alice = created(await http.post(users, json={"name": "alice"}))
        first = created(await http.put(f"{path}/openai", json={"secret": FIRST}))
        replaced = answered(await http.put(f"{path}/openai", json={"secret": SECOND}))
        of_alice = created(
            await http.put(f"{path}/openai?user_id={alice['id']}", json={"api_key": OF_ALICE})
        )
        assert await every_page(http, path) == [of_alice, replaced]
        assert await every_page(http, path, limit=1) == [of_alice, replaced]
        deleted = await http.delete(f"{path}/openai")
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert await every_page(http, path) == [of_alice]
        again = refusal(await http.delete(f"{path}/openai"))
    assert first == {
        "id": first["id"],
        "object": "credential",
        "provider": "openai",
        "owner": "tenant",
        "user_id": None,
        "last4": FIRST[-4:],
        "version": 1,
        "updated_at": first["updated_at"],
    }
    assert replaced == first | {
        "last4": SECOND[-4:],
        "version": 2,
        "updated_at": replaced["updated_at"],
    }
    assert (of_alice["owner"], of_alice["user_id"]) == ("user", alice["id"])
    assert again == Refusal(404, "not_found", "provider")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("target", "body", "expected"),
    [
        ("openai", {}, Refusal(400, "missing_required_parameter", "secret")),
        ("openai", {"secret": "short"}, Refusal(400, "invalid_value", "secret")),
        ("openai", {"secret": "sk-" + "x" * 600}, Refusal(400, "invalid_value", "secret")),
        ("openai", {"secret": "sk-with a space"}, Refusal(400, "invalid_value", "secret")),
        ("openai", {"secret": "sk-0123456\x00"}, Refusal(400, "invalid_value", "secret")),
        ("openai", {"secret": [FIRST]}, Refusal(400, "invalid_value", "secret")),
        ("openai", {"secret": FIRST, "x": 1}, Refusal(400, "unknown_parameter", "x")),
        ("acme", {"secret": FIRST}, Refusal(404, "not_found", "provider")),
        ("%00", {"secret": FIRST}, Refusal(404, "not_found", "provider")),
        (f"openai?user_id={NO_ID}", {"secret": FIRST}, Refusal(404, "not_found", "user_id")),
        ("openai?user_id=alice", {"secret": FIRST}, Refusal(400, "invalid_value", "user_id")),
        ("openai?user=alice", {"secret": FIRST}, Refusal(400, "unknown_parameter", "user")),
    ],
)
async def test_an_impossible_provider_key_is_refused_and_not_repeated(
    unchanged: Served, target: str, body: dict[str, Any], expected: Refusal
) -> None:
    path = f"/tenants/{unchanged.tenant_id}/credentials"
    async with admin(unchanged) as http:
        answer = await http.put(f"{path}/{target}", json=body)
        assert refusal(answer) == expected
        assert await every_page(http, path) == []
    for value in body.values():
        assert str(value)[:20] not in answer.text


async def test_a_tenants_users_are_not_anothers(served: Served) -> None:
    other = await served.tenant("other")
    async with admin(served) as http:
        bob = created(await http.post(f"/tenants/{other}/users", json={"name": "bob"}))
        path = f"/tenants/{served.tenant_id}/credentials/openai?user_id={bob['id']}"
        not_his = Refusal(404, "not_found", "user_id")
        assert refusal(await http.put(path, json={"secret": FIRST})) == not_his
        assert refusal(await http.delete(path)).status == 404
        created(await http.put(f"/tenants/{other}/credentials/openai", json={"secret": FIRST}))
        assert await every_page(http, f"/tenants/{served.tenant_id}/credentials") == []
