"""Frozen values that cross the gateway's layers."""

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
from gateway.provider_answers import PartialImage, ProviderAnswer


class Scope(StrEnum):
    """A permission of an API key or a token."""

    IMAGES_WRITE = "images:write"
    IMAGES_READ = "images:read"
    USAGE_READ = "usage:read"
    CREDENTIALS_WRITE = "credentials:write"
    TENANT_ADMIN = "tenant:admin"


USUAL_KEY_SCOPES = tuple(scope for scope in Scope if scope is not Scope.TENANT_ADMIN)
"""Scopes of a key created without a list. `tenant:admin` must be requested explicitly."""


class LimitKind(StrEnum):
    """The unit of a limit: requests or images per minute, or concurrent generations."""

    REQUESTS = "requests"
    IMAGES = "images"
    CONCURRENT = "concurrent"


LimitOwner = Literal["key", "user", "tenant", "house"]
"""The owner whose calls a limit counts; `house`: all calls made with a house credential."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The limit of one kind for one owner."""

    owner: LimitOwner
    kind: LimitKind
    value: int

    @property
    def name(self) -> str:
        """The limit's public name, such as `tenant-requests`."""
        return f"{self.owner}-{self.kind}"


@dataclass(frozen=True, slots=True)
class Standing:
    """State of a limit for the caller; `next_ms`: time until one more fits, if none remains."""

    limit: RateLimit
    remaining: int
    next_ms: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """The options that a tenant has chosen.

    `continuity`: retired models are served by a current successor. `fallback`: another model may
    serve where one does not. `stores_prompts`: prompts are stored in readable form beside their
    images; otherwise only a keyed hash of them is kept. `image_retention_seconds`: how long images
    are kept; None means the gateway's default.
    """

    continuity: bool = True
    fallback: bool = True
    stores_prompts: bool = False
    image_retention_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated identity of one request. `models` of None allows every model.

    `api_key_id` is None for a user who authenticated with a token of the operator's identity
    provider. `limits` are those set for the caller; the gateway's defaults apply in addition.
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
    """A permission of an admin key; `admin` includes the others."""

    ADMIN = "admin"
    ADMIN_READ = "admin:read"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Operator:
    """The identity of a request that carries an admin key."""

    operator_key_id: UUID
    name: str
    scopes: frozenset[str]
    expires_at: datetime | None


class SecretText:
    """A secret that cannot print itself; only `reveal()` returns its text."""

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
    """The kind of request: images from text, from images and text, or from one image alone."""

    GENERATION = "generation"
    EDIT = "edit"
    VARIATION = "variation"


@dataclass(frozen=True, slots=True)
class InputImage:
    """One checked input image, in an unnamed file that is deleted when it is closed.

    `width` and `height` are in pixels; `is_transparent`: at least one pixel is fully transparent.
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
    """An idempotency key and the SHA-256 of the request it was sent with."""

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
    """One validated image request; None marks an option that the client left open.

    The options are those that `image_parameters.py` declares; `prompt` is empty for a variation.
    `link_only`: the front shows at most a preview, so the answer needs a link to the image.
    """

    model: Model
    requested_model: str
    prompt: str = ""
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
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    safety_identifier: str | None = None
    user: str | None = None
    response_format: str = "b64_json"
    stream: bool = False
    partial_images: int = 0
    idempotency: IdempotencyClaim | None = None
    link_only: bool = False

    @property
    def wants_link(self) -> bool:
        """Return True if the answer is useless without a link to the stored image."""
        return self.link_only or self.response_format == "url"

    @property
    def priced_as(self) -> str:
        """The name of the price to use: the model's, or the one for its size and quality.

        An open option counts as its most expensive value, as for every reservation.
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
        """Close the input files."""
        for image in (*self.inputs, self.mask, self.markup):
            if image is not None:
                image.file.close()


@dataclass(frozen=True, slots=True)
class Price:
    """One version of a price: nano-USD per million tokens, per image, per second. Immutable."""

    id: int
    model: str
    effective_from: datetime
    text_input_nano: int
    image_input_nano: int
    image_output_nano: int
    text_output_nano: int
    per_image_nano: int = 0
    per_second_nano: int = 0


@dataclass(frozen=True, slots=True)
class CostFactors:
    """The inputs of a cost calculation; `quality` and `size` are None where they are open.

    The tokens are upper bounds, over all images of the request.
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
    """The worst-case cost of one call, computed before it is made, and the terms used."""

    price: Price
    amount_nano: NanoUsd
    terms: CostFactors


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request's admission, with its caller's own limits; it comes before any partial image."""

    standings: tuple[Standing, ...]


PartialSink = Callable[[PartialImage], None]
"""Callback for each partial image on arrival; it must not block."""
ProgressSink = Callable[[Admitted | PartialImage], None]
"""Callback for the events of one generation, in their order; a repeated request has none."""


class CostStatus(StrEnum):
    """The certainty of a cost at the time of the answer."""

    ACTUAL = "actual"
    ESTIMATED = "estimated"
    PENDING = "pending"


class StorageState(StrEnum):
    """The storage state of a generation's images at the time of the answer.

    `pending`: neither the store nor the spool has accepted them yet; both are retried for another
    minute. `lost`: the provider's answer contained no image that could be stored.
    """

    STORED = "stored"
    SPOOLED = "spooled"
    PENDING = "pending"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of an answer: its bytes as base64 text, and its signed link.

    `url` is None where the data is not a storable image: the text is then the only copy.
    """

    id: str
    base64: str
    url: str | None
    media_type: str


@dataclass(frozen=True, slots=True)
class Generation:
    """The outcome of one request: images, their cost, and the model that served it.

    `request` is the client's request, `served` the one that was bought from `provider` to answer
    it. `replayed`: an earlier request with the same idempotency key bought it. `standings` are the
    caller's own limits at its admission; a repeated request, which counts for no limit, has none.
    """

    id: UUID
    request: ImageRequest
    served: ImageRequest
    answer: ProviderAnswer
    images: tuple[StoredImage, ...]
    cost_nano: NanoUsd
    cost_status: CostStatus
    provider: str
    replayed: bool = False
    kept: StorageState = StorageState.STORED
    standings: tuple[Standing, ...] = ()


def new_id() -> UUID:
    """Make a UUID of version 7 (RFC 9562): ordered by time, so that indexes grow at one end."""
    milliseconds = time.time_ns() // 1_000_000
    # Ids are not secret, and a system call for each one is visible in a profile.
    random_bits = random.getrandbits(80)
    value = (milliseconds & ((1 << 48) - 1)) << 80 | random_bits
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return UUID(int=value)
