"""Names beside ids, and reports of one key, user or model, by whatever it is called."""

import csv
import io
from uuid import UUID

import pytest

from gateway.errors import InvalidRequest, NotFound
from gateway.tenancy.api_keys import IssuedKey
from gateway.tenancy.lookups import find_among, find_key, find_line, find_tenant
from tests.admin_helpers import (
    GENERATIONS,
    LOW,
    NO_ID,
    Refusal,
    admin,
    answered,
    created,
    refusal,
)
from tests.harness import Served
from tests.stub_openai import Stub


async def use(served: Served, key: IssuedKey) -> None:
    async with served.http(key) as http:
        answered(await http.post(GENERATIONS, json=LOW))


async def test_reports_show_names_beside_ids(served: Served, stub: Stub) -> None:
    named, unnamed = await served.key(name="=website", user="alice"), await served.key()
    for key in (named, unnamed):
        await use(served, key)
    async with served.http(unnamed) as http:
        report = answered(await http.get("/v1/usage?group_by=key,user"))["data"]
        table = (await http.get("/v1/usage?group_by=key&format=csv")).text
    async with admin(served) as http:
        by_tenant = answered(await http.get("/usage?group_by=tenant"))["data"]
    shown = {(row["key"], row["key_name"], row["user"], row["user_id"]) for row in report}
    assert shown == {
        (str(named.id), "=website", "alice", str(named.user_id)),
        (str(unnamed.id), None, None, None),
    }
    # A spreadsheet takes no name for a formula.
    header, *rows = csv.reader(io.StringIO(table))
    assert header[:2] == ["key", "key_name"]
    assert {tuple(row[:2]) for row in rows} == {(str(named.id), "'=website"), (str(unnamed.id), "")}
    [row] = by_tenant
    assert (row["tenant"], row["tenant_id"]) == ("acme", str(served.tenant_id))


async def test_a_report_is_of_one_key_user_or_model(served: Served, stub: Stub) -> None:
    alice = await served.key(name="website", user="alice")
    bob = await served.key(name="mailer", user="bob")
    for key in (alice, alice, bob):
        await use(served, key)
    shared = await served.key(scopes=["usage:read"])
    async with served.http(shared) as http:
        counts = {
            query: answered(await http.get(f"/v1/usage?{query}"))["total"]["requests"]
            for query in (
                "key=website",
                f"key={alice.id}",
                f"key={alice.last4}",
                f"user={bob.user_id}",
                f"user={str(bob.user_id)[-4:]}",
                "user=bob&key=website",
                f"model={LOW['model']}",
                "model=dall-e-3",
                "model=%00",
            )
        }
        unknown = [
            refusal(await http.get(f"/v1/usage?{query}"))
            for query in ("key=unknown", f"key={NO_ID}", "user=carol", "key=%00", "user=%00")
        ]
    assert list(counts.values()) == [2, 2, 2, 1, 1, 0, 3, 0, 0]
    assert unknown == [Refusal(404, "not_found", q) for q in ("key", "key", "user", "key", "user")]


async def test_a_report_finds_names_only_within_the_callers_rights(
    served: Served, stub: Stub
) -> None:
    alice, bob = await served.key(name="mine", user="alice"), await served.key(user="bob")
    other = await served.tenant("other")
    foreign = await served.key(tenant_id=other, user="carol", name="foreign")
    test = await served.key(livemode=False, name="sandbox")
    await use(served, bob)
    hidden = (
        *(f"key={bob.id}", f"key={bob.last4}", "user=bob", f"user={bob.user_id}"),
        *(f"key={foreign.id}", "key=foreign", "user=carol", f"key={test.id}", "key=sandbox"),
    )
    async with served.http(alice) as http:
        for query in hidden:
            answer = await http.get(f"/v1/usage?{query}")
            assert refusal(answer).status == 404, query
        assert answered(await http.get("/v1/usage?key=mine&user=alice"))["total"]["requests"] == 0
    async with served.http(test) as http:
        assert refusal(await http.get(f"/v1/usage?key={alice.id}")).status == 404


async def test_an_ambiguous_name_is_refused_with_all_candidates(served: Served) -> None:
    twins = [await served.key(name="twin") for _ in range(2)]
    await served.owner_sql("UPDATE api_key SET last4 = 'same' WHERE name = 'twin'")
    # A name that another key's last characters spell is no answer either.
    third = await served.key(name="same")
    reading = await served.key()
    async with served.http(reading) as http:
        for text, meant in (("twin", twins), ("same", [*twins, third])):
            answer = await http.get(f"/v1/usage?key={text}")
            assert refusal(answer) == Refusal(400, "ambiguous", "key")
            message = answer.json()["error"]["message"]
            assert [str(key.id) in message for key in meant] == [True] * len(meant)
        answered(await http.get(f"/v1/usage?key={twins[0].id}"))


async def test_a_rolled_line_is_one_and_ended_keys_give_way(served: Served) -> None:
    async with admin(served) as http:
        path = f"/tenants/{served.tenant_id}/keys"
        old = created(await http.post(path, json={"name": "web"}))
        twin = created(await http.post(f"{path}/{old['id']}/roll", json={"grace_seconds": 60}))
        async with served.gateway.database.operator() as session:
            assert await find_line(session, None, "web") == UUID(old["id"])
            with pytest.raises(InvalidRequest) as refused:
                await find_key(session, None, "web")
            assert refused.value.code == "ambiguous"
        answered(await http.delete(f"{path}/{old['id']}"))
        async with served.gateway.database.operator() as session:
            assert (await find_key(session, None, "web")).id == UUID(twin["id"])
        answered(await http.delete(f"{path}/{twin['id']}"))
        again = created(await http.post(path, json={"name": "web"}))
        async with served.gateway.database.operator() as session:
            assert await find_line(session, None, "web") == UUID(again["id"])
            assert (await find_key(session, None, old["id"])).id == UUID(old["id"])


async def test_a_tenant_is_found_by_id_name_and_last_characters(served: Served) -> None:
    odd = await served.tenant("café 日本")
    decomposed = "cafe\u0301 日本"
    async with served.gateway.database.operator() as session:
        for text in (str(odd), "café 日本", decomposed, str(odd)[-4:], str(odd)[-4:].upper()):
            assert (await find_tenant(session, text)).id == odd
        for text in ("", "unknown", NO_ID, "\x00"):
            with pytest.raises(NotFound):
                await find_tenant(session, text)


def test_of_several_ids_the_one_that_ends_so_is_meant() -> None:
    one, other = UUID(int=0xA1B2), UUID(int=0xFA1B2)
    last = UUID(int=0xC0DE)
    assert find_among([one, last], "c0de", noun="webhook", param="webhook_id") == last
    with pytest.raises(InvalidRequest):
        find_among([one, other], "a1b2", noun="webhook", param="webhook_id")
    with pytest.raises(NotFound):
        find_among([one, other], "b2", noun="webhook", param="webhook_id")
