"""The operators' pages in a real browser, with believable data: what they say, need and send."""

import csv
import io
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx2
import pytest
import pytest_asyncio

from gateway.console.navigation import NAVIGATION
from tests.console_browser import (
    CHROMIUM,
    NO_BROWSER,
    Visitor,
    session_cookies,
    signed_in,
)
from tests.console_seed import Seeded, seed
from tests.harness import PostgresServer, Served, make_settings, served_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
HTML = {"Accept": "text/html"}
WHOLE = "period=90d&compare=no"
CLOSING = "gpt-image-1.5"
CLOSES = datetime.now(UTC).date() + timedelta(days=10)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def busy(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Served, Seeded]]:
    """One gateway with seeded data for the file."""
    url = await postgres.create()
    async with served_gateway(make_settings(url, tmp_path_factory.mktemp("busy"))) as running:
        running.gateway.core.catalog.learn_shutdown_dates({CLOSING: CLOSES})
        seeded = await seed(running, calls=1500)
        yield running, seeded
    await postgres.drop(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visitor(busy: tuple[Served, Seeded]) -> AsyncIterator[Visitor]:
    """An operator with a browser; at the end no page may have had a fault."""
    async with signed_in(busy[0]) as someone:
        yield someone


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(busy: tuple[Served, Seeded]) -> AsyncIterator[httpx2.AsyncClient]:
    """The same session without a browser, and so without scripts."""
    cookies = {str(one["name"]): str(one["value"]) for one in await session_cookies(busy[0])}
    async with busy[0].http(cookies=cookies) as client:
        yield client


def amount(text: str) -> Decimal:
    """The number of an amount such as $1,234.50."""
    return Decimal(text.replace("$", "").replace(",", ""))


@in_browser
async def test_the_menu_of_a_phone_opens_and_leads_on(visitor: Visitor) -> None:
    page = await visitor.visit("/console", width=390)
    link = page.get_by_role("link", name="Costs", exact=True)
    assert not await link.is_visible()
    await page.get_by_role("button", name="Menu").click()
    await link.click()
    await page.wait_for_url("**/console/costs")


@in_browser
async def test_a_chosen_theme_stays_on_the_next_page(visitor: Visitor) -> None:
    page = await visitor.visit("/console", theme="light")
    await page.get_by_role("button", name="Dark").click()
    await page.goto("/console/costs")
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
    ground = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == "rgb(12, 14, 19)"


@in_browser
async def test_a_changed_filter_shows_its_costs_at_once(visitor: Visitor) -> None:
    page = await visitor.visit(f"/console/costs?{WHOLE}")
    before = await page.locator("#report .tile__value").first.inner_text()
    await page.get_by_label("Tenant", exact=True).select_option(label="Aster Games")
    await page.wait_for_url("**tenant=*")
    await page.wait_for_function(
        "text => document.querySelector('#report .tile__value').innerText !== text", arg=before
    )
    assert "Asia/Tokyo" in await page.locator(".page-head__lead").inner_text()


@in_browser
async def test_live_tiles_come_by_events_and_pages_work_without_scripts(visitor: Visitor) -> None:
    context = await visitor.context()
    page = await context.new_page()
    async with page.expect_response("**/console/events?*") as events:
        await page.goto("/console")
    answer = await events.value
    assert answer.headers["content-type"].startswith("text/event-stream")
    await page.wait_for_function("document.querySelector('#live .tile') !== null")
    await page.close()
    plain = await visitor.visit("/console/costs?group=tenant", scripts=False)
    await plain.get_by_label("Group by").select_option("provider")
    await plain.get_by_role("button", name="Show").click()
    assert await plain.get_by_role("heading", name="By provider").is_visible()


@in_browser
async def test_a_tooltip_shows_what_a_bar_is_made_of(visitor: Visitor) -> None:
    page = await visitor.visit("/console")
    tips = []
    for slot in await page.locator(".chart .slot").all():
        await slot.hover()
        tips.append(await page.locator(".chart-tip").inner_text())
    # On some days a single model was used: its amount is the total.
    several = [tip for tip in tips if tip.count(": $") > 1]
    assert len(several) > 5
    assert [tip for tip in several if "Total: $" not in tip] == []


async def test_the_overview_agrees_with_the_ledger(
    busy: tuple[Served, Seeded], http: httpx2.AsyncClient
) -> None:
    text = (await http.get("/console")).text
    assert "Aster Games" in text
    ends = rf"{re.escape(CLOSING)}</a></strong>.*?ends {CLOSES.day} {CLOSES:%b %Y}"
    assert re.search(ends, text, re.DOTALL)
    sums = await busy[0].owner_sql(
        "SELECT state, count(*) FROM reservation WHERE state <> 'posted' GROUP BY 1"
    )
    counts = dict(tuple(row) for row in sums)
    assert f"{counts['held']} calls under way" in text
    assert f"{counts['unknown']} calls, {counts['posted_est']} estimated" in text


async def test_costs_of_groups_of_the_chart_and_of_the_file_are_the_same_sum(
    busy: tuple[Served, Seeded], http: httpx2.AsyncClient
) -> None:
    for group in ("model", "tenant", "key", "user", "provider", "operation", "credential_owner"):
        address = f"/console/costs?group={group}&period=90d&compare=no"
        page = await http.get(address)
        assert page.status_code == 200, page.text
        exact = re.findall(r'title="(\$[\d.,]+) USD"', page.text)
        tables = [one.partition("</tbody>")[0] for one in page.text.split("<tbody>")]
        drawn = sum(amount(one) for one in re.findall(r'<td class="num">(\$[^<]+)<', tables[1]))
        rows = re.findall(r'data-label="Cost"><a [^>]*><span[^>]*title="(\$[^ ]+) ', tables[2])
        file = csv.DictReader(io.StringIO((await http.get(f"{address}&format=csv")).text))
        total = amount(exact[0])
        assert total == Decimal(await busy[0].ledger_total()) / 10**9, group
        assert total == sum(amount(one) for one in rows) == drawn, group
        assert total == sum(Decimal(line["cost_usd"]) for line in file), group


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("group=colour", "group must be one of"),
        ("start=2026-02-30", "start must be a date"),
        ("start=2026-02-02&end=2026-02-01", "must not be before the start"),
        ("start=2020-01-01&end=2026-01-01", "at most 366 days"),
        ("by=hour&period=90d", "Hours are shown for at most"),
        ("mode=none", "mode must be one of live, test"),
        ("tenant=none", "none"),
        ("colour=red", "colour"),
        ("key=%00", ""),
        ("provider=%00", "NUL"),
        ("model='><script>alert(1)</script>", "Costs"),
    ],
)
async def test_a_wrong_field_is_named_on_a_page(
    http: httpx2.AsyncClient, query: str, message: str
) -> None:
    answer = await http.get(f"/console/costs?{query}", headers=HTML)
    assert answer.status_code in {200, 400, 404}
    assert message in answer.text
    assert "<script>alert" not in answer.text
    assert answer.headers["content-type"].startswith("text/html")


