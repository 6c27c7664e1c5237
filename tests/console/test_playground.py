"""The playground without scripts and as its script calls it: forms, quotes, images, refusals."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio

from gateway.console.playground.call_snippets import Call, snippets_of
from gateway.domain import Operation, Scope
from gateway.identity.viewers import Role
from gateway.request_log.figures import figures
from tests.console_helpers import by_key, operator, signed_in_as
from tests.harness import PostgresServer, Served, make_settings, served_gateway
from tests.image_helpers import file_bytes, mask, png
from tests.money.test_money_crashes import locked, waiting_for_locks
from tests.money_helpers import eventually
from tests.stub_openai import Stub, running_stub
from tests.stub_openai.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLAYGROUND = "/console/playground"
EVIL = "<img src=x onerror=alert(1)>"
HOLE = (100, 100, 300, 300)
FLARE = "gpt-image-2.5-flare"


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
    """One gateway for the file."""
    url = await postgres.create()
    folder = tmp_path_factory.mktemp("playground")
    async with served_gateway(make_settings(url, folder, OPENAI_BASE_URL=provider.base_url)) as one:
        yield one
        await one.check_invariants()
    await postgres.drop(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def maker(gateway: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """The browser of a tenant's member."""
    async with signed_in_as(gateway, Role.TENANT_MEMBER, user="ana") as browser:
        yield browser


def form_of(page: httpx2.Response, **fields: Any) -> list[tuple[str, Any]]:
    """The parts of the form on a page, as a browser sends them, with some fields filled."""
    assert page.status_code == 200, page.text
    key = re.search(r'name="key" value="([^"]+)"', page.text)
    assert key is not None
    usual = {"key": key[1], "model": FLARE, "operation": "generation", "hosted": "", "do": "make"}
    files = [("image", one) for one in fields.pop("images", [])]
    files += [("mask", one) for one in [fields.pop("mask", None)] if one is not None]
    texts = [(name, (None, str(text))) for name, text in (usual | fields).items()]
    return [*texts, *((name, (*one, "image/png")) for name, one in files)]


def events_of(answer: httpx2.Response) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream, in their order."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    found = re.findall(r"^event: (\w+)\ndata: (.*)$", answer.text, re.MULTILINE)
    return [(kind, orjson.loads(data)) for kind, data in found]


async def test_a_plain_form_makes_an_image_and_shows_it_with_its_exact_cost(
    gateway: Served, maker: httpx2.AsyncClient
) -> None:
    page = await maker.get(f"{PLAYGROUND}?mode=test")
    filled = form_of(page, prompt="A boat", size="1024x1024", quality="low")
    made = await maker.post(f"{PLAYGROUND}?mode=test", files=filled)
    assert made.status_code == 303, made.text
    shown = await maker.get(made.headers["location"])
    source = re.search(r'<img src="(/images/[^"]+)" alt="Result 1"', shown.text)
    assert source is not None
    async with gateway.http() as anyone:
        image = await anyone.get(source[1].replace("&amp;", "&"))
    assert image.headers["content-type"] == "image/png"
    [row] = await gateway.owner_sql(
        "SELECT final_nano, user_id IS NOT NULL AS has_user, livemode FROM reservation"
        " ORDER BY admitted_at DESC LIMIT 1"
    )
    assert (row.has_user, row.livemode) == (True, False)
    assert f"${row.final_nano / 10**9:.9f}".rstrip("0") in shown.text
    assert "test, not charged" in shown.text
    await gateway.gateway.request_log.flush()
    [logged] = await gateway.owner_sql(
        "SELECT livemode, user_id IS NOT NULL AS has_user, session_id IS NOT NULL AS has_session"
        " FROM request_log WHERE generation_id = (SELECT id FROM reservation"
        " ORDER BY admitted_at DESC LIMIT 1)"
    )
    assert tuple(logged) == (False, True, True)


