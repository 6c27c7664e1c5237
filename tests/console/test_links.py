"""Sign-in by a one-time link, and what a session is good for."""

import time

import httpx2
import pytest

from gateway.config import Settings
from tests.console_helpers import OWN, new_link
from tests.harness import Served, served_gateway

HTML = {"Accept": "text/html"}


async def sign_in(served: Served, browser: httpx2.AsyncClient) -> httpx2.Response:
    """Open a new link in the browser."""
    return await browser.get(await new_link(served))


async def test_a_link_signs_in_once_as_operator_admin(served: Served) -> None:
    link = await new_link(served)
    async with served.http() as browser, served.http() as thief:
        before = await browser.get("/console")
        first = await browser.get(link)
        home = await browser.get("/console")
        second = await thief.get(link)
    assert (before.status_code, before.headers["location"]) == (303, "/console/login?next=/console")
    assert (first.status_code, first.headers["location"]) == (303, "/console")
    assert home.status_code == 200
    assert "root (sign-in link)" in home.text
    assert "operator-admin" in home.text
    assert second.status_code == 401
    assert "ig_session" not in thief.cookies


async def test_a_link_that_is_too_old_signs_no_one_in(served: Served) -> None:
    link = await new_link(served)
    await served.owner_sql("UPDATE console_link SET expires_at = now()")
    async with served.http() as browser:
        assert (await browser.get(link)).status_code == 401
        assert "ig_session" not in browser.cookies


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Purpose": "prefetch"}, {"Sec-Fetch-Site": "cross-site"}, {"Purpose": "prefetch"}],
)
async def test_a_link_is_not_used_up_before_its_owner_agrees(
    served: Served, headers: dict[str, str]
) -> None:
    link = await new_link(served)
    token = link.partition("token=")[2]
    async with served.http() as browser:
        asked = await browser.get(link, headers=headers)
        assert asked.status_code == 200
        assert "ig_session" not in browser.cookies
        agreed = await browser.post("/console/login/link", data={"token": token}, headers=OWN)
    assert (agreed.status_code, agreed.headers["location"]) == (303, "/console")


async def test_a_sign_out_ends_the_session_for_every_holder_of_its_token(served: Served) -> None:
    async with served.http() as browser, served.http() as thief:
        await sign_in(served, browser)
        thief.cookies.update(browser.cookies)
        assert (await thief.get("/console")).status_code == 200
        out = await browser.post("/console/sign-out", headers=OWN)
        assert out.headers["location"] == "/console/login?ended=signed_out"
        assert "ig_session" not in browser.cookies
        late = await thief.get("/console")
    assert late.headers["location"] == "/console/login?next=/console&ended=signed_out"


async def test_a_sign_in_never_keeps_a_token_that_the_browser_came_with(served: Served) -> None:
    fixed = "A" * 43
    async with served.http(cookies={"ig_session": fixed}) as victim, served.http() as browser:
        answer = await sign_in(served, victim)
        assert fixed not in answer.headers["set-cookie"]
        await sign_in(served, browser)
        earlier = browser.cookies["ig_session"]
        await sign_in(served, browser)
        assert browser.cookies["ig_session"] != earlier
        async with served.http(cookies={"ig_session": earlier}) as thief:
            late = await thief.get("/console")
    assert late.headers["location"].endswith("ended=replaced")


@pytest.mark.parametrize(
    ("column", "reason"), [("idle_until", "idle"), ("absolute_until", "too_old")]
)
async def test_a_session_ends_by_itself(served: Served, column: str, reason: str) -> None:
    async with served.http() as browser:
        await sign_in(served, browser)
        await served.owner_sql(f"UPDATE console_session SET {column} = now()")  # noqa: S608
        late = await browser.get("/console?tab=1")
    assert late.headers["location"] == f"/console/login?next=/console%3Ftab%3D1&ended={reason}"


async def test_a_request_extends_the_idle_time_but_never_the_longest(served: Served) -> None:
    async with served.http() as browser:
        await sign_in(served, browser)
        await served.owner_sql(
            "UPDATE console_session SET last_seen_at = now() - interval '10 minutes',"
            " idle_until = now() + interval '1 minute',"
            " absolute_until = now() + interval '5 minutes'"
        )
        assert (await browser.get("/console")).status_code == 200
    [row] = await served.owner_sql(
        "SELECT idle_until = absolute_until AS at_most, idle_until > now() + interval '2 minutes'"
        " AS extended FROM console_session"
    )
    assert (row.at_most, row.extended) == (True, True)


