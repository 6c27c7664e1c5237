"""The table in `docs/providers.md`: parameters in vendors' words, from the catalogue."""

from collections.abc import Iterator
from pathlib import Path

from gateway.catalog.loading import load_catalog
from gateway.domain import ImageRequest
from gateway.errors import InvalidRequest
from gateway.generation.parameters import check_value
from gateway.generation.translation import in_own_words
from gateway.image_models import Model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
BEGIN = "<!-- `make generated` writes this table from gateway/catalog/catalog.toml. -->\n"
SIZES = (
    *("auto", "1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792", "512x512"),
    *("1920x1080", "2048x2048", "3840x2160"),
)
"""Those of OpenAI's models, and of screens."""
QUALITIES = ("low", "medium", "high", "auto", "xhigh")
END = "<!-- The generated table ends here. -->\n"


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return {PAGE: f"{before}{BEGIN}\n{''.join(_words())}\n{END}{after}"}


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
