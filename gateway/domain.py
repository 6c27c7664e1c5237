"""The frozen values that cross the gateway's layers."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import BinaryIO, Literal
from uuid import UUID

from gateway.money import NanoUsd


class Scope(StrEnum):
    """What an API key or a token may do."""

    IMAGES_WRITE = "images:write"
    IMAGES_READ = "images:read"
    USAGE_READ = "usage:read"
    CREDENTIALS_WRITE = "credentials:write"


class LimitKind(StrEnum):
    """What a limit counts: in a minute the first two, at once the third."""

    REQUESTS = "requests"
    IMAGES = "images"
    CONCURRENT = "concurrent"


LimitOwner = Literal["key", "user", "tenant", "house"]
"""Whose calls a limit counts; the house's are all that are made with its own provider key."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How much of a kind one owner may have."""

    owner: LimitOwner
    kind: LimitKind
    value: int

    @property
    def name(self) -> str:
        """What answers call it: `tenant-requests`."""
        return f"{self.owner}-{self.kind}"


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """What a tenant has chosen for itself.

    `continuity`: retired models are served by a living successor. `stores_prompts`: prompts stay
    readable beside their images; otherwise only a keyed hash of them is kept.
    `image_retention_seconds`: how long images are kept; None means as long as the gateway says.
    """

    continuity: bool = True
    stores_prompts: bool = False
    image_retention_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who one request is. `models` of None means every model of the catalogue.

    Without `api_key_id`: somebody who came with a token of the operator's identity provider.
    `limits` are those that were set for the caller; the gateway's own defaults come on top.
    """

    tenant_id: UUID
    user_id: UUID | None
    api_key_id: UUID | None
    livemode: bool
    scopes: frozenset[str]
    models: frozenset[str] | None
    expires_at: datetime | None
    tenant_status: str
    tenant_settings: TenantSettings = TenantSettings()
    limits: tuple[RateLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class Operator:
    """A request that carries an admin key."""

    operator_key_id: UUID


class SecretText:
    """A secret that cannot print itself; `reveal()` is the only way to its text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself, for the one place that must send or seal it."""
        return self._text

    def __repr__(self) -> str:
        return "SecretText(***)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Which `WxH` sizes a model accepts: a fixed list, or the rule of the newer families."""

    fixed: tuple[str, ...] = ()
    auto: bool = True
    multiple_of: int = 16
    max_edge: int = 3840
    max_ratio: int = 3
    min_pixels: int = 655_360
    max_pixels: int = 8_294_400
    auto_pixels: int = 3_686_400


PARTIAL_IMAGE_TOKENS = 100
"""Output tokens of each partial image of a stream.
https://developers.openai.com/api/docs/guides/image-generation"""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """How many output tokens one image takes: fixed by size and quality, or by formula.

    `fixed` maps quality → size → tokens; `base` maps quality → patches along the longer edge.
    The figures are upper bounds where the vendor publishes none (see catalog.toml).
    """

    fixed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    base: Mapping[str, int] = field(default_factory=dict)

    def output_tokens(self, quality: str, width: int, height: int) -> int:
        """Output tokens of one image.

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
"""Four times the most that OpenAI documents for any model that reads pictures by patches (1536).
https://developers.openai.com/api/docs/guides/images-vision"""