async def test_a_stream_ends_with_its_session_and_does_not_keep_it_from_becoming_idle(
    served: Served,
) -> None:
    async with served.http() as browser:
        browser.headers["Accept"] = "text/event-stream"
        await browser.get(await new_link(served))
        await served.owner_sql(
            "UPDATE console_session SET last_seen_at = now() - interval '10 minutes',"
            " idle_until = now() + interval '1 minute'"
        )
        path = f"/console/events?opened={int(time.time())}"
        async with browser.stream("GET", path) as events:
            assert events.status_code == 200
            [row] = await served.owner_sql(
                "SELECT idle_until < now() + interval '2 minutes' AS is_kept FROM console_session"
            )
            assert row.is_kept
        await served.owner_sql("UPDATE console_session SET idle_until = now()")
        ended = await browser.get(path)
    assert ended.headers["location"].endswith("ended=idle")


async def test_the_cookie_opens_no_api_route_and_a_key_opens_no_page(served: Served) -> None:
    key = await served.key()
    async with served.http() as browser, served.http(key) as program:
        await sign_in(served, browser)
        api = [
            (await browser.get(path)).status_code
            for path in ("/v1/models", "/admin/v1/tenants", "/metrics", "/mcp")
        ]
        page = await program.get("/console")
    assert api == [401, 401, 401, 401]
    assert page.status_code == 303


FORGED: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {},
)


async def test_a_form_of_another_site_changes_nothing(served: Served) -> None:
    async with served.http() as browser:
        await sign_in(served, browser)
        for headers in FORGED:
            forged = await browser.post("/console/sign-out", headers=headers)
            assert forged.status_code == 403, headers
        assert (await browser.get("/console")).status_code == 200


async def test_an_own_form_is_known_by_its_origin_where_browsers_say_no_more(
    served: Served,
) -> None:
    async with served.http() as browser:
        await sign_in(served, browser)
        own = await browser.post("/console/sign-out", headers={"Origin": served.base_url})
    assert own.status_code == 303


FOREIGN = (
    "https://evil.example/",
    "//evil.example/console",
    "/\\evil.example",
    "/console\\..\\..",
    "/consolex",
    "/v1/models",
    "javascript:alert(1)",
    "/console/login?next=/console",
    "/console\r\nSet-Cookie: a=b",
    "/console/" + "a" * 2000,
)


async def test_a_sign_in_leads_to_own_pages_alone(served: Served) -> None:
    async with served.http() as browser:
        for target in FOREIGN:
            page = await browser.get("/console/login", params={"next": target})
            assert page.status_code == 200, target
            assert target not in page.text, target


async def test_every_page_has_its_headers(served: Served) -> None:
    async with served.http() as browser:
        answers = [await browser.get("/console/login"), await browser.get("/console")]
        answers.append(await browser.post("/console/sign-out"))
        answers.append(await browser.get("/console/no-such-page"))
    for answer in answers:
        headers = answer.headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-opener-policy"] == "same-origin"


async def test_over_https_browsers_keep_the_cookie_for_this_host_alone(
    settings: Settings,
) -> None:
    changed = settings.model_copy(update={"public_url": "https://images.example.com"})
    async with served_gateway(changed) as safe, safe.http() as browser:
        answer = await browser.get(await new_link(safe))
    name, *attributes = answer.headers["set-cookie"].split("; ")
    assert name.startswith("__Host-ig_session=")
    assert set(attributes) == {"HttpOnly", "Path=/", "SameSite=lax", "Secure"}
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


async def test_the_root_leads_people_to_the_console_and_programs_to_the_docs(
    served: Served,
) -> None:
    async with served.http() as http:
        person = await http.get("/", headers=HTML)
        program = await http.get("/", headers={"Accept": "application/json"})
    assert person.headers["location"] == "/console"
    assert program.headers["location"] == "/docs"


async def test_sign_ins_and_their_ends_are_in_the_audit_trail(served: Served) -> None:
    async with served.http() as browser:
        await sign_in(served, browser)
        await browser.post("/console/sign-out", headers=OWN)
    rows = await served.owner_sql(
        "SELECT action, actor_type, actor_name FROM audit WHERE action LIKE 'console.%' ORDER BY at"
    )
    assert [tuple(row) for row in rows] == [
        ("console.link_made", "cli", None),
        ("console.session_begun", "operator_session", "root (sign-in link)"),
        ("console.session_ended", "operator_session", "root (sign-in link)"),
    ]
