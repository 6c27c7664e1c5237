"""The shapes that the API documentation shows, and that small bodies are checked with."""

from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr


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
    safety_identifier: str | None = None
    user: str | None = None


class ImageItem(BaseModel):
    """One image: `b64_json` or `url`, as asked."""

    b64_json: str | None = None
    url: str | None = None


class ImageAnswer(BaseModel):
    """OpenAI's images response."""

    created: int
    data: list[ImageItem]
    background: str | None = None
    output_format: str | None = None
    quality: str | None = None
    size: str | None = None
    usage: dict[str, int | dict[str, int]] | None = None


class QuoteAnswer(BaseModel):
    """What a request can cost at most."""

    object: Literal["quote"] = "quote"
    model: str
    served_model: str
    cost_usd_max: str = Field(examples=["0.00592"])


class CredentialBody(BaseModel):
    """A provider key to store."""

    model_config = ConfigDict(extra="forbid")

    secret: SecretStr = Field(
        validation_alias=AliasChoices("secret", "api_key"), examples=["sk-proj-…"]
    )


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
