"""M4 for edits and streams: the hold is an upper bound of the cost for every input."""

import io
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.billing.quotes import quote
from gateway.catalog.loading import load_catalog
from gateway.domain import Caller, ImageRequest, InputImage, Operation, Price, new_id
from gateway.generation.parameters import parse_image_request
from tests.harness import Served
from tests.image_helpers import file_bytes, mask, png
from tests.money.test_money_quotes import bodies
from tests.money_helpers import books, budget_rows
from tests.stub_openai import Stub, StubConfig
from tests.stub_openai.usage import cost_nano_usd, image_input_tokens
from tests.stub_openai.validation import read_call

CATALOG = load_catalog(lambda: date(2026, 11, 20))
CALLER = Caller(new_id(), None, new_id(), True, frozenset(), None, None, "active")  # noqa: FBT003
LIVING = sorted(
    model.id
    for model in CATALOG.models.values()
    if model.provider == "openai" and not model.is_retired(date(2026, 11, 20))
)
BY_TILES = [name for name in LIVING if CATALOG.models[name].inputs.fidelities]
TILE, TILE_TOKENS, FRAME_TOKENS = 512, 129, 65

Size = tuple[int, int]
EDGES = st.one_of(st.integers(1, 2100), st.integers(1, 8000), st.sampled_from([1, 32, 33, 512]))
SIZES = st.tuples(EDGES, EDGES).filter(lambda size: size[0] * size[1] <= 40_000_000)


def image(size: Size) -> InputImage:
    """An input image of which only the size matters."""
    return InputImage(io.BytesIO(), "image/png", *size, 1, has_alpha=True, is_transparent=True)


def tile_tokens(size: Size, *, high_fidelity: bool) -> int:
    """The tokens of one input image of gpt-image-1 and related models.

    It is brought into 2048 x 2048, then its shorter side to 512; each tile of 512 x 512 counts.
    https://developers.openai.com/api/docs/guides/images-vision
    """
    shrink = min(1.0, 2048 / max(size))
    width, height = size[0] * shrink, size[1] * shrink
    shrink = min(1.0, TILE / min(width, height))
    across, down = (-(-round(edge * shrink) // TILE) for edge in (width, height))
    fidelity = 0 if not high_fidelity else 4160 if size[0] == size[1] else 6240
    return FRAME_TOKENS + TILE_TOKENS * max(1, across) * max(1, down) + fidelity


def read(body: dict[str, object], sizes: list[Size], overlay: str | None) -> ImageRequest:
    """The checked edit."""
    request = parse_image_request(
        body, CALLER, CATALOG, default_model="gpt-image-2", operation=Operation.EDIT
    )
    return replace(
        request,
        inputs=tuple(image(size) for size in sizes),
        mask=image(sizes[0]) if overlay == "mask" else None,
        markup=image(sizes[0]) if overlay == "markup" else None,
    )


def hold_and_cost(
    body: dict[str, object], sizes: list[Size], overlay: str | None, input_tokens: int
) -> tuple[int, int]:
    """The gateway's hold and the provider's charge for the body and these tokens."""
    request = read(body, sizes, overlay)
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
    call = read_call(
        body,
        StubConfig(output_text_tokens=300),
        endpoint="edits",
        request_id="req_1",
        input_image_tokens=input_tokens,
    )
    return quote(request, price).amount_nano, cost_nano_usd(call.facts, call.usage)


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    body=bodies(LIVING),
    sizes=st.lists(SIZES, min_size=1, max_size=16),
    overlay=st.sampled_from([None, "mask", "markup"]),
)
def test_no_edit_costs_more_than_its_hold_by_patches(
    body: dict[str, object], sizes: list[Size], overlay: str | None
) -> None:
    # Masks were not seen to cost anything; should they, the bound must hold.
    going_in = sizes if overlay is None else [*sizes, sizes[0]]
    tokens = sum(image_input_tokens(*size) for size in going_in)
    held, cost = hold_and_cost(body, sizes, overlay, tokens)
    assert cost <= held


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    body=bodies(BY_TILES),
    sizes=st.lists(SIZES, min_size=1, max_size=16),
    fidelity=st.sampled_from([None, "low", "high"]),
)
def test_no_edit_costs_more_than_its_hold_by_tiles(
    body: dict[str, object], sizes: list[Size], fidelity: str | None
) -> None:
    known = CATALOG.models[str(body["model"])].inputs.fidelities
    if fidelity in known:
        body |= {"input_fidelity": fidelity}
    high = body.get("input_fidelity") == "high"
    tokens = sum(tile_tokens(size, high_fidelity=high) for size in sizes)
    held, cost = hold_and_cost(body, sizes, None, tokens)
    assert cost <= held


@hypothesis_settings(max_examples=200, deadline=None)
@given(body=bodies(LIVING), partial_images=st.integers(0, 3), size=st.none() | SIZES)
def test_no_stream_costs_more_than_its_hold(
    body: dict[str, object], partial_images: int, size: Size | None
) -> None:
    body |= {"stream": True, "partial_images": partial_images, "n": 1}
    sizes = [(64, 64)] if size is None else [size]
    tokens = image_input_tokens(*sizes[0])
    held, cost = hold_and_cost(body, sizes, None, tokens)
    assert cost <= held


@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
async def test_the_hold_of_an_edit_is_an_upper_bound_of_its_cost(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    await served.budget("1000", livemode=livemode)
    overlay = file_bytes(mask(48, 32, (0, 0, 8, 8)))
    edits: list[dict[str, Any]] = [
        {"image": png(48, 32)},
        {"image": png(48, 32), "mask": overlay},
        {"image": [png(48, 32), png(1024, 1024)], "quality": "low", "n": 2},
        {"image": [png(16, 16)] * 16, "size": "816x816", "quality": "high"},
    ]
    async with served.openai(await served.key(livemode=livemode)) as client:
        for model in ("gpt-image-2", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst"):
            for number, arguments in enumerate(edits):
                await client.images.edit(model=model, prompt=f"a fox {number}", **arguments)
        for model in ("dall-e-2", "gpt-image-1"):
            square = file_bytes(mask(32, 32, (0, 0, 8, 8)))
            await client.images.edit(
                model=model, image=png(32, 32), mask=square, prompt="a fox", n=2
            )
        await client.images.create_variation(image=png(32, 32), n=3)
    booked = await books(served)
    assert len(booked) == 15
    assert [b for b in booked if b.final_nano is None or not 0 < b.final_nano <= b.held_nano] == []
    if livemode:
        costs = sorted(line.cost_nano_usd for line in stub.bill)
        assert sorted(b.final_nano or 0 for b in booked) == costs
    [(_, _, spent, held)] = await budget_rows(served)
    assert (spent, held) == (await served.ledger_total(), 0)
    [breach] = await served.owner_sql("SELECT sum(breach_nano) FROM budget_period")
    assert breach[0] == 0
