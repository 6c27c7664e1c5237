"""Changes that a tenant makes on its own pages: each is felt, and in the audit trail by name."""

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from gateway.config import Settings
from gateway.console import connection_snippets
from gateway.domain import Scope
from gateway.identity.viewers import Role
from gateway.webhooks import endpoints
from tests.admin_helpers import admin as operator_rest
from tests.admin_helpers import answered
from tests.console_helpers import person
from tests.harness import GPT2, Served
from tests.money.test_money_crashes import locked, waiting_for_locks
from tests.money_helpers import eventually

LOW = {"model": GPT2, "prompt": "a red circle", "quality": "low", "size": "1024x1024"}
IMAGES = "/v1/images/generations"
PROVIDER_KEY = "sk-own-canary-4242"


@pytest.fixture
async def admin(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with person(served, Role.TENANT_ADMIN) as client:
        yield client


async def shown_secret(
    client: httpx2.AsyncClient, answer: httpx2.Response, prefix: str = "igw_"
) -> str:
    """The secret that the page after a form shows once."""
    assert answer.status_code == 303, answer.text
    page = await client.get(answer.headers["location"])
    assert page.headers["cache-control"] == "no-store"
    [found] = re.findall(rf'<code id="secret">({prefix}[^<]+)</code>', page.text)
    return str(found)


async def status_of(served: Served, key: str, **body: str) -> int:
    async with served.http(key) as http:
        return (await http.post(IMAGES, json=LOW | body)).status_code


async def actions(served: Served) -> list[tuple[str, str | None]]:
    """The changes so far, each with the name of its author."""
    rows = await served.owner_sql(
        "SELECT action, actor_name FROM audit WHERE actor_type = 'session' ORDER BY at, id"
    )
    return [(row.action, row.actor_name) for row in rows]


async def test_a_key_is_created_used_rolled_and_revoked(
    served: Served, admin: httpx2.AsyncClient
) -> None:
    form = {"name": "shop", "livemode": "test", "scope.images:write": "on"}
    made = await admin.post("/console/keys/new", data=form | {f"model.{GPT2}": "on"})
    secret = await shown_secret(admin, made, "igw_test_")
    assert await status_of(served, secret) == 200
    assert await status_of(served, secret, model="gpt-image-1.5") == 403
    await served.gateway.request_log.flush()
    listed = await admin.get("/console/keys?mode=test")
    assert "just now" in listed.text
    [path] = re.findall(r'href="(/console/keys/[0-9a-f-]{36})"', listed.text)
    renamed = await admin.post(f"{path}/rename", data={"name": "store"})
    assert renamed.headers["location"] == f"{path}?done=renamed"
    rolled = await shown_secret(admin, await admin.post(f"{path}/roll", data={"grace": "3600"}))
    assert [await status_of(served, one) for one in (secret, rolled)] == [200, 200]
    again = await admin.get("/console/keys?mode=test")
    assert all(one not in again.text for one in (secret, rolled))
    for path in set(re.findall(r'href="(/console/keys/[0-9a-f-]{36})"', again.text)):
        assert (await admin.post(f"{path}/revoke")).status_code == 303
    assert [await status_of(served, one) for one in (secret, rolled)] == [401, 401]
    assert await actions(served) == [
        (f"api_key.{name}", "Ada the tenant-admin")
        for name in ("issued", "renamed", "rolled", "revoked", "revoked")
    ]


@pytest.mark.parametrize(
    ("form", "message", "status"),
    [
        ({"livemode": "both", "scope.images:write": "on"}, "livemode must be one of", 400),
        (
            {"livemode": "test", "expires_at": "soon", "scope.images:read": "on"},
            "Enter a date",
            400,
        ),
        ({"livemode": "test", "expires_at": "2020-01-01T00:00"}, "must be in the future", 400),
        ({"livemode": "test", "user": "no one", "scope.images:read": "on"}, "no one", 404),
        ({"livemode": "test", "scope.house": "on"}, "Unknown scope", 400),
        ({"livemode": "test", "scope.images:read": "on", "model.none": "on"}, "no model", 404),
    ],
)
async def test_a_refused_form_keeps_what_was_typed(
    admin: httpx2.AsyncClient, form: dict[str, str], message: str, status: int
) -> None:
    answer = await admin.post("/console/keys/new", data={"name": '"><b>kept', **form})
    assert answer.status_code == status
    assert message in answer.text
    assert 'value="&#34;&gt;&lt;b&gt;kept"' in answer.text


async def test_the_holder_of_a_key_grants_no_more_than_the_key_has(served: Served) -> None:
    key = await served.key(
        scopes=[Scope.TENANT_ADMIN, Scope.IMAGES_WRITE], models=[GPT2], livemode=False
    )
    grant = {"livemode": "test", "scope.images:write": "on", "name": "heir"}
    async with person(served, Role.TENANT_ADMIN, key=key) as holder:
        form = await holder.get("/console/keys/new")
        assert "usage:read" not in form.text
        assert "gpt-image-1.5" not in form.text
        refused = [
            (await holder.post("/console/keys/new", data=grant | more)).status_code
            for more in (
                {f"model.{GPT2}": "on", "scope.usage:read": "on"},
                {"model.gpt-image-1.5": "on"},
                {f"model.{GPT2}": "on", "livemode": "live"},
            )
        ]
        made = await holder.post("/console/keys/new", data=grant)
        secret = await shown_secret(holder, made)
        user = await holder.post("/console/users", data={"name": "x"})
        live = await holder.get(f"/console/keys/{(await served.key()).id}")
    assert refused == [403, 403, 403]
    assert await status_of(served, secret) == 200
    assert user.status_code == 303
    assert live.status_code == 404


async def test_a_user_is_created_disabled_and_deleted(
    served: Served, admin: httpx2.AsyncClient
) -> None:
    made = await admin.post("/console/users", data={"name": "Mei"})
    path = made.headers["location"].removesuffix("?done=created")
    assert (await admin.post("/console/users", data={"name": "Mei"})).status_code == 409
    key = (await served.key(livemode=False, user="Mei")).secret.reveal()
    statuses = []
    for status in ("disabled", "active"):
        await admin.post(f"{path}/status", data={"status": status})
        statuses.append(await status_of(served, key))
    assert statuses == [403, 200]
    kept = await admin.post(f"{path}/delete", data={"confirm": "yes"})
    assert kept.status_code == 400
    gone = await admin.post(f"{path}/delete", data={"confirm": "delete"})
    assert gone.headers["location"] == "/console/users?done=deleted"
    assert await status_of(served, key) == 401
    assert [action for action, _ in await actions(served)] == [
        *("user.created", "user.disabled", "user.enabled", "user.deleted")
    ]


async def test_a_budget_is_set_felt_raised_and_removed(
    served: Served, admin: httpx2.AsyncClient
) -> None:
    await served.budget("1", livemode=False)
    key = await served.key(livemode=False, name="shop")
    small = {"key": "shop", "window": "month", "limit_usd": "0.001"}
    assert (await admin.post("/console/portal/budgets?mode=test", data=small)).status_code == 303
    assert await status_of(served, key.secret.reveal()) == 402
    above = await admin.post(
        "/console/portal/budgets?mode=test", data=small | {"limit_usd": "1.01"}
    )
    assert above.status_code == 400
    assert "limit_usd must be at most 1.00 USD, the tenant&#39;s own budget per month" in above.text
    day = small | {"limit_usd": "1.01", "window": "day"}
    assert (await admin.post("/console/portal/budgets?mode=test", data=day)).status_code == 400
    await admin.post("/console/portal/budgets?mode=test", data=small | {"limit_usd": "0.5"})
    assert await status_of(served, key.secret.reveal()) == 200
    page = await admin.get("/console/portal/budgets?mode=test")
    [path] = set(
        re.findall(r'action="(/console/portal/budgets/\d+/remove\?mode=test)&amp;', page.text)
    )
    assert (await admin.post(path)).status_code == 303
    rows = await served.owner_sql("SELECT id FROM budget WHERE api_key_id IS NULL")
    whole = await admin.post(f"/console/portal/budgets/{rows[0].id}/remove?mode=test")
    assert whole.status_code == 403
    assert "set by the operator" in whole.text
    for path in ("/console/portal/budgets/{}/remove", "/console/portal/budgets/limits/{}/remove"):
        for number in ("0", "9" * 30, "x"):
            assert (await admin.post(path.format(number))).status_code in {400, 404}, path


async def test_the_holder_of_a_key_cannot_loosen_its_own_budget(served: Served) -> None:
    key = await served.key(scopes=[Scope.TENANT_ADMIN, Scope.USAGE_READ])
    await served.budget("1", api_key_id=key.id)
    mine = {"key": str(key.id), "window": "month"}
    async with person(served, Role.TENANT_ADMIN, key=key) as holder:
        statuses = [
            (
                await holder.post("/console/portal/budgets", data=mine | {"limit_usd": limit})
            ).status_code
            for limit in ("2", "0.5")
        ]
        rows = await served.owner_sql("SELECT id FROM budget")
        removed = await holder.post(f"/console/portal/budgets/{rows[0].id}/remove")
    assert statuses == [403, 303]
    assert removed.status_code == 403


async def test_each_of_a_holders_budgets_is_measured_by_its_own_limit(served: Served) -> None:
    key = await served.key(scopes=[Scope.TENANT_ADMIN, Scope.USAGE_READ])
    other = await served.key()
    await served.budget("9", window="day", api_key_id=key.id)
    await served.budget("8", api_key_id=other.id)
    await served.budget("7", livemode=False, user_id=None, api_key_id=None)
    await served.budget("1", api_key_id=key.id)
    async with person(served, Role.TENANT_ADMIN, key=key) as holder:
        for window, limit, status in (("month", "5", 403), ("day", "5", 303)):
            changed = {"key": str(key.id), "window": window, "limit_usd": limit}
            answer = await holder.post("/console/portal/budgets", data=changed)
            assert answer.status_code == status, window


async def test_a_raise_for_some_days_cannot_be_made_the_usual_limit_by_its_holder(
    served: Served,
) -> None:
    key = await served.key(scopes=[Scope.TENANT_ADMIN, Scope.USAGE_READ])
    await served.budget("1", api_key_id=key.id)
    [budget] = await served.owner_sql("SELECT id FROM budget")
    raising = {"limit_usd": "5", "until": (datetime.now(UTC) + timedelta(days=1)).isoformat()}
    path = f"/tenants/{served.tenant_id}/budgets/{budget.id}/raise"
    async with operator_rest(served) as operator:
        answered(await operator.put(path, json=raising))
    mine = {"key": str(key.id), "window": "month", "limit_usd": "5"}
    async with person(served, Role.TENANT_ADMIN, key=key) as holder:
        refused = await holder.post("/console/portal/budgets", data=mine)
    assert refused.status_code == 403
    [budget] = await served.owner_sql("SELECT limit_nano FROM budget")
    assert budget.limit_nano == 1_000_000_000


async def test_a_limit_of_a_user_is_set_below_the_tenants_and_removed(
    served: Served, admin: httpx2.AsyncClient
) -> None:
    key = await served.key(livemode=False, user="Mei")
    none = {"user": "Mei", "kind": "images", "value": "0"}
    assert (
        await admin.post("/console/portal/budgets/limits?mode=test", data=none)
    ).status_code == 303
    assert await status_of(served, key.secret.reveal()) == 429
    page = await admin.get("/console/portal/budgets?mode=test")
    [path] = re.findall(
        r'action="(/console/portal/budgets/limits/\d+/remove\?mode=test)&amp;', page.text
    )
    assert (await admin.post(path)).status_code == 303
    assert await status_of(served, key.secret.reveal()) == 200
    both = await admin.post("/console/portal/budgets/limits", data=none | {"key": "x"})
    huge = await admin.post("/console/portal/budgets/limits", data=none | {"value": "9" * 30})
    assert (both.status_code, huge.status_code) == (400, 400)


async def test_provider_keys_are_stored_tested_and_removed_and_never_shown(
    served: Served, admin: httpx2.AsyncClient
) -> None:
    mei = await served.key(user="Mei", scopes=[Scope.CREDENTIALS_WRITE])
    path = "/console/credentials/openai"
    async with person(served, Role.TENANT_MEMBER, user_id=mei.user_id) as member:
        own = {"owner": "user", "secret": PROVIDER_KEY}
        assert (await member.post(path, data=own)).status_code == 303
        assert (await member.post(path, data=own | {"owner": "tenant"})).status_code == 403
        mine = await member.get("/console/credentials")
        tested = await member.post(f"{path}/test", data={"owner": "user"})
    assert "…4242" in mine.text
    assert tested.headers["location"] in {
        f"/console/credentials?done={state}" for state in ("valid", "invalid")
    }
    short = await admin.post(path, data={"owner": "tenant", "secret": "abc def"})
    assert short.status_code == 400
    assert "abc def" not in short.text
    page = await admin.get("/console/credentials")
    assert "Mei" in page.text
    assert PROVIDER_KEY not in page.text + mine.text
    async with person(served, Role.TENANT_MEMBER, key=mei) as holder:
        assert (await holder.post(f"{path}/remove", data={"owner": "user"})).status_code == 303
        assert (await holder.post(f"{path}/remove", data={"owner": "user"})).status_code == 404
    test_key = await served.key(livemode=False)
    async with person(served, Role.TENANT_MEMBER, key=test_key) as holder:
        refused = await holder.post(path, data={"owner": "tenant", "secret": PROVIDER_KEY})
    assert refused.status_code == 403


async def test_a_webhook_is_created_tested_disabled_and_deleted(
    served: Served, admin: httpx2.AsyncClient
) -> None:
    form = {"url": "https://hooks.example.com/x", "livemode": "both", "description": "pager"}
    none = await admin.post("/console/portal/webhooks/new", data=form)
    private = await admin.post(
        "/console/portal/webhooks/new",
        data=form | {"url": "http://127.0.0.1/", "event.budget.exceeded": "on"},
    )
    assert (none.status_code, private.status_code) == (400, 400)
    made = await admin.post(
        "/console/portal/webhooks/new", data=form | {"event.budget.exceeded": "on"}
    )
    secret = await shown_secret(admin, made, "whsec_")
    path = made.headers["location"].partition("?")[0]
    assert (await admin.post(f"{path}/test")).headers["location"] == f"{path}?done=tested"
    page = await admin.get(path)
    assert "webhook.test" in page.text
    assert secret not in page.text
    rolled = await admin.post(f"{path}/roll", data={"grace": "60"})
    assert await shown_secret(admin, rolled, "whsec_") != secret
    await admin.post(f"{path}/status", data={"status": "disabled"})
    assert (await admin.post(f"{path}/test")).status_code == 409
    await served.owner_sql("UPDATE webhook_endpoint SET disabled_at = NULL, disabled_reason = NULL")
    page = await admin.get(f"{path}?status=dead")
    [again] = re.findall(r'action="([^"]+/redeliver)\?', page.text)
    assert (await admin.post(again)).headers["location"] == f"{path}?done=redelivered"
    assert (await admin.post(f"{path}/delete")).status_code == 303
    assert (await admin.get(path)).status_code == 404


async def test_a_test_keys_holder_sees_webhooks_of_test_calls_alone(
    served: Served, admin: httpx2.AsyncClient
) -> None:
    key = await served.key(livemode=False, scopes=[Scope.TENANT_ADMIN])
    async with served.gateway.database.tenant(served.tenant_id) as session:
        both = await endpoints.create(
            session,
            served.tenant_id,
            sealing=served.gateway.core.webhook_sealing,
            url="https://hooks.example.com/both",
            allow_private=False,
            max_endpoints=10,
        )
    path = f"/console/portal/webhooks/{both.endpoint.id}"
    async with person(served, Role.TENANT_ADMIN, key=key) as holder:
        assert "hooks.example.com" not in (await holder.get("/console/portal/webhooks")).text
        assert (await holder.get(path)).status_code == 404
        assert (await holder.post(f"{path}/delete")).status_code == 404
    assert (await admin.get(path)).status_code == 200


async def test_a_report_that_takes_too_long_keeps_its_form_and_says_what_to_narrow(
    settings: Settings, served: Served, admin: httpx2.AsyncClient
) -> None:
    async with locked(settings, "LOCK TABLE usage_day IN ACCESS EXCLUSIVE MODE"):
        asked = asyncio.create_task(admin.get("/console/usage?period=90d"))
        await eventually(lambda: waiting_for_locks(served))
        # A statement beyond its time limit is cancelled in the same way.
        await served.owner_sql(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        page = await asked
    assert page.status_code == 400
    assert "This report is too large" in page.text
    assert "choose a shorter period" in page.text
    assert '<input type="hidden" name="period" value="90d">' in page.text


async def test_programs_to_paste_make_an_image(served: Served) -> None:
    key = await served.key(livemode=False)
    address, names = served.base_url, {"PATH": os.environ["PATH"]}
    secret = {connection_snippets.KEY: key.secret.reveal()}
    commands = [[sys.executable, "-c", connection_snippets.python_of(address)]]
    if shutil.which("curl"):
        [pasted] = [one.text for one in connection_snippets.sdks(address) if one.id == "curl"]
        commands += [
            ["sh", "-c", pasted],
            ["sh", "-c", connection_snippets.curl_of(address, secret[connection_snippets.KEY])],
        ]
    for command in commands:
        running = await asyncio.create_subprocess_exec(
            *command, env=names | secret, stdout=PIPE, stderr=PIPE
        )
        out, problems = await running.communicate()
        assert b"/images/img_" in out, problems
