"""A tenant's portal in a real browser: the first image, masks, streams, hostile texts."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Page

from gateway.identity.viewers import Role
from tests.console_browser import CHROMIUM, NO_BROWSER, Faults, Visitor, chromium
from tests.console_helpers import signed_in_as
from tests.harness import PostgresServer, Served, make_settings, secret_of, served_gateway
from tests.image_helpers import file_bytes, load, photo
from tests.stub_openai import Stub, running_stub
from tests.stub_openai.faults import Fault

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER),
]
PLAYGROUND = "/console/playground"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
SEEN = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const image = document.querySelector("#partial img");
    if (image && window.seen.at(-1) !== image.alt) window.seen.push(image.alt);
  }).observe(document.getElementById("partial"), { childList: true });
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[Stub]:
    """A stub of OpenAI for the file."""
    async with running_stub() as running:
        running.configure(keep_files=True)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    postgres: PostgresServer, provider: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """One gateway for the file; its tenant stores prompts."""
    url = await postgres.create()
    folder = tmp_path_factory.mktemp("browser")
    settings = make_settings(url, folder, OPENAI_BASE_URL=provider.base_url)
    async with served_gateway(settings) as one:
        await one.owner_sql("UPDATE tenant SET stores_prompts = true")
        yield one
    await postgres.drop(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visitor(gateway: Served) -> AsyncIterator[Visitor]:
    """A tenant's administrator with a browser; at the end no page may have had a fault."""
    faults = Faults(urlsplit(gateway.base_url).netloc)
    async with signed_in_as(gateway, Role.TENANT_ADMIN) as http, chromium() as browser:
        token = http.cookies["ig_session"]
        cookies: list[dict[str, object]] = [
            {"name": "ig_session", "value": token, "url": gateway.base_url}
        ]
        one = Visitor(browser, gateway.base_url, cookies, faults)
        yield one
        for context in one.open:
            await context.close()
    assert not faults.found, "\n".join(faults.found)


async def fill(page: Page, prompt: str) -> None:
    """Fill the form for a cheap image."""
    await page.get_by_label("Prompt").fill(prompt)
    await page.locator("#quality").select_option("low")
    await page.locator("#size").fill("1024x1024")


async def make(page: Page) -> None:
    """Make the image, and wait until it is shown."""
    await page.get_by_role("button", name="Make image").click()
    await page.locator("#output .result img").wait_for()


async def test_the_first_sandbox_image_is_three_clicks_from_the_sign_in(
    gateway: Served, visitor: Visitor
) -> None:
    key = await gateway.key(livemode=False)
    context = await visitor.context()
    await context.clear_cookies()
    page = await context.new_page()
    await page.goto("/console")
    await page.get_by_label("API key", exact=True).fill(secret_of(key))
    await page.locator("form[action='/console/login/api-key'] button").click()
    await page.get_by_role("link", name="Make an image").click()
    await fill(page, "A lighthouse")
    await make(page)
    source = await page.locator("#output .result img").get_attribute("src")
    assert source is not None
    assert source.startswith("/images/img_")


async def test_partial_images_are_shown_as_they_come_and_the_quote_before(
    visitor: Visitor,
) -> None:
    page = await visitor.visit(f"{PLAYGROUND}?mode=live")
    await fill(page, "A slow sunrise")
    await page.locator("#quote .buy__most").wait_for()
    assert "A slow sunrise" in await page.locator("#code-curl").inner_text()
    await page.evaluate(SEEN)
    await make(page)
    assert await page.evaluate("window.seen") == ["Partial image 1", "Partial image 2"]
    assert "$0.01" in await page.locator("#output .facts").inner_text()


async def test_a_double_click_buys_once(provider: Stub, visitor: Visitor) -> None:
    page = await visitor.visit(f"{PLAYGROUND}?mode=live")
    before = len(provider.bill)
    await fill(page, "Only once")
    await page.get_by_role("button", name="Make image").dblclick()
    await page.locator("#output .result img").wait_for()
    assert len(provider.bill) == before + 1
    await make(page)
    assert len(provider.bill) == before + 2