@dataclass(frozen=True, slots=True)
class InputRule:
    """Which input images a model takes for edits and variations.

    `exact_mask`: what lies outside the mask comes back unchanged, pixel by pixel.
    `tokens_percent` bounds what an input costs, in percent of its patches of 32 x 32 pixels;
    `tokens_each` is added for each input, `high_fidelity_tokens` where that is asked for.
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

    def input_tokens(self, image: "InputImage", *, high_fidelity: bool) -> int:
        """An upper bound for what one input costs: small ones count as if they were scaled up.

        Large ones are scaled down by the vendor, to a size it does not publish.
        """
        short = max(1, min(image.width, image.height))
        scale = max(INPUT_SHORT_EDGE, short)
        across, down = (
            -(-edge * scale // (short * INPUT_PATCH)) for edge in (image.width, image.height)
        )
        patches = min(across * down, INPUT_MAX_PATCHES)
        tokens = -(-patches * self.tokens_percent // 100) + self.tokens_each
        return tokens + (self.high_fidelity_tokens if high_fidelity else 0)


@dataclass(frozen=True, slots=True)
class Continuity:
    """How a retired model's words are said to its successor, and what its answers looked like.

    `sizes` and `qualities` map its own to the successor's; "" stands for what was left out.
    `bare_answer`: its answers had `created` and `data` only. `revised_prompt`: each image came
    with the prompt it was made from.
    """

    sizes: Mapping[str, str] = field(default_factory=dict)
    qualities: Mapping[str, str] = field(default_factory=dict)
    bare_answer: bool = False
    revised_prompt: bool = False


def _divide_half_even(numerator: int, denominator: int) -> int:
    quotient, remainder = divmod(numerator, denominator)
    if 2 * remainder > denominator or (2 * remainder == denominator and quotient % 2 == 1):
        return quotient + 1
    return quotient


@dataclass(frozen=True, slots=True)
class SeedPrice:
    """The list price a model starts with: nano-USD per million tokens, and per image made."""

    text_input_nano: int
    image_input_nano: int
    image_output_nano: int
    text_output_nano: int
    per_image_nano: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue, with everything that checks and prices a request for it.

    `priced_as`: the model whose price counts; a dated snapshot has the price of its model.
    `per_image`: prices of a model that bills by the image, by size or by quality and size.
    `text_output_bound`: text tokens that one image may bring along, for models that bill them.
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
    tokens: TokenRule
    price: SeedPrice | None
    per_image: Mapping[str, SeedPrice] = field(default_factory=dict)

    def is_retired(self, today: date) -> bool:
        """Whether the vendor no longer serves it on this day."""
        return self.shutdown_date is not None and self.shutdown_date <= today


class Operation(StrEnum):
    """What a request does: images from text, from images and text, or from one image alone."""

    GENERATION = "generation"
    EDIT = "edit"
    VARIATION = "variation"


@dataclass(frozen=True, slots=True)
class InputImage:
    """One checked input: a file without a name, which is gone when it is closed.

    `width` and `height` are pixels; `is_transparent` says that some pixel is fully so.
    """

    file: BinaryIO = field(repr=False)
    media_type: str
    width: int
    height: int
    size_bytes: int
    has_alpha: bool
    is_transparent: bool


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """The key of a request that is to be bought once, and the SHA-256 of that request."""

    key: str
    request_hash: bytes = field(repr=False)
    wants_bytes: bool = False


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One validated request for images; None means that the client left the choice open."""

    model: Model
    requested_model: str
    prompt: str
    operation: Operation = Operation.GENERATION
    inputs: tuple[InputImage, ...] = ()
    mask: InputImage | None = None
    markup: InputImage | None = None
    n: int = 1
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    moderation: str | None = None
    complexity: str | None = None
    input_fidelity: str | None = None
    style: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    response_format: str = "b64_json"
    stream: bool = False
    partial_images: int = 0
    idempotency: IdempotencyClaim | None = None

    @property
    def priced_as(self) -> str:
        """The name of the price that counts: the model's, or that of its size and quality.

        What was left open counts as dearest, as for every hold.
        """
        if not self.model.per_image:
            return self.model.priced_as
        size = self.size or self.model.continuity.sizes[""]
        suiting = {
            name: price.per_image_nano
            for name, price in self.model.per_image.items()
            if name in {size, f"{self.quality or 'standard'}/{size}"}
            or (self.quality == "auto" and name.endswith(f"/{size}"))
        }
        return f"{self.model.priced_as}/{max(suiting, key=suiting.__getitem__)}"

    def close(self) -> None:
        """Let go of the input files."""
        for image in (*self.inputs, self.mask, self.markup):
            if image is not None:
                image.file.close()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider reports them; text and image apart, since their prices differ."""

    text_input_tokens: int
    image_input_tokens: int
    text_output_tokens: int
    image_output_tokens: int

    @property
    def input_tokens(self) -> int:
        """All that went in."""
        return self.text_input_tokens + self.image_input_tokens

    @property
    def output_tokens(self) -> int:
        """All that came out."""
        return self.text_output_tokens + self.image_output_tokens


@dataclass(frozen=True, slots=True)
class Price:
    """One version of a price: nano-USD per million tokens, and per image made. Never edited."""

    id: int
    model: str
    effective_from: datetime
    text_input_nano: int
    image_input_nano: int
    image_output_nano: int
    text_output_nano: int
    per_image_nano: int = 0


@dataclass(frozen=True, slots=True)
class Quote:
    """The worst case of one call, before it is made."""

    price: Price
    amount_nano: NanoUsd


class Outcome(StrEnum):
    """How a paid call ended, as far as money is concerned (docs/money.md)."""

    NOT_SENT = "not_sent"
    REJECTED = "rejected"
    MODERATION = "moderation"
    SUCCESS = "success"
    SUCCESS_NO_USAGE = "success_no_usage"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """What a provider made: images as base64 text, and what it says of them.

    `usage` is None where the provider did not report it, or not readably. `revised_prompts` has one
    for each image, or none at all.
    """

    images: tuple[str, ...]
    created: int
    usage: Usage | None
    size: str | None
    quality: str | None
    background: str | None
    output_format: str
    revised_prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An image on its way, of a request with `stream`; `index` counts from 0."""

    index: int
    base64: str = field(repr=False)
    created: int
    size: str | None
    quality: str | None
    background: str | None
    output_format: str


PartialSink = Callable[[PartialImage], None]
"""Takes each partial image as it comes; it must not block."""


class CostStatus(StrEnum):
    """How sure a cost is when the answer leaves."""

    ACTUAL = "actual"
    ESTIMATED = "estimated"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of an answer: its bytes as base64 text, and the signed link to them.

    `url` is None where the store failed: the bytes are then all there is.
    """

    id: str
    base64: str
    url: str | None
    media_type: str


@dataclass(frozen=True, slots=True)
class Generation:
    """The outcome of one request: images, what they cost, and which model served them.

    `request` is what the client asked for, `served` what was bought to answer it. `replayed`: it
    was bought by an earlier request with the same idempotency key.
    """

    id: UUID
    request: ImageRequest
    served: ImageRequest
    answer: ProviderAnswer
    images: tuple[StoredImage, ...]
    cost_nano: NanoUsd
    cost_status: CostStatus
    replayed: bool = False


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562): ordered by time, so that indexes grow at one end."""
    milliseconds = time.time_ns() // 1_000_000
    # Ids are no secrets, and asking the kernel for each one shows in a profile.
    random_bits = random.getrandbits(80)
    value = (milliseconds & ((1 << 48) - 1)) << 80 | random_bits
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return UUID(int=value)


def parse_size(size: str) -> tuple[int, int]:
    """`"1536x1024"` → `(1536, 1024)`; the text was validated before."""
    width, height = size.split("x")
    return int(width), int(height)
