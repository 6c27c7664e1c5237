"""The catalog's facts about an image model: sizes, tokens, prices, and its successor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class SizeRule:
    """The `WxH` sizes that a model accepts: a fixed list, or the rule of the newer families.

    `unspecified`: those that it may choose for an omitted size, if not all of the list.
    `ratio_percent`: a size that is not in the list stands for the nearest one if their ratios
    differ by no more than that and their pixels by no more than the factor `pixels_factor`.
    """

    fixed: tuple[str, ...] = ()
    auto: bool = True
    unspecified: tuple[str, ...] = ()
    ratio_percent: int | None = None
    pixels_factor: int = 2
    multiple_of: int = 16
    min_edge: int = 0
    max_edge: int = 3840
    max_ratio: int = 3
    min_pixels: int = 655_360
    max_pixels: int = 8_294_400
    auto_pixels: int = 3_686_400


PARTIAL_IMAGE_TOKENS = 100
"""Output tokens of each partial image of a stream.
https://developers.openai.com/api/docs/guides/image-generation"""


@dataclass(frozen=True, slots=True)
class Shape:
    """A size in the words of a vendor that asks for a ratio and a tier: `"16:9"` and `"2K"`."""

    ratio: str
    tier: str


@dataclass(frozen=True, slots=True)
class TokenRule:
    """The output tokens of one image: fixed by size and quality, or by formula.

    `fixed` maps quality → size → tokens; `base` maps quality → patches along the longer edge.
    The figures are upper bounds where the vendor publishes none (see catalog.toml).
    """

    fixed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    base: Mapping[str, int] = field(default_factory=dict)

    def output_tokens(self, quality: str, width: int, height: int) -> int:
        """Compute the output tokens of one image.

        The formula is OpenAI's own calculator for the GPT image family:
        https://community.openai.com/t/gpt-image-2-output-pricing-calculator-online-and-in-your-code/1382699
        """
        if self.fixed:
            return self.fixed[quality][f"{width}x{height}"]
        base = self.base[quality]
        short = _divide_half_even(base * min(width, height), max(width, height))
        return -(-base * short * (2_000_000 + width * height) // 4_000_000)


INPUT_PATCH = 32


INPUT_SHORT_EDGE = 512


INPUT_MAX_PATCHES = 6144
"""Four times the highest count that OpenAI documents for a model that reads patches (1536).
https://developers.openai.com/api/docs/guides/images-vision"""


@dataclass(frozen=True, slots=True)
class InputRule:
    """The input images that a model accepts for edits and variations.

    `exact_mask`: pixels outside the mask come back unchanged. `tokens_percent` bounds the cost of
    an input, in percent of its patches of 32 x 32 pixels; `tokens_each` is added for each input,
    `high_fidelity_tokens` if high fidelity is requested. `max_total_bytes` bounds all images of a
    request together. `masks`: an edit may have one.
    """

    max_images: int = 0
    max_bytes: int = 0
    max_mask_bytes: int = 0
    media_types: tuple[str, ...] = ()
    square: bool = False
    exact_mask: bool = False
    fidelities: tuple[str, ...] = ()
    markup: bool = False
    tokens_percent: int = 0
    tokens_each: int = 0
    high_fidelity_tokens: int = 0
    max_total_bytes: int | None = None
    masks: bool = True

    def input_tokens(self, width: int, height: int, *, high_fidelity: bool) -> int:
        """Compute an upper bound for the cost of one input; small ones count as if scaled up.

        The vendor scales large ones down, to a size that it does not publish.
        """
        short = max(1, min(width, height))
        scale = max(INPUT_SHORT_EDGE, short)
        across, down = (-(-edge * scale // (short * INPUT_PATCH)) for edge in (width, height))
        patches = min(across * down, INPUT_MAX_PATCHES)
        tokens = -(-patches * self.tokens_percent // 100) + self.tokens_each
        return tokens + (self.high_fidelity_tokens if high_fidelity else 0)


@dataclass(frozen=True, slots=True)
class Continuity:
    """The mapping of a retired model's parameters to its successor's, and its answer format.

    `sizes` and `qualities` map its own values to the successor's; "" stands for an omitted value.
    `bare_answer`: its answers had `created` and `data` only. `revised_prompt`: each image came with
    the prompt it was made from. `resizes`: an image of another size is brought to the size that was
    asked for; otherwise the answer names the real one.
    """

    sizes: Mapping[str, str] = field(default_factory=dict)
    qualities: Mapping[str, str] = field(default_factory=dict)
    bare_answer: bool = False
    revised_prompt: bool = False
    resizes: bool = True


def _divide_half_even(numerator: int, denominator: int) -> int:
    quotient, remainder = divmod(numerator, denominator)
    if 2 * remainder > denominator or (2 * remainder == denominator and quotient % 2 == 1):
        return quotient + 1
    return quotient


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """The quality and size that a model uses for a request that leaves both open."""

    quality: str
    size: str


class Unit(StrEnum):
    """The unit that a model is billed by."""

    TOKEN = "token"  # noqa: S105 - a unit
    IMAGE = "image"
    SECOND = "second"


@dataclass(frozen=True, slots=True)
class Wording:
    """The request of a model on an operator's own host, in that host's words.

    `name`: the model's name there. `fields`: our name of a parameter → theirs, and `types` its
    datatype in protocol v2. `defaults` are sent where the caller gives none, `constants` always;
    parameters in `dropped` never. `template`: the whole body, with `$name` where a value goes.
    `steps`: the number of steps of each quality. `negative_mark`: the text in a prompt after which
    the host reads the negative one; empty: it has a parameter for it.
    """

    name: str
    default_size: str
    fields: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    template: Mapping[str, object] | None = None
    input_fields: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    negative_mark: str = ""


@dataclass(frozen=True, slots=True)
class SeedPrice:
    """A model's list price: nano-USD per million tokens, per image made, per second of a call."""

    text_input_nano: int
    image_input_nano: int
    image_output_nano: int
    text_output_nano: int
    per_image_nano: int = 0
    per_second_nano: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalog, with the rules that check and price a request for it.

    `priced_as`: the model whose price applies; a dated snapshot has the price of its model.
    `per_image`: prices of a model that bills by the image, by size or by quality and size.
    `text_output_bound`: the most text tokens per image, for models that bill them. `usual`: the
    estimate for an open quality and size, until the model's own calls provide one. `shapes`: the
    sizes of a vendor that asks for ratio and tier. `thinking`: its word for each quality.
    `own_format`: the vendor chooses the file format; another one is encoded here.
    `style_sentences`: the sentence of the prompt that stands for each style, at models that have no
    such parameter.
    `one_image_per_call`: several images are several calls, and each pays for the inputs.
    `wording`: for a model of the operator's models file.
    """

    id: str
    provider: str
    endpoints: frozenset[str]
    released: date | None
    deprecation_date: date | None
    shutdown_date: date | None
    successor: str | None
    sizes: SizeRule
    qualities: tuple[str, ...]
    output_formats: tuple[str, ...]
    backgrounds: tuple[str, ...]
    complexities: tuple[str, ...]
    parameters: frozenset[str]
    inputs: InputRule
    continuity: Continuity
    default_response_format: str
    max_prompt_characters: int
    max_images: int
    read_timeout_seconds: int
    priced_as: str
    text_output_bound: int
    usual: AutoChoice
    tokens: TokenRule
    price: SeedPrice | None
    per_image: Mapping[str, SeedPrice] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    thinking: Mapping[str, str] = field(default_factory=dict)
    one_image_per_call: bool = False
    own_format: bool = False
    style_sentences: Mapping[str, str] = field(default_factory=dict)
    unit: Unit = Unit.TOKEN
    max_steps: int = 0
    wording: Wording | None = None

    def styled(self, prompt: str, style: str | None) -> str:
        """Return the prompt with the sentence that stands for the style, if one does."""
        sentence = self.style_sentences.get(style or "")
        return prompt if sentence is None else f"{prompt}\n\n{sentence}"

    def is_retired(self, today: date) -> bool:
        """Return True if the vendor no longer serves the model on this day."""
        return self.shutdown_date is not None and self.shutdown_date <= today


def parse_size(size: str) -> tuple[int, int]:
    """Parse `"1536x1024"` to `(1536, 1024)`; the text must have been validated."""
    width, height = size.split("x")
    return int(width), int(height)
