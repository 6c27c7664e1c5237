"""M4: the hold is an upper bound of the cost, judged by the stub's own arithmetic."""

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.billing.quotes import cost_of_call, estimate, quote, terms_of
from gateway.catalog.loading import load_catalog
from gateway.domain import Caller, InputImage, Price, new_id
from gateway.errors import NotConfigured
from gateway.generation.parameters import parse_image_request
from gateway.image_models import AutoChoice, Model, Unit
from gateway.money import NanoUsd
from gateway.provider_answers import Usage
from tests.harness import Served
from tests.money_helpers import GENERATIONS, TERMS, books, budget_rows
from tests.stub_openai import Stub, StubConfig
from tests.stub_openai.usage import cost_nano_usd
from tests.stub_openai.validation import read_call

CATALOG = load_catalog(lambda: date(2026, 11, 20))
CALLER = Caller(new_id(), None, new_id(), True, frozenset(), None, None, "active")  # noqa: FBT003
LIVING = sorted(
    name
    for name, model in CATALOG.models.items()
    if model.provider == "openai" and model.price and not model.is_retired(date(2026, 11, 20))
)
WITH_TEXT_OUTPUT = ["chatgpt-image-latest", "gpt-image-1.5", "gpt-image-1.5-2025-12-16"]
GRID = 16
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400).filter(str.strip)


