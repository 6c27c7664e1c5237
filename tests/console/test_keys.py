"""Sign-in by a key: an admin key in an emergency, and a tenant's own API key."""

import asyncio
from typing import Any

import httpx2
import pytest
from prometheus_client import REGISTRY

from gateway.config import Settings
from gateway.db.actors import Actor
from gateway.domain import AdminScope
from gateway.errors import Forbidden
from gateway.identity import callers, sessions
from gateway.identity.failures import FREE_FAILURES
from gateway.tenancy import admin_keys
from gateway.tenancy.admin_keys import IssuedAdminKey
from gateway.webhooks import endpoints, events
from tests.admin_helpers import admin, answered
from tests.console_helpers import browser, operator, reason
from tests.harness import Served, served_gateway
from tests.money_helpers import eventually

ADMIN_FORM, API_FORM = "/console/login/admin-key", "/console/login/api-key"
WRONG = "igw_admin_" + "0" * 36


async def admin_key(served: Served, *scopes: str) -> IssuedAdminKey:
    async with served.gateway.database.operator() as session:
        return await admin_keys.create(
            session,
            f"key {'-'.join(scopes)}",
            pepper=served.gateway.core.pepper,
            origin="command",
            scopes=scopes,
        )


async def post_key(client: httpx2.AsyncClient, form: str, key: Any, **more: str) -> httpx2.Response:
    secret = key if isinstance(key, str) else key.secret.reveal()
    return await client.post(form, data={"key": secret, **more})


async def test_an_admin_key_opens_a_short_session_that_every_page_and_the_audit_trail_mark(
    served: Served,
) -> None:
    key = await admin_key(served, AdminScope.ADMIN)
    async with browser(served) as client:
        answer = await post_key(client, ADMIN_FORM, key, next="/console/people")
        page = await client.get("/console/people")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/people")
    assert "break-glass" in page.text
    [row] = await served.owner_sql(
        "SELECT role, via, absolute_until <= now() + interval '1 hour' AS is_short,"
        " idle_until = absolute_until AS has_one_end FROM console_session"
    )
    assert tuple(row) == ("operator-admin", "admin_key", True, True)
    [audited] = await served.owner_sql(
        "SELECT after ->> 'via' AS via, actor_name FROM audit WHERE action ="
        " 'console.session_begun'"
    )
    assert tuple(audited) == ("admin_key", "key admin (admin key)")
    assert key.secret.reveal() not in page.text


async def test_a_break_glass_sign_in_is_sent_to_the_operators_webhooks_alone(
    served: Served,
) -> None:
    key, few = await admin_key(served, AdminScope.ADMIN), await served.key()
    gateway = served.gateway
    async with gateway.database.operator(by=Actor("cli", "root")) as session:
        for owner in (None, served.tenant_id):
            await endpoints.create(
                session,
                owner,
                sealing=gateway.core.webhook_sealing,
                url="https://hooks.example.com/",
                allow_private=False,
                max_endpoints=5,
            )
    async with browser(served) as client:
        await post_key(client, ADMIN_FORM, "igw_admin_wrong")
        await post_key(client, API_FORM, few)
        await post_key(client, ADMIN_FORM, key)
    async with gateway.database.operator() as session:
        assert await events.announce(session, limit=10) == 1
    [event] = await served.owner_sql(
        "SELECT e.type, e.data, d.tenant_id FROM event e JOIN webhook_delivery d"
        " ON d.event_id = e.id"
    )
    data = {
        "name": "key admin (admin key)",
        "role": "operator-admin",
        "address": "127.0.0.1",
    }
    assert tuple(event) == ("console.break_glass", data, None)


async def test_a_break_glass_session_is_never_extended(served: Served) -> None:
    key = await admin_key(served, AdminScope.ADMIN)
    async with browser(served) as client:
        await post_key(client, ADMIN_FORM, key)
        await served.owner_sql(
            "UPDATE console_session SET last_seen_at = now() - interval '30 minutes',"
            " idle_until = now() + interval '1 minute',"
            " absolute_until = now() + interval '1 minute'"
        )
        assert (await client.get("/console/people")).status_code == 200
    [row] = await served.owner_sql(
        "SELECT idle_until < now() + interval '2 minutes' AS is_short FROM console_session"
    )
    assert row.is_short


async def test_the_scope_of_an_admin_key_decides_the_role(served: Served) -> None:
    reading, metrics = (
        await admin_key(served, AdminScope.ADMIN_READ),
        await admin_key(served, AdminScope.METRICS),
    )
    async with browser(served) as client:
        assert (await post_key(client, ADMIN_FORM, metrics)).status_code == 403
        await post_key(client, ADMIN_FORM, reading)
        seen = await client.get("/console/people")
        refused = await client.post(
            "/console/people/invitations", data={"email": "a@b.example", "role": "operator-viewer"}
        )
        portal = await client.post(f"/console/tenants/{served.tenant_id}/portal")
    assert (seen.status_code, refused.status_code, portal.status_code) == (200, 403, 403)


