"""Provider keys at rest and in use: the order of owners, moved ciphertexts, rotation."""

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.config import Settings
from gateway.domain import SecretText
from gateway.errors import ConfigurationError
from gateway.tenancy import credentials
from gateway.tenancy.api_keys import IssuedKey
from gateway.vault.rotation import rewrap_all, used_master_key_ids
from gateway.vault.sealing import (
    SealBroken,
    master_key_id,
    new_master_key,
    seal,
    unseal,
    write_key_file,
)
from tests.harness import GPT2, HOUSE_KEY, Served, error_of, make_settings, served_gateway
from tests.stub_openai import Stub

HEARD_WITHIN_SECONDS = 5
"""Long before the cache would look by itself (30 s), with patience for a busy machine."""

LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
PATH = "/v1/credentials/openai"
TENANT_SECRET, USER_SECRET = "sk-tenant-canary-11112222", "sk-user-canary-33334444"


async def store(served: Served, key: IssuedKey, secret: str) -> None:
    async with served.http(key) as http:
        response = await http.put(PATH, json={"secret": secret})
    assert response.status_code == 200, response.text


async def call(served: Served, key: IssuedKey) -> httpx2.Response:
    async with served.http(key) as http:
        return await http.post("/v1/images/generations", json=LOW)


async def key_used(served: Served, stub: Stub, key: IssuedKey) -> str:
    """The provider key with which the next call reaches the provider."""
    assert (await call(served, key)).status_code == 200
    return stub.calls[-1].key


async def assert_nothing_bought(served: Served, stub: Stub) -> None:
    assert stub.calls == []
    states = await served.owner_sql("SELECT state FROM reservation WHERE state <> 'void'")
    assert list(states) == []


class Abandoned(Exception):
    """Raised to end a transaction without a commit."""


@dataclass(frozen=True)
class Sealed:
    """Two tenants with a credential each, and a user of the first with one."""

    served: Served
    key: IssuedKey
    user_key: IssuedKey
    other_key: IssuedKey


@pytest.fixture
async def sealed(served: Served) -> Sealed:
    other = await served.tenant("other")
    made = Sealed(
        served,
        await served.key(),
        await served.key(user="alice"),
        await served.key(tenant_id=other),
    )
    await store(served, made.key, TENANT_SECRET)
    await store(served, made.user_key, USER_SECRET)
    await store(served, made.other_key, "sk-other-canary-55556666")
    return made


def test_the_id_of_a_master_key_never_changes() -> None:
    """The databases of earlier releases name their master key by it."""
    assert master_key_id(bytes(range(32))) == "a1538faadf64"


def test_a_ciphertext_opens_in_its_own_place_only() -> None:
    key, place = new_master_key(), ("tenant", "credential", 7, "openai", 1)
    ciphertext = seal(key, b"secret", *place)
    assert unseal(key, ciphertext, *place) == b"secret"
    assert seal(key, b"secret", *place) != ciphertext
    changed = [ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), ciphertext[:-1], ciphertext[:12]]
    for wrong_key, wrong_sealed, wrong_place in (
        (new_master_key(), ciphertext, place),
        *((key, wrong, place) for wrong in changed),
        *((key, ciphertext, (*place[:i], "x", *place[i + 1 :])) for i in range(len(place))),
        (key, ciphertext, place[:-1]),
        (key, ciphertext, (*place, "")),
    ):
        with pytest.raises(SealBroken):
            unseal(wrong_key, wrong_sealed, *wrong_place)


TAMPERING = {
    "to another tenant": "UPDATE credential c SET sealed = o.sealed FROM credential o, tenant t"
    " WHERE t.name = 'other' AND o.tenant_id = t.id AND c.tenant_id <> t.id"
    " AND c.user_id IS NULL",
    "to another row of the tenant": "UPDATE credential c SET sealed = o.sealed FROM credential o"
    " WHERE o.user_id IS NOT NULL AND c.tenant_id = o.tenant_id AND c.user_id IS NULL",
    "to another version": "UPDATE credential SET version = version + 1",
    "one bit changed": "UPDATE credential"
    " SET sealed = set_bit(sealed, 200, 1 - get_bit(sealed, 200))",
    "cut to nothing": "UPDATE credential SET sealed = ''",
}