async def test_a_form_that_is_sent_twice_buys_once_and_a_changed_one_buys_anew(
    provider: Stub, maker: httpx2.AsyncClient
) -> None:
    page = await maker.get(f"{PLAYGROUND}?mode=live")
    before = len(provider.bill)
    filled = form_of(page, prompt="Twice", quality="low")
    address = f"{PLAYGROUND}?mode=live"
    provider.faults.add(Fault(hold=True))
    first = asyncio.create_task(maker.post(address, files=filled))
    await provider.until_held(1)
    second = asyncio.create_task(maker.post(address, files=filled))
    # Enough for the second to find the first one under way; it must wait, not be refused.
    for _ in range(5):
        await maker.get(f"{PLAYGROUND}?mode=live")
    provider.release()
    twins = await asyncio.gather(first, second)
    again = await maker.post(f"{PLAYGROUND}/stream?mode=live", files=filled)
    once = len(provider.bill) - before
    await maker.post(address, files=form_of(page, prompt="Twice, but red", quality="low"))
    assert len({one.headers["location"] for one in twins}) == 1
    assert events_of(again)[-1][0] == "result"
    assert "nothing was bought again" in events_of(again)[-1][1]["html"]
    assert (once, len(provider.bill) - before) == (1, 2)


async def test_a_stream_sends_partial_images_and_then_the_result_with_a_new_key(
    maker: httpx2.AsyncClient,
) -> None:
    page = await maker.get(f"{PLAYGROUND}?mode=test")
    filled = form_of(page, prompt="A slow boat", quality="low", partial_images="2")
    events = events_of(await maker.post(f"{PLAYGROUND}/stream?mode=test", files=filled))
    assert [kind for kind, _ in events] == ["partial", "partial", "result"]
    assert events[0][1]["source"].startswith("data:image/png;base64,iVBOR")
    assert '<img src="/images/img_' in events[2][1]["html"]
    assert events[2][1]["key"] not in page.text


async def test_a_masked_edit_reaches_the_provider_with_both_files(
    provider: Stub, maker: httpx2.AsyncClient
) -> None:
    page = await maker.get(f"{PLAYGROUND}?mode=live&model={FLARE}&operation=edit")
    image, hole = png(1024, 1024), file_bytes(mask(1024, 1024, HOLE))
    filled = form_of(
        page,
        operation="edit",
        prompt="Add a kite",
        quality="low",
        images=[(f"{EVIL}.png", image), ("b.png", image)],
        mask=("mask.png", hole),
    )
    made = await maker.post(f"{PLAYGROUND}/stream?mode=live", files=filled)
    assert events_of(made)[-1][0] == "result", made.text
    assert len(provider.files[-1]) == 3
    assert EVIL not in made.text


async def test_a_stored_image_becomes_the_input_of_an_edit(
    provider: Stub, maker: httpx2.AsyncClient
) -> None:
    page = await maker.get(f"{PLAYGROUND}?mode=live")
    made = await maker.post(
        f"{PLAYGROUND}?mode=live", files=form_of(page, prompt="x", quality="low")
    )
    shown = await maker.get(made.headers["location"])
    image = re.search(r"image=(img_\w+)", shown.text)
    assert image is not None
    page = await maker.get(f"{PLAYGROUND}?image={image[1]}&mode=live")
    assert f'name="hosted" value="{image[1]}"' in page.text
    filled = form_of(page, operation="edit", prompt="Redder", hosted=image[1], quality="low")
    edited = await maker.post(f"{PLAYGROUND}?mode=live", files=filled)
    assert edited.status_code == 303, edited.text
    assert len(provider.files[-1]) == 1


async def test_a_quote_is_what_the_purchase_then_holds(
    gateway: Served, maker: httpx2.AsyncClient
) -> None:
    page = await maker.get(f"{PLAYGROUND}?mode=test&operation=edit")
    fields = {
        "operation": "edit",
        "model": FLARE,
        "prompt": "Add a kite",
        "size": "1024x1024",
        "quality": "medium",
    }
    asked = {**fields, "sizes": "640x480,1024x1024", "masked": "yes"}
    quoted = (await maker.post(f"{PLAYGROUND}/quote?mode=test", data=asked)).json()
    most = re.search(r'title="\$([\d.]+) USD"', quoted["quote"])
    assert most is not None
    images = [("a.png", png(640, 480)), ("b.png", png(1024, 1024))]
    hole = ("mask.png", file_bytes(mask(640, 480, HOLE)))
    filled = form_of(page, **fields, images=images, mask=hole)
    made = await maker.post(f"{PLAYGROUND}?mode=test", files=filled)
    assert made.status_code == 303, made.text
    [row] = await gateway.owner_sql(
        "SELECT held_nano FROM reservation ORDER BY admitted_at DESC LIMIT 1"
    )
    assert round(float(most[1]) * 10**9) == row.held_nano
    assert "-F mask=@mask.png" in quoted["code"]
    plain = await maker.post(
        f"{PLAYGROUND}?mode=test", files=form_of(page, **fields, images=images, do="quote")
    )
    assert "At most" in plain.text
    assert "Choose the files again" in plain.text


