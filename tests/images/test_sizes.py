"""Mapping a requested size to one that the model accepts, for every model of the catalogue."""

from math import log
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog.loading import load_catalog
from gateway.catalog.sizes import fitting_size
from gateway.domain import Caller
from gateway.generation.parameters import parse_image_request
from gateway.image_models import Model, parse_size

CATALOG = load_catalog()
MODELS = sorted(CATALOG.models)
EXPERIMENTAL_ABOVE_PIXELS = 3_686_400
CALLER = Caller(
    tenant_id=uuid4(),
    user_id=None,
    api_key_id=uuid4(),
    livemode=False,
    scopes=frozenset(),
    models=None,
    expires_at=None,
    tenant_status="active",
)

edges = st.integers(min_value=1, max_value=10_000)


def accepts(model: Model, size: str) -> bool:
    """Tell if the parameter check passes a request with this size."""
    body = {"prompt": "x", "model": model.id, "size": size}
    request = parse_image_request(body, CALLER, CATALOG, default_model=model.id)
    return request.size == size


def off_ratio(size: tuple[int, int], wished: tuple[int, int]) -> float:
    return abs(log(size[0] / size[1]) - log(wished[0] / wished[1]))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MODELS), edges, edges)
def test_a_fitted_size_is_always_accepted_and_never_experimental(
    name: str, width: int, height: int
) -> None:
    model = CATALOG.models[name]
    size = fitting_size(model, (width, height))
    assert accepts(model, size)
    fitted = parse_size(size)
    assert fitted[0] * fitted[1] <= EXPERIMENTAL_ABOVE_PIXELS


@settings(max_examples=300, deadline=None)
@given(edges, edges)
def test_a_range_keeps_the_shape_within_a_percent_as_far_as_it_goes(
    width: int, height: int
) -> None:
    size = parse_size(fitting_size(CATALOG.models["gpt-image-2"], (width, height)))
    ratio = min(max(width / height, 1 / 3), 3)
    assert abs(log(size[0] / size[1]) - log(ratio)) < 0.01


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MODELS), edges, edges)
def test_a_rotated_request_maps_to_the_rotated_size(name: str, width: int, height: int) -> None:
    model = CATALOG.models[name]
    upright = parse_size(fitting_size(model, (width, height)))
    if model.shapes and f"{upright[1]}x{upright[0]}" not in model.shapes:
        return  # some of Gemini's models know 21:9 and not 9:21
    turned = parse_size(fitting_size(model, (height, width)))
    assert turned == upright[::-1] or f"{turned[1]}x{turned[0]}" not in (
        model.sizes.fixed or [f"{turned[1]}x{turned[0]}"]
    )


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MODELS), edges, edges)
def test_a_fitted_size_maps_to_itself(name: str, width: int, height: int) -> None:
    model = CATALOG.models[name]
    size = fitting_size(model, (width, height))
    assert fitting_size(model, parse_size(size)) == size


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([name for name in MODELS if CATALOG.models[name].sizes.fixed]), edges, edges)
def test_of_a_list_no_other_size_has_a_nearer_shape(name: str, width: int, height: int) -> None:
    model = CATALOG.models[name]
    chosen = parse_size(fitting_size(model, (width, height)))
    best = min(off_ratio(parse_size(size), (width, height)) for size in model.sizes.fixed)
    assert off_ratio(chosen, (width, height)) == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize(
    ("model", "wished", "expected"),
    [
        ("gpt-image-2", (1200, 630), "1280x672"),
        ("gpt-image-2.5-sunburst", (1200, 400), "1440x480"),
        ("gpt-image-2.6-flare", (1024, 1024), "1024x1024"),
        ("gpt-image-2", (256, 256), "816x816"),
        ("gpt-image-2", (1920, 1080), "1936x1088"),
        ("gpt-image-2", (3840, 2160), "2560x1440"),
        ("gpt-image-2", (600, 100), "1440x480"),
        ("gpt-image-1.5", (1200, 630), "1536x1024"),
        ("gpt-image-1-mini", (1080, 1920), "1024x1536"),
        ("dall-e-3", (1200, 630), "1792x1024"),
        ("dall-e-2", (200, 200), "256x256"),
        ("dall-e-2", (5000, 5000), "1024x1024"),
    ],
)
def test_known_requests_map_to_known_sizes(
    model: str, wished: tuple[int, int], expected: str
) -> None:
    assert fitting_size(CATALOG.models[model], wished) == expected