ELSEWHERE = (
    {"Host": "images.example.com"},
    {"X-Forwarded-Host": "images.example.com"},
    {"X-Forwarded-For": "203.0.113.7"},
    {"Origin": "https://images.example.com"},
)


async def test_an_admin_key_signs_in_from_this_machine_alone(served: Served) -> None:
    key = await admin_key(served, AdminScope.ADMIN)
    async with browser(served) as client:
        for headers in ELSEWHERE:
            form = {"key": key.secret.reveal()}
            refused = await client.post(ADMIN_FORM, data=form, headers=headers)
            assert refused.status_code == 403, headers
        assert "ig_session" not in client.cookies


@pytest.mark.parametrize(("mode", "status"), [("off", 403), ("on", 303)])
async def test_the_operator_decides_where_admin_keys_sign_in(
    settings: Settings, mode: str, status: int
) -> None:
    async with served_gateway(settings.model_copy(update={"console_break_glass": mode})) as served:
        key = await admin_key(served, AdminScope.ADMIN)
        async with browser(served) as client:
            answer = await client.post(
                ADMIN_FORM,
                data={"key": key.secret.reveal()},
                headers={"X-Forwarded-For": "203.0.113.7"},
            )
            page = await client.get("/console/login")
    assert answer.status_code == status
    assert (ADMIN_FORM in page.text) is (mode == "on")


async def test_a_revoked_admin_key_ends_its_sessions(served: Served) -> None:
    key = await admin_key(served, AdminScope.ADMIN)
    async with browser(served) as client:
        await post_key(client, ADMIN_FORM, key)
        async with served.gateway.database.operator() as session:
            await admin_keys.revoke(session, key.id, keeps_one=False)
        assert reason(await client.get("/console")) == "key_ended"


async def test_an_api_key_shows_what_it_may_see_and_no_more(served: Served) -> None:
    key = await served.key(livemode=False, user="alice", scopes=["usage:read"], name="report")
    async with browser(served) as client:
        answer = await post_key(client, API_FORM, key)
        assert answer.status_code == 303
        home = await client.get("/console")
        people = await client.get("/console/people")
        viewer = await sessions.find(served.gateway.database, client.cookies["ig_session"])
    assert f"report …{key.last4}" in home.text
    assert people.status_code == 403
    assert viewer.permissions == {"usage:read"}
    caller = await callers.caller_of(served.gateway.database, viewer, livemode=False)
    assert (caller.api_key_id, caller.user_id) == (key.root_id, key.user_id)
    assert (set(caller.scopes), caller.livemode) == ({"usage:read"}, False)
    with pytest.raises(Forbidden):
        await callers.caller_of(served.gateway.database, viewer, livemode=True)


RESTS_ON = (
    ("api_key", "revoked_at = now()", "revoked_at = NULL", "key_ended"),
    ("api_key", "expires_at = now()", "expires_at = NULL", "key_ended"),
    ("tenant", "status = 'suspended'", "status = 'active'", "tenant_disabled"),
    ("tenant_user", "status = 'disabled'", "status = 'active'", "tenant_disabled"),
)


async def test_a_session_ends_with_what_it_rests_on(served: Served) -> None:
    key = await served.key(user="alice")
    for table, change, undone, ended in RESTS_ON:
        async with browser(served) as client:
            await post_key(client, API_FORM, key)
            assert (await client.get("/console")).status_code == 200, change
            await served.owner_sql(f"UPDATE {table} SET {change}")  # noqa: S608
            token = client.cookies["ig_session"]
            assert reason(await client.get("/console")) == ended
        await served.owner_sql(f"UPDATE {table} SET {undone}")  # noqa: S608
        async with browser(served, cookies={"ig_session": token}) as late:
            assert reason(await late.get("/console")) == ended


async def test_a_rolled_key_ends_the_session_of_the_old_key_alone(served: Served) -> None:
    key = await served.key(scopes=["tenant:admin"])
    async with browser(served) as old, browser(served) as new, served.http(key) as api:
        await post_key(old, API_FORM, key)
        rolled = await api.post(f"/v1/keys/{key.id}/roll", json={"grace_seconds": 0})
        await post_key(new, API_FORM, rolled.json()["secret"])
        assert reason(await old.get("/console")) == "key_ended"
        assert (await new.get("/console")).status_code == 200


async def test_each_form_takes_its_own_kind_of_key(served: Served) -> None:
    key, admin = await served.key(), await admin_key(served, AdminScope.ADMIN)
    async with browser(served) as client:
        answers = [
            (await post_key(client, ADMIN_FORM, key)).status_code,
            (await post_key(client, API_FORM, admin)).status_code,
            (await post_key(client, API_FORM, "igw_live_mistyped")).status_code,
            (await post_key(client, API_FORM, "")).status_code,
        ]
        assert "ig_session" not in client.cookies
    assert answers == [400, 400, 401, 401]