async def test_each_model_shows_the_parameters_that_it_takes_and_no_others(
    maker: httpx2.AsyncClient,
) -> None:
    shown = {}
    for model in ("gpt-image-2.6-flare", "dall-e-3", "dall-e-2", "gemini-3-pro-image"):
        answer = await maker.get(f"{PLAYGROUND}?model={model}")
        assert answer.status_code == 200, answer.text
        names = re.findall(r'<(?:input|select)[^>]* name="(\w+)"', answer.text)
        shown[model] = set(names) - {"key", "model", "operation", "hosted"}
    assert shown == {
        "gpt-image-2.6-flare": {
            *("size", "quality", "n", "background", "output_format", "output_compression"),
            *("moderation", "complexity", "style", "partial_images"),
        },
        "dall-e-3": {"size", "quality", "n", "style"},
        "dall-e-2": {"size", "quality", "n"},
        "gemini-3-pro-image": {
            *("size", "quality", "n", "output_format", "output_compression", "moderation", "style"),
        },
    }
    variation = {"model": "dall-e-2", "operation": "variation", "prompt": "kept"}
    fields = (await maker.post(f"{PLAYGROUND}/fields?mode=test", data=variation)).json()["fields"]
    assert 'name="image"' in fields
    assert 'name="prompt"' not in fields


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"prompt": " "}, 400, "The prompt is empty"),
        ({"size": "7x7"}, 400, "Invalid size"),
        ({"n": "9" * 30}, 400, "Invalid"),
        ({"quality": "<b>"}, 400, "&lt;b&gt;"),
        ({"operation": "edit"}, 400, "Missing required parameter"),
        ({"prompt": "[sandbox:rate_limited]"}, 429, "Wait a moment"),
        ({"prompt": "[sandbox:credential]"}, 424, "Replace the key"),
        ({"prompt": "[sandbox:moderation]"}, 400, "Change the prompt"),
        ({"prompt": "[sandbox:unknown]"}, 504, "not bought again by this form"),
        ({"operation": "edit", "images": [("a.png", b"no image")]}, 400, "opens in a viewer"),
        ({"operation": "edit", "hosted": "img_1_2"}, 404, "not stored any more"),
    ],
)
async def test_a_refusal_is_shown_with_what_to_do_and_what_was_typed(
    maker: httpx2.AsyncClient, changes: dict[str, Any], status: int, text: str
) -> None:
    page = await maker.get(f"{PLAYGROUND}?mode=test")
    filled = {"prompt": f"typed {EVIL}", "quality": "low", **changes}
    plain = await maker.post(f"{PLAYGROUND}?mode=test", files=form_of(page, **filled))
    assert (plain.status_code, text in plain.text) == (status, True), plain.text
    assert EVIL not in plain.text
    if "prompt" not in changes:
        assert "typed &lt;img src=x" in plain.text
    page = await maker.get(f"{PLAYGROUND}?mode=test")
    stream = await maker.post(f"{PLAYGROUND}/stream?mode=test", files=form_of(page, **filled))
    [(kind, told)] = [one for one in events_of(stream) if one[0] != "partial"]
    assert (kind, text in told["html"]) == ("refused", True), told
    assert EVIL not in told["html"]


