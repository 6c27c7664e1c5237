"""Sessions as operators see, end and sweep them; roles as the documentation shows them."""

from pathlib import Path
from uuid import uuid4

from gateway.config import Settings
from gateway.config.oidc import CONSOLE_ROLES
from gateway.domain import ImageRequest, Scope
from gateway.identity import callers, sessions
from gateway.identity.viewers import MEANINGS, PERMISSIONS, Role
from gateway.tenancy import admin_keys
from tests.console_helpers import browser, by_key, operator, reason
from tests.harness import GPT2, Served

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "console.md"


async def admin_secret(served: Served, *scopes: str) -> str:
    async with served.gateway.database.operator() as session:
        made = await admin_keys.create(
            session,
            f"sessions {' '.join(scopes)}",
            pepper=served.gateway.core.pepper,
            origin="command",
            scopes=scopes,
        )
    return made.secret.reveal()


async def test_operators_list_and_end_sessions_by_rest(served: Served) -> None:
    path = "/admin/v1/sessions"
    async with (
        operator(served) as client,
        served.http(await admin_secret(served, "admin")) as admin,
        served.http(await admin_secret(served, "admin:read")) as reader,
        served.http(await served.key()) as tenant,
    ):
        [listed] = (await admin.get(path)).json()["data"]
        shown = {name: listed[name] for name in ("object", "name", "role", "via", "tenant_id")}
        assert shown == {
            "object": "session",
            "name": "root (sign-in link)",
            "role": "operator-admin",
            "via": "link",
            "tenant_id": None,
        }
        one = f"{path}/{listed['id']}"
        refused = [(await http.delete(one)).status_code for http in (reader, tenant)]
        ended = await admin.delete(one)
        again = [await admin.delete(one), await admin.delete(f"{path}/{uuid4()}")]
        assert (refused, ended.status_code) == ([403, 403], 204)
        assert [answer.status_code for answer in again] == [404, 404]
        assert reason(await client.get("/console")) == "ended_by_operator"
        assert (await admin.get(path)).json()["data"] == []
        [late] = (await admin.get(f"{path}?ended=true")).json()["data"]
        assert late["end_reason"] == "ended_by_operator"
    [row] = await served.owner_sql(
        "SELECT actor_type FROM audit WHERE action = 'console.session_ended'"
    )
    assert row.actor_type == "operator_key"


async def test_a_key_has_a_hundred_sessions_at_most_which_end_at_once(served: Served) -> None:
    key = await served.key(livemode=False, scopes=[*Scope])
    async with by_key(served, key) as first:
        await served.owner_sql(
            "INSERT INTO console_session (id, digest, name, role, via, tenant_id, api_key_id,"
            " idle_seconds, idle_until, absolute_until, address, agent)"
            " SELECT lpad(to_hex(g), 32, '0')::uuid, decode(md5(g::text), 'hex'), name, role, via,"
            " tenant_id, api_key_id, idle_seconds, idle_until, absolute_until, '', ''"
            " FROM console_session, generate_series(1, 300) g"
        )
        open_ones = "SELECT count(*) FROM console_session WHERE ended_at IS NULL"
        async with by_key(served, key) as last:
            assert [tuple(row) for row in await served.owner_sql(open_ones)] == [(100,)]
            assert (await last.get("/console")).status_code == 200
            await last.post("/console/sessions/end-others")
            assert (await last.get("/console")).status_code == 200
        assert [tuple(row) for row in await served.owner_sql(open_ones)] == [(1,)]
        assert (await first.get("/console")).status_code == 303
    rows = await served.owner_sql(
        "SELECT tenant_id, after ->> 'end_reason', (after ->> 'sessions')::int FROM audit"
        " WHERE action = 'console.session_ended' ORDER BY at"
    )
    assert [tuple(row) for row in rows] == [
        (served.tenant_id, "too_many", 202),
        (served.tenant_id, "ended_by_owner", 99),
    ]


async def test_what_is_of_no_use_is_deleted(served: Served) -> None:
    async with operator(served) as client, browser(served) as other:
        await client.post(
            "/console/people/invitations", data={"email": "a@b.example", "role": "operator-viewer"}
        )
        key = await served.key(tenant_id=await served.tenant("leaving"))
        await other.post("/console/login/api-key", data={"key": key.secret.reveal()})
        await client.post("/console/login/api-key", data={"key": "igw_live_wrong"})
        await served.sweep()
        counted = "SELECT (SELECT count(*) FROM console_session), (SELECT count(*) FROM"
        counted += " console_invitation), (SELECT count(*) FROM console_link), (SELECT count(*)"
        counted += " FROM console_failure)"
        [kept] = await served.owner_sql(counted)
        assert tuple(kept) == (2, 1, 1, 1)
        assert (await client.get("/console")).status_code == 200
        for change in (
            "UPDATE console_link SET expires_at = now()",
            "UPDATE console_invitation SET expires_at = now() - interval '31 days'",
            (
                "UPDATE console_session SET idle_until = now() - interval '31 days'"
                " WHERE tenant_id IS NULL"
            ),
            (
                "UPDATE console_failure SET last_at = now() - interval '2 days',"
                " not_before = now() - interval '2 days'"
            ),
            "UPDATE tenant SET status = 'deleted', deleted_at = now() WHERE name = 'leaving'",
        ):
            await served.owner_sql(change)
        await served.sweep()
        [left] = await served.owner_sql(counted)
    assert tuple(left) == (0, 0, 0, 0)


async def test_pages_are_in_the_request_log_with_their_session(served: Served) -> None:
    async with operator(served) as client:
        await client.get("/console/people")
        viewer = await sessions.find(served.gateway.database, client.cookies["ig_session"])
    await served.gateway.request_log.flush()
    async with served.http(await admin_secret(served, "admin")) as admin:
        listed = (await admin.get("/admin/v1/requests")).json()["data"]
    seen = {(one["method"], one["route"], one["session_id"]) for one in listed}
    assert ("GET", "/console/{id}", str(viewer.session_id)) in seen


async def test_an_operator_in_a_portal_makes_an_image_as_the_tenant(served: Served) -> None:
    async with operator(served) as client:
        await client.post(f"/console/tenants/{served.tenant_id}/portal")
        viewer = await sessions.find(served.gateway.database, client.cookies["ig_session"])
    caller = await callers.caller_of(served.gateway.database, viewer, livemode=False)
    assert caller.scopes == set(Scope)
    model = served.gateway.core.catalog.models[GPT2]
    request = ImageRequest(model, GPT2, "a red circle", size="1024x1024", quality="low")
    made = await served.gateway.pipeline.generate(caller, request)
    [row] = await served.owner_sql(
        "SELECT tenant_id, livemode, api_key_id, user_id FROM reservation"
    )
    assert tuple(row) == (served.tenant_id, False, None, None)
    assert len(made.images) == 1


def test_the_documentation_shows_each_role_as_the_core_has_it() -> None:
    table = DOCUMENT.read_text().partition("## Roles")[2]
    expected = [
        f"| {text} | "
        + " | ".join("yes" if permission in PERMISSIONS[role] else "" for role in Role)
        + " |"
        for permission, text in MEANINGS.items()
    ]
    assert [line for line in table.splitlines() if line in expected] == expected
    assert f"| may | {' | '.join(Role)} |" in table


def test_the_settings_name_the_roles_that_there_are() -> None:
    assert tuple(Role) == CONSOLE_ROLES
    assert Settings.model_fields["oidc_roles"].default == ""
