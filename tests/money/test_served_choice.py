"""Size and quality named in an answer, from which estimates learn the usual ones."""

import pytest

from gateway.billing.quotes import choice_served
from gateway.catalog.loading import load_catalog
from gateway.domain import ImageRequest, Operation
from gateway.provider_answers import ProviderAnswer
from tests.harness import GPT2


def served(
    asked: tuple[str | None, str | None], answered: tuple[str | None, str | None]
) -> tuple[str, str] | None:
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
    choice = choice_served(request, answer)
    return None if choice is None else (choice.quality, choice.size)


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
    asked: tuple[str | None, str | None],
    answered: tuple[str | None, str | None],
    choice: tuple[str, str] | None,
) -> None:
    assert served(asked, answered) == choice
