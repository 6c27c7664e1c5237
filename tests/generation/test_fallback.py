"""Fallback: another vendor's model serves what the first surely did not charge; one purchase."""

import asyncio
import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image, ImageChops
from pydantic import SecretStr

from gateway.config import Settings
from gateway.identity.viewers import Role
from gateway.money import format_usd, format_usd_short
from gateway.tenancy import tenants
from tests.console_helpers import person
from tests.harness import GPT2, Served, error_of, make_settings, served_gateway
from tests.image_helpers import file_bytes, mask, photo, png
from tests.mcp_helpers import call, content_of
from tests.money_helpers import (
    age_unknown,
    books,
    client_of,
    gateway_processes,
    image_body,
    until_states,
)
from tests.stream_helpers import open_stream, read_event
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY
from tests.stub_openai import Fault, Stub

BANANA = "gemini-nano-banana-2.1"
FLARE = "gpt-image-2.5-flare"
PATH = "/v1/images/generations"
BODY = image_body(size="1536x1024")
AWAY = "http://127.0.0.1:9"
PASSED_ON = ["rate_limited", "invalid_api_key", "insufficient_quota", "model_not_found"]


def chains(folder: Path, *pairs: tuple[str, Sequence[str]]) -> Path:
    """A models file with these chains."""
    file = folder / "models.toml"
    file.write_text(
        "".join(f'[[fallbacks]]\nmodel = "{model}"\nto = {list(to)}\n' for model, to in pairs)
    )
    return file


@pytest.fixture
def settings(database: str, stub: Stub, gemini: StubGemini, tmp_path: Path) -> Settings:
    return make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        GEMINI_API_KEY=SecretStr(KEY),
        GEMINI_BASE_URL=gemini.base_url,
        models_file=chains(tmp_path, (GPT2, [BANANA]), (FLARE, [GPT2])),
        provider_read_timeout_seconds=2,
    )


async def buy(served: Served, *, key: Any = None, **changes: Any) -> httpx2.Response:
    async with served.http(key or await served.key()) as http:
        return await http.post(PATH, json=BODY | changes)


def limited(stub: Stub, times: int | None = 1) -> None:
    stub.faults.add(Fault("status", preset="rate_limited", times=times))


async def served_models(served: Served) -> list[tuple[str, str, str]]:
    """State, model and provider of every reservation, oldest first."""
    rows = await served.owner_sql(
        "SELECT state, served_model, provider FROM reservation ORDER BY admitted_at, id"
    )
    return [(row.state, row.served_model, row.provider) for row in rows]


async def expect_books_to_agree(served: Served, stub: Stub, gemini: StubGemini) -> None:
    """Expect the bills of both vendors in the ledger, and one line for each reservation."""
    billed = stub.totals.cost_nano_usd + sum(line.cost_nano_usd for line in gemini.bill)
    assert await served.ledger_total() == billed
    assert [one for one in await books(served) if len(one.lines) != 1] == []
    await served.check_invariants()


