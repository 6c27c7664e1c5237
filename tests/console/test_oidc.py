"""Sign-in through the identity provider: people, roles, invitations, and attacks on the flow."""

import re
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from pydantic import SecretStr
from werkzeug.wrappers import Response

from gateway.config import Settings
from gateway.identity import callers, sessions
from gateway.identity.transactions import changing_tenant
from gateway.identity.viewers import Permission
from gateway.tenancy import self_service
from tests.console_helpers import browser, led_to, operator, reason
from tests.harness import TLS, Served
from tests.identity_provider import CLIENT_SECRET, Issuer, Person, rsa_key
from tests.oauth_helpers import trusting_gateway

ROLES = "admins=operator-admin,support=operator-viewer,owners=tenant-admin,people=tenant-member"
BEGIN = "/console/login/oidc"


@asynccontextmanager
async def console(settings: Settings, issuer: Issuer, **changes: Any) -> AsyncIterator[Served]:
    """Serve a gateway with sign-in through the provider."""
    change = {
        "oidc_client_id": "console",
        "oidc_client_secret": SecretStr(CLIENT_SECRET),
        "oidc_roles": ROLES,
        **changes,
    }
    async with trusting_gateway(settings, issuer, **change) as served:
        callback = f"{served.base_url}/console/login/callback"
        issuer.add_client("console", None, callback=callback)
        yield served


@pytest.fixture
async def desk(settings: Settings, issuer: Issuer) -> AsyncIterator[Served]:
    async with console(settings, issuer) as served:
        yield served


async def at_provider(address: str) -> str:
    """Be signed in at the provider, which sends the browser back; return that address."""
    async with httpx2.AsyncClient(verify=TLS) as http:
        answer = await http.get(address)
    assert answer.status_code == 302, answer.text
    return str(answer.headers["location"])


async def sign_in(client: httpx2.AsyncClient, path: str = BEGIN) -> httpx2.Response:
    """Sign in, and return the answer to the callback."""
    begun = await client.get(path)
    assert begun.status_code == 303, begun.text
    return await client.get(await at_provider(begun.headers["location"]))


def person(name: str, *groups: str, **claims: object) -> Person:
    known = {"name": name.title(), "email": f"{name}@b.example", "email_verified": True}
    return Person(name, {**known, "groups": list(groups), **claims})


def base64_of(state: Mapping[str, str]) -> str:
    """The decoded bytes of each entry, as text."""
    return " ".join(b64decode(text).decode("latin-1") for text in state.values())


async def invite(client: httpx2.AsyncClient, email: str, role: str, tenant: str = "") -> str:
    """Invite a person; return the path that begins their sign-in."""
    made = await client.post(
        "/console/people/invitations", data={"email": email, "role": role, "tenant": tenant}
    )
    assert made.status_code == 303, made.text
    page = await client.get(made.headers["location"])
    token = page.text.partition("login/invitation?token=")[2][:43]
    return f"{BEGIN}?invitation={token}"