def sizes(model: Model) -> st.SearchStrategy[str | None]:
    """Every size that the model takes, and leaving it open."""
    if model.sizes.fixed:
        return st.sampled_from([*model.sizes.fixed, "auto", None])
    rule = model.sizes
    edges = st.integers(rule.max_edge // rule.max_ratio // GRID // 2, rule.max_edge // GRID)

    def fits(size: tuple[int, int]) -> bool:
        short, long = sorted(size)
        pixels = short * long * GRID * GRID
        return long <= 3 * short and rule.min_pixels <= pixels <= rule.max_pixels

    exact = st.tuples(edges, edges).filter(fits).map(lambda e: f"{e[0] * GRID}x{e[1] * GRID}")
    corners = ["1024x640", "640x1024", "1440x480", "3840x1280", "3840x2160", "2880x2880"]
    return st.one_of(exact, st.sampled_from([*corners, "auto", None]))


@st.composite
def bodies(draw: st.DrawFn, models: list[str]) -> dict[str, object]:
    """A request that the gateway and the provider both accept."""
    model = CATALOG.models[draw(st.sampled_from(models))]
    body = {
        "model": model.id,
        "prompt": draw(TEXT) * draw(st.sampled_from([1, 1, 1, 40])),
        "n": draw(st.sampled_from([None, *range(1, 11)])),
        "size": draw(sizes(model)),
        "quality": draw(st.sampled_from([*model.qualities, None])),
        "output_format": draw(st.sampled_from([None, "png", "webp"])),
        "background": draw(st.sampled_from([None, "auto", "transparent"])),
    }
    if model.complexities:
        body["complexity"] = draw(st.sampled_from([*model.complexities, None]))
    return {name: value for name, value in body.items() if value is not None}


def hold_and_cost(body: dict[str, object], config: StubConfig) -> tuple[int, int]:
    """The gateway's hold and the provider's charge."""
    request = parse_image_request(body, CALLER, CATALOG, default_model="gpt-image-2")
    rates = request.model.price
    assert rates is not None
    price = Price(
        1,
        request.model.id,
        datetime(2020, 1, 1, tzinfo=UTC),
        rates.text_input_nano,
        rates.image_input_nano,
        rates.image_output_nano,
        rates.text_output_nano,
    )
    call = read_call(body, config, endpoint="generations", request_id="req_1")
    return quote(request, price).amount_nano, cost_nano_usd(call.facts, call.usage)


@hypothesis_settings(max_examples=500, deadline=None)
@given(body=bodies(LIVING), seed=st.integers(0, 1000))
def test_no_call_costs_more_than_its_hold(body: dict[str, object], seed: int) -> None:
    held, cost = hold_and_cost(body, StubConfig(seed=seed))
    assert cost <= held


@hypothesis_settings(max_examples=200, deadline=None)
@given(body=bodies(WITH_TEXT_OUTPUT))
def test_no_call_that_also_bills_text_output_costs_more_than_its_hold(
    body: dict[str, object],
) -> None:
    held, cost = hold_and_cost(body, StubConfig(output_text_tokens=300))
    assert cost <= held


@pytest.mark.parametrize("model", LIVING)
def test_every_quality_at_the_largest_and_widest_sizes_stays_within_its_hold(model: str) -> None:
    found = CATALOG.models[model]
    for quality in (*found.qualities, None):
        for size in found.sizes.fixed or (
            "3840x2160",
            "3840x1280",
            "1280x3840",
            "1440x480",
            "auto",
        ):
            for n in (1, 10):
                body: dict[str, object] = {
                    "model": model,
                    "prompt": "é" * 500,
                    "size": size,
                    "n": n,
                }
                if quality is not None:
                    body["quality"] = quality
                held, cost = hold_and_cost(body, StubConfig())
                assert cost <= held, body


@pytest.mark.parametrize("unit", Unit)
def test_a_call_is_billed_by_the_unit_of_its_price(unit: Unit) -> None:
    model = replace(CATALOG.models["dall-e-2"], unit=unit)
    body = {"model": model.id, "prompt": "a hat", "n": 2, "size": "1024x1024"}
    parsed = parse_image_request(body, CALLER, CATALOG, default_model="gpt-image-2")
    request = replace(parsed, model=model)
    start, usual = datetime(2020, 1, 1, tzinfo=UTC), AutoChoice("standard", "1024x1024")
    images = Price(1, model.id, start, 0, 0, 0, 0, per_image_nano=20)
    seconds = Price(2, model.id, start, 0, 0, 0, 0, per_second_nano=5)
    tokens = Price(3, model.id, start, 10**6, 10**6, 10**6, 10**6)
    usage = Usage(1, 2, 3, 4)

    def billed(price: Price) -> tuple[int, int, int | None]:
        most = quote(request, price)
        estimated = estimate(most.terms, model, price, usual, at_most=most.amount_nano)
        paid = cost_of_call(request, price, usage=usage, images=1, microseconds=2_000_000)
        return most.amount_nano, estimated, paid

    assert billed(images) == (40, 40, 20)
    held = 5 * model.read_timeout_seconds * (2 if model.one_image_per_call else 1)
    assert billed(seconds) == (held, held, 10)
    assert cost_of_call(request, tokens, usage=usage, images=1) == 10
    assert estimate(terms_of(request), model, tokens, usual, at_most=NanoUsd(7)) == 7
    if unit is not Unit.TOKEN:
        with pytest.raises(NotConfigured):
            quote(request, tokens)


@pytest.mark.parametrize(("at_most", "estimated"), [(39, 39), (40, 40), (41, 40)])
def test_an_estimate_by_the_image_is_no_more_than_was_reserved(
    at_most: int, estimated: int
) -> None:
    model = CATALOG.models["dall-e-2"]
    price = Price(1, model.id, datetime(2020, 1, 1, tzinfo=UTC), 0, 0, 0, 0, per_image_nano=20)
    usual = AutoChoice("standard", "1024x1024")
    terms = replace(TERMS, n=2)
    assert estimate(terms, model, price, usual, at_most=NanoUsd(at_most)) == estimated


@pytest.mark.parametrize("model", sorted(CATALOG.models))
def test_inputs_are_held_once_for_each_call_that_carries_them(model: str) -> None:
    found = CATALOG.models[model]
    request = parse_image_request(
        {"model": model, "prompt": "a red circle"}, CALLER, CATALOG, default_model="gpt-image-2"
    )
    png = InputImage(BytesIO(), "image/png", 1024, 1024, 100, has_alpha=False, is_transparent=False)
    one, three = (terms_of(replace(request, inputs=(png,), n=n)).image_input_tokens for n in (1, 3))
    assert three == one * (3 if found.one_image_per_call else 1)


SERVED = [
    {"model": model, "size": size, "quality": quality, "n": n}
    for model in ("gpt-image-2", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst")
    for size in ("1024x1024", "640x1024", "auto")
    for quality in ("low", "medium", "auto")
    for n in (1, 2)
]


async def test_the_hold_is_an_upper_bound_of_the_providers_charge(
    served: Served, stub: Stub
) -> None:
    await served.budget("1000")
    async with served.http(await served.key()) as http:
        answers = await asyncio.gather(
            *(
                http.post(GENERATIONS, json={"prompt": f"räd cïrcle {i}", **body})
                for i, body in enumerate(SERVED)
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    booked = await books(served)
    assert sorted(b.final_nano or 0 for b in booked) == sorted(b.cost_nano_usd for b in stub.bill)
    assert [b for b in booked if b.final_nano is None or b.final_nano > b.held_nano] == []
    [(_, _, spent, held)] = await budget_rows(served)
    assert (spent, held) == (sum(line.cost_nano_usd for line in stub.bill), 0)
    [breach] = await served.owner_sql("SELECT sum(breach_nano) FROM budget_period")
    assert breach[0] == 0