async def test_what_the_first_vendor_surely_did_not_charge_another_one_serves(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    await served.budget("5")
    for preset in PASSED_ON:
        stub.faults.add(Fault("status", preset=preset))
        answer = await buy(served)
        assert (answer.status_code, answer.json()["size"]) == (200, "1264x848"), answer.text
        assert answer.json()["output_format"] == "png"
        assert answer.headers["x-gateway-requested-model"] == GPT2
        assert answer.headers["x-gateway-served-model"] == BANANA
        assert answer.headers["x-gateway-provider"] == "gemini"
        cost_nano = gemini.bill[-1].cost_nano_usd
        assert answer.headers["x-gateway-cost-usd"] == format_usd(cost_nano)
    assert (len(stub.calls), len(gemini.calls)) == (len(PASSED_ON), len(PASSED_ON))
    assert set(await served_models(served)) == {("posted", BANANA, "gemini")}
    await expect_books_to_agree(served, stub, gemini)
    await served.gateway.request_log.flush()
    async with served.http(await served.key()) as http:
        groups = {"group_by": "requested_model,model,provider"}
        [row] = (await http.get("/v1/usage", params=groups)).json()["data"]
        logged = (await http.get("/v1/requests")).json()["data"]
    assert (row["requested_model"], row["model"], row["provider"]) == (GPT2, BANANA, "gemini")
    assert (row["requests"], row["failed_requests"]) == (len(PASSED_ON), 0)
    assert {(one["served_model"], one["provider"]) for one in logged} >= {(BANANA, "gemini")}


async def test_a_call_that_moves_to_another_vendor_moves_no_other_call(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    assert (await buy(served)).status_code == 200
    limited(stub)
    assert (await buy(served)).status_code == 200
    assert await served_models(served) == [
        ("posted", GPT2, "openai"),
        ("posted", BANANA, "gemini"),
    ]
    await expect_books_to_agree(served, stub, gemini)


async def test_a_vendor_that_cannot_be_reached_is_replaced(
    settings: Settings, stub: Stub, gemini: StubGemini
) -> None:
    async with served_gateway(settings.model_copy(update={"openai_base_url": AWAY})) as served:
        async with served.mcp(await served.key()) as client:
            result = await call(client, "generate_image", **BODY)
        assert result.meta is not None
        assert content_of(result)["model"] == BANANA
        assert result.meta["cost"] == {
            "usd": format_usd(gemini.bill[0].cost_nano_usd),
            "model": BANANA,
            "provider": "gemini",
        }
        # The circuit is open by now: nothing is tried there, and the other vendor serves at once.
        for _ in range(8):
            assert (await buy(served)).headers["x-gateway-provider"] == "gemini"
        await expect_books_to_agree(served, stub, gemini)


@pytest.mark.parametrize(
    "row",
    [
        (Fault("status", preset="bad_request"), "invalid_value", "void"),
        (Fault("status", preset="moderation_blocked"), "moderation_blocked", "void"),
        (Fault("status", preset="server_error"), "outcome_unknown", "unknown"),
        (Fault("status", preset="request_timeout"), "outcome_unknown", "unknown"),
        (Fault("reset_before_billing"), "outcome_unknown", "unknown"),
        (Fault("truncated_body"), "outcome_unknown", "unknown"),
        (Fault("hang_after_billing"), "outcome_unknown", "unknown"),
    ],
)
async def test_a_clients_own_fault_and_an_unknown_outcome_end_the_chain(
    served: Served, stub: Stub, gemini: StubGemini, row: tuple[Fault, str, str]
) -> None:
    fault, code, state = row
    stub.faults.add(fault)
    assert error_of(await buy(served))["code"] == code
    assert gemini.calls == []
    assert await served_models(served) == [(state, GPT2, "openai")]


async def test_if_both_fail_the_client_gets_the_first_error_and_nothing_is_charged(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    limited(stub)
    gemini.faults.append("denied")
    answer = await buy(served)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "12"
    assert await served_models(served) == [("void", BANANA, "gemini")]
    limited(stub)
    gemini.faults.append("refused_image")
    refused = await buy(served)
    assert error_of(refused)["code"] == "moderation_blocked"
    await expect_books_to_agree(served, stub, gemini)


async def test_an_unknown_outcome_of_the_second_is_estimated_as_its_own_and_never_bought_again(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    limited(stub)
    gemini.faults.append("reset")
    key = {"Idempotency-Key": "once"}
    async with served.http(await served.key()) as http:
        answers = [await http.post(PATH, json=BODY, headers=key) for _ in range(2)]
    assert [error_of(answer)["code"] for answer in answers] == ["outcome_unknown"] * 2
    assert (len(stub.calls), len(gemini.calls)) == (1, 1)
    assert await served_models(served) == [("unknown", BANANA, "gemini")]
    await age_unknown(served)
    await served.sweep()
    [booked] = await books(served)
    assert booked.state == "posted_est"
    # By the terms of the second: an image of the first costs a tenth of it.
    assert sum(line.cost_nano_usd for line in gemini.bill) <= (booked.final_nano or 0)
    assert (booked.final_nano or 0) <= booked.held_nano
    await served.check_invariants()


async def test_the_dearest_of_the_chain_is_reserved_once_or_else_the_first_alone(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    key = await served.key()
    await served.budget("1", api_key_id=key.id)
    async with served.http(key) as http:
        quoted = (await http.post("/v1/images/quotes", json=BODY)).json()
    assert quoted["served_model"] == GPT2
    async with served.mcp(key) as client:
        listed = content_of(await call(client, "list_available_models"))
        asked = BODY | {"size": "1024x1024", "prompt": "-"}
        estimate = content_of(await call(client, "estimate_cost", **asked))
    [card] = [
        card
        for provider in listed["providers"]
        for card in provider["models"]
        if card["id"] == GPT2
    ]
    assert card["max_cost_usd"]["low"] == estimate["max_cost_usd"]
    assert (await buy(served, key=key)).headers["x-gateway-provider"] == "openai"
    poor = await served.key()
    await served.budget("0.02", api_key_id=poor.id)
    assert (await buy(served, key=poor)).status_code == 200
    limited(stub)
    answer = await buy(served, key=poor)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    broke = await served.key()
    await served.budget("0.001", api_key_id=broke.id)
    assert error_of(await buy(served, key=broke))["code"] == "budget_exceeded"
    rich, cheap, failed = await books(served)
    assert quoted["cost_usd_max"] == format_usd_short(rich.held_nano)
    assert cheap.held_nano == failed.held_nano < rich.held_nano
    assert (failed.state, gemini.calls) == ("void", [])
    await expect_books_to_agree(served, stub, gemini)
    events = await served.owner_sql("SELECT exceeded_of_nano FROM budget_period ORDER BY id")
    assert [row.exceeded_of_nano for row in events] == [None, None, 1_000_000]


async def test_a_budget_of_just_the_first_models_quote_admits_it(served: Served) -> None:
    some = await served.key()
    await served.budget("0.02", api_key_id=some.id)
    assert (await buy(served, key=some)).status_code == 200
    [bought] = await books(served)
    for limit_nano, status in ((bought.held_nano, 200), (bought.held_nano - 1, 402)):
        key = await served.key()
        await served.budget(format_usd(limit_nano), api_key_id=key.id)
        assert (await buy(served, key=key)).status_code == status
    await served.check_invariants()


async def test_a_dear_first_model_is_refused_although_a_cheap_one_would_fit(
    settings: Settings, stub: Stub, gemini: StubGemini, tmp_path: Path
) -> None:
    file = chains(tmp_path, (BANANA, [GPT2]))
    async with served_gateway(settings.model_copy(update={"models_file": file})) as served:
        await served.budget("0.02")
        answer = await buy(served, model=BANANA)
        assert error_of(answer)["code"] == "budget_exceeded"
        assert (stub.calls, gemini.calls, await books(served)) == ([], [], [])


async def test_a_replay_names_who_served_and_buys_nothing(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    limited(stub)
    key = {"Idempotency-Key": "once"}
    async with served.http(await served.key()) as http:
        first, again = [await http.post(PATH, json=BODY, headers=key) for _ in range(2)]
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    for name in ("served-model", "provider", "cost-usd", "generation-id"):
        assert again.headers[f"x-gateway-{name}"] == first.headers[f"x-gateway-{name}"]
    assert (len(stub.calls), len(gemini.calls)) == (1, 1)
    await expect_books_to_agree(served, stub, gemini)


async def test_streams_and_edits_fall_back(served: Served, stub: Stub, gemini: StubGemini) -> None:
    limited(stub, times=2)
    key = await served.key()
    async with open_stream(served, key, "generations", partial_images=2) as stream:
        lines = stream.aiter_lines()
        event = await read_event(lines)
    async with served.http(key) as http:
        form = {name: str(value) for name, value in BODY.items()}
        files = [("image", ("a.png", png(64, 64))), ("image", ("b.png", png(32, 32)))]
        edited = await http.post("/v1/images/edits", data=form, files=files)
    assert event.name == "image_generation.completed"
    assert event.data["gateway"]["served_model"] == BANANA
    assert event.data["gateway"]["provider"] == "gemini"
    assert stream.headers["x-gateway-provider"] == "gemini"
    assert edited.headers["x-gateway-provider"] == "gemini"
    sent = gemini.calls[1].json
    assert sent is not None
    assert len(sent["contents"][0]["parts"]) == 3
    await expect_books_to_agree(served, stub, gemini)


@pytest.mark.parametrize(
    "changes",
    [{"background": "transparent"}, {"size": "1600x1008"}, {"n": 5}],
)
async def test_a_model_that_cannot_say_the_request_is_passed_over(
    served: Served, stub: Stub, gemini: StubGemini, changes: dict[str, Any]
) -> None:
    limited(stub)
    assert error_of(await buy(served, **changes))["code"] == "rate_limit_exceeded"
    assert gemini.calls == []


async def edit_with_mask(served: Served, original: Image.Image, **changes: str) -> httpx2.Response:
    """An edit of an image with a hole in the middle."""
    width, height = original.size
    hole = (width // 4, height // 4, width // 2, height // 2)
    files = [
        ("image", ("a.png", file_bytes(original))),
        ("mask", ("m.png", file_bytes(mask(width, height, hole)))),
    ]
    form = {"model": GPT2, "prompt": "a red fox", "quality": "low", **changes}
    async with served.http(await served.key()) as http:
        return await http.post("/v1/images/edits", data=form, files=files)


async def test_a_mask_that_the_other_model_does_not_take_is_applied_to_its_image(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    limited(stub, times=2)
    original = photo(96, 64).convert("RGB")
    answer = await edit_with_mask(served, original)
    assert answer.headers["x-gateway-provider"] == "gemini"
    assert (answer.json()["size"], answer.json()["output_format"]) == ("96x64", "png")
    content = base64.b64decode(answer.json()["data"][0]["b64_json"])
    made = Image.open(io.BytesIO(content)).convert("RGB")
    changed = ImageChops.difference(made, original).convert("L").getbbox()
    assert changed == (24, 16, 48, 32)
    scaled = await edit_with_mask(served, original, size="1536x1024", output_format="webp")
    assert (scaled.json()["size"], scaled.json()["output_format"]) == ("1264x848", "webp")
    sent = gemini.calls[0].json
    assert sent is not None
    [text, _] = sent["contents"][0]["parts"]
    assert text["text"].startswith("a red fox\n\nKeep the frame")
    await expect_books_to_agree(served, stub, gemini)


async def test_the_playground_quotes_a_masked_edit_by_the_dearest_of_its_chain(
    served: Served,
) -> None:
    changes = {"model": FLARE, "quality": "medium", "size": "1536x1024"}
    made = await edit_with_mask(served, photo(96, 64), **changes)
    assert made.headers["x-gateway-served-model"] == FLARE
    [booked] = await books(served)
    form = {"operation": "edit", "prompt": "a red fox", "masked": "yes", "sizes": "96x64"}
    async with person(served, Role.TENANT_ADMIN) as browser:
        page = await browser.post("/console/playground/quote?mode=live", data=form | changes)
    [quoted] = re.findall(r'title="\$([\d.]+) USD', page.json()["quote"])
    assert quoted == format_usd_short(booked.held_nano)


async def test_a_mask_of_another_shape_than_the_image_to_make_is_not_passed_on(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    limited(stub)
    answer = await edit_with_mask(served, photo(64, 64), size="1536x1024")
    assert (answer.status_code, gemini.calls) == (429, [])


async def test_who_does_not_want_or_may_not_use_the_other_model_gets_the_first_error(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    limited(stub, times=None)
    only = await served.key(models=[GPT2])
    assert (await buy(served, key=only)).status_code == 429
    async with served.gateway.database.operator() as session:
        await tenants.set_settings(session, str(served.tenant_id), fallback=False)
    served.gateway.clear_caches(str(served.tenant_id))
    assert (await buy(served)).status_code == 429
    assert gemini.calls == []


async def test_a_tenants_own_key_is_never_replaced_by_the_operators(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    key = await served.key()
    async with served.http(key) as http:
        await http.put("/v1/credentials/openai", json={"secret": "sk-own-0123456789abcdef"})
        stub.faults.add(Fault("status", preset="invalid_api_key"))
        rejected = await http.post(PATH, json=BODY)
        limited(stub)
        refused = await http.post(PATH, json=BODY)
        assert gemini.calls == []
        await http.put("/v1/credentials/gemini", json={"secret": KEY})
        stub.faults.clear()
        limited(stub)
        helped = await http.post(PATH, json=BODY)
    assert (rejected.status_code, refused.status_code) == (424, 429)
    assert helped.headers["x-gateway-provider"] == "gemini"
    rows = await served.owner_sql("SELECT DISTINCT credential FROM reservation")
    assert [row.credential for row in rows] == ["tenant"]


@pytest.mark.parametrize("is_second", [True, False])
async def test_a_kill_in_the_middle_of_a_chain_leaves_one_line(
    served: Served, stub: Stub, gemini: StubGemini, *, is_second: bool
) -> None:
    settings = served.gateway.settings
    gemini.held.clear()
    stub.faults.add(Fault("status", preset="rate_limited", hold=not is_second))
    environment = {
        "GEMINI_API_KEY": KEY,
        "GEMINI_BASE_URL": gemini.base_url,
        "GATEWAY_MODELS_FILE": str(settings.models_file),
    }
    with gateway_processes(settings, settings.data_dir, 1, **environment) as [process]:
        await process.until_ready()
        async with client_of(process.base_url, await served.key()) as http:
            task = asyncio.create_task(http.post(PATH, json=BODY))
            await (gemini.arrived.acquire() if is_second else stub.until_held(1))
            process.kill()
            await asyncio.wait({task})
    gemini.held.set()
    stub.release()
    # The journal says which call was sent; the deadline need not be waited for.
    await served.sweep()
    await until_states(served, {"unknown": 1})
    [(_, model, _)] = await served_models(served)
    assert model == (BANANA if is_second else GPT2)
    await age_unknown(served)
    await served.sweep()
    [booked] = await books(served)
    assert [kind for kind, _ in booked.lines] == ["post_est"]
    assert sum(line.cost_nano_usd for line in gemini.bill) <= (booked.final_nano or 0)
    await served.check_invariants()
