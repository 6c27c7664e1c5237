"""Frozen values of providers' answers: images, usage, and the outcome of each call."""

from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """The financial outcome of a paid call (docs/money.md)."""

    NOT_SENT = "not_sent"
    REJECTED = "rejected"
    MODERATION = "moderation"
    SUCCESS = "success"
    SUCCESS_NO_USAGE = "success_no_usage"
    REFUSED_CHARGED = "refused_charged"
    AMBIGUOUS = "ambiguous"


class Provenance(StrEnum):
    """An image's file: the model's own, or encoded anew and marked, or marked and signed."""

    ORIGINAL = "original"
    MARKED = "marked"
    SIGNED = "signed"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider reports them; text and image tokens are priced separately."""

    text_input_tokens: int
    image_input_tokens: int
    text_output_tokens: int
    image_output_tokens: int

    @property
    def input_tokens(self) -> int:
        """The sum of all input tokens."""
        return self.text_input_tokens + self.image_input_tokens

    @property
    def output_tokens(self) -> int:
        """The sum of all output tokens."""
        return self.text_output_tokens + self.image_output_tokens


@dataclass(frozen=True, slots=True)
class ProviderLimit:
    """A provider's own limit of a kind (requests, tokens, images) for one credential."""

    kind: str
    limit: int
    remaining: int
    reset_seconds: float


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """A provider's HTTP response: its status, the id by which its support finds the call, and the
    limits that it tells.
    """

    status: int
    request_id: str | None
    limits: tuple[ProviderLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class MadeCall:
    """One of the calls that a request took: its outcome and what it used.

    `version`: the model that the vendor says it used. `usage` is None where none was reported.
    """

    outcome: Outcome
    version: str | None = None
    reply: ProviderReply | None = None
    usage: Usage | None = None
    images: int = 0


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """The images that a provider made, as base64 text, and the provider's metadata.

    `usage` is None where the provider reported none, or none that can be read. `revised_prompts`
    and `seeds` have one entry for each image, or are empty. `model_version`: the model that a
    vendor says it used, which may be another one than was asked for. `microseconds`: the time that
    the calls took, where it is billed. `calls`: those that made the images, with those that failed;
    empty if this answer is the only one. `is_cost_open`: the cost of one of several calls is not
    known.
    """

    images: tuple[str, ...]
    created: int
    usage: Usage | None
    size: str | None
    quality: str | None
    background: str | None
    output_format: str
    revised_prompts: tuple[str, ...] = ()
    reply: ProviderReply | None = None
    model_version: str | None = None
    provenance: Provenance = Provenance.ORIGINAL
    seeds: tuple[int, ...] = ()
    microseconds: int | None = None
    calls: tuple[MadeCall, ...] = ()
    is_cost_open: bool = False

    @property
    def made(self) -> tuple[MadeCall, ...]:
        """The calls that this answer took."""
        return self.calls or (
            MadeCall(Outcome.SUCCESS, self.model_version, self.reply, self.usage, len(self.images)),
        )


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An unfinished image of a request with `stream`; `index` counts from 0."""

    index: int
    base64: str = field(repr=False)
    created: int
    size: str | None
    quality: str | None
    background: str | None
    output_format: str
