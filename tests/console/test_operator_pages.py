"""The operators' pages: what each shows, for each role, with bad addresses and bad names."""

import asyncio
import csv
import html
import io
import re
from collections.abc import AsyncIterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio

from gateway.billing.model_askers import asked_days, list_askers
from gateway.domain import AdminScope
from gateway.tenancy import admin_keys
from tests.admin_helpers import NO_ID
from tests.console_helpers import browser
from tests.console_scene import EVIL, Scene, open_scene, text_of
from tests.harness import PostgresServer
from tests.money.test_money_crashes import locked, waiting_for_locks
from tests.money_helpers import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
FORMULA = "=HYPERLINK(1)"
PAGES = (
    *("/console/requests", "/console/open-calls", "/console/tenants", "/console/models"),
    *("/console/models/dall-e-2", "/console/budgets", "/console/webhooks", "/console/admin-keys"),
    *("/console/audit", "/console/system", "/console/audit?format=csv"),
)
TABS = (
    *("", "/keys", "/users", "/budgets", "/limits", "/credentials", "/webhooks", "/settings"),
    "/audit",
)

CANCEL_WAITING = (
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    " AND datname = current_database() AND query LIKE :table"
)
"""As Postgres does with a statement beyond its time limit."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    """One gateway for the file."""
    async with open_scene(postgres, tmp_path_factory.mktemp("scene")) as opened:
        yield opened


async def test_every_page_is_shown_and_escapes_what_tenants_typed(scene: Scene) -> None:
    request = f"/console/requests/{scene.request_id}"
    for path in (*PAGES, *(scene.tenant + tab for tab in TABS), request):
        page = await scene.get(path)
        assert "<script>alert" not in page or "csv" in path, path
    assert html.escape(EVIL) in await scene.get(f"{scene.tenant}/keys")


@pytest.mark.parametrize("role", ["viewer", "tenant", "no one"])
async def test_each_role_sees_and_may_do_what_it_should(scene: Scene, role: str) -> None:
    served = scene.served
    forms = ("/console/tenants", f"{scene.tenant}/status", f"{scene.tenant}/keys")
    changes = (*forms, "/console/admin-keys", f"/console/calls/{scene.unknown_id}/resolve")
    async with browser(served) as http:
        if role == "viewer":
            async with served.gateway.database.operator() as session:
                key = await admin_keys.create(
                    session,
                    "reader",
                    pepper=served.gateway.core.pepper,
                    origin="command",
                    scopes=[AdminScope.ADMIN_READ],
                )
            await http.post("/console/login/admin-key", data={"key": key.secret.reveal()})
        elif role == "tenant":
            own = await served.key(
                tenant_id=scene.tenant_id, scopes=["tenant:admin", "usage:read", "images:read"]
            )
            await http.post("/console/login/api-key", data={"key": own.secret.reveal()})
        expected = {"viewer": 200, "tenant": 403, "no one": 303}[role]
        hook = f"/console/webhooks/{scene.webhook_id}"
        for path in (*PAGES, *(scene.tenant + tab for tab in TABS), hook):
            answer = await http.get(path)
            assert answer.status_code == expected, path
            if role == "viewer" and "webhooks" in path:
                # The rest of a webhook's address is often a secret.
                assert "//hooks." in answer.text, path
                assert not re.search(r"//hooks\.[\w.]+/\w", answer.text), path
            if role == "viewer" and "csv" not in path:
                own_forms = re.findall(r'method="post" action="([^"?]+)', answer.text)
                assert set(own_forms) <= {"/console/sign-out", "/console/system"}, path
        for path in changes:
            answer = await http.post(path, data={"name": "x", "status": "suspended"})
            assert answer.status_code == (303 if role == "no one" else 403), path
    [row] = await served.owner_sql("SELECT status FROM tenant WHERE id = :i", i=scene.tenant_id)
    assert row.status == "active"


async def test_a_tenants_page_has_its_most_used_budgets_of_many(scene: Scene) -> None:
    keys = [await scene.served.key(tenant_id=scene.tenant_id, name=f"k{n}") for n in range(8)]
    for key in keys:
        await scene.served.budget("0.01", tenant_id=scene.tenant_id, api_key_id=key.id)
    page = text_of(await scene.get(scene.tenant))
    # Those that are used come before those with little left of little, and no more than fit.
    shown = re.findall(r"(Whole tenant|Key k\d), monthly", page)
    assert shown[0] == "Whole tenant"
    assert len(re.findall(r"\$[\d,.]+ left", page)) == 6
    assert "All budgets" in page


async def test_a_request_shows_its_whole_way(scene: Scene) -> None:
    page = await scene.get(f"/console/requests/{scene.request_id}")
    words = text_of(page)
    [row] = await scene.served.owner_sql(
        "SELECT r.id, r.held_nano, r.final_nano, r.calls -> 0 ->> 'request_id' AS vendor"
        " FROM reservation r JOIN request_log l ON l.generation_id = r.id WHERE l.id = :id",
        id=scene.request_id,
    )
    assert f"{row.final_nano / 10**9:.4f}" in words
    for part in (
        "order-17",
        str(row.id),
        row.vendor,
        "Tenant, day",
        "hold",
        "charge",
        "image/png",
    ):
        assert part in words, part
    assert f'href="{scene.tenant}"' in page
    assert page.count("<code>img_") == 2
    by_generation = await scene.get(f"/console/requests/{row.id}")
    assert scene.request_id in by_generation
    await scene.get(f"/console/requests/{NO_ID}", 404)
    await scene.get("/console/requests/%00", 404)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("id=order-17", 1),
        ("status=400&mode=test", 1),
        ("status=5xx&mode=test", 1),
        ("error_code=invalid_value&mode=test", 1),
        ("mode=test&status=ok&model=gpt-image-2&tenant=Northwind Travel", 1),
        ("mode=test&start=2020-01-01&end=2020-01-02", 0),
        ("mode=test&tenant=Lumen Studio", 0),
    ],
)
async def test_requests_are_found_by_each_filter(scene: Scene, query: str, count: int) -> None:
    page = await scene.get(f"/console/requests?{query}")
    assert len(re.findall(r'<th scope="row"><a href="/console/requests/req_', page)) == count


async def test_a_search_without_a_start_goes_back_a_day_and_says_so(scene: Scene) -> None:
    said, older = "only the 24 hours before the end", "&start=2026-01-01"
    requests = "/console/requests?model=gpt-image-2&mode=live"
    for path in (requests, "/console/audit?action=tenant.created"):
        assert said in await scene.get(path)
        assert said not in await scene.get(path + older)
        assert said not in await scene.get(f"{path}&tenant=Northwind+Travel")
    [row] = await scene.served.owner_sql(
        "SELECT count(*) FROM request_log WHERE livemode AND at > now() - interval '1 day'"
        " AND 'gpt-image-2' IN (requested_model, served_model)"
    )
    assert row[0] < 50
    for path, count in ((requests, row[0]), (requests + older, 50)):
        shown = re.findall(
            r'<th scope="row"><a href="/console/requests/req_', await scene.get(path)
        )
        assert len(shown) == count, path


async def test_a_search_that_takes_too_long_says_what_to_narrow(scene: Scene) -> None:
    for table, path in (
        ("request_log", "/console/requests?status=402"),
        ("audit", "/console/audit?actor=root"),
    ):
        lock = f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
        async with locked(scene.served.gateway.settings, lock):
            asked = asyncio.create_task(scene.http.get(path))
            await eventually(lambda: waiting_for_locks(scene.served))
            await scene.served.owner_sql(CANCEL_WAITING, table=f"SELECT %{table}%")
            page = await asked
        assert page.status_code == 400, path
        assert "This search takes too long" in page.text
        assert '<form class="filters"' in page.text


async def test_the_days_of_a_models_tenants_hold_today_in_every_time_zone(scene: Scene) -> None:
    days = asked_days()
    earliest, latest = (
        datetime.now(ZoneInfo(zone)).date() for zone in ("Etc/GMT+12", "Pacific/Kiritimati")
    )
    assert days.first < earliest <= latest <= days.last


async def test_a_models_page_whose_tenants_take_too_long_to_count_says_so(scene: Scene) -> None:
    lock = "LOCK TABLE usage_day IN ACCESS EXCLUSIVE MODE"
    async with locked(scene.served.gateway.settings, lock):
        asked = asyncio.create_task(scene.http.get("/console/models/gpt-image-2"))
        await eventually(lambda: waiting_for_locks(scene.served))
        await scene.served.owner_sql(CANCEL_WAITING, table="%usage_day%")
        page = await asked
    assert page.status_code == 400
    assert "takes too long" in page.text
    await scene.served.owner_sql("ALTER TABLE usage_day RENAME TO gone")
    broken = await scene.http.get("/console/models/gpt-image-2")
    await scene.served.owner_sql("ALTER TABLE gone RENAME TO usage_day")
    assert broken.status_code == 500


async def test_a_models_page_has_its_most_frequent_tenants(scene: Scene) -> None:
    days = asked_days()
    page = await scene.get("/console/models/gpt-image-2")
    rows = await scene.served.owner_sql(
        "SELECT t.name, count(*) AS requests FROM reservation r JOIN tenant t ON t.id = r.tenant_id"
        " WHERE r.requested_model = 'gpt-image-2' AND r.livemode AND r.state LIKE 'posted%'"
        " AND (r.admitted_at AT TIME ZONE t.time_zone)::date BETWEEN :first AND :last GROUP BY 1",
        first=days.first,
        last=days.last,
    )
    shown = re.findall(
        r'<a href="/console/tenants/[^"]+">([^<]+)</a></th>\s*<td[^>]*><a[^>]*>(\d+)</a>', page
    )
    asked = {row.name: row.requests for row in rows}
    numbers = sorted(asked.values(), reverse=True)
    assert [int(number) for _, number in shown] == numbers
    assert {html.unescape(name): int(number) for name, number in shown} == asked
    async with scene.served.gateway.database.operator() as session:
        askers = await list_askers(session, ["gpt-image-2"], of_each=2)
    found = askers["gpt-image-2"]
    assert [one.requests for one in found.first] == numbers[:2]
    assert found.more == len(asked) - 2


async def test_requests_of_the_console_are_shown_only_when_asked_for(scene: Scene) -> None:
    await scene.get("/console/tenants")
    await scene.served.gateway.request_log.flush()
    assert "/console/{id}" not in await scene.get("/console/requests")
    shown = await scene.get("/console/requests?pages=yes")
    assert "/console/{id}" in shown
    [page_id] = re.findall(r'href="/console/requests/(req_[^"]+)"', shown)[:1]
    assert "of the console" in await scene.get(f"/console/requests/{page_id}")


async def test_pages_of_requests_follow_one_another_without_gaps(scene: Scene) -> None:
    seen: list[str] = []
    path = "/console/requests?tenant=Northwind+Travel&mode=live"
    while path:
        page = await scene.get(path)
        seen += re.findall(r'<th scope="row"><a href="/console/requests/(req_[^"]+)', page)
        older = re.search(r'href="([^"]+)" rel="next"', page)
        path = html.unescape(older[1]) if older else ""
    [row] = await scene.served.owner_sql(
        "SELECT count(*) FROM request_log WHERE livemode AND tenant_id = :id"
        " AND route NOT LIKE '/console%'",
        id=scene.tenant_id,
    )
    assert len(seen) == len(set(seen)) == row[0]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/requests?status=abc", 400),
        ("/console/requests?status=99999999999999999999", 400),
        ("/console/requests?start=garbage", 400),
        ("/console/requests?end=9999-12-31", 400),
        ("/console/requests?tenant=none", 404),
        ("/console/requests?key=none", 404),
        ("/console/requests?after=x", 400),
        ("/console/requests?model=%00", 400),
        ("/console/requests?id=%22%3E", 400),
        ("/console/requests?colour=red", 400),
        ("/console/costs/calls?status=paid", 400),
        ("/console/costs/calls?after=1", 400),
        ("/console/costs/calls?zone=Mars/Olympus", 400),
        ("/console/costs/calls?mode=none", 400),
        ("/console/costs/calls?start=2026-02-30", 400),
        ("/console/costs/calls?tenant=none", 404),
        ("/console/costs/calls?key=none", 404),
        ("/console/open-calls?state=abc", 400),
        ("/console/open-calls?after=abc", 400),
        ("/console/tenants?after=abc", 400),
        ("/console/tenants?q=%00", 400),
        ("/console/tenants/abc", 400),
        (f"/console/tenants/{NO_ID}", 404),
        (f"/console/tenants/{NO_ID}/keys", 404),
        (f"/console/tenants/{NO_ID}/budgets", 404),
        ("/console/budgets?after=99999999999999999999", 404),
        ("/console/models/none", 404),
        ("/console/webhooks?of=none", 400),
        (f"/console/webhooks/{NO_ID}", 404),
        ("/console/audit?action=none", 400),
        ("/console/audit?start=2026-02-30", 400),
        (f"/console/audit?after={NO_ID}", 400),
        ("/console/audit?format=csv&tenant=none", 404),
    ],
)
async def test_bad_addresses_get_a_page_that_says_why(scene: Scene, path: str, status: int) -> None:
    page = await scene.get(path, status)
    assert "<h1>" in page


async def test_the_audit_trail_is_filtered_and_its_file_has_no_formulas(scene: Scene) -> None:
    await scene.post(f"{scene.tenant}/users", name=FORMULA)
    await scene.post("/console/tenants", name=f"+{FORMULA}")
    page = await scene.get("/console/audit?action=user.created&tenant=Northwind+Travel")
    assert "user.created" in page
    assert "api_key.issued</code>" not in page
    by_name = await scene.get("/console/audit?actor=root+(sign-in+link)")
    assert "the gateway itself" not in by_name
    file = await scene.get("/console/audit?format=csv")
    rows = list(csv.DictReader(io.StringIO(file)))
    [count] = await scene.served.owner_sql("SELECT count(*) FROM audit")
    assert len(rows) == count[0]
    assert f"'+{FORMULA}" in {row["tenant"] for row in rows}
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


async def test_the_system_page_examines_the_gateway(scene: Scene) -> None:
    assert "Examine" in await scene.get("/console/system")
    answer = await scene.post("/console/system", 200)
    words = text_of(answer.text)
    for part in ("ledger", "budgets, reservations and ledger agree", "storage", "accepts, returns"):
        assert part in words, part


async def test_the_list_of_tenants_agrees_with_the_ledger(scene: Scene) -> None:
    page = await scene.get("/console/tenants")
    for name, tenant in scene.seeded.tenants.items():
        line = page[page.index(f'"/console/tenants/{tenant.id}"') :]
        shown = re.search(r'title="\$([\d.,]+) USD"', line)
        assert shown is not None
        [row] = await scene.served.owner_sql(
            "SELECT coalesce(sum(l.amount_nano), 0) FROM ledger l JOIN tenant t"
            " ON t.id = l.tenant_id WHERE l.kind <> 'hold' AND l.livemode AND t.id = :id AND"
            " l.admitted_at >= date_trunc('month', now() AT TIME ZONE t.time_zone)"
            " AT TIME ZONE t.time_zone",
            id=tenant.id,
        )
        assert round(float(shown[1].replace(",", "")) * 10**9) == row[0], name