async def test_what_is_painted_is_transparent_in_the_mask_that_the_provider_gets(
    provider: Stub, visitor: Visitor, tmp_path: Path
) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(file_bytes(photo(640, 480)))
    page = await visitor.visit(f"{PLAYGROUND}?mode=live&operation=edit")
    await page.locator("#image").set_input_files(file)
    await page.locator("#masking summary").click()
    paint = page.locator("#painter-paint")
    await paint.scroll_into_view_if_needed()
    box = await paint.bounding_box()
    assert box is not None
    await page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.5, steps=8)
    await page.mouse.up()
    await page.get_by_text("The painted area is changed.").wait_for()
    await page.get_by_label("Prompt").fill("A river")
    await make(page)
    image, mask = (load(content) for content in provider.files[-1])
    alpha = mask.getchannel("A")
    assert image.size == mask.size == (640, 480)
    assert [alpha.getpixel((x, 240)) for x in (130, 320, 510)] == [0, 0, 0]
    assert [alpha.getpixel(one) for one in ((10, 10), (320, 20), (630, 470))] == [255, 255, 255]


async def test_a_mask_is_painted_undone_and_cleared_with_the_keyboard(
    visitor: Visitor, tmp_path: Path
) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(file_bytes(photo(320, 320)))
    page = await visitor.visit(f"{PLAYGROUND}?mode=live&operation=edit")
    await page.locator("#image").set_input_files(file)
    await page.locator("#masking summary").click()
    await page.locator("#painter-paint").focus()
    for key in ("Space", "ArrowLeft", "Enter"):
        await page.keyboard.press(key)
    await page.get_by_text("The painted area is changed.").wait_for()
    for _ in range(2):
        await page.get_by_role("button", name="Undo").press("Enter")
    await page.get_by_text("Nothing is painted.").wait_for()
    assert await page.locator("#mask").evaluate("input => input.files.length") == 0


async def test_files_are_dropped_removed_and_kept_when_the_model_changes(
    visitor: Visitor,
) -> None:
    page = await visitor.visit(f"{PLAYGROUND}?mode=live&operation=edit")
    await page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64});
          const blob = await new Promise((done) => canvas.toBlob(done));
          const dataTransfer = new DataTransfer();
          for (const name of ["a.png", "b.png", "c.png"]) {
            dataTransfer.items.add(new File([blob], name, {type: "image/png"}));
          }
          document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer}));
        }"""
    )
    await page.get_by_role("button", name="Remove b.png").click()
    await page.get_by_label("Prompt").fill("Kept")
    async with page.expect_response(re.compile("/playground/fields")):
        await page.locator("#model").select_option("gpt-image-1.5")
    await page.locator("#input_fidelity").wait_for(state="attached")
    names = "input => [...input.files].map((file) => file.name)"
    assert await page.locator("#image").evaluate(names) == ["a.png", "c.png"]
    assert await page.get_by_label("Prompt").input_value() == "Kept"


async def test_hostile_prompts_and_file_names_are_shown_as_text(
    visitor: Visitor, tmp_path: Path
) -> None:
    file = tmp_path / "<img src=x onerror=document.title='owned'>.png"
    file.write_bytes(file_bytes(photo(320, 320)))
    page = await visitor.visit(f"{PLAYGROUND}?mode=test&operation=edit")
    await page.locator("#image").set_input_files(file)
    await page.get_by_label("Prompt").fill(HOSTILE)
    await make(page)
    titles = [await page.title()]
    for path in ("/console", "/console/gallery"):
        await page.goto(path)
        titles.append(await page.title())
    await page.locator(".thumb").first.click()
    assert await page.get_by_text(HOSTILE).first.is_visible()
    for name in ("Same again", "Use as input"):
        await page.get_by_role("link", name=name).click()
        titles.append(await page.title())
        await page.go_back()
    assert not [title for title in titles if "owned" in title]


async def test_a_hostile_message_of_a_provider_is_shown_as_text(
    provider: Stub, visitor: Visitor
) -> None:
    provider.faults.add(Fault("status", preset="hostile_message"))
    page = await visitor.visit(f"{PLAYGROUND}?mode=live")
    await fill(page, "Anything")
    await page.get_by_role("button", name="Make image").click()
    await page.locator("#refusal [role=alert]").wait_for()
    assert "owned" not in await page.title()
    assert await page.locator("img[src=x]").count() == 0


async def test_without_scripts_an_image_is_edited_by_plain_forms(
    visitor: Visitor, tmp_path: Path
) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(file_bytes(photo(320, 320)))
    page = await visitor.visit(f"{PLAYGROUND}?mode=test", scripts=False)
    await page.get_by_label("Edit images").check(force=True)
    await page.get_by_role("button", name="Show its options").click()
    await page.locator("#image").set_input_files(file)
    await page.get_by_label("Prompt").fill("A plain edit")
    await page.get_by_role("button", name="Make image").click()
    await page.wait_for_url("**/playground/results/*")
    assert await page.locator(".result img").count() == 1
