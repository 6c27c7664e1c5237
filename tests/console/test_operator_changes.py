"""The operators' forms: each changes what it says, is refused with its reason, and is audited."""

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import pytest_asyncio

from tests.console_scene import Scene, open_scene, secret_of, text_of
from tests.harness import PostgresServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    """One gateway for the file."""
    async with open_scene(postgres, tmp_path_factory.mktemp("scene")) as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "form", "field"),
    [
        ("/console/tenants", {"name": ""}, "name"),
        ("/console/tenants", {"name": "Lumen Studio"}, "name"),
        ("/console/tenants", {"name": "new", "time_zone": "Mars/Base"}, "time_zone"),
        ("{t}/keys", {"mode": "live"}, "scopes"),
        ("{t}/keys", {"mode": "live", "models": "none", "scope-images:read": "on"}, "models"),
        ("{t}/keys", {"mode": "live", "user": "none", "scope-images:read": "on"}, "user"),
        ("{t}/keys", {"mode": "live", "expires_at": "1999-01-01T00:00"}, "expires_at"),
        ("{t}/users", {"name": "Ana Ruiz"}, "name"),
        ("{t}/budgets", {"owner": "tenant", "mode": "live", "window": "month"}, "limit_usd"),
        (
            "{t}/budgets",
            {"owner": "key", "owner_name": "none", "mode": "live", "window": "day"},
            "owner_name",
        ),
        (
            "{t}/limits",
            {"owner": "tenant", "mode": "live", "kind": "images", "value": "-1"},
            "value",
        ),
        ("{t}/settings", {"name": "x", "image_retention_seconds": "1"}, "image_retention"),
        ("/console/budgets", {"window": "month", "limit_usd": "1e9"}, "limit_usd"),
        ("/console/budgets", {"window": "month", "limit_usd": "12,50"}, "limit_usd"),
        ("/console/budgets", {"window": "month", "limit_usd": "1,0000"}, "limit_usd"),
        ("/console/models/gpt-image-2/prices", {"name": "gpt-image-2"}, "text_input"),
        (
            "/console/webhooks",
            {"mode": "live", "url": "ftp://x", "event-budget.exceeded": "on"},
            "url",
        ),
        ("/console/admin-keys", {"name": "x"}, "scopes"),
        ("/console/calls/{u}/resolve", {"verdict": "post", "reason": "seen"}, "cost_usd"),
        ("/console/calls/{u}/resolve", {"verdict": "void", "reason": ""}, "reason"),
    ],
)
async def test_a_refused_form_comes_back_with_its_reason_and_what_was_typed(
    scene: Scene, path: str, form: dict[str, str], field: str
) -> None:
    given = {**form, **({"enforcement": "hard"} if "budget" in path else {})}
    place = path.format(t=scene.tenant, u=scene.unknown_id)
    answer = await scene.http.post(place, data=given)
    assert answer.status_code in {400, 404, 409}, answer.text
    assert 'class="field__error"' in answer.text or 'role="alert"' in answer.text
    for name, value in form.items():
        if value and not name.startswith(("scope-", "event-")):
            assert html.escape(value) in answer.text, name
    assert field in answer.text


async def test_a_tenant_is_created_disabled_and_enabled(scene: Scene) -> None:
    made = await scene.post("/console/tenants", name="Birch & Co", time_zone="Europe/Madrid")
    place = made.headers["location"].partition("?")[0]
    assert "Birch &amp; Co" in await scene.get("/console/tenants?q=birch+%26")
    tenant_id = UUID(place.rpartition("/")[2])
    key = await scene.served.key(tenant_id=tenant_id, livemode=False)
    async with scene.served.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 200
        await scene.post(f"{place}/status", status="suspended")
        assert (await http.get("/v1/models")).status_code == 403
        await scene.post(f"{place}/status", status="active")
        assert (await http.get("/v1/models")).status_code == 200
    assert [one[:2] for one in await scene.audited("tenant.suspended")] == [
        ("operator_session", "root (sign-in link)")
    ]
    await scene.post(f"{place}/status", 400, status="deleted")


