"""The frozen values that cross the gateway's layers."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import BinaryIO, Literal
from uuid import UUID

from gateway.image_models import Model
from gateway.money import NanoUsd


class Scope(StrEnum):
    """What an API key or a token may do."""

    IMAGES_WRITE = "images:write"
    IMAGES_READ = "images:read"
    USAGE_READ = "usage:read"
    CREDENTIALS_WRITE = "credentials:write"
    TENANT_ADMIN = "tenant:admin"


USUAL_KEY_SCOPES = tuple(scope for scope in Scope if scope is not Scope.TENANT_ADMIN)
"""Those of a key for which none are named: to administer the tenant is asked for by name."""


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


class AdminScope(StrEnum):
    """What an admin key may do; `admin` includes the others."""

    ADMIN = "admin"
    ADMIN_READ = "admin:read"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Operator:
    """A request that carries an admin key."""

    operator_key_id: UUID
    name: str
    scopes: frozenset[str]
    expires_at: datetime | None


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


class NewClaim(IdempotencyClaim):
    """A claim whose key was looked up: no earlier request has it."""

    __slots__ = ()


class RepeatedClaim(IdempotencyClaim):
    """A claim whose key an earlier request has: it is answered from that one, without inputs."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One validated request for images; None means that the client left the choice open.

    `link_only`: the front shows a preview at most, so that the image itself needs its link.
    """

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
    link_only: bool = False

    @property
    def wants_link(self) -> bool:
        """Whether the answer is worth nothing without a link to the stored image."""
        return self.link_only or self.response_format == "url"

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
class Terms:
    """What the cost of one request depends on; `quality` and `size` are None where they are open.

    The tokens are bounds, over all images of the request.
    """

    n: int
    quality: str | None
    size: str | None
    text_input_tokens: int
    image_input_tokens: int
    text_output_tokens: int
    partial_images: int


@dataclass(frozen=True, slots=True)
class Quote:
    """The worst case of one call, before it is made, and the terms that it follows from."""

    price: Price
    amount_nano: NanoUsd
    terms: Terms


class Outcome(StrEnum):
    """How a paid call ended, as far as money is concerned (docs/money.md)."""

    NOT_SENT = "not_sent"
    REJECTED = "rejected"
    MODERATION = "moderation"
    SUCCESS = "success"
    SUCCESS_NO_USAGE = "success_no_usage"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """The HTTP answer of a provider: its status, and the id by which its support finds the call."""

    status: int
    request_id: str | None


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
    reply: ProviderReply | None = None


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


class Kept(StrEnum):
    """Where the images of a generation are when it is answered.

    `pending`: neither store nor spool has taken them yet; both are tried for a minute more.
    `lost`: the provider's answer was no image that could be kept.
    """

    STORED = "stored"
    SPOOLED = "spooled"
    PENDING = "pending"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of an answer: its bytes as base64 text, and the signed link to them.

    `url` is None where there is no image that could be stored: its text is then all there is.
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
    kept: Kept = Kept.STORED


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562): ordered by time, so that indexes grow at one end."""
    milliseconds = time.time_ns() // 1_000_000
    # Ids are no secrets, and asking the kernel for each one shows in a profile.
    random_bits = random.getrandbits(80)
    value = (milliseconds & ((1 << 48) - 1)) << 80 | random_bits
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return UUID(int=value)
