"""The schemas that the API documentation shows, and that check small bodies."""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
)

from gateway.provider_answers import Provenance
from gateway.rest.calls import CallsSum


def _in_digits(value: object) -> object:
    """Check a parameter's text; the framework would also accept `1_0`, ` 10` and `10.0`."""
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("it must be a whole number in digits, such as 20")
    return value


IN_DIGITS = BeforeValidator(_in_digits)
PageLimit = Annotated[int, Field(ge=1, le=100), IN_DIGITS]
"""Number of objects per page of a list."""
IMAGE_ID = r"^img_[0-9a-z_]{1,100}$"


class ImageItem(BaseModel):
    """One image: `b64_json` or `url`, as requested."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int | None = Field(None, description="Only of models that take a seed.")


class ImageAnswer(BaseModel):
    """OpenAI's images response."""

    created: int
    data: list[ImageItem]
    background: str | None = None
    output_format: str | None = None
    quality: str | None = None
    size: str | None = None
    usage: dict[str, int | dict[str, int]] | None = None
    safety_identifier: str | None = None


class SimpleAnswer(BaseModel):
    """Links to the images; they expire."""

    image_urls: list[str]


class QuoteAnswer(BaseModel):
    """The worst-case cost of a request."""

    object: Literal["quote"] = "quote"
    model: str
    served_model: str
    cost_usd_max: str = Field(examples=["0.00592"])


class ImageListQuery(BaseModel):
    """Filters of the image history."""

    model_config = ConfigDict(extra="forbid")

    limit: PageLimit = 20
    after: str | None = Field(None, pattern=IMAGE_ID, description="The previous page's `last_id`.")
    model: str | None = Field(
        None, pattern=r"^[!-~]{1,100}$", description="Only images requested from this model."
    )


class GenerationOfImage(CallsSum):
    """The request that made an image; the cost is that of all its images."""

    id: str
    cost_usd: str | None = Field(examples=["0.005920000"])
    cost_status: Literal["actual", "estimated", "pending"]
    images: int


class ImageObject(BaseModel):
    """One image of the history. Times are Unix seconds; both links expire with the image."""

    id: str
    object: Literal["image"] = "image"
    created_at: int
    expires_at: int
    model: str
    served_model: str
    operation: str
    width: int | None
    height: int | None
    media_type: str
    size_bytes: int
    provenance: Provenance = Field(
        description="`original`: the model's own file, byte for byte. `marked`: encoded by the "
        "gateway, with IPTC's digital source type. `signed`: so, and with a C2PA manifest that "
        "names the model's file."
    )
    seed: int | None = Field(description="Only of models that take a seed.")
    prompt: str | None = Field(description="Only if the tenant stores prompts.")
    prompt_hash: str | None = Field(
        description="Keyed hash: equal for equal prompts of one tenant."
    )
    url: str
    thumbnail_url: str
    generation: GenerationOfImage