@pytest.mark.parametrize("tampering", TAMPERING)
async def test_a_moved_or_changed_ciphertext_buys_nothing(
    sealed: Sealed, stub: Stub, tampering: str
) -> None:
    await sealed.served.owner_sql(TAMPERING[tampering])
    answer = await call(sealed.served, sealed.key)
    error = error_of(answer)
    assert answer.status_code in {500, 503}
    # The provider was never asked: to call it unreachable sends people looking in the wrong place.
    assert error["code"] != "provider_unreachable"
    assert "canary" not in answer.text
    await assert_nothing_bought(sealed.served, stub)


async def test_an_earlier_ciphertext_put_back_does_not_open(sealed: Sealed, stub: Stub) -> None:
    keep = "CREATE TABLE kept AS SELECT id, sealed FROM credential"
    await sealed.served.owner_sql(keep)
    await store(sealed.served, sealed.key, "sk-tenant-newer-77778888")
    back = "UPDATE credential c SET sealed = k.sealed FROM kept k WHERE k.id = c.id"
    await sealed.served.owner_sql(back)
    assert (await call(sealed.served, sealed.key)).is_error
    await assert_nothing_bought(sealed.served, stub)


async def test_a_data_key_put_in_another_tenants_place_does_not_open(
    sealed: Sealed, settings: Settings, stub: Stub
) -> None:
    await sealed.served.owner_sql(
        "UPDATE data_key d SET wrapped = o.wrapped FROM data_key o WHERE o.tenant_id <> d.tenant_id"
    )
    async with served_gateway(settings) as fresh:
        for key in (sealed.key, sealed.user_key, sealed.other_key):
            assert (await call(fresh, key)).is_error
    await assert_nothing_bought(sealed.served, stub)


async def test_the_users_key_comes_first_then_the_tenants_then_the_houses(
    served: Served, stub: Stub
) -> None:
    shared, alice = await served.key(), await served.key(user="alice")
    assert await key_used(served, stub, alice) == HOUSE_KEY
    await store(served, shared, TENANT_SECRET)
    assert await key_used(served, stub, alice) == TENANT_SECRET
    await store(served, alice, USER_SECRET)
    assert await key_used(served, stub, alice) == USER_SECRET
    assert await key_used(served, stub, shared) == TENANT_SECRET
    assert await key_used(served, stub, await served.key(user="bob")) == TENANT_SECRET
    for key, next_one in ((alice, TENANT_SECRET), (shared, HOUSE_KEY)):
        async with served.http(key) as http:
            assert (await http.delete(PATH)).status_code == 204
            assert (await http.delete(PATH)).status_code == 404
        assert await key_used(served, stub, alice) == next_one


async def test_a_replaced_key_is_used_by_the_next_call(served: Served, stub: Stub) -> None:
    key = await served.key()
    # The gateway that stored it need not be told by Postgres.
    await served.owner_sql("ALTER TABLE credential DISABLE TRIGGER credential_changed")
    used, stored = [], [f"sk-replaced-{number:08d}" for number in range(10)]
    async with served.http(key) as http:
        for secret in stored:
            await http.put(PATH, json={"secret": secret})
            await http.post("/v1/images/generations", json=LOW)
            used.append(stub.calls[-1].key)
        assert used == stored
        await http.delete(PATH)
        await http.post("/v1/images/generations", json=LOW)
    assert stub.calls[-1].key == HOUSE_KEY


async def test_a_replaced_key_reaches_other_gateways_within_a_second(
    served: Served, settings: Settings, stub: Stub
) -> None:
    key = await served.key()
    async with served_gateway(settings) as other:
        assert await key_used(other, stub, key) == HOUSE_KEY
        await store(served, key, TENANT_SECRET)
        async with asyncio.timeout(HEARD_WITHIN_SECONDS):
            while await key_used(other, stub, key) != TENANT_SECRET:
                pass