async def test_a_person_with_a_claim_signs_in_and_out_at_both_ends(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins", "people")
    async with browser(desk) as client:
        begun = await client.get(f"{BEGIN}?next=/console/people")
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["code_challenge_method"] == ["S256"]
        assert {"state", "nonce", "code_challenge"} <= set(asked)
        back = await client.get(await at_provider(begun.headers["location"]))
        assert (back.status_code, back.headers["location"]) == (303, "/console/people")
        people = await client.get("/console/people")
        assert "Ada" in people.text
        token = client.cookies["ig_session"]
        out = await client.post("/console/sign-out")
        assert out.status_code == 200
        assert f"{issuer.url}/logout?" in out.text
        assert "id_token_hint=" in out.text
    async with browser(desk, cookies={"ig_session": token}) as thief:
        assert reason(await thief.get("/console")) == "signed_out"
    [row] = await desk.owner_sql("SELECT issuer, subject, role, tenant_id FROM console_person")
    assert tuple(row) == (issuer.url, "ada", "operator-admin", None)
    [ended] = await desk.owner_sql("SELECT provider_token FROM console_session")
    assert ended.provider_token is None


async def test_what_the_provider_entrusts_to_the_gateway_is_sealed_at_rest(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as client:
        begun = await client.get(f"{BEGIN}?next=/console/people")
        [pending] = await desk.owner_sql("SELECT state FROM console_sign_in")
        assert all(isinstance(entry, str) for entry in pending.state.values())
        assert not re.search("verifier|nonce|people", base64_of(pending.state))
        await client.get(await at_provider(begun.headers["location"]))
        [session] = await desk.owner_sql("SELECT provider_token FROM console_session")
        out = await client.post("/console/sign-out")
    [token] = set(re.findall(r"id_token_hint=([\w.-]+)", out.text))
    assert token.count(".") == 2
    sealed = b64decode(session.provider_token)
    assert token.encode() not in sealed
    assert token.partition(".")[0].encode() not in sealed


async def test_a_sign_in_that_was_moved_to_another_browser_does_not_open(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as client, browser(desk) as other:
        begun = await client.get(BEGIN)
        await other.get(BEGIN)
        await desk.owner_sql(
            "UPDATE console_sign_in SET state = (SELECT jsonb_object_agg(key, value)"
            " FROM console_sign_in, jsonb_each(state))"
        )
        back = await other.get(await at_provider(begun.headers["location"]))
        # It leads to the provider again, with a sign-in of its own.
        assert back.status_code == 303
        assert back.headers["location"].startswith(issuer.url)
        assert await led_to(other) == "/console/login?next=/console"


async def test_a_tenants_person_acts_as_its_user_with_the_scopes_of_the_role(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("bob", "owners", tenant="acme")
    async with browser(desk) as client:
        assert (await sign_in(client)).status_code == 303
        viewer = await sessions.find(desk.gateway.database, client.cookies["ig_session"])
        people = await client.get("/console/people")
        refused = await client.post(
            "/console/people/invitations", data={"email": "a@b.example", "role": "operator-admin"}
        )
        other = await desk.tenant("other")
        portal = await client.post(f"/console/tenants/{other}/portal")
    assert (people.status_code, refused.status_code, portal.status_code) == (200, 403, 403)
    caller = await callers.caller_of(desk.gateway.database, viewer, livemode=True)
    [user] = await desk.owner_sql("SELECT id, name FROM tenant_user")
    assert (caller.tenant_id, caller.user_id, user.name) == (desk.tenant_id, user.id, "bob")
    assert "tenant:admin" in caller.scopes
    async with changing_tenant(desk.gateway, viewer, Permission.TENANT_CHANGE) as session:
        issued = await self_service.issue_key(
            session,
            caller,
            pepper=desk.gateway.core.pepper,
            livemode=False,
            name="by bob",
            user_id=None,
            scopes=None,
            models=None,
            expires_at=None,
        )
    [row] = await desk.owner_sql(
        "SELECT actor_type, actor_name FROM audit WHERE action = 'api_key.issued'"
    )
    assert (issued.livemode, tuple(row)) == (False, ("session", "Bob"))


async def test_a_role_taken_at_the_provider_is_gone_at_the_next_sign_in(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as client, browser(desk) as again:
        await sign_in(client)
        issuer.signed_in = person("ada")
        refused = await sign_in(again)
        assert refused.status_code == 403
        assert "ig_session" not in again.cookies
        assert reason(await client.get("/console")) == "person_changed"
    [row] = await desk.owner_sql(
        "SELECT object_id FROM audit WHERE action = 'console.sign_in_refused'"
    )
    assert row.object_id == "ada"


async def test_an_invitation_gives_its_role_once_to_its_verified_address_alone(
    desk: Served, issuer: Issuer
) -> None:
    async with operator(desk) as admin:
        path = await invite(admin, "Eve@b.example", "tenant-billing-viewer", "acme")
    async with browser(desk) as eve, browser(desk) as other, browser(desk) as late:
        shown = await eve.get(
            path.replace(BEGIN, "/console/login/invitation").replace("invitation=", "token=")
        )
        assert "tenant-billing-viewer" in shown.text
        issuer.signed_in = person("mallory")
        assert (await sign_in(other, path)).status_code == 403
        issuer.signed_in = person("eve", email_verified=False)
        assert (await sign_in(eve, path)).status_code == 403
        issuer.signed_in = person("eve")
        assert (await sign_in(eve, path)).status_code == 303
        viewer = await sessions.find(desk.gateway.database, eve.cookies["ig_session"])
        issuer.signed_in = person("eve2", email="eve@b.example")
        assert (await sign_in(late, path)).status_code == 403
        # Without the invitation, the person keeps the role that it gave.
        issuer.signed_in = person("eve")
        assert (await sign_in(eve)).status_code == 303
    assert (viewer.role, viewer.tenant_id) == ("tenant-billing-viewer", desk.tenant_id)
    assert viewer.permissions == {Permission.USAGE_READ}


async def test_a_dead_invitation_gives_nothing(desk: Served, issuer: Issuer) -> None:
    issuer.signed_in = person("eve")
    async with operator(desk) as admin, browser(desk) as eve:
        for column in ("expires_at", "revoked_at", "accepted_at"):
            path = await invite(admin, "eve@b.example", "operator-viewer")
            await desk.owner_sql(f"UPDATE console_invitation SET {column} = now()")  # noqa: S608
            assert (await sign_in(eve, path)).status_code == 403, column
        assert "ig_session" not in eve.cookies


async def test_a_changed_role_acts_at_once_and_with_a_new_token(
    desk: Served, issuer: Issuer
) -> None:
    async with operator(desk) as admin, browser(desk) as eve:
        path = await invite(admin, "eve@b.example", "operator-admin")
        issuer.signed_in = person("eve")
        await sign_in(eve, path)
        first = eve.cookies["ig_session"]
        [row] = await desk.owner_sql("SELECT id FROM console_person")
        changed = await admin.post(
            f"/console/people/{row.id}/role", data={"role": "operator-viewer"}
        )
        assert changed.headers["location"] == "/console/people?done=role"
        assert reason(await eve.get("/console")) == "person_changed"
        await sign_in(eve)
        assert eve.cookies["ig_session"] != first
        refused = await eve.post(f"/console/people/{row.id}/role", data={"role": "operator-admin"})
        assert refused.status_code == 403
        await admin.post(f"/console/people/{row.id}/status", data={"status": "disabled"})
        assert reason(await eve.get("/console")) == "person_changed"
        assert (await sign_in(eve)).status_code == 403


async def test_no_one_changes_their_own_role_or_one_that_a_claim_gives(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as ada, operator(desk) as admin:
        await sign_in(ada)
        [row] = await desk.owner_sql("SELECT id FROM console_person")
        path, viewer = f"/console/people/{row.id}/role", {"role": "operator-viewer"}
        own = await ada.post(path, data=viewer)
        claimed = await admin.post(path, data=viewer)
        status = await ada.post(f"/console/people/{row.id}/status", data={"status": "disabled"})
    assert (own.status_code, claimed.status_code, status.status_code) == (403, 409, 403)


async def test_a_tenants_admin_sees_and_ends_sessions_of_the_own_tenant_alone(
    desk: Served, issuer: Issuer
) -> None:
    other = await desk.tenant("other")
    issuer.signed_in = person("bob", "owners", tenant="acme")
    async with browser(desk) as bob, browser(desk) as mallory, browser(desk) as member:
        await sign_in(bob)
        issuer.signed_in = person("carol", "people", tenant="acme")
        await sign_in(member)
        issuer.signed_in = person("mallory", "owners", tenant="other")
        await sign_in(mallory)
        rows = await desk.owner_sql("SELECT name, id, tenant_id FROM console_session")
        ids = {row.name: row.id for row in rows}
        assert {row.tenant_id for row in rows} == {desk.tenant_id, other}
        listed = (await mallory.get("/console/people/sessions")).text
        assert "Carol" not in listed
        foreign = await mallory.post(f"/console/people/sessions/{ids['Carol']}/end")
        own = await mallory.post(f"/console/sessions/{ids['Carol']}/end")
        as_member = await member.post(f"/console/people/sessions/{ids['Bob']}/end")
        assert (foreign.status_code, own.status_code, as_member.status_code) == (404, 404, 403)
        ended = await bob.post(f"/console/people/sessions/{ids['Carol']}/end")
        assert ended.status_code == 303
        assert reason(await member.get("/console")) == "ended_by_operator"
        [carol] = await desk.owner_sql("SELECT id FROM console_person WHERE name = 'Carol'")
        people = [
            (await mallory.post(f"/console/people/{carol.id}/{what}", data=data)).status_code
            for what, data in (("role", {"role": "tenant-admin"}), ("status", {"status": "active"}))
        ]
        assert people == [404, 404]


async def test_two_tabs_both_sign_in_and_a_used_callback_starts_again(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as client:
        tabs = [
            (await client.get(f"{BEGIN}?next=/console/{tab}")).headers["location"]
            for tab in ("one", "two")
        ]
        callbacks = [await at_provider(tab) for tab in tabs]
        targets = [await led_to(client, callback) for callback in callbacks]
        assert targets == ["/console/one", "/console/two"]
        again = await client.get(callbacks[0])
        assert again.headers["location"].startswith(f"{issuer.url}/authorize?")
        assert await led_to(client, await at_provider(again.headers["location"])) == "/console"


async def test_a_callback_of_another_browser_signs_no_one_in(desk: Served, issuer: Issuer) -> None:
    issuer.signed_in = person("mallory", "admins")
    async with browser(desk) as mallory, browser(desk) as victim:
        begun = await mallory.get(BEGIN)
        callback = await at_provider(begun.headers["location"])
        forged = await victim.get(callback)
        planted = browser(desk, cookies={"ig_sign_in": "A" * 43})
        async with planted as fixed:
            also = await fixed.get(callback)
    assert (forged.status_code, also.status_code) == (401, 401)
    assert "ig_session" not in victim.cookies


FORGERIES: dict[str, dict[str, object]] = {
    "of another sign-in": {"nonce": "another"},
    "without a nonce": {"nonce": None},
    "of another issuer": {"iss": "https://evil.example"},
    "for another client": {"aud": "another"},
    "for another party": {"aud": ["console", "b"], "azp": "b"},
    "that has expired": {"exp": 1},
    "without a subject": {"sub": None},
}


async def test_a_forged_id_token_is_refused(desk: Served, issuer: Issuer) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as client:
        for what, changes in FORGERIES.items():
            issuer.id_token_changes = changes
            assert (await sign_in(client)).status_code == 401, what
            assert "ig_session" not in client.cookies, what


async def test_an_id_token_with_another_signature_is_refused(desk: Served, issuer: Issuer) -> None:
    issuer.signed_in, issuer.id_token_key = person("ada", "admins"), rsa_key(2)
    async with browser(desk) as client:
        assert (await sign_in(client)).status_code == 401


async def test_a_callback_of_another_provider_is_refused_before_its_code_is_sent(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as client:
        for told in ("https://evil.example", ""):
            issuer.callback_issuer = told
            assert (await sign_in(client)).status_code == 401
    assert not any(path.endswith("/token") for path in issuer.asked)


async def test_an_absent_provider_is_a_page_and_other_ways_still_work(
    settings: Settings, issuer: Issuer
) -> None:
    async with console(settings, issuer) as served, browser(served) as client:
        issuer.answers["/realms/company/.well-known/openid-configuration"] = _broken
        away = await client.get(BEGIN)
        assert away.status_code == 503
        assert "API key" in away.text
        del issuer.answers["/realms/company/.well-known/openid-configuration"]
        issuer.signed_in = person("ada", "admins")
        assert (await sign_in(client)).status_code == 303


async def test_each_sign_in_has_its_own_ten_minutes_and_stores_no_invitation(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = person("ada", "admins")
    async with operator(desk) as admin, browser(desk) as client:
        path = await invite(admin, "ada@b.example", "operator-viewer")
        await client.get(BEGIN)
        await desk.owner_sql("UPDATE console_sign_in SET expires_at = now() + interval '5 s'")
        begun = await client.get(path)
        [row] = await desk.owner_sql(
            "SELECT state::text, expires_at > now() + interval '9 minutes' AS lasts"
            " FROM console_sign_in"
        )
        assert path.partition("=")[2] not in row.state
        assert row.lasts
        finished = await client.get(await at_provider(begun.headers["location"]))
        assert finished.headers["location"] == "/console"


async def test_the_last_session_but_one_ends_by_its_owner(desk: Served, issuer: Issuer) -> None:
    issuer.signed_in = person("ada", "admins")
    async with browser(desk) as first, browser(desk) as second, browser(desk) as third:
        for client in (first, second, third):
            await sign_in(client)
        page = await first.get("/console/sessions")
        assert page.text.count("/end?as=") == 3
        await first.post("/console/sessions/end-others")
        assert reason(await second.get("/console")) == "ended_by_owner"
        assert reason(await third.get("/console")) == "ended_by_owner"
        assert (await first.get("/console")).status_code == 200


def _broken() -> Response:
    return Response("{}", 500)
