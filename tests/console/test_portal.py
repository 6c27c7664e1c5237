"""A tenant's home and gallery: what each role sees, of which mode, and what it may delete."""

import html
import re
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import httpx2
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from gateway.console.tenant_forms import PAGE_SIZE
from gateway.console.tenant_home import MOST_USED
from gateway.db.actors import Actor
from gateway.domain import Scope
from gateway.identity.viewers import Role
from gateway.webhooks import endpoints
from tests.console_helpers import by_key, operator, signed_in_as
from tests.harness import PostgresServer, Served, make_settings, served_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
EVIL = '<script>alert("x")</script>'
REQUESTS = "/console/portal/requests?show=failed"
PAGES = ("/console", "/console/gallery", "/console/playground")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def portal(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """One gateway for the file, without a provider key; its tenant stores prompts."""
    url = await postgres.create()
    settings = make_settings(url, tmp_path_factory.mktemp("portal"), OPENAI_API_KEY=None)
    async with served_gateway(settings) as running:
        await running.owner_sql("UPDATE tenant SET stores_prompts = true")
        yield running
        await running.check_invariants()
    await postgres.drop(url)


async def make(
    served: Served, *prompts: str, user: str | None = None, tenant_id: UUID | None = None
) -> list[str]:
    """Make sandbox images over REST, each with a key named as its user; return their ids."""
    key = await served.key(livemode=False, user=user, name=f"key of {user}", tenant_id=tenant_id)
    async with served.http(key) as http:
        for prompt in prompts:
            fields = {
                "prompt": prompt,
                "model": "gpt-image-2",
                "quality": "low",
                "size": "1024x1024",
            }
            answer = await http.post("/v1/images/generations", json=fields)
            assert answer.status_code == 200, answer.text
        listed = await http.get("/v1/images", params={"limit": len(prompts)})
    return [image["id"] for image in listed.json()["data"]]


def forms_of(page: httpx2.Response) -> list[str]:
    """The addresses of a page's forms that change something."""
    return [
        path.replace("&amp;", "&")
        for path in re.findall(r'method="post" action="([^"]+)"', page.text)
    ]


def ids_of(answer: httpx2.Response) -> Sequence[str]:
    assert answer.status_code == 200, answer.text
    return list(dict.fromkeys(re.findall(r"/console/gallery/(img_\w+)", answer.text)))


async def test_each_role_and_key_gets_the_pages_that_it_may_see(portal: Served) -> None:
    expected = {
        Role.TENANT_ADMIN: [200, 200, 200],
        Role.TENANT_MEMBER: [200, 200, 200],
        Role.TENANT_BILLING_VIEWER: [200, 403, 403],
        Role.OPERATOR_VIEWER: [200, 403, 403],
    }
    for role, statuses in expected.items():
        async with signed_in_as(
            portal, role, user="ana" if role == Role.TENANT_MEMBER else None
        ) as one:
            assert [(await one.get(path)).status_code for path in PAGES] == statuses, role
    by_scope = {
        Scope.IMAGES_WRITE: [200, 403, 200],
        Scope.USAGE_READ: [200, 403, 403],
        Scope.TENANT_ADMIN: [200, 403, 403],
    }
    for scope, statuses in by_scope.items():
        key = await portal.key(livemode=False, scopes=[scope])
        async with by_key(portal, key) as one:
            assert [(await one.get(path)).status_code for path in PAGES] == statuses, scope


async def test_home_tells_costs_budgets_images_and_what_needs_attention(portal: Served) -> None:
    busy = await portal.tenant("busy")
    await portal.owner_sql("UPDATE tenant SET stores_prompts = true")
    async with signed_in_as(portal, Role.TENANT_ADMIN, tenant_id=busy) as new:
        first = await new.get("/console")
    assert "First steps" in first.text
    await portal.budget("0.007", livemode=False, tenant_id=busy)
    await make(portal, f"A boat {EVIL}", tenant_id=busy)
    async with portal.gateway.database.tenant(busy, by=Actor("cli", "root")) as session:
        hook = await endpoints.create(
            session,
            busy,
            sealing=portal.gateway.core.webhook_sealing,
            url="https://hooks.example.com/x",
            allow_private=False,
            max_endpoints=9,
        )
    await portal.owner_sql(
        "UPDATE webhook_endpoint SET disabled_at = now(), disabled_reason = 'gone'"
    )
    async with signed_in_as(portal, Role.TENANT_ADMIN, tenant_id=busy) as admin:
        home = await admin.get("/console?mode=test")
        live = await admin.get("/console?mode=live")
    async with signed_in_as(portal, Role.TENANT_BILLING_VIEWER, tenant_id=busy) as billing:
        costs = await billing.get("/console?mode=test")
    assert "First steps" not in home.text
    assert re.search(r"Budget of the whole tenant, per month: \d\d %", home.text)
    assert str(hook.endpoint.id) in home.text
    assert "Cost by day and model" in home.text
    assert len(ids_of(home)) == 1
    assert EVIL not in home.text
    assert ids_of(live) == []
    assert ids_of(costs) == []
    assert "Last images" not in costs.text
    assert str(hook.endpoint.id) not in costs.text


def reports_begun() -> float:
    """The connections of reports that pages of this process have taken."""
    found = REGISTRY.get_sample_value(
        "gateway_database_pool_wait_seconds_count", {"pool": "reports"}
    )
    return found or 0.0


async def test_pages_that_sum_and_search_use_the_connections_of_reports(portal: Served) -> None:
    async with signed_in_as(portal, Role.TENANT_ADMIN) as admin:
        for path in ("/console", "/console/gallery", "/console/usage/calls", REQUESTS):
            before = reports_begun()
            assert (await admin.get(path)).status_code == 200
            assert reports_begun() == before + 1, path


async def test_home_names_the_provider_that_refused_a_credential_within_a_day(
    portal: Served,
) -> None:
    refused = await portal.tenant("refused")
    key = await portal.key(tenant_id=refused, livemode=False)
    async with portal.http(key) as http:
        await http.get("/v1/images")
    await portal.gateway.request_log.flush()
    seen = []
    async with signed_in_as(portal, Role.TENANT_ADMIN, tenant_id=refused) as admin:
        for code in ("other", "credential_rejected"):
            await portal.owner_sql(
                "UPDATE request_log SET provider = 'openai', error_code = :code"
                " WHERE tenant_id = :id AND livemode IS NOT NULL",
                code=code,
                id=refused,
            )
            seen.append(
                "openai refuses your own key" in (await admin.get("/console?mode=test")).text
            )
    assert seen == [False, True]


async def test_budgets_are_shown_in_pages_and_home_has_the_most_used(portal: Served) -> None:
    crowded = await portal.tenant("crowded")
    await portal.budget("5", tenant_id=crowded, livemode=False)
    await portal.owner_sql(
        "WITH made AS (INSERT INTO tenant_user (tenant_id, id, name)"
        " SELECT :id, gen_random_uuid(), 'user ' || at FROM generate_series(1, 60) at"
        " RETURNING id, name)"
        " INSERT INTO budget (tenant_id, user_id, livemode, period, limit_nano)"
        " SELECT :id, id, false, 'month', 1000000000 FROM made",
        id=crowded,
    )
    await make(portal, "spent", user="user 7", tenant_id=crowded)
    seen: list[str] = []
    path = "/console/portal/budgets?mode=test"
    async with signed_in_as(portal, Role.TENANT_ADMIN, tenant_id=crowded) as admin:
        home = await admin.get("/console?mode=test")
        while path:
            page = await admin.get(path)
            assert "<strong>The whole tenant, per month</strong>" in page.text
            found = re.findall(r"<strong>User (user \d+), per month", page.text)
            assert len(found) <= PAGE_SIZE
            seen += found
            older = re.search(r'href="([^"]+)" rel="next"', page.text)
            path = html.unescape(older[1]) if older else ""
    assert len(seen) == len(set(seen)) == 60
    shown = re.findall(r"<strong>([^<]*user \d+[^<]*)</strong>", home.text)
    assert len(shown) == MOST_USED
    assert "user 7," in shown[0]


async def test_a_member_and_a_users_key_see_and_delete_their_own_images_alone(
    portal: Served,
) -> None:
    [of_ana] = await make(portal, "of ana", user="ana")
    [of_bob] = await make(portal, "of bob", user="bob")
    async with signed_in_as(portal, Role.TENANT_MEMBER, user="ana") as ana:
        seen = ids_of(await ana.get("/console/gallery?mode=test"))
        other = await ana.get(f"/console/gallery/{of_bob}")
        form = {of_ana: "on", of_bob: "on", "confirmed": "yes"}
        deleted = await ana.post("/console/gallery/delete", data=form)
    async with by_key(portal, await portal.key(livemode=False, user="bob")) as bob:
        of_key = ids_of(await bob.get("/console/gallery"))
    async with signed_in_as(portal, Role.TENANT_ADMIN) as admin:
        everyone = ids_of(await admin.get("/console/gallery?mode=test"))
    assert seen == [of_ana]
    assert other.status_code == 404
    assert deleted.headers["location"] == "/console/gallery?deleted=1"
    assert of_key == [of_bob]
    assert of_bob in everyone
    assert of_ana not in everyone
    [row] = await portal.owner_sql(
        "SELECT actor_name FROM audit WHERE action = 'image.deleted' AND object_id = :id", id=of_ana
    )
    assert row.actor_name == "A tenant-member"


async def test_another_tenants_images_are_not_found(portal: Served) -> None:
    [image] = await make(portal, "ours")
    foreign = await portal.tenant("other")
    async with signed_in_as(portal, Role.TENANT_ADMIN, tenant_id=foreign) as other:
        await other.get("/console?mode=test")
        seen = [
            await other.get(f"/console/gallery/{image}"),
            await other.get(f"/console/gallery?after={image}"),
            await other.get(f"/console/playground?image={image}"),
            await other.get(f"/console/playground?same={image}"),
            await other.post("/console/gallery/delete", data={image: "on"}),
        ]
        await other.post("/console/gallery/delete", data={image: "on", "confirmed": "yes"})
    assert [one.status_code for one in seen] == [404, 400, 404, 404, 404]
    async with signed_in_as(portal, Role.TENANT_ADMIN) as ours:
        assert (await ours.get(f"/console/gallery/{image}?mode=test")).status_code == 200


async def test_the_gallery_filters_pages_and_asks_before_it_deletes(portal: Served) -> None:
    made = await make(portal, *(f"paged {at}" for at in range(3)), user="pia")
    await make(portal, "not of pia")
    async with signed_in_as(portal, Role.TENANT_ADMIN) as admin:
        await admin.get("/console?mode=test")
        by_user = ids_of(await admin.get("/console/gallery?user=pia"))
        of_one_key = ids_of(await admin.get("/console/gallery?key=key of pia&operation=generation"))
        later = ids_of(await admin.get(f"/console/gallery?user=pia&after={made[0]}"))
        edits = ids_of(await admin.get("/console/gallery?operation=edit"))
        before = ids_of(await admin.get("/console/gallery?end=2020-01-01"))
        asked = await admin.post("/console/gallery/delete", data=dict.fromkeys(made[:2], "on"))
        still = ids_of(await admin.get("/console/gallery?user=pia"))
        agreed = dict.fromkeys(made[:2], "on") | {"confirmed": "yes"}
        done = await admin.post("/console/gallery/delete", data=agreed)
        told = await admin.get(done.headers["location"])
        left = ids_of(await admin.get("/console/gallery?user=pia"))
    assert by_user == of_one_key == still == made
    assert later == made[1:]
    assert (edits, before) == ([], [])
    assert "Delete 2 images?" in asked.text
    assert "2 images were deleted" in told.text
    assert left == made[2:]


async def test_an_image_page_has_its_prompt_cost_and_a_link_that_works(portal: Served) -> None:
    [image] = await make(portal, f"A tower {EVIL}")
    async with signed_in_as(portal, Role.TENANT_ADMIN) as admin:
        page = await admin.get(f"/console/gallery/{image}?mode=test")
        same = await admin.get(f"/console/playground?same={image}")
    assert "A tower &lt;script&gt;" in page.text
    entries = re.search(r'<a href="(/console/portal/requests/[^"]+)"', page.text)
    assert entries is not None
    async with signed_in_as(portal, Role.TENANT_ADMIN) as colleague:
        await portal.gateway.request_log.flush()
        assert (await colleague.get(entries[1])).status_code == 200
    assert EVIL not in page.text + same.text
    assert "A tower &lt;script&gt;" in same.text
    assert "$0.00" in page.text
    source = re.search(r'<img src="(/images/[^"]+)"', page.text)
    assert source is not None
    async with portal.http() as anyone:
        served = await anyone.get(source[1].replace("&amp;", "&"))
    assert served.headers["content-type"] == "image/png"


async def test_a_mode_is_kept_for_the_next_page_and_limited_to_that_of_a_key(
    portal: Served,
) -> None:
    async with signed_in_as(portal, Role.TENANT_ADMIN) as admin:
        assert "Home" in (await admin.get("/console?mode=test")).text
        kept = await admin.get("/console/gallery")
    async with by_key(portal, await portal.key(livemode=False)) as key:
        own = await key.get("/console/gallery")
        other = await key.get("/console/gallery?mode=live")
    assert "of the test mode" in kept.text
    assert "of the test mode" in own.text
    assert other.status_code == 403


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console?mode=both", 400),
        ("/console/gallery?start=2026-99-99", 400),
        ("/console/gallery?key=none", 400),
        ("/console/gallery?user=%00", 400),
        ("/console/gallery?model=x%00", 400),
        ("/console/usage?requested_model=%00", 400),
        ("/console/gallery?operation=x", 400),
        ("/console/gallery?after=x", 400),
        ("/console/gallery?colour=red", 400),
        ("/console/gallery?deleted=" + "9" * 200, 200),
        ("/console/gallery/img_x", 404),
        ("/console/playground?model=none", 404),
        ("/console/playground?image=%00", 400),
        ("/console/playground/results/x", 404),
        (f"/console/playground/results/{UUID(int=7)}", 404),
    ],
)
async def test_bad_input_is_told_on_a_page(portal: Served, path: str, status: int) -> None:
    async with signed_in_as(portal, Role.TENANT_ADMIN) as admin:
        answer = await admin.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")


