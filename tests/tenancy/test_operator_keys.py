"""Admin keys: scopes, expiry, rolling, revoking, and the key that GATEWAY_ADMIN_KEY names."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.domain import SecretText
from gateway.tenancy import admin_keys
from gateway.vault import gateway_secrets, key_format, key_status
from tests.admin_helpers import (
    NO_ID,
    ROOT,
    JsonObject,
    Refusal,
    admin,
    admin_secret,
    answered,
    created,
    entries,
    every_page,
    refusal,
)
from tests.harness import TLS, Served, make_settings, served_gateway

KEYS = "/admin-keys"
INVALID_KEY = Refusal(401, "invalid_api_key", None)
NO_SCOPE = Refusal(403, "insufficient_scope", None)
HEARD_WITHIN_SECONDS = 5
"""Long before the cache would look by itself (30 s), with patience for a busy machine."""
SHORT_LIVES_SECONDS = (3, 4.5)
"""Lifetimes to try in turn, until a key is used before it expires."""


def client(served: Served, secret: str) -> httpx2.AsyncClient:
    """A client with this admin key; paths begin at the root."""
    return httpx2.AsyncClient(
        base_url=served.base_url,
        headers={"Authorization": f"Bearer {secret}"},
        timeout=60,
        verify=TLS,
    )


async def make(http: httpx2.AsyncClient, name: str, *scopes: str, **more: Any) -> JsonObject:
    body = {"name": name, "scopes": list(scopes) or ["admin"], **more}
    return created(await http.post(f"{ROOT}{KEYS}", json=body))


def without_secret(key: JsonObject) -> JsonObject:
    return {name: value for name, value in key.items() if name != "secret"}


async def until_refused(http: httpx2.AsyncClient, path: str = f"{ROOT}/tenants") -> Refusal:
    async with asyncio.timeout(HEARD_WITHIN_SECONDS):
        while not (answer := await http.get(path)).is_error:
            pass
    return refusal(answer)


async def test_an_admin_key_is_created_and_its_secret_shown_this_once(served: Served) -> None:
    async with admin(served) as http:
        answer = await http.post(KEYS, json={"name": "deploy", "scopes": ["metrics", "admin"]})
        made = created(answer)
        one = await http.get(f"{KEYS}/{made['id']}")
        listing = await http.get(KEYS)
    assert answer.headers["cache-control"] == "no-store"
    assert made == {
        "id": made["id"],
        "object": "admin_key",
        "name": "deploy",
        "scopes": ["admin", "metrics"],
        "origin": "rest",
        "last4": made["secret"][-4:],
        "created_at": made["created_at"],
        "expires_at": None,
        "revoked_at": None,
        "last_used_at": None,
        "secret": made["secret"],
    }
    assert key_format.key_kind(made["secret"]) == "admin"
    assert answered(one) == without_secret(made)
    first, newest = listing.json()["data"][1], listing.json()["data"][0]
    assert newest == without_secret(made)
    assert (first["name"], first["origin"], first["scopes"]) == (
        "first key",
        "first_start",
        ["admin"],
    )
    assert made["secret"] not in listing.text + one.text
    stored = await served.owner_sql("SELECT * FROM operator_key")
    assert made["secret"] not in str(stored)


async def test_the_last_use_of_a_key_is_shown(served: Served) -> None:
    async with admin(served) as http:
        made = await make(client(served, admin_secret(served)), "deploy")
        assert answered(await http.get(f"{KEYS}/{made['id']}"))["last_used_at"] is None
        before = datetime.now(UTC) - timedelta(seconds=1)
        async with client(served, made["secret"]) as used:
            answered(await used.get(f"{ROOT}/tenants"))
        shown = answered(await http.get(f"{KEYS}/{made['id']}"))["last_used_at"]
    assert before <= datetime.fromisoformat(shown) <= datetime.now(UTC)


async def test_each_scope_opens_its_own_routes_and_no_others(served: Served) -> None:
    async with client(served, admin_secret(served)) as http:
        document = (await http.get("/openapi.json")).json()["paths"]
        secrets = {
            scope: (await make(http, scope, scope))["secret"]
            for scope in ("metrics", "admin:read", "admin")
        }
        both = await make(http, "both", "admin:read", "metrics")
    operations = [
        (method.upper(), path.replace("{tenant_id}", str(served.tenant_id)).replace("{", "%7B"))
        for path, methods in document.items()
        if path.startswith(ROOT)
        for method in methods
        if method in {"get", "post", "put", "patch", "delete"}
    ]
    assert len(operations) > 50
    for secret in (secrets["admin:read"], both["secret"]):
        async with client(served, secret) as http:
            assert (await http.get("/metrics")).status_code == 200
            for method, path in operations:
                answer = await http.request(method, path, json={})
                if method == "GET":
                    assert answer.status_code != 403, path
                else:
                    assert refusal(answer) == NO_SCOPE, (method, path)
    async with client(served, secrets["metrics"]) as http:
        assert (await http.get("/metrics")).status_code == 200
        for method, path in operations:
            assert refusal(await http.request(method, path, json={})) == NO_SCOPE, (method, path)
    async with client(served, secrets["admin"]) as http:
        assert (await http.get("/metrics")).status_code == 200
        await make(http, "another")
    tenants_route = await client(served, secrets["admin:read"]).get("/v1/models")
    assert refusal(tenants_route) == NO_SCOPE


async def test_a_read_only_key_cannot_extend_its_scopes(served: Served) -> None:
    async with client(served, admin_secret(served)) as http:
        reading = await make(http, "auditor", "admin:read")
        other = await make(http, "deploy")
    attempts: tuple[tuple[str, str, JsonObject | None], ...] = (
        ("POST", KEYS, {"name": "mine", "scopes": ["admin"]}),
        ("POST", f"{KEYS}/{reading['id']}/roll", {}),
        ("POST", f"{KEYS}/{other['id']}/roll", {"grace_seconds": 0}),
        ("DELETE", f"{KEYS}/{other['id']}", None),
        ("POST", f"/tenants/{served.tenant_id}/keys", {}),
        ("PATCH", f"/tenants/{served.tenant_id}", {"status": "suspended"}),
    )
    async with client(served, reading["secret"]) as http:
        for method, path, body in attempts:
            for disguise in ({}, {"X-HTTP-Method-Override": "GET"}):
                answer = await http.request(method, f"{ROOT}{path}", json=body, headers=disguise)
                assert refusal(answer) == NO_SCOPE, (method, path)
    async with admin(served) as http:
        names = {key["name"] for key in await every_page(http, KEYS)}
        assert names == {"first key", "auditor", "deploy"}
        assert await every_page(http, f"/tenants/{served.tenant_id}/keys") == []


PAST, FAR = "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scopes": ["root"]}, Refusal(400, "invalid_value", "scopes")),
        ({"scopes": []}, Refusal(400, "invalid_value", "scopes")),
        ({"scopes": "admin"}, Refusal(400, "invalid_value", "scopes")),
        ({"scopes": ["images:read"]}, Refusal(400, "invalid_value", "scopes")),
        ({"name": ""}, Refusal(400, "invalid_value", "name")),
        ({"name": "a\x00b"}, Refusal(400, "invalid_value", "name")),
        ({"name": "first key"}, Refusal(409, "already_exists", "name")),
        ({"expires_at": PAST}, Refusal(400, "invalid_value", "expires_at")),
        ({"expires_at": FAR}, Refusal(400, "invalid_value", "expires_at")),
        ({"secret": "igw_admin_x"}, Refusal(400, "unknown_parameter", "secret")),
    ],
)
async def test_an_invalid_key_request_is_refused(
    unchanged: Served, change: JsonObject, expected: Refusal
) -> None:
    async with admin(unchanged) as http:
        answer = await http.post(KEYS, json={"name": "new", "scopes": ["admin"], **change})
        assert refusal(answer) == expected
        assert len(await every_page(http, KEYS)) == 1


async def test_a_cached_key_ends_at_its_expiry(served: Served) -> None:
    for seconds in SHORT_LIVES_SECONDS:
        ends_at = datetime.now(UTC) + timedelta(seconds=seconds)
        async with client(served, admin_secret(served)) as http:
            made = await make(http, "brief", expires_at=ends_at.isoformat())
        async with client(served, made["secret"]) as http:
            first = await http.get(f"{ROOT}/tenants")
        if first.is_success or refusal(first) != INVALID_KEY:
            break
    answered(first)
    async with client(served, made["secret"]) as http:
        assert await until_refused(http) == INVALID_KEY
    assert datetime.now(UTC) >= ends_at


async def test_a_revoked_key_is_refused_at_once_and_by_other_gateways_within_a_second(
    served: Served, settings: Settings
) -> None:
    async with (
        served_gateway(settings) as other,
        client(served, admin_secret(served)) as http,
    ):
        made = await make(http, "deploy")
        async with client(served, made["secret"]) as here, client(other, made["secret"]) as there:
            for used in (here, there):
                answered(await used.get(f"{ROOT}/tenants"))
            revoked = answered(await http.delete(f"{ROOT}{KEYS}/{made['id']}"))
            assert refusal(await here.get(f"{ROOT}/tenants")) == INVALID_KEY
            assert await until_refused(there) == INVALID_KEY
        assert revoked["revoked_at"] is not None
        assert answered(await http.delete(f"{ROOT}{KEYS}/{made['id']}")) == revoked
        missing = Refusal(404, "not_found", "admin_key_id")
        assert refusal(await http.delete(f"{ROOT}{KEYS}/{NO_ID}")) == missing
        assert refusal(await http.get(f"{ROOT}{KEYS}/{NO_ID}")) == missing
        gone = await http.post(f"{ROOT}{KEYS}/{made['id']}/roll", json={})
        assert refusal(gone) == missing


async def test_a_rolled_key_works_for_its_grace_and_its_twin_beyond(served: Served) -> None:
    async with client(served, admin_secret(served)) as http:
        old = await make(http, "prometheus", "metrics")
        roll = f"{ROOT}{KEYS}/{old['id']}/roll"
        twin = created(await http.post(roll, json={"grace_seconds": 3600}))
        own = ("id", "secret", "last4", "created_at")
        assert twin == {**old, **{name: twin[name] for name in own}}
        assert twin["id"] != old["id"]
        async with client(served, old["secret"]) as first, client(served, twin["secret"]) as second:
            for used in (first, second):
                assert (await used.get("/metrics")).status_code == 200
            await served.owner_sql(
                "UPDATE operator_key SET expires_at = now() - interval '1 second' WHERE id = :id",
                id=UUID(old["id"]),
            )
            assert await until_refused(first, "/metrics") == INVALID_KEY
            assert (await second.get("/metrics")).status_code == 200
            again = created(
                await http.post(f"{ROOT}{KEYS}/{twin['id']}/roll", json={"grace_seconds": 0})
            )
            assert refusal(await second.get("/metrics")) == INVALID_KEY
        assert again["scopes"] == ["metrics"]
        for grace in (-1, 366 * 86_400 + 1, "24h"):
            answer = await http.post(
                f"{ROOT}{KEYS}/{again['id']}/roll", json={"grace_seconds": grace}
            )
            assert refusal(answer) == Refusal(400, "invalid_value", "grace_seconds")


async def test_the_last_key_that_may_change_anything_is_not_revoked_over_rest(
    served: Served,
) -> None:
    async with client(served, admin_secret(served)) as http:
        [first] = answered(await http.get(f"{ROOT}{KEYS}"))["data"]
        reading = await make(http, "auditor", "admin:read", "metrics")
        last = Refusal(409, "last_admin_key", None)
        assert refusal(await http.delete(f"{ROOT}{KEYS}/{first['id']}")) == last
        # A key without the scope admin is never the last one.
        answered(await http.delete(f"{ROOT}{KEYS}/{reading['id']}"))
        second = await make(http, "second")
        answered(await http.delete(f"{ROOT}{KEYS}/{first['id']}"))
    async with client(served, second["secret"]) as http:
        assert refusal(await http.delete(f"{ROOT}{KEYS}/{second['id']}")) == last
    # On the server, where another can be made, it is.
    async with served.gateway.database.operator() as session:
        await admin_keys.revoke(session, UUID(second["id"]), keeps_one=False)


async def test_of_two_keys_that_revoke_each_other_one_stays(served: Served) -> None:
    async with client(served, admin_secret(served)) as http:
        [first] = answered(await http.get(f"{ROOT}{KEYS}"))["data"]
        keys = [await make(http, f"key {number}") for number in range(2)]
        answered(await http.delete(f"{ROOT}{KEYS}/{first['id']}"))
    async with (
        client(served, keys[0]["secret"]) as one,
        client(served, keys[1]["secret"]) as two,
    ):
        for used in (one, two):
            answered(await used.get(f"{ROOT}/tenants"))
        answers = await asyncio.gather(
            one.delete(f"{ROOT}{KEYS}/{keys[1]['id']}"), two.delete(f"{ROOT}{KEYS}/{keys[0]['id']}")
        )
    # The slower one finds its own key revoked, or the other's to be the last.
    assert min(answer.status_code for answer in answers) == 200
    assert answers[0].status_code != answers[1].status_code
    rows = await served.owner_sql("SELECT id FROM operator_key WHERE revoked_at IS NULL")
    assert len(rows) == 1


async def test_the_trail_names_the_key_that_made_a_change(served: Served) -> None:
    async with client(served, admin_secret(served)) as http:
        deploy = await make(http, "deploy")
    async with client(served, deploy["secret"]) as http:
        created(await http.post(f"{ROOT}/tenants", json={"name": "globex"}))
        brief = await make(http, "brief", "metrics")
        rolled = created(await http.post(f"{ROOT}{KEYS}/{brief['id']}/roll", json={}))
        answered(await http.delete(f"{ROOT}{KEYS}/{rolled['id']}"))
    found = (await entries(served))[-4:]
    actor = {"type": "operator_key", "id": deploy["id"], "name": "deploy"}
    assert [entry["actor"] for entry in found] == [actor] * 4
    assert [(entry["action"], entry["object_id"]) for entry in found[1:]] == [
        ("operator_key.created", brief["id"]),
        ("operator_key.rolled", brief["id"]),
        ("operator_key.revoked", rolled["id"]),
    ]
    assert found[2]["after"]["twin"]["id"] == rolled["id"]
    for secret in (deploy, brief, rolled):
        assert secret["secret"] not in str(found)


def with_key(settings: Settings, secret: str) -> Settings:
    assert settings.database_url is not None
    return make_settings(
        settings.database_url.get_secret_value(),
        settings.data_dir,
        OPENAI_BASE_URL=settings.openai_base_url,
        admin_key=SecretStr(secret),
    )


async def test_another_value_of_the_setting_revokes_the_former_ones_key_alone(
    settings: Settings,
) -> None:
    one, two = (key_format.new_key("admin").reveal() for _ in range(2))
    async with served_gateway(with_key(settings, one)) as running:
        assert running.gateway.core.new_admin_key is None
        async with client(running, one) as http:
            other = await make(http, "deploy")
            # A new replica starts while the former one still serves.
            async with (
                served_gateway(with_key(settings, two)) as newer,
                client(newer, two) as newer_http,
            ):
                answered(await newer_http.get(f"{ROOT}/tenants"))
                assert await until_refused(http) == INVALID_KEY
        async with client(running, other["secret"]) as http:
            answered(await http.get(f"{ROOT}/tenants"))
        async with client(running, two) as http:
            answered(await http.get(f"{ROOT}/tenants"))
            found = [
                (key["name"], key["origin"], key["revoked_at"] is None)
                for key in await every_page(http, f"{ROOT}{KEYS}")
            ]
    assert found == [
        ("GATEWAY_ADMIN_KEY", "setting", True),
        ("deploy", "rest", True),
        ("GATEWAY_ADMIN_KEY", "setting", False),
    ]


async def test_a_replica_with_the_former_setting_reverts_no_key(settings: Settings) -> None:
    one, two = (key_format.new_key("admin").reveal() for _ in range(2))
    for secret in (one, two, one, two):
        async with served_gateway(with_key(settings, secret)) as running:
            async with client(running, one) as http:
                answer = await http.get(f"{ROOT}/tenants")
            async with client(running, two) as http:
                newer = await http.get(f"{ROOT}/tenants")
        if newer.is_error:
            answered(answer)
            continue
        assert refusal(answer) == INVALID_KEY
    assert newer.status_code == 200


async def roll_pepper(served: Served) -> None:
    async with served.gateway.database.operator() as session:
        await gateway_secrets.roll_pepper(session, served.gateway.core.vault)
    await served.owner_sql(
        "UPDATE sealed_secret SET created_at = now() - interval '2 days' WHERE name LIKE 'pepper.%'"
    )


async def test_a_revoked_key_does_not_return_when_its_pepper_is_retired(
    settings: Settings,
) -> None:
    one, two, lost = (key_format.new_key("admin").reveal() for _ in range(3))
    async with (
        served_gateway(with_key(settings, one)) as running,
        running.gateway.database.operator() as session,
    ):
        made = await admin_keys.create(
            session,
            "lost",
            pepper=running.gateway.core.pepper,
            origin="command",
            secret=SecretText(lost),
        )
        await admin_keys.revoke(session, made.id, keeps_one=True)
    for version in (1, 2):
        async with served_gateway(with_key(settings, two)) as running:
            await roll_pepper(running)
        async with (
            served_gateway(with_key(settings, two)) as running,
            running.gateway.database.operator() as session,
        ):
            vault = running.gateway.core.vault
            assert await key_status.end_keys_on_old_peppers(session, version + 1) == 0
            retired = await gateway_secrets.retire_peppers(session, vault, ended_keys=0)
            assert retired == [version]
    for former in (one, lost):
        async with served_gateway(with_key(settings, former)) as running:
            async with client(running, former) as http:
                assert refusal(await http.get(f"{ROOT}/tenants")) == INVALID_KEY
            async with client(running, two) as http:
                answered(await http.get(f"{ROOT}/tenants"))
            names = await running.owner_sql("SELECT name FROM sealed_secret ORDER BY name")
    # The second one knew no key that has ended, so nothing of it is left.
    assert [row.name for row in names if "pepper" in row.name] == ["pepper.3", "retired_pepper.1"]


async def test_the_settings_key_takes_the_newest_pepper_at_a_start(settings: Settings) -> None:
    """Or retiring the pepper of a key that is set and seldom used would end it for good."""
    one = key_format.new_key("admin").reveal()
    async with served_gateway(with_key(settings, one)) as running:
        await roll_pepper(running)
    async with served_gateway(with_key(settings, one)) as running:
        async with running.gateway.database.operator() as session:
            assert await key_status.end_keys_on_old_peppers(session, 2) == 0
        async with client(running, one) as http:
            answered(await http.get(f"{ROOT}/tenants"))


async def test_a_setting_that_names_a_key_made_otherwise_leaves_it_when_it_changes(
    served: Served, settings: Settings
) -> None:
    async with client(served, admin_secret(served)) as http:
        made = (await make(http, "deploy"))["secret"]
    for secret in (made, key_format.new_key("admin").reveal()):
        async with served_gateway(with_key(settings, secret)) as running:
            for usable in (made, secret, admin_secret(served)):
                async with client(running, usable) as http:
                    answered(await http.get(f"{ROOT}/tenants"))


async def test_the_key_of_an_earlier_release_is_known_as_the_settings(settings: Settings) -> None:
    one, two = (key_format.new_key("admin").reveal() for _ in range(2))
    async with served_gateway(with_key(settings, one)) as running:
        # As the release before wrote it.
        await running.owner_sql("UPDATE operator_key SET origin = NULL, name = ''")
    for secret in (one, two):
        async with served_gateway(with_key(settings, secret)) as running:
            pass
    async with served_gateway(with_key(settings, two)) as running, client(running, one) as http:
        assert refusal(await http.get(f"{ROOT}/tenants")) == INVALID_KEY


async def test_a_restart_makes_no_admin_key_after_all_are_revoked(
    served: Served, settings: Settings
) -> None:
    async with served.gateway.database.operator() as session:
        [key] = await admin_keys.list_all(session)
        await admin_keys.revoke(session, key.id, keeps_one=False)
    async with served_gateway(settings) as again:
        assert again.gateway.core.new_admin_key is None
