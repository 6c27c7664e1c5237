"""The free tools for models, estimates and usage agree with REST and with the ledger."""

import asyncio
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import pytest

from gateway.config import Settings
from gateway.money import format_usd, parse_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, served_gateway
from tests.image_helpers import expect_nothing_bought
from tests.mcp_helpers import MODES, call_by_http, content_of, error_of, text_of, tool_message
from tests.stub_openai import Fault, Stub

TODAY = date(2026, 11, 20)
QUOTES, GENERATIONS = "/v1/images/quotes", "/v1/images/generations"
both_eras = pytest.mark.parametrize("mode", MODES)


async def ask(http: httpx2.AsyncClient, tool: str, mode: str, **arguments: Any) -> dict[str, Any]:
    """The structured content of a tool's result."""
    return content_of(await call_by_http(http, tool_message(tool, mode, **arguments)))


# Models


@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
async def test_models_are_those_of_rest_with_what_they_can_do(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    for mode in MODES:
        async with served.http(await served.key(livemode=livemode)) as http:
            found = await ask(http, "list_available_models", mode)
            models = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
        assert [provider["provider"] for provider in found["providers"]] == ["gemini", "openai"]
        cards = {card["id"]: card for provider in found["providers"] for card in provider["models"]}
        assert set(cards) == set(models)
        for name, card in cards.items():
            model = models[name]
            capabilities = model["capabilities"]
            told = ("qualities", "output_formats", "backgrounds", "max_images", "max_input_images")
            assert {part: card[part] for part in told} == {
                part: capabilities[part] for part in told
            }
            assert card["max_prompt_characters"] == capabilities["max_prompt_characters"]
            assert len(card["operations"]) == len(capabilities["endpoints"])
            assert card["served_by"] == model["served_model"]
            assert card["shutdown_date"] == model["shutdown_date"]
            assert card["successor"] == model["successor"]
            price = {part: value for part, value in model["price"].items() if value is not None}
            assert card["price"] == price
            assert card["is_default"] == (name == found["default_model"])
        assert found["default_model"] == served.gateway.settings.default_model
        await expect_nothing_bought(served, stub)


async def test_the_most_that_a_model_costs_is_rests_quote(served: Served) -> None:
    for mode in MODES:
        async with served.http(await served.key()) as http:
            result = await call_by_http(http, tool_message("list_available_models", mode))
            providers = content_of(result)["providers"]
            cards = [card for provider in providers for card in provider["models"]]
            quoted = 0
            for card in cards:
                assert card["max_cost_usd"], card["id"]
                for quality, cost_usd in card["max_cost_usd"].items():
                    body = {"model": card["id"], "prompt": "-", "size": card["sample_size"]}
                    quote = (await http.post(QUOTES, json=body | {"quality": quality})).json()
                    assert quote["cost_usd_max"] == cost_usd
                    quoted += 1
                assert card["price"] is not None
        assert quoted > 40
        lines = text_of(result).splitlines()[1:]
        assert [line.partition(":")[0].partition(",")[0] for line in lines] == [
            c["id"] for c in cards
        ]
        assert all(card["served_by"] in line for card, line in zip(cards, lines, strict=True))


async def test_a_key_of_some_models_is_shown_those_alone(served: Served) -> None:
    names = ["dall-e-3", "gpt-image-2"]
    async with served.http(await served.key(models=names)) as http:
        found = await ask(http, "list_available_models", MODES[0])
    assert [card["id"] for card in found["providers"][0]["models"]] == names
    assert [card["is_default"] for card in found["providers"][0]["models"]] == [False, False]


async def test_models_of_an_operators_own_host_are_another_providers(settings: Settings) -> None:
    change = {"legacy_base_url": "http://127.0.0.1:9/v1", "legacy_models": "dall-e-2"}
    async with (
        served_gateway(settings.model_copy(update=change)) as served,
        served.http(await served.key()) as http,
    ):
        found = await ask(http, "list_available_models", MODES[0])
    providers = {p["provider"]: [card["id"] for card in p["models"]] for p in found["providers"]}
    assert set(providers) == {"gemini", "legacy", "openai"}
    assert providers["legacy"] == ["dall-e-2"]
    assert "dall-e-2" not in providers["openai"]


# Estimates


ESTIMATED: list[dict[str, Any]] = [
    {},
    {"size": "1024x1024", "quality": "low"},
    {"model": GPT2, "quality": "low"},
    {"model": GPT2, "size": "auto", "quality": "auto"},
    {"model": GPT2, "size": "3840x2160", "quality": "low", "n": 2},
    {"model": GPT2, "size": "1536x1024", "quality": "high", "background": "transparent"},
    {"model": "gpt-image-2.5-flare", "quality": "low", "output_format": "webp"},
    {"model": "gpt-image-2.5-sunburst", "quality": "max", "size": "1024x1536"},
    {"model": "gpt-image-2.6-flare", "quality": "low", "n": 3},
    {"model": "gpt-image-2.6-sunburst", "quality": "medium"},
    {"model": "gpt-image-1", "quality": "high", "size": "1536x1024"},
    {"model": "gpt-image-1-mini", "quality": "low", "n": 10},
    {"model": "gpt-image-1.5", "quality": "medium"},
    {"model": "chatgpt-image-latest"},
    {"model": "dall-e-2"},
    {"model": "dall-e-2", "size": "256x256", "n": 10},
    {"size": "512x512", "n": 2},
    {"model": "dall-e-3", "quality": "hd", "size": "1792x1024"},
    {"model": "dall-e-3", "quality": "standard"},
    {"model": GPT2, "quality": "low", "prompt": "赤い狐 " * 500},
]


async def test_an_estimate_is_rests_quote_and_never_below_what_is_paid(
    settings: Settings, stub: Stub
) -> None:
    async with served_gateway(settings, today=lambda: TODAY) as served:
        async with served.http(await served.key()) as http:
            for number, case in enumerate(ESTIMATED):
                arguments, mode = {"prompt": "a red fox", **case}, MODES[number % 2]
                estimate = await ask(http, "estimate_cost", mode, **arguments)
                quote = (await http.post(QUOTES, json=arguments)).json()
                assert len(stub.bill) == number
                made = await ask(http, "generate_image", mode, **arguments)
                assert estimate == {
                    "model": made["model"],
                    "requested_model": made["requested_model"],
                    "n": len(made["images"]),
                    "size": case.get("size"),
                    "quality": case.get("quality"),
                    "max_cost_usd": quote["cost_usd_max"],
                }
                assert quote["served_model"] == made["model"]
                assert made["cost_usd"] == format_usd(stub.bill[-1].cost_nano_usd)
                assert parse_usd(made["cost_usd"]) <= parse_usd(estimate["max_cost_usd"])
        await served.check_invariants()


async def test_an_estimate_neither_buys_nor_holds_nor_asks_for_budget(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    await served.budget("0", window="total", api_key_id=key.id)
    for mode in MODES:
        async with served.http(key) as http:
            result = await call_by_http(http, tool_message("estimate_cost", mode, prompt="a", n=2))
            refused = await call_by_http(
                http, tool_message("generate_image", mode, prompt="a", n=2)
            )
        estimate = content_of(result)
        assert Decimal(estimate["max_cost_usd"]) > 0
        assert f"At most {estimate['max_cost_usd']} USD for 2 images" in text_of(result)
        assert error_of(refused)["code"] == "budget_exceeded"
        await expect_nothing_bought(served, stub)


# Usage


async def make(http: httpx2.AsyncClient, **changes: Any) -> None:
    body = {"model": GPT2, "prompt": "a red fox", "size": "1024x1024", "quality": "low"}
    assert (await http.post(GENERATIONS, json=body | changes)).status_code == 200


async def expect_usage_of_rest(served: Served, key: IssuedKey, mode: str) -> dict[str, Any]:
    """The tool's figures are those of REST's reports; returns them."""
    async with served.http(key) as http:
        used = await ask(http, "get_usage", mode)
        today = datetime.now(ZoneInfo(used["time_zone"])).date().isoformat()
        reports = {
            "today": (await http.get("/v1/usage", params={"start": today})).json(),
            "month": (await http.get("/v1/usage")).json(),
        }
        budgets = (await http.get("/v1/budgets")).json()["data"]
    for name, report in reports.items():
        assert used[name] == {"start": report["start"], **report["total"]}
    assert used["budgets"] == [
        {name: budget[name] for name in used["budgets"][0]} for budget in budgets
    ]
    assert used["livemode"] == key.livemode
    return used


@both_eras
async def test_usage_is_of_today_and_of_the_month_with_what_is_left(
    served: Served, stub: Stub, mode: str
) -> None:
    key = await served.key()
    empty = await expect_usage_of_rest(served, key, mode)
    assert (empty["month"]["requests"], empty["budgets"]) == (0, [])
    await served.budget("5", window="month")
    await served.budget("2", window="day", api_key_id=key.id)
    await served.budget("9", window="total")
    async with served.http(key) as http:
        await make(http, n=3)
        await make(http)
    used = await expect_usage_of_rest(served, key, mode)
    cost_usd = format_usd(stub.totals.cost_nano_usd)
    assert (used["today"]["images"], used["today"]["cost_usd"]) == (4, cost_usd)
    assert used["month"]["requests"] == 2
    assert {budget["spent_usd"] for budget in used["budgets"]} == {cost_usd}
    windows = {budget["window"]: budget for budget in used["budgets"]}
    assert windows["total"]["resets_at"] is None
    assert windows["day"]["owner"] == "key"
    left = Decimal(windows["month"]["limit_usd"]) - Decimal(cost_usd)
    assert Decimal(windows["month"]["remaining_usd"]) == left
    async with served.http(key) as http:
        said = text_of(await call_by_http(http, tool_message("get_usage", mode)))
    assert said.count("left") == 3
    assert f"Today {cost_usd} USD for 4 images." in said
    assert windows["day"]["resets_at"] in said


async def test_money_held_by_a_running_call_is_not_shown_as_left(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    await served.budget("5")
    stub.faults.add(Fault(hold=True))
    async with served.http(key) as http:
        making = asyncio.create_task(make(http))
        await stub.until_held(1)
        [budget] = (await expect_usage_of_rest(served, key, MODES[0]))["budgets"]
        stub.release()
        await making
    assert Decimal(budget["held_usd"]) > 0
    assert Decimal(budget["remaining_usd"]) == 5 - Decimal(budget["held_usd"])


async def test_usage_is_the_callers_own(served: Served) -> None:
    alice, bob = await served.key(user="alice"), await served.key(user="bob")
    tenant, sandbox = await served.key(), await served.key(livemode=False)
    other = await served.key(tenant_id=await served.tenant("other"))
    users = {row.name: row.id for row in await served.owner_sql("SELECT * FROM tenant_user")}
    await served.budget("1", window="day", user_id=users["alice"])
    await served.budget("1", window="week", user_id=users["bob"])
    await served.budget("1", window="total", livemode=False)
    counts = {alice.id: 1, bob.id: 2, tenant.id: 3, sandbox.id: 1}
    for key in (alice, bob, tenant, sandbox):
        async with served.http(key) as http:
            await make(http, n=counts[key.id])
    for mode in MODES:
        seen = {}
        for name, key in (
            *(("alice", alice), ("bob", bob), ("tenant", tenant)),
            *(("sandbox", sandbox), ("other", other)),
        ):
            used = await expect_usage_of_rest(served, key, mode)
            windows = [budget["window"] for budget in used["budgets"]]
            seen[name] = (used["month"]["images"], windows)
        assert seen == {
            "alice": (1, ["day"]),
            "bob": (2, ["week"]),
            "tenant": (6, []),
            "sandbox": (1, ["total"]),
            "other": (0, []),
        }


async def test_today_is_a_day_in_the_tenants_time_zone(served: Served) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        tenant_id = await served.tenant(zone, time_zone=zone)
        key = await served.key(tenant_id=tenant_id)
        async with served.http(key) as http:
            await make(http)
        used = await expect_usage_of_rest(served, key, MODES[0])
        assert used["time_zone"] == zone
        start = datetime.fromisoformat(used["today"]["start"]).astimezone(ZoneInfo(zone))
        assert (start.date(), start.hour) == (datetime.now(ZoneInfo(zone)).date(), 0)
        assert used["today"]["images"] == 1
