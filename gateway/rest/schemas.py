"""The shapes that the API documentation shows, and that small bodies are checked with."""

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


def _in_digits(value: object) -> object:
    """Of a parameter's text; the framework would also read `1_0`, ` 10` and `10.0`."""
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("it must be a whole number in digits, such as 20")
    return value


IN_DIGITS = BeforeValidator(_in_digits)
PageLimit = Annotated[int, Field(ge=1, le=100), IN_DIGITS]
"""How many objects a page of a list has."""
IMAGE_ID = r"^img_[0-9a-z_]{1,100}$"


class ImageItem(BaseModel):
    """One image: `b64_json` or `url`, as asked."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


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
    """What a request can cost at most."""

    object: Literal["quote"] = "quote"
    model: str
    served_model: str
    cost_usd_max: str = Field(examples=["0.00592"])


class ImageListQuery(BaseModel):
    """Which images of the history to show."""

    model_config = ConfigDict(extra="forbid")

    limit: PageLimit = 20
    after: str | None = Field(
        None, pattern=IMAGE_ID, description="Id of the image before the page: `last_id`."
    )
    model: str | None = Field(
        None, pattern=r"^[!-~]{1,100}$", description="Only those asked of this model."
    )


class GenerationOfImage(BaseModel):
    """The request that an image came from, with what all of its images cost together."""

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
    prompt: str | None = Field(description="Only where the tenant has chosen to store prompts.")
    prompt_hash: str | None = Field(description="Equal for equal prompts of one tenant.")
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
    """An image that is no more."""

    id: str
    object: Literal["image"] = "image"
    deleted: Literal[True] = True


class ModelSizes(BaseModel):
    """The sizes of a model: a list of them, or the rule that they follow."""

    fixed: list[str] | None = None
    multiple_of: int | None = None
    max_edge: int | None = None
    max_aspect_ratio: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


class ModelCapabilities(BaseModel):
    """What a model accepts."""

    endpoints: list[Literal["generations", "edits", "variations"]]
    sizes: ModelSizes
    qualities: list[str]
    output_formats: list[str]
    backgrounds: list[str]
    max_images: int
    max_input_images: int
    max_prompt_characters: int


class ModelObject(BaseModel):
    """OpenAI's model object, extended; `served_model` says who really draws."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: date | None
    successor: str | None
    served_model: str
    capabilities: ModelCapabilities


class ModelList(BaseModel):
    """The models that a key may use."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class TenantBudget(BaseModel):
    """A budget and what it has left; US dollars as decimal strings."""

    object: Literal["budget"] = "budget"
    id: str
    owner: Literal["tenant", "user", "key"]
    livemode: bool
    window: Literal["day", "week", "month", "total"]
    limit_usd: str
    spent_usd: str
    held_usd: str
    remaining_usd: str
    period_start: datetime | None
    resets_at: datetime | None


class BudgetList(BaseModel):
    """The budgets that a call is held against."""

    object: Literal["list"] = "list"
    data: list[TenantBudget]


class UsageSums(BaseModel):
    """Sums over ledger entries."""

    requests: int
    images: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    estimated_usd: str = Field(description="The part of `cost_usd` that is estimated.")
    open_usd: str = Field(description="Held for calls whose cost is not known; not in `cost_usd`.")


class UsageRowObject(UsageSums):
    """The sums of one group, with the fields of `group_by`."""

    day: str | None = None
    model: str | None = None
    requested_model: str | None = None
    key: str | None = Field(None, description="A key's id (the first of its line).")
    key_name: str | None = None
    user: str | None = Field(None, description="A user's name.")
    user_id: str | None = None
    tenant: str | None = Field(None, description="A tenant's name.")
    tenant_id: str | None = None


SUMS: dict[str, JsonValue] = {
    "requests": 4,
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
    total: UsageSums


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether requests can be served, and why not."""

    status: Literal["ready", "degraded", "draining", "unavailable"]
    database: Literal["ok", "unavailable"]
    storage: Literal["ok", "failing", "failing, spool full"] = Field(
        description="Whether the image store takes images, as this process has found it."
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
    """What may be shown of a stored key."""

    object: Literal["credential"] = "credential"
    provider: str
    owner: Literal["user", "tenant"]
    last4: str
    updated_at: str


class CredentialTestAnswer(BaseModel):
    """What the provider says of a stored key now."""

    object: Literal["credential_test"] = "credential_test"
    provider: str
    owner: Literal["user", "tenant"]
    last4: str
    status: Literal["valid", "invalid", "unreachable"] = Field(
        description="`unreachable`: no answer in time, or none that tells."
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