async def test_a_stale_tab_changes_nothing_in_another_tenant_or_as_someone_else(
    portal: Served,
) -> None:
    one, two = await portal.tenant("stale one"), await portal.tenant("stale two")
    async with operator(portal) as http:
        outside = await http.get("/console/people")
        await http.post(f"/console/tenants/{one}/portal")
        pages = [await http.get(path) for path in ("/console/users", "/console/playground")]
        await http.post(f"/console/tenants/{two}/portal")  # in another tab
        # Of an operator's page, of a tenant's, and of one with a script.
        stale = [forms_of(page)[-1] for page in (outside, *pages)]
        stale.append(stale[-1].replace("/playground?", "/playground/stream?"))
        answers = [await http.post(path, data={"name": "made by a stale tab"}) for path in stale]
        assert [answer.status_code for answer in answers] == [409] * 4, stale
        assert "the portal of stale two" in answers[0].text
        [fresh] = [path for path in forms_of(await http.get("/console/users")) if "users" in path]
        assert (await http.post(fresh, data={"name": "made"})).status_code == 303
        assert (await http.post("/console/portal/leave")).status_code == 303
    names = await portal.owner_sql(
        "SELECT name, tenant_id FROM tenant_user WHERE name LIKE 'made%'"
    )
    assert [tuple(row) for row in names] == [("made", two)]
    first, second = [
        await portal.key(livemode=False, tenant_id=one, scopes=[*Scope], name=name)
        for name in ("first", "second")
    ]
    async with by_key(portal, first) as http:
        [path] = [path for path in forms_of(await http.get("/console/users")) if "users" in path]
        await http.post("/console/login/api-key", data={"key": second.secret.reveal()})
        assert (await http.post(path, data={"name": "x"})).status_code == 409