async def test_a_purchase_is_shown_although_the_budgets_cannot_be_read_after_it(
    gateway: Served, provider: Stub
) -> None:
    settings = gateway.gateway.settings
    async with signed_in_as(gateway, Role.TENANT_ADMIN) as admin:
        filled = form_of(await admin.get(f"{PLAYGROUND}?mode=live"), prompt="Dear", quality="low")
        provider.faults.add(Fault(hold=True))
        asked = asyncio.create_task(admin.post(f"{PLAYGROUND}/stream?mode=live", files=filled))
        await provider.until_held(1)
        async with locked(settings, "LOCK TABLE tenant_user IN ACCESS EXCLUSIVE MODE"):
            provider.release()
            await eventually(lambda: waiting_for_locks(gateway))
            # As Postgres ends the statements of a server that is shut down.
            await gateway.owner_sql(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            events = events_of(await asked)
    assert [kind for kind, _ in events] == ["result"]
    assert '<img src="/images/img_' in events[0][1]["html"]


async def test_a_visiting_operators_purchase_is_in_the_tenants_trail_requests_and_figures(
    gateway: Served,
) -> None:
    tenant = await gateway.tenant("visited")
    start = datetime.now(UTC) - timedelta(hours=1)
    async with operator(gateway) as visitor:
        await visitor.post(f"/console/tenants/{tenant}/portal")
        page = await visitor.get(f"{PLAYGROUND}?mode=test")
        made = await visitor.post(f"{PLAYGROUND}?mode=test", files=form_of(page, prompt="x"))
        await visitor.post(f"{PLAYGROUND}?mode=test", files=form_of(page, prompt="x", do="quote"))
    assert made.status_code == 303, made.text
    await gateway.gateway.request_log.flush()
    [row] = await gateway.owner_sql(
        "SELECT actor_name, request_id, after FROM audit"
        " WHERE action = 'console.images_ordered' AND tenant_id = :tenant",
        tenant=tenant,
    )
    asked = {"model": FLARE, "operation": "generation", "images": 1, "mode": "test"}
    assert (row.actor_name, row.after) == ("root (sign-in link)", asked)
    async with signed_in_as(gateway, Role.TENANT_ADMIN, tenant_id=tenant) as admin:
        trail = await admin.get("/console/portal/audit")
        requests = await admin.get("/console/portal/requests?mode=test")
    assert "console.images_ordered" in trail.text
    assert set(re.findall(r"/console/portal/requests/(req_\w+)", requests.text)) == {row.request_id}
    async with gateway.gateway.database.tenant(tenant) as session:
        found = await figures(
            session, tenant, start=start, end=start + timedelta(hours=2), livemode=False
        )
    assert found.requests == 1


async def test_a_budget_is_felt_in_the_playground(gateway: Served) -> None:
    tenant = await gateway.tenant("poor")
    await gateway.budget("0.000001", livemode=False, tenant_id=tenant)
    async with signed_in_as(gateway, Role.TENANT_ADMIN, tenant_id=tenant) as admin:
        page = await admin.get(f"{PLAYGROUND}?mode=test")
        answer = await admin.post(f"{PLAYGROUND}?mode=test", files=form_of(page, prompt="x"))
    assert answer.status_code == 402
    assert "A budget is used up" in answer.text


async def test_a_key_makes_images_of_its_models_as_itself_and_no_others(gateway: Served) -> None:
    key = await gateway.key(livemode=False, models=["gpt-image-2"], scopes=[Scope.IMAGES_WRITE])
    async with by_key(gateway, key) as one:
        page = await one.get(PLAYGROUND)
        other = await one.get(f"{PLAYGROUND}?model={FLARE}")
        mine = await one.post(
            f"{PLAYGROUND}?mode=test", files=form_of(page, model="gpt-image-2", prompt="x")
        )
        refused = await one.post(f"{PLAYGROUND}?mode=test", files=form_of(page, prompt="x"))
        live = await one.post(f"{PLAYGROUND}?mode=live", files=form_of(page, prompt="x"))
    assert re.findall(r'<option value="([\w.-]*gpt[\w.-]*)"', page.text) == ["gpt-image-2"]
    assert [one.status_code for one in (other, mine, refused, live)] == [403, 200, 403, 403]
    [row] = await gateway.owner_sql(
        "SELECT api_key_id FROM reservation WHERE api_key_id IS NOT NULL"
    )
    assert row.api_key_id == key.id


async def test_without_a_provider_key_the_playground_starts_in_test(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = await postgres.create()
    folder = tmp_path_factory.mktemp("keyless")
    async with (
        served_gateway(make_settings(url, folder, OPENAI_API_KEY=None)) as keyless,
        signed_in_as(keyless, Role.TENANT_MEMBER) as member,
    ):
        first = await member.get(PLAYGROUND)
        live = await member.get(f"{PLAYGROUND}?mode=live")
    await postgres.drop(url)
    assert f'action="{PLAYGROUND}?mode=test&amp;as=' in first.text
    assert "There is no key for openai" in live.text


async def test_code_quotes_every_text_of_the_form() -> None:
    hostile = """'; rm -rf / # "$(id)" \\ @file </script>"""
    for operation in Operation:
        call = Call(operation, {"prompt": hostile, "steps": 3}, images=2, has_mask=True)
        texts = {one.label: one.text for one in snippets_of(call, "https://images.example.com")}
        compile(texts["Python"], "snippet", "exec")
        assert hostile not in texts["curl"].replace("'\"'\"'", "'").split("Bearer")[0]
        assert orjson.dumps(hostile).decode() in texts["TypeScript"]
        sent = orjson.loads(texts["MCP"].partition("\n")[2])
        assert sent["params"]["arguments"]["prompt"] == hostile
