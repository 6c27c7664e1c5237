"""The shapes that the API documentation shows, and that small bodies are checked with."""

from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr

IMAGE_ID = r"^img_[0-9a-z_]{1,100}$"


class ImageBody(BaseModel):
    """Documentation of the body; what a model accepts is checked against the catalogue."""

    prompt: str = Field(description="What to show.", examples=["A lighthouse at dawn"])
    model: str | None = Field(None, examples=["gpt-image-2.5-flare"])
    n: int | None = Field(None, ge=1, le=10, description="How many images. Default 1.")
    size: str | None = Field(None, description="`WIDTHxHEIGHT` or `auto`.", examples=["1024x1024"])
    quality: str | None = Field(
        None,
        description="`low`, `medium`, `high`, `auto`; from gpt-image-2.5 on also `xhigh`, `max`.",
    )
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="jpeg and webp only.")
    moderation: Literal["auto", "low"] | None = None
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="2.6 only.")
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="For every model; `b64_json` where left out. Links expire."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="dall-e-3 only.")
    stream: bool | None = Field(None, description="Server-sent events; n=1 only.")
    partial_images: int | None = Field(None, ge=0, le=3, description="With `stream` only.")
    safety_identifier: str | None = None
    user: str | None = None


class _EditFields(BaseModel):
    """What both forms of an edit share."""

    prompt: str = Field(description="What to change.", examples=["Add a red kite in the sky"])
    model: str | None = Field(None, examples=["gpt-image-2.5-flare"])
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = None
    quality: str | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    input_fidelity: Literal["low", "high"] | None = Field(None, description="gpt-image-1.x only.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="2.6 only.")
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    safety_identifier: str | None = None
    user: str | None = None


class EditForm(_EditFields):
    """Documentation of the multipart form."""

    image: list[bytes] = Field(
        description="PNG, JPEG or WebP; repeat as `image[]` for up to 16.",
        json_schema_extra={"items": {"type": "string", "format": "binary"}},
    )
    mask: bytes | None = Field(
        None,
        description="PNG of the first image's size; transparent where to change.",
        json_schema_extra={"format": "binary"},
    )
    markup: bytes | None = Field(
        None,
        description="From gpt-image-2.5 on, in place of a mask: a transparent PNG drawn over it.",
        json_schema_extra={"format": "binary"},
    )


class ImageReference(BaseModel):
    """A picture by link: a data: URL, or an https address."""

    image_url: str = Field(examples=["data:image/png;base64,…"])


class EditBody(_EditFields):
    """Documentation of the JSON form."""

    images: list[ImageReference] = Field(min_length=1, max_length=16)
    mask: ImageReference | None = None
    markup: ImageReference | None = None


class VariationForm(BaseModel):
    """Documentation of the variations form."""

    image: bytes = Field(
        description="A square PNG of less than 4 MB.", json_schema_extra={"format": "binary"}
    )
    model: str | None = Field(None, examples=["dall-e-2"])
    n: int | None = Field(None, ge=1, le=10)
    size: Literal["256x256", "512x512", "1024x1024"] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    user: str | None = None


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


class SimpleBody(BaseModel):
    """Documentation of the simple form."""

    prompt: str = Field(examples=["A lighthouse at dawn"])
    params: dict[str, str | int] | None = Field(
        None, description="Anything else.", examples=[{"model": "gpt-image-2.5-flare", "n": 2}]
    )


class SimpleForm(BaseModel):
    """Documentation of the simple form with a picture."""

    prompt: str = Field(examples=["Add a red kite in the sky"])
    image_file: bytes = Field(json_schema_extra={"format": "binary"})
    mask_file: bytes | None = Field(None, json_schema_extra={"format": "binary"})
    params: str | None = Field(None, description="Anything else, as a JSON object.")


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

    limit: int = Field(20, ge=1, le=100)
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


class CredentialBody(BaseModel):
    """A provider key to store."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"secret": "sk-proj-…"}]}
    )

    secret: SecretStr = Field(validation_alias=AliasChoices("secret", "api_key"))


class CredentialAnswer(BaseModel):
    """What may be shown of a stored key."""

    object: Literal["credential"] = "credential"
    provider: str
    owner: Literal["user", "tenant"]
    last4: str
    updated_at: str


class ErrorBody(BaseModel):
    """OpenAI's error fields."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's error envelope."""

    error: ErrorBody