async def test_a_key_is_shown_once_rolled_and_revoked(scene: Scene) -> None:
    place = f"{scene.tenant}/keys"
    form = {"name": "kiosk", "mode": "test", "scope-images:read": "on", "scope-usage:read": "on"}
    secret = secret_of(await scene.shown(place, **form))
    assert secret not in await scene.get(place)
    [row] = await scene.served.owner_sql(
        "SELECT id, scopes, livemode FROM api_key WHERE name = 'kiosk'"
    )
    assert (row.scopes, row.livemode) == (["images:read", "usage:read"], False)
    rolled = secret_of(await scene.shown(f"{place}/{row.id}/roll", grace="0"))
    for used, status in ((secret, 401), (rolled, 200)):
        async with scene.served.http(used) as http:
            assert (await http.get("/v1/models")).status_code == status
    [twin] = await scene.served.owner_sql(
        "SELECT id FROM api_key WHERE root_id = :root AND id <> :root", root=row.id
    )
    await scene.post(f"{place}/{twin.id}/revoke")
    async with scene.served.http(rolled) as http:
        assert (await http.get("/v1/models")).status_code == 401
    await scene.post(f"{place}/{row.id}/roll", 404, grace="0")
    await scene.post(f"{place}/{twin.id}/roll", 400, grace="99999999999999999999")
    other = f"/console/tenants/{scene.seeded.tenants['Lumen Studio'].id}/keys"
    await scene.post(
        f"{other}/{scene.seeded.tenants['Northwind Travel'].keys['website']}/revoke", 404
    )


async def test_a_refused_invitation_keeps_what_was_typed(scene: Scene) -> None:
    form = {"email": "ada@typed", "role": "tenant-member", "tenant": "Lumen Studio"}
    page = (await scene.post("/console/people/invitations", 400, **form)).text
    assert 'value="ada@typed"' in page
    assert 'value="Lumen Studio"' in page
    assert '<option value="tenant-member" selected' in page
    assert "email must be an address" in page
    nowhere = await scene.post("/console/people/invitations", 404, **form | {"tenant": "Nowhere"})
    assert 'value="Nowhere"' in nowhere.text


async def test_a_budget_is_set_raised_and_removed(scene: Scene) -> None:
    place = f"{scene.tenant}/budgets"
    form = {"window": "week", "enforcement": "hard", "mode": "live", "alert_percents": "90"}
    await scene.post(place, owner="user", owner_name="Mei Tanaka", limit_usd="12.50", **form)
    [row] = await scene.served.owner_sql(
        "SELECT id, limit_nano, alert_percents FROM budget"
        " WHERE period = 'week' AND tenant_id = :t",
        t=scene.tenant_id,
    )
    assert (row.limit_nano, row.alert_percents) == (12_500_000_000, [90])
    assert "User Mei Tanaka, weekly" in await scene.get(place)
    until = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M")
    raising = f"{place}/{row.id}/raise"
    low = await scene.post(raising, 400, limit_usd="3", until=until, reason="launch")
    assert "above the usual" in text_of(low.text)
    await scene.post(raising, 400, limit_usd="30", until=until, reason="")
    await scene.post(raising, limit_usd="30", until=until, reason="launch of the spring campaign")
    assert "raised from" in text_of(await scene.get(place))
    [*_, (kind, name, after)] = await scene.audited("budget.updated")
    assert (kind, name) == ("operator_session", "root (sign-in link)")
    assert after is not None
    assert after["reason"] == "launch of the spring campaign"
    await scene.post(f"{place}/{row.id}/end-raise")
    await scene.post(f"{place}/{row.id}/remove")
    assert "weekly" not in await scene.get(place)
    await scene.post(f"{place}/{row.id}/remove", 404)
    await scene.post(f"{place}/{row.id}/colour", 404)
    await scene.post(f"{place}/99999999999999999999/remove", 404)


