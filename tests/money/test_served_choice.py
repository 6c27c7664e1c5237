"""Size and quality named in an answer, from which estimates learn the usual ones."""

import pytest

from gateway.billing.quotes import choice_served, likely_choice
from gateway.catalog.loading import load_catalog
from gateway.domain import ImageRequest, Operation
from gateway.provider_answers import ProviderAnswer
from tests.harness import GPT2

Choice = tuple[str | None, str | None]
"""A quality and a size."""


def call(asked: Choice, answered: Choice) -> tuple[ImageRequest, ProviderAnswer]:
    """A request and its answer."""
    model = load_catalog().models[GPT2]
    request = ImageRequest(
        model=model,
        requested_model=model.id,
        prompt="a fox",
        operation=Operation.GENERATION,
        quality=asked[0],
        size=asked[1],
    )
    answer = ProviderAnswer(
        images=(),
        created=0,
        usage=None,
        quality=answered[0],
        size=answered[1],
        background=None,
        output_format="png",
    )
    return request, answer


@pytest.mark.parametrize(
    ("asked", "answered", "choice"),
    [
        (("auto", "auto"), ("high", "1024x1536"), ("high", "1024x1536")),
        (("low", "1024x1024"), ("high", "1024x1536"), ("high", "1024x1536")),
        (("low", "1024x1024"), (None, None), ("low", "1024x1024")),
        ((None, None), (None, None), None),
        (("auto", "1024x1024"), (None, None), None),
        (("low", "auto"), (None, None), None),
        (("low", "1024x1024"), ("superb", None), None),
        (("low", "1024x1024"), (None, "large"), None),
    ],
)
def test_an_answer_names_its_size_and_quality_or_has_the_requested_ones(
    asked: Choice, answered: Choice, choice: Choice | None
) -> None:
    found = choice_served(*call(asked, answered))
    assert (found and (found.quality, found.size)) == choice


@pytest.mark.parametrize(
    ("asked", "answered", "choice"),
    [
        (("low", "1024x1536"), ("high", "1536x1024"), ("high", "1536x1024")),
        (("low", "1024x1536"), (None, None), ("low", "1024x1536")),
        (("low", "auto"), (None, None), ("low", "1024x1024")),
        ((None, "1024x1536"), (None, None), ("medium", "1024x1536")),
        (("auto", "auto"), (None, "1536x1024"), ("medium", "1536x1024")),
        ((None, None), (None, None), ("medium", "1024x1024")),
        (("superb", "large"), (None, None), ("medium", "1024x1024")),
    ],
)
def test_an_answer_without_usage_is_estimated_by_what_is_known_of_it(
    asked: Choice, answered: Choice, choice: Choice
) -> None:
    found = likely_choice(*call(asked, answered))
    assert (found.quality, found.size) == choice
