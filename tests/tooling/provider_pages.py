"""The tables in `docs/providers.md`: failures, from the contract that every provider keeps, and
parameters in vendors' words, from the catalogue.
"""

from collections.abc import Iterator
from pathlib import Path

from gateway.billing.reservations import KIND_BY_OUTCOME
from gateway.catalog.loading import load_catalog
from gateway.domain import ImageRequest, Outcome
from gateway.errors import InvalidRequest
from gateway.generation.failures import client_error
from gateway.generation.parameters import check_value
from gateway.generation.translation import in_own_words
from gateway.image_models import Model
from gateway.providers.base import ProviderFailure
from tests.providers.contract import FAILURES, Failure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
BEGIN = "<!-- `make generated` writes this table from tests/providers/contract.py. -->\n"
WORDS_BEGIN = "<!-- `make generated` writes this table from gateway/catalog/catalog.toml. -->\n"
SIZES = (
    *("auto", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792", "512x512"),
    *("1920x1080", "2048x2048", "3840x2160"),
)
"""Those of OpenAI's models, and of screens."""
QUALITIES = ("low", "medium", "high", "auto", "xhigh")
END = "<!-- The generated table ends here. -->\n"
HEAD = "| failure | calls | outcome | ledger | answer |\n|---|---|---|---|---|\n"


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    failures = HEAD + "".join(_row(failure) for failure in FAILURES)
    text = _replaced(PAGE.read_text(), BEGIN, failures)
    return {PAGE: _replaced(text, WORDS_BEGIN, "".join(_words()))}


def _replaced(text: str, begin: str, table: str) -> str:
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{table}\n{END}{after}"


def _words() -> Iterator[str]:
    """One column for each model that is asked for a ratio and a tier."""
    models = [model for model in load_catalog().models.values() if model.shapes]
    yield f"| | {' | '.join(model.id for model in models)} |\n"
    yield f"|---{'|---' * len(models)}|\n"
    for name, values in (("size", SIZES), ("quality", QUALITIES)):
        for value in values:
            cells = [_said(model, name, value) for model in models]
            yield f"| `{name}={value}` | {' | '.join(cells)} |\n"
    for style, sentence in models[0].style_sentences.items():
        cells = ["in the prompt: “" + sentence + "”"] * len(models)
        yield f"| `style={style}` | {' | '.join(cells)} |\n"


def _said(model: Model, name: str, value: str) -> str:
    """A value in the words of the model's vendor."""
    try:
        check_value(name, value, model)
    except InvalidRequest:
        return "refused"
    if name == "quality":
        level = model.thinking.get(value)
        return "the model's choice" if level is None else f"thinking {level}"
    size = in_own_words(ImageRequest(model, model.id, size=value)).size or ""
    shape = model.shapes.get(size)
    if shape is None:
        return f"the model's ratio at {model.shapes[model.usual.size].tier}"
    return f"{shape.ratio} at {shape.tier}, {size}"


def _row(failure: Failure) -> str:
    calls = "2, neither sent" if failure.outcome is Outcome.NOT_SENT else "1"
    cells = (failure.name, calls, failure.outcome, KIND_BY_OUTCOME[failure.outcome])
    error = client_error(
        ProviderFailure(failure.outcome, failure.reason, ""),
        house_credential=False,  # that of the house raises an alarm, for which there is no cause
        provider="openai",
        model="",
    )
    return f"| {' | '.join((*cells, f'{error.status} `{error.code or error.type}`'))} |\n"