async def test_a_dead_image_link_and_an_unknown_address_are_pages_for_people(
    busy: tuple[Served, Seeded], http: httpx2.AsyncClient
) -> None:
    async with busy[0].http() as anyone:
        dead = await anyone.get("/images/img_1?exp=1&sig=x", headers=HTML)
        lost = await anyone.get("/nowhere", headers=HTML)
        json = await anyone.get("/images/img_1?exp=1&sig=x")
        api = await anyone.get("/v1/models", headers=HTML)
    assert (dead.status_code, lost.status_code) == (403, 404)
    assert "This link no longer works" in dead.text
    assert "There is no such page" in lost.text
    assert "www-authenticate" not in lost.headers
    for page in (dead, lost):
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert page.headers["x-request-id"] in page.text
    assert json.json()["error"]["code"].startswith("link_")
    assert api.json()["error"]["code"] == "invalid_api_key"
    part = await http.get("/console/costs?group=x", headers={**HTML, "HX-Request": "true"})
    assert 'id="content"' in part.text
    assert "<html" not in part.text


async def test_each_line_of_the_navigation_leads_to_a_page(http: httpx2.AsyncClient) -> None:
    for group in NAVIGATION["operator"]:
        for item in group.items:
            answer = await http.get(item.path, headers=HTML)
            assert answer.status_code == 200, item.path
            assert f'<a href="{item.path}" aria-current="page">' in answer.text