class ImageList(BaseModel):
    """A page of the history, newest first."""

    object: Literal["list"] = "list"
    data: list[ImageObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ImageDeleted(BaseModel):
    """The confirmation of an image's deletion."""

    id: str
    object: Literal["image"] = "image"
    deleted: Literal[True] = True


class ModelSizes(BaseModel):
    """The sizes of a model: a list, or a rule."""

    fixed: list[str] | None = None
    multiple_of: int | None = None
    max_edge: int | None = None
    max_aspect_ratio: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


class ModelCapabilities(BaseModel):
    """The capabilities of a model."""

    endpoints: list[Literal["generations", "edits", "variations"]]
    sizes: ModelSizes
    qualities: list[str]
    output_formats: list[str]
    backgrounds: list[str]
    max_images: int
    max_input_images: int
    max_prompt_characters: int


class ModelPrice(BaseModel):
    """US dollars as exact decimal strings; those of another unit are null."""

    unit: Literal["token", "image", "second"]
    text_input_usd: str | None = Field(description="Per million tokens, as the next three.")
    image_input_usd: str | None
    text_output_usd: str | None
    image_output_usd: str | None
    per_image_usd: str | None
    by_size_usd: dict[str, str] | None = Field(
        description="Per image, by `size` or `quality/size`, where they decide."
    )
    per_second_usd: str | None = Field(description="Per second of the call.")


class ModelObject(BaseModel):
    """OpenAI's model object, extended; `served_model` is the model that makes the images."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: date | None
    successor: str | None
    served_model: str
    fallbacks: list[str] = Field(
        description="The models that the operator's models file names to be asked after this one."
    )
    ready: bool | None = Field(
        description="The last word of the operator's own host; null for any other model, or where "
        "it is not known."
    )
    price: ModelPrice | None = Field(
        description="The price in force of `served_model`; null if it has none: it is not called."
    )
    capabilities: ModelCapabilities


class ModelList(BaseModel):
    """The models that a key may use."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class UsageSums(BaseModel):
    """Sums over ledger entries."""

    requests: int = Field(description="Calls that were charged, at a known or an estimated cost.")
    failed_requests: int = Field(description="Calls that were not charged.")
    estimated_requests: int = Field(description="Those of `requests` whose cost is estimated.")
    open_requests: int = Field(
        description="Calls under way, or of unknown outcome; in no other count."
    )
    images: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    estimated_usd: str = Field(description="The estimated part of `cost_usd`.")
    open_usd: str = Field(description="Reserved for `open_requests`; not in `cost_usd`.")


class UsageRowObject(UsageSums):
    """The sums of one group, with the fields of `group_by`."""

    month: str | None = None
    day: str | None = None
    hour: str | None = None
    model: str | None = None
    requested_model: str | None = None
    provider: str | None = None
    operation: str | None = None
    credential_owner: str | None = Field(
        None, description="Whose provider key paid: `house`, `tenant`, `user` or `sandbox`."
    )
    quality: str | None = None
    size: str | None = None
    status: Literal["charged", "estimated", "failed", "in_progress", "unknown"] | None = None
    key: str | None = Field(None, description="Id of the key (the first of its line).")
    key_name: str | None = None
    user: str | None = Field(None, description="Name of the user.")
    user_id: str | None = None
    tenant: str | None = Field(None, description="Name of the tenant.")
    tenant_id: str | None = None


SUMS: dict[str, JsonValue] = {
    "requests": 4,
    "failed_requests": 1,
    "estimated_requests": 0,
    "open_requests": 1,
    "images": 4,
    "input_tokens": 52,
    "output_tokens": 784,
    "cost_usd": "0.023680000",
    "estimated_usd": "0.000000000",
    "open_usd": "0.005920000",
}


class UsageReportObject(BaseModel):
    """A usage report."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "usage_report",
                    "currency": "usd",
                    "start": "2026-11-01T00:00:00+00:00",
                    "end": "2026-11-21T09:35:00+00:00",
                    "group_by": ["model"],
                    "data": [{"model": "gpt-image-2", **SUMS}],
                    "total": SUMS,
                    "has_more": False,
                    "next_after": None,
                }
            ]
        }
    )

    object: Literal["usage_report"] = "usage_report"
    currency: Literal["usd"] = "usd"
    start: datetime
    end: datetime
    group_by: list[str]
    data: list[UsageRowObject]
    total: UsageSums = Field(description="The sums of all groups, on whichever page.")
    has_more: bool
    next_after: str | None = Field(description="`after` of the next page.")


class Health(BaseModel):
    """The liveness answer."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The readiness answer, with the state of each dependency."""

    status: Literal["ready", "degraded", "draining", "unavailable"]
    database: Literal["ok", "unavailable"]
    storage: Literal["ok", "failing", "failing, spool full"] = Field(
        description="State of the image store as observed by this process."
    )


class CredentialBody(BaseModel):
    """A provider key to store."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"secret": "sk-proj-0123456789"}]}
    )

    secret: SecretStr = Field(
        validation_alias=AliasChoices("secret", "api_key"),
        json_schema_extra={"pattern": r"^\s*[!-~]{8,500}\s*$"},
    )


class CredentialAnswer(BaseModel):
    """A stored provider key, without the secret."""

    object: Literal["credential"] = "credential"
    provider: str
    owner: Literal["user", "tenant"]
    last4: str
    updated_at: str


class CredentialTestAnswer(BaseModel):
    """The provider's verdict on a stored key."""

    object: Literal["credential_test"] = "credential_test"
    provider: str
    owner: Literal["user", "tenant"]
    last4: str
    status: Literal["valid", "invalid", "unreachable"] = Field(
        description="`unreachable`: no answer in time, or no conclusive one."
    )


class ErrorBody(BaseModel):
    """OpenAI's error fields."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's error envelope."""

    error: ErrorBody