async def test_a_key_that_reads_no_images_is_shown_none_but_those_it_buys(portal: Served) -> None:
    [image_id] = await make(portal, "Someone else's")
    [row] = await portal.owner_sql("SELECT reservation_id FROM image WHERE id = :id", id=image_id)
    key = await portal.key(livemode=False, scopes=[Scope.IMAGES_WRITE])
    async with by_key(portal, key) as http:
        page = await http.get("/console/playground")
        result = await http.get(f"/console/playground/results/{row.reservation_id}")
        asked = await http.post("/console/gallery/delete", data={image_id: "on"})
        name = re.search(r'name="key" value="([^"]+)"', page.text)
        assert name is not None
        fields = {"key": name[1], "model": "gpt-image-2", "prompt": "Mine", "quality": "low"}
        fields |= {"operation": "generation", "do": "make"}
        files = [(field, (None, text)) for field, text in fields.items()]
        bought = await http.post(forms_of(page)[-1], files=files)
    assert (result.status_code, asked.status_code) == (403, 403)
    assert bought.status_code == 200
    assert 'alt="Result 1"' in bought.text


async def test_a_test_key_sees_no_live_credentials_and_no_audit_trail(portal: Served) -> None:
    async with signed_in_as(portal, Role.TENANT_ADMIN) as admin:
        form = {"owner": "tenant", "secret": "sk-own-live-7777"}
        assert (await admin.post("/console/credentials/openai", data=form)).status_code == 303
    seen = {}
    for livemode in (True, False):
        key = await portal.key(livemode=livemode, scopes=[*Scope])
        async with by_key(portal, key) as http:
            page = await http.get("/console/credentials")
            audit = await http.get("/console/portal/audit")
            assert "/console/portal/audit" not in page.text
            seen[livemode] = ("7777" in page.text, audit.status_code)
    assert seen == {True: (True, 403), False: (False, 403)}