async def test_a_listed_budget_is_changed_by_a_form_with_its_own_values(scene: Scene) -> None:
    for place, owner in (
        (f"{scene.tenant}/budgets", {"owner": "tenant", "mode": "test"}),
        ("/console/budgets", {}),
    ):
        asked = {**owner, "window": "total", "enforcement": "soft", "alert_percents": "90"}
        await scene.post(place, limit_usd="1,234.50", **asked)
        form = form_to_change(await scene.get(place), "total")
        shown = {"limit_usd": "1234.50", "enforcement": "soft", "alert_percents": "90"}
        assert form.items() >= {**owner, "window": "total", **shown}.items()
        refused = await scene.post(place, 400, **{**form, "limit_usd": "12,50"})
        assert form_to_change(refused.text, "total")["limit_usd"] == "12,50"
        await scene.post(place, **{**form, "limit_usd": "7"})
        after = form_to_change(await scene.get(place), "total")
        assert after == {**form, "limit_usd": "7.00"}
        await scene.post(f"{place}/{form['change']}/remove")


def form_to_change(page: str, window: str) -> dict[str, str]:
    """The fields of the form that changes the budget of a window, as a browser sends them."""
    forms = [one for one in re.findall(r"<form.*?</form>", page, re.DOTALL) if "change" in one]
    [form] = [one for one in forms if f'name="window" value="{window}"' in one]
    fields = re.findall(r'<input[^>]* name="([^"]+)"[^>]* value="([^"]*)"', form)
    chosen = re.findall(r'<select[^>]* name="([^"]+)".*?value="(\w+)" selected', form, re.DOTALL)
    return dict(fields) | dict(chosen)


async def test_limits_users_and_settings_are_changed(scene: Scene) -> None:
    limits = f"{scene.tenant}/limits"
    form = {"owner": "tenant", "kind": "images", "mode": "live", "value": "40"}
    await scene.post(limits, **form)
    [limit] = await scene.served.owner_sql("SELECT id, value FROM rate_limit")
    assert limit.value == 40
    await scene.post(f"{limits}/{limit.id}/remove")
    await scene.post(f"{limits}/{limit.id}/remove", 404)
    await scene.post(f"{scene.tenant}/users", name="Till")
    [user] = await scene.served.owner_sql("SELECT id FROM tenant_user WHERE name = 'Till'")
    await scene.post(f"{scene.tenant}/users/{user.id}/status", status="disabled")
    assert "disabled" in await scene.get(f"{scene.tenant}/users")
    await scene.post(
        f"{scene.tenant}/settings",
        name="Northwind Travel",
        time_zone="Europe/Madrid",
        image_retention_seconds="14",
        image_retention_seconds_unit="days",
        max_image_bytes="",
        max_image_bytes_unit="GB",
        continuity="on",
    )
    [row] = await scene.served.owner_sql(
        "SELECT image_retention_seconds, continuity, fallback FROM tenant WHERE id = :id",
        id=scene.tenant_id,
    )
    assert tuple(row) == (14 * 86_400, True, False)
    assert 'value="14"' in await scene.get(f"{scene.tenant}/settings")


async def test_an_unknown_call_is_listed_with_its_amount_and_resolved(scene: Scene) -> None:
    place = f"/console/requests/{scene.unknown_id}"
    assert str(scene.unknown_id) in await scene.get("/console/open-calls")
    assert "Resolve this call" in await scene.get(place)
    await scene.served.owner_sql(
        "UPDATE reservation SET deadline_at = now() - interval '1 hour' WHERE id = :id"
        " RETURNING id",
        id=scene.unknown_id,
    )
    resolve = f"/console/calls/{scene.unknown_id}/resolve"
    wrong = {"verdict": "void", "cost_usd": "1", "reason": "x"}
    assert "first choice alone" in (await scene.post(resolve, 400, **wrong)).text
    form = {"verdict": "post", "cost_usd": "0.0042", "reason": "bill of 30 November"}
    await scene.post(resolve, **form)
    page = await scene.get(place)
    assert "$0.0042" in page
    assert "bill of 30 November" in page
    assert "Resolve this call" not in page
    assert str(scene.unknown_id) not in await scene.get("/console/open-calls")
    again = await scene.post(resolve, 409, **form)
    assert "never changes" in again.text
    [entry] = await scene.audited("call.resolved")
    assert entry[:2] == ("operator_session", "root (sign-in link)")
    await scene.served.check_invariants()