async def test_a_delayed_sign_in_takes_no_connection_from_the_operators(
    settings: Settings,
) -> None:
    def refused() -> float:
        name, labels = "gateway_keys_refused_total", {"kind": "admin"}
        return REGISTRY.get_sample_value(name, labels) or 0

    changed = settings.model_copy(
        update={"refused_key_max_delay_seconds": 12, "console_sign_ins_per_minute": 100}
    )
    async with (
        served_gateway(changed) as served,
        served.http(WRONG) as guesser,
        browser(served) as client,
        admin(served) as operators,
    ):
        before = refused()
        guesses = [asyncio.create_task(guesser.get("/admin/v1/tenants")) for _ in range(8)]
        await eventually(lambda: is_true(refused() == before + 8))
        # From now on a refusal takes as long as it may.
        guesses += [asyncio.create_task(post_key(client, API_FORM, WRONG)) for _ in range(2)]
        await eventually(lambda: is_true(refused() == before + 10))
        answered(await operators.get("/tenants"))
        for task in guesses:
            task.cancel()
        await asyncio.gather(*guesses, return_exceptions=True)


async def is_true(value: object) -> bool:
    return bool(value)


async def test_failures_delay_the_next_sign_in_at_every_gateway(
    served: Served, settings: Settings
) -> None:
    key = await admin_key(served, AdminScope.ADMIN)
    async with browser(served) as client, served_gateway(settings) as other:
        failed = [await post_key(client, ADMIN_FORM, WRONG) for _ in range(FREE_FAILURES)]
        assert {answer.status_code for answer in failed} == {401}
        await served.owner_sql("UPDATE console_failure SET not_before = now() + interval '1 hour'")
        async with browser(other) as elsewhere:
            delayed = await post_key(elsewhere, ADMIN_FORM, key)
        assert delayed.status_code == 429
        assert int(delayed.headers["retry-after"]) > 3000
        assert (await client.get("/console/login")).status_code == 200
        await served.owner_sql("UPDATE console_failure SET not_before = now()")
        assert (await post_key(client, ADMIN_FORM, key)).status_code == 303
    assert await served.owner_sql("SELECT FROM console_failure") == []


async def test_the_delay_doubles_up_to_its_limit(settings: Settings) -> None:
    changed = settings.model_copy(update={"console_max_delay_seconds": 40})
    waits = []
    async with served_gateway(changed) as served, browser(served) as client:
        for _ in range(FREE_FAILURES + 7):
            await post_key(client, API_FORM, "igw_live_wrong")
            [row] = await served.owner_sql(
                "SELECT round(extract(epoch FROM not_before - last_at))::int AS seconds"
                " FROM console_failure"
            )
            waits.append(row.seconds)
            await served.owner_sql("UPDATE console_failure SET not_before = now()")
    assert waits == [0] * (FREE_FAILURES - 1) + [1, 2, 4, 8, 16, 32, 40, 40]


async def test_the_pages_of_sign_in_answer_a_number_of_requests_a_minute(
    settings: Settings,
) -> None:
    changed = settings.model_copy(update={"console_sign_ins_per_minute": 2})
    async with served_gateway(changed) as served, browser(served) as client:
        answers = [await client.get("/console/login") for _ in range(3)]
        other_page = await post_key(client, API_FORM, await served.key())
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["content-type"].startswith("text/html")
    assert answers[2].headers["retry-after"] == "60"
    assert other_page.status_code == 303


async def test_an_operator_opens_any_portal_audited_and_leaves_it_with_a_new_token_each_time(
    served: Served,
) -> None:
    tokens = []
    async with operator(served) as client:
        tokens.append(client.cookies["ig_session"])
        opened = await client.post(f"/console/tenants/{served.tenant_id}/portal")
        assert opened.headers["location"] == "/console"
        tokens.append(client.cookies["ig_session"])
        viewer = await sessions.find(served.gateway.database, tokens[-1])
        inside = await client.get("/console")
        await client.post("/console/portal/leave")
        tokens.append(client.cookies["ig_session"])
        outside = await client.get("/console")
    assert "portal of acme as an operator" in inside.text
    assert "portal of acme as an operator" not in outside.text
    assert (viewer.tenant_id, viewer.is_visiting) == (served.tenant_id, True)
    caller = await callers.caller_of(served.gateway.database, viewer, livemode=False)
    assert (caller.tenant_id, caller.api_key_id, caller.user_id) == (served.tenant_id, None, None)
    assert len(set(tokens)) == 3
    for old in tokens[:2]:
        async with browser(served, cookies={"ig_session": old}) as thief:
            assert (await thief.get("/console")).status_code == 303
    rows = await served.owner_sql(
        "SELECT action, tenant_id, actor_name FROM audit WHERE action LIKE 'console.portal%'"
        " ORDER BY at"
    )
    assert [tuple(row) for row in rows] == [
        ("console.portal_opened", served.tenant_id, "root (sign-in link)"),
        ("console.portal_left", served.tenant_id, "root (sign-in link)"),
    ]