async def test_many_first_keys_at_once_leave_one_that_works(served: Served, stub: Stub) -> None:
    key = await served.key()
    secrets = [f"sk-first-{number:08d}" for number in range(6)]
    async with served.http(key) as http:
        answers = await asyncio.gather(
            *(http.put(PATH, json={"secret": secret}) for secret in secrets)
        )
        shown = (await http.get(PATH)).json()["last4"]
    assert [answer.status_code for answer in answers] == [200] * len(secrets)
    assert (await key_used(served, stub, key))[-4:] == shown


async def store_and_abandon(served: Served) -> None:
    """Seal a tenant's first key in a transaction that does not commit."""
    async with served.gateway.database.tenant(served.tenant_id) as session:
        await credentials.store(
            session,
            served.tenant_id,
            vault=served.gateway.core.vault,
            user_id=None,
            provider="openai",
            secret=SecretText(USER_SECRET),
        )
        raise Abandoned


async def test_a_store_that_is_rolled_back_spoils_no_later_key(
    served: Served, settings: Settings, stub: Stub
) -> None:
    key = await served.key()
    with pytest.raises(Abandoned):
        await store_and_abandon(served)
    async with served_gateway(settings) as other:
        await store(other, key, TENANT_SECRET)
    assert await key_used(served, stub, key) == TENANT_SECRET


async def test_a_rejected_own_key_is_reported_and_the_houses_is_never_tried(
    served: Served, stub: Stub
) -> None:
    stub.configure(accepted_keys=[HOUSE_KEY])
    key = await served.key()
    await store(served, key, TENANT_SECRET)
    answer = await call(served, key)
    assert (answer.status_code, error_of(answer)["code"]) == (424, "credential_rejected")
    assert answer.headers["x-should-retry"] == "false"
    assert [made.key for made in stub.calls] == [TENANT_SECRET]
    assert await served.ledger_total() == 0


async def test_a_rejection_repeats_no_part_of_a_key_of_any_form(served: Served, stub: Stub) -> None:
    stub.configure(accepted_keys=[HOUSE_KEY])
    key = await served.key()
    for secret in ("zq7xw9vk-4f5e6d7c8b9a-tail", "proj_zq7xw9vk4f5e6d7c8b9a", TENANT_SECRET):
        await store(served, key, secret)
        answer = await call(served, key)
        assert answer.status_code == 424
        assert secret[:8] not in answer.text
        assert secret[-4:] not in answer.text


async def test_a_rejected_house_key_is_the_operators_trouble_alone(
    served: Served, stub: Stub
) -> None:
    stub.configure(accepted_keys=["sk-another-tenants"])
    answer = await call(served, await served.key())
    assert (answer.status_code, error_of(answer)["code"]) == (503, "provider_unavailable")
    for hint in (HOUSE_KEY[:8], HOUSE_KEY[-4:], "api key", "API key", "openai", "***"):
        assert hint not in answer.text, hint
    assert await served.ledger_total() == 0


async def test_a_stored_key_is_never_told_again(served: Served) -> None:
    key = await served.key()
    async with served.http(key) as http:
        stored = await http.put(PATH, json={"secret": f"  {TENANT_SECRET}\n"})
        shown = await http.get(PATH)
        deleted = await http.delete(PATH)
        gone = await http.get(PATH)
    updated_at = shown.json()["updated_at"]
    assert shown.json() == {
        "object": "credential",
        "provider": "openai",
        "owner": "tenant",
        "last4": TENANT_SECRET[-4:],
        "updated_at": updated_at,
    }
    assert stored.json() == shown.json()
    assert (deleted.status_code, deleted.content, gone.status_code) == (204, b"", 404)