async def test_a_price_is_set_from_a_day_on(scene: Scene) -> None:
    place = "/console/models/gpt-image-2"
    rates = {"text_input": "6", "image_input": "9", "image_output": "31.5"}
    await scene.post(
        f"{place}/prices", name="gpt-image-2", effective_from="2027-01-01T00:00", **rates
    )
    page = text_of(await scene.get(place))
    assert "$31.50" in page
    assert "coming" in page
    again = await scene.post(
        f"{place}/prices", 409, name="gpt-image-2", effective_from="2027-01-01T00:00", **rates
    )
    assert "never edited" in text_of(again.text)
    assert "Northwind Travel" in page
    await scene.post(f"{place}/prices", 400, name="dall-e-2/512x512", **rates)
    await scene.post(f"{place}/prices", 400, name="gpt-image-2", per_image="0.05")


async def test_a_delivery_is_sent_again(scene: Scene) -> None:
    place = f"/console/webhooks/{scene.webhook_id}"
    await scene.post(f"{place}/test")
    [row] = await scene.served.owner_sql("SELECT id FROM webhook_delivery")
    pending = await scene.post(f"{place}/deliveries/{row.id}/redeliver", 409)
    assert "still pending" in pending.text
    await scene.served.owner_sql(
        "UPDATE webhook_delivery SET status = 'dead', next_attempt_at = NULL, finished_at = now(),"
        " last_error = 'timeout' RETURNING id"
    )
    page = await scene.get(f"{place}?status=dead")
    assert "Send again" in page
    await scene.post(f"{place}/deliveries/{row.id}/redeliver")
    [after] = await scene.served.owner_sql("SELECT status FROM webhook_delivery")
    assert after.status == "pending"
    assert len(await scene.audited("webhook.redelivered")) == 1
    await scene.post(f"{place}/disable")
    await scene.post(f"{place}/deliveries/{row.id}/redeliver", 409)
    await scene.post(f"{place}/colour", 404)
    made = await scene.shown(
        "/console/webhooks",
        url="https://hooks.example.com/all?token=path-canary",
        mode="both",
        **{"event-budget.exceeded": "on"},
    )
    assert "whsec_" in made
    assert "path-canary" not in await scene.get("/console/webhooks")
    assert "path-canary" not in await scene.get("/console/audit")


async def test_admin_keys_are_made_shown_once_and_revoked(scene: Scene) -> None:
    form = {"name": "prometheus", "scope-metrics": "on"}
    secret = secret_of(await scene.shown("/console/admin-keys", **form))
    async with scene.served.http(secret) as http:
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/admin/v1/tenants")).status_code == 403
    [row] = await scene.served.owner_sql("SELECT id FROM operator_key WHERE name = 'prometheus'")
    await scene.post(f"/console/admin-keys/{row.id}/revoke")
    async with scene.served.http(secret) as http:
        assert (await http.get("/metrics")).status_code == 401
    assert secret not in await scene.get("/console/admin-keys")
    rows = await scene.served.owner_sql(
        "SELECT id FROM operator_key WHERE revoked_at IS NULL AND 'admin' = ANY(scopes)"
    )
    last = [await scene.http.post(f"/console/admin-keys/{one.id}/revoke") for one in rows][-1]
    assert last.status_code == 409
    assert "last usable key" in last.text