async def test_an_operator_gets_out_of_the_portal_of_a_suspended_or_deleted_tenant(
    portal: Served,
) -> None:
    closing = await portal.tenant("closing")
    change = "UPDATE tenant SET status = :status WHERE id = :id"
    async with operator(portal) as http:
        await http.post(f"/console/tenants/{closing}/portal")
        await portal.owner_sql(change, status="suspended", id=closing)
        suspended = await http.get("/console")
        change = change.replace(" WHERE", ", deleted_at = now() WHERE")
        await portal.owner_sql(change, status="deleted", id=closing)
        deleted = await http.get("/console")
    assert suspended.status_code == 403
    assert {"/console/portal/leave", "/console/sign-out"} == set(forms_of(suspended))
    assert deleted.status_code == 200
    assert "portal/leave" not in deleted.text


@pytest.mark.parametrize(
    "path",
    [
        "/console/costs?tenant=%00",
        "/console/costs?requested_model=%00",
        "/console/login/oidc?invitation=%00",
        "/console/login/callback?state=%00",
    ],
)
async def test_the_character_nul_is_refused_on_a_page(portal: Served, path: str) -> None:
    async with operator(portal) as http:
        answer = await http.get(path)
        forms = [
            await http.post("/console/people/invitations", data={"tenant": "\0"}),
            await http.post("/console/playground", files=[("prompt", (None, "\0"))]),
        ]
        old = await http.get("/console/events?opened=" + "9" * 400)
    assert answer.status_code == 400
    assert "NUL" in answer.text
    assert [form.status_code for form in forms] == [400, 403]
    assert old.status_code == 200


async def test_an_operator_sees_a_portal_only_after_opening_it(portal: Served) -> None:
    async with operator(portal) as one:
        closed = await one.get("/console/gallery")
        await one.post(f"/console/tenants/{portal.tenant_id}/portal")
        opened = await one.get("/console/gallery?mode=test")
    assert (closed.status_code, opened.status_code) == (403, 200)
