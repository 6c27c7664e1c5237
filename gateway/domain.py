"""The frozen values that cross the gateway's layers."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from gateway.money import NanoUsd


class Scope(StrEnum):
    """What an API key may do."""

    IMAGES_WRITE = "images:write"
    IMAGES_READ = "images:read"
    USAGE_READ = "usage:read"
    CREDENTIALS_WRITE = "credentials:write"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who one request is. `models` of None means every model of the catalogue."""

    tenant_id: UUID
    user_id: UUID | None
    api_key_id: UUID
    livemode: bool
    scopes: frozenset[str]
    models: frozenset[str] | None
    expires_at: datetime | None
    tenant_status: str


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
    multiple_of: int = 16
    max_edge: int = 3840
    max_ratio: int = 3
    min_pixels: int = 655_360
    max_pixels: int = 8_294_400
    auto_pixels: int = 3_686_400


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


def _divide_half_even(numerator: int, denominator: int) -> int:
    quotient, remainder = divmod(numerator, denominator)
    if 2 * remainder > denominator or (2 * remainder == denominator and quotient % 2 == 1):
        return quotient + 1
    return quotient


@dataclass(frozen=True, slots=True)
class SeedPrice:
    """The list price a model starts with, in nano-USD per million tokens."""

    text_input_nano: int
    image_input_nano: int
    image_output_nano: int
    text_output_nano: int


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue, with everything that checks and prices a request for it.

    `priced_as`: the model whose price counts; a dated snapshot has the price of its model.
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
    max_prompt_characters: int
    max_images: int
    read_timeout_seconds: int
    priced_as: str
    text_output_bound: int
    tokens: TokenRule
    price: SeedPrice | None

    def is_retired(self, today: date) -> bool:
        """Whether the vendor no longer serves it on this day."""
        return self.shutdown_date is not None and self.shutdown_date <= today


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One validated request for images; None means that the client left the choice open."""

    model: Model
    requested_model: str
    prompt: str
    n: int = 1
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    moderation: str | None = None
    complexity: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    response_format: str = "b64_json"


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
    """One version of a model's price, in nano-USD per million tokens. Never edited."""

    id: int
    model: str
    effective_from: datetime
    text_input_nano: int
    image_input_nano: int
    image_output_nano: int
    text_output_nano: int


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

    `usage` is None where the provider did not report it, or not readably.
    """

    images: tuple[str, ...]
    created: int
    usage: Usage | None
    size: str | None
    quality: str | None
    background: str | None
    output_format: str


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
    """The outcome of one request: images, what they cost, and which model served them."""

    id: UUID
    request: ImageRequest
    answer: ProviderAnswer
    images: tuple[StoredImage, ...]
    cost_nano: NanoUsd
    cost_status: CostStatus


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