BAD_CREDENTIALS: dict[str, Any] = {
    "no secret": {},
    "another name": {"key": TENANT_SECRET},
    "a name too many": {"secret": TENANT_SECRET, "provider": "openai"},
    "both names": {"secret": TENANT_SECRET, "api_key": TENANT_SECRET},
    "null": {"secret": None},
    "number": {"secret": 12345678},
    "list": {"secret": [TENANT_SECRET]},
    "object": {"secret": {"value": TENANT_SECRET}},
    "empty": {"secret": ""},
    "short": {"secret": "sk-1"},
    "long": {"secret": "sk-" + "x" * 498},
    "space inside": {"secret": f"{TENANT_SECRET} {TENANT_SECRET}"},
    "line end inside": {"secret": f"{TENANT_SECRET}\r\nX-Evil: 1"},
    "NUL": {"secret": f"{TENANT_SECRET}\x00"},
    "not ASCII": {"secret": f"{TENANT_SECRET}é"},
    "text": TENANT_SECRET,
}


async def test_an_invalid_provider_key_is_refused_without_repeating_it(served: Served) -> None:
    key = await served.key()
    async with served.http(key) as http:
        for name, body in BAD_CREDENTIALS.items():
            response = await http.put(PATH, content=json.dumps(body))
            assert response.status_code == 400, name
            error_of(response)
            assert TENANT_SECRET not in response.text, name
        for path in ("/v1/credentials/acme", "/v1/credentials/OpenAI", "/v1/credentials/%00"):
            response = await http.put(path, json={"secret": TENANT_SECRET})
            assert response.status_code == 404
        assert (await http.get(PATH)).status_code == 404


async def test_a_test_key_stores_no_provider_key(served: Served) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        for method in ("GET", "PUT", "DELETE"):
            response = await http.request(method, PATH, json={"secret": TENANT_SECRET})
            assert (response.status_code, error_of(response)["code"]) == (403, "insufficient_scope")


def key_file_settings(settings: Settings, path: Path) -> Settings:
    assert settings.database_url is not None
    return make_settings(
        settings.database_url.get_secret_value(),
        settings.data_dir,
        OPENAI_BASE_URL=settings.openai_base_url,
        master_key=None,
        master_key_file=path,
    )


async def all_serve(stub: Stub, *calls: Awaitable[httpx2.Response]) -> list[str]:
    """The calls all succeed; with which provider keys they were made."""
    before = len(stub.calls)
    answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    return sorted(made.key for made in stub.calls[before:])


async def test_the_master_key_is_rotated_while_two_gateways_serve(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    path, old, new = tmp_path / "keys", new_master_key(), new_master_key()
    write_key_file(path, [old])
    own = key_file_settings(settings, path)
    async with served_gateway(own) as first, served_gateway(own) as second:
        key, quiet = await first.key(), await first.key(tenant_id=await first.tenant("quiet"))
        await store(first, key, TENANT_SECRET)
        await store(first, quiet, USER_SECRET)
        assert await all_serve(stub, call(first, key)) == [TENANT_SECRET]
        write_key_file(path, [new, old])
        assert await all_serve(stub, call(first, key), call(second, key)) == [TENANT_SECRET] * 2
        rewrapping = asyncio.create_task(
            rewrap_all(first.gateway.database, first.gateway.core.vault.master_keys)
        )
        assert await all_serve(stub, *(call(first, key) for _ in range(5))) == [TENANT_SECRET] * 5
        # Two data keys and the gateway's own five secrets.
        assert await rewrapping == 7
        assert await used_master_key_ids(first.gateway.database) == {master_key_id(new)}
        write_key_file(path, [new])
        # The quiet tenant's data key has not been opened since the start.
        assert await all_serve(stub, call(second, quiet), call(second, key)) == [
            TENANT_SECRET,
            USER_SECRET,
        ]
        await store(second, key, "sk-after-rotation-9999")
        async with served_gateway(own) as fresh:
            assert await all_serve(stub, call(fresh, key)) == ["sk-after-rotation-9999"]
    write_key_file(path, [old])
    with pytest.raises(ConfigurationError, match=master_key_id(new)):
        async with served_gateway(own):
            pass
