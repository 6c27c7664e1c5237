"""Operators' keys over REST: issued, rolled with a grace, revoked; their effects at once."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest

from gateway.domain import USUAL_KEY_SCOPES
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
    refusal,
)
from tests.harness import GPT2, Served

YEAR_SECONDS = 366 * 86_400
INVALID_KEY = Refusal(401, "invalid_api_key", None)


def keys_of(served: Served, tenant_id: UUID | None = None) -> str:
    return f"/tenants/{tenant_id or served.tenant_id}/keys"


def without_secret(key: JsonObject) -> JsonObject:
    return {name: value for name, value in key.items() if name != "secret"}


async def test_a_key_is_issued_and_its_secret_shown_this_once(served: Served) -> None:
    path = keys_of(served)
    async with admin(served) as http:
        made = created(await http.post(path, json={}))
        listing = await http.get(path)
        answered(await http.get("/audit"))
    assert made == {
        "id": made["id"],
        "object": "api_key",
        "root_id": made["id"],
        "name": None,
        "user_id": None,
        "livemode": True,
        "last4": made["secret"][-4:],
        "scopes": sorted(USUAL_KEY_SCOPES),
        "models": None,
        "expires_at": None,
        "revoked_at": None,
        "created_at": made["created_at"],
        "secret": made["secret"],
    }
    assert made["secret"].startswith("igw_live_")
    assert listing.json()["data"] == [without_secret(made)]
    assert made["secret"] not in listing.text
    async with served.http(made["secret"]) as tenant:
        answered(await tenant.get("/v1/models"))


async def test_a_key_may_do_what_it_was_issued_for(served: Served) -> None:
    ends_at = (datetime.now(UTC) + timedelta(days=90)).replace(microsecond=0)
    async with admin(served) as http:
        users = f"/tenants/{served.tenant_id}/users"
        alice = created(await http.post(users, json={"name": "alice"}))
        body = {
            "user_id": alice["id"],
            "livemode": False,
            "scopes": ["usage:read", "images:write", "usage:read"],
            "models": [GPT2],
            "expires_at": ends_at.astimezone().isoformat(),
        }
        made = created(await http.post(keys_of(served), json=body))
    assert made["user_id"] == alice["id"]
    assert (made["livemode"], made["models"]) == (False, [GPT2])
    assert made["scopes"] == ["images:write", "usage:read"]
    assert datetime.fromisoformat(made["expires_at"]) == ends_at
    async with served.http(made["secret"]) as tenant:
        answered(await tenant.post(GENERATIONS, json=LOW))
        assert refusal(await tenant.get("/v1/images")).code == "insufficient_scope"
        other = {**LOW, "model": "gpt-image-2.5-flare"}
        assert refusal(await tenant.post(GENERATIONS, json=other)).code == "model_not_allowed"
        report = answered(await tenant.get("/v1/usage?group_by=user"))
    assert [(row["user"], row["images"]) for row in report["data"]] == [("alice", 1)]


@pytest.mark.parametrize("name", ["website", "Ünï & Co 日本", "x7Qa", "[red]x[/red]", "n" * 100])
async def test_all_keys_of_a_rolled_line_have_one_name(served: Served, name: str) -> None:
    async with admin(served) as http:
        old = created(await http.post(keys_of(served), json={"name": "before"}))
        other = created(await http.post(keys_of(served), json={"name": "before"}))
        path = f"{keys_of(served)}/{old['id']}"
        twin = created(await http.post(f"{path}/roll", json={}))
        assert (old["name"], other["name"], twin["name"]) == ("before", "before", "before")
        renamed = answered(await http.patch(path, json={"name": name}))
        assert renamed["name"] == name
        named = {key["id"]: key["name"] for key in await every_page(http, keys_of(served))}
        assert named == {old["id"]: name, twin["id"]: name, other["id"]: "before"}
        answered(await http.patch(f"{keys_of(served)}/{twin['id']}", json={"name": None}))
        named = {key["id"]: key["name"] for key in await every_page(http, keys_of(served))}
        assert named == {old["id"]: None, twin["id"]: None, other["id"]: "before"}
        told = [entry for entry in await entries(served) if entry["action"] == "api_key.renamed"]
    assert [(e["object_id"], e["before"]["name"], e["after"]["name"]) for e in told] == [
        (old["id"], "before", name),
        (twin["id"], name, None),
    ]


async def test_two_spellings_of_a_name_are_one(served: Served) -> None:
    async with admin(served) as http:
        made = created(await http.post(keys_of(served), json={"name": "cafe\u0301"}))
    assert made["name"] == "caf\u00e9"


PAST = "2020-01-01T00:00:00Z"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"scopes": ["images:burn"]}, Refusal(400, "invalid_value", "scopes")),
        ({"scopes": []}, Refusal(400, "invalid_value", "scopes")),
        ({"scopes": "images:read"}, Refusal(400, "invalid_value", "scopes")),
        ({"scopes": [5]}, Refusal(400, "invalid_value", "scopes.0")),
        ({"models": ["gpt-image-99"]}, Refusal(404, "model_not_found", "models")),
        ({"models": ["\x00"]}, Refusal(404, "model_not_found", "models")),
        ({"models": []}, Refusal(400, "invalid_value", "models")),
        ({"livemode": "false"}, Refusal(400, "invalid_value", "livemode")),
        ({"name": ""}, Refusal(400, "invalid_value", "name")),
        ({"name": "  "}, Refusal(400, "invalid_value", "name")),
        ({"name": "a\nb"}, Refusal(400, "invalid_value", "name")),
        ({"name": "\u202egnp"}, Refusal(400, "invalid_value", "name")),
        ({"name": "n" * 101}, Refusal(400, "invalid_value", "name")),
        ({"name": 5}, Refusal(400, "invalid_value", "name")),
        ({"user_id": NO_ID}, Refusal(404, "not_found", "user_id")),
        ({"user_id": "alice"}, Refusal(400, "invalid_value", "user_id")),
        ({"expires_at": PAST}, Refusal(400, "invalid_value", "expires_at")),
        ({"expires_at": "2099-01-01T00:00:00Z"}, Refusal(400, "invalid_value", "expires_at")),
        ({"expires_at": "9999-12-31T23:59:59-23:59"}, Refusal(400, "invalid_value", "expires_at")),
        ({"expires_at": "2027-01-01T00:00:00"}, Refusal(400, "invalid_value", "expires_at")),
        ({"expires_at": 1_800_000_000}, Refusal(400, "invalid_value", "expires_at")),
        ({"expires_at": "90d"}, Refusal(400, "invalid_value", "expires_at")),
        ({"secret": "igw_live_x"}, Refusal(400, "unknown_parameter", "secret")),
        ({"test": True}, Refusal(400, "unknown_parameter", "test")),
    ],
)
async def test_an_invalid_key_request_is_refused(
    unchanged: Served, body: dict[str, Any], expected: Refusal
) -> None:
    async with admin(unchanged) as http:
        assert refusal(await http.post(keys_of(unchanged), json=body)) == expected
        assert await every_page(http, keys_of(unchanged)) == []


async def test_a_revoked_key_opens_nothing_from_the_next_request_on(served: Served) -> None:
    async with admin(served) as http:
        for _ in range(20):
            made = created(await http.post(keys_of(served), json={}))
            async with served.http(made["secret"]) as tenant:
                answered(await tenant.get("/v1/models"))
                revoked = answered(await http.delete(f"{keys_of(served)}/{made['id']}"))
                assert refusal(await tenant.get("/v1/models")) == INVALID_KEY
            assert revoked == {**without_secret(made), "revoked_at": revoked["revoked_at"]}
            again = answered(await http.delete(f"{keys_of(served)}/{made['id']}"))
            assert again == revoked
        assert revoked in await every_page(http, keys_of(served))


async def test_a_key_rolled_with_grace_works_until_its_time_and_not_after(served: Served) -> None:
    async with admin(served) as http:
        users = f"/tenants/{served.tenant_id}/users"
        alice = created(await http.post(users, json={"name": "alice"}))
        body = {"user_id": alice["id"], "scopes": ["images:read"], "models": [GPT2]}
        old = created(await http.post(keys_of(served), json=body))
        before = datetime.now(UTC)
        roll = f"{keys_of(served)}/{old['id']}/roll"
        twin = created(await http.post(roll, json={"grace_seconds": 3600}))
        assert twin == {
            **old,
            **{name: twin[name] for name in ("id", "secret", "last4", "created_at")},
        }
        assert twin["id"] != old["id"]
        assert twin["root_id"] == old["id"]
        [_, ending] = await every_page(http, keys_of(served))
        lasts = datetime.fromisoformat(ending["expires_at"]) - before
        assert timedelta(hours=1) <= lasts < timedelta(hours=1, minutes=1)
        async with served.http(old["secret"]) as first, served.http(twin["secret"]) as second:
            for tenant in (first, second):
                answered(await tenant.get("/v1/models"))
            await served.owner_sql(
                "UPDATE api_key SET expires_at = now() - interval '1 second' WHERE id = :id",
                id=UUID(old["id"]),
            )
            # Another process made this change, so it is heard of by notification.
            async with asyncio.timeout(5):
                while (ended := await first.get("/v1/models")).status_code == 200:
                    pass
            assert refusal(ended) == INVALID_KEY
            answered(await second.get("/v1/models"))
        gone = Refusal(404, "not_found", "key_id")
        assert refusal(await http.post(roll, json={})) == gone


async def test_a_key_rolled_without_grace_ends_at_once(served: Served) -> None:
    async with admin(served) as http:
        old = created(await http.post(keys_of(served), json={"livemode": False}))
        async with served.http(old["secret"]) as tenant:
            answered(await tenant.get("/v1/models"))
            roll = f"{keys_of(served)}/{old['id']}/roll"
            twin = created(await http.post(roll, json={"grace_seconds": 0}))
            assert refusal(await tenant.get("/v1/models")) == INVALID_KEY
        async with served.http(twin["secret"]) as tenant:
            answered(await tenant.get("/v1/models"))


@pytest.mark.parametrize("grace", [-1, YEAR_SECONDS + 1, 10**30, 1.5, "24h", None, True])
async def test_an_invalid_grace_is_refused(served: Served, grace: Any) -> None:
    async with admin(served) as http:
        old = created(await http.post(keys_of(served), json={}))
        roll = f"{keys_of(served)}/{old['id']}/roll"
        answer = refusal(await http.post(roll, json={"grace_seconds": grace}))
        assert answer == Refusal(400, "invalid_value", "grace_seconds")
        assert await every_page(http, keys_of(served)) == [without_secret(old)]


async def test_of_two_concurrent_rolls_without_grace_one_succeeds(served: Served) -> None:
    async with admin(served) as http:
        old = created(await http.post(keys_of(served), json={}))
        roll = f"{keys_of(served)}/{old['id']}/roll"
        answers = await asyncio.gather(
            *(http.post(roll, json={"grace_seconds": 0}) for _ in range(4))
        )
        assert sorted(answer.status_code for answer in answers) == [201, 404, 404, 404]
        assert len(await every_page(http, keys_of(served))) == 2


async def test_a_key_is_reached_through_its_own_tenant_alone(served: Served) -> None:
    other = await served.tenant("other")
    async with admin(served) as http:
        made = created(await http.post(keys_of(served), json={}))
        theirs = created(await http.post(f"/tenants/{other}/users", json={"name": "bob"}))
        gone = Refusal(404, "not_found", "key_id")
        for key_id in (made["id"], NO_ID):
            path = f"{keys_of(served, other)}/{key_id}"
            assert refusal(await http.delete(path)) == gone
            assert refusal(await http.post(f"{path}/roll", json={})) == gone
            assert refusal(await http.patch(path, json={"name": "mine"})) == gone
        foreign = await http.post(keys_of(served), json={"user_id": theirs["id"]})
        assert refusal(foreign) == Refusal(404, "not_found", "user_id")
        assert await every_page(http, keys_of(served, other)) == []
        assert await every_page(http, keys_of(served)) == [without_secret(made)]


async def test_keys_of_more_than_a_page_are_listed_newest_first(served: Served) -> None:
    async with admin(served) as http:

        async def issue(http: httpx2.AsyncClient) -> str:
            return str(created(await http.post(keys_of(served), json={"livemode": False}))["id"])

        made = [await issue(http) for _ in range(105)]
        for limit in (10, 100):
            listed = await every_page(http, keys_of(served), limit=limit)
            assert [key["id"] for key in listed] == made[::-1]
