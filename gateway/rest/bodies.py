"""The request bodies for images, for the API's description only.

Requests are checked by `generation/parameters.py`, with the catalog's rules.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

MODEL = "gpt-image-2.5-flare"
MAX_PROMPT_CHARACTERS = 32_000
MAX_IDENTIFIER_CHARACTERS = 512
BINARY: JsonDict = {"type": "string", "format": "binary"}


FILE: JsonDict = {"anyOf": [BINARY, {"type": "null"}]}
FILES: JsonDict = {
    "anyOf": [{"type": "array", "items": BINARY, "minItems": 1, "maxItems": 16}, {"type": "null"}]
}


def _as_form(schema: dict[str, Any]) -> None:
    """Adapt a schema to forms, which carry no null: a field is present or absent."""
    for field in schema["properties"].values():
        if "anyOf" in field:
            [given] = [choice for choice in field.pop("anyOf") if choice != {"type": "null"}]
            field.pop("default", None)
            field.update(given)


def _as_edit_form(schema: dict[str, Any]) -> None:
    """Adapt a schema to a form with one input image or several."""
    _as_form(schema)
    schema["anyOf"] = [{"required": ["image"]}, {"required": ["image[]"]}]


Prompt = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        pattern=r"\S",
        examples=["A lighthouse at dawn"],
    ),
]
Identifier = Annotated[str, Field(max_length=MAX_IDENTIFIER_CHARACTERS)]
Size = Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{2,3}x[1-9][0-9]{2,3})$")]
Quality = Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]
ResponseFormat = Literal["url", "b64_json"]


class _Fields(BaseModel):
    """The fields of every image request, for documentation: the catalog's rules check them."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None,
        description="`GET /v1/models` lists the models and the values that each accepts: not "
        "every value below works with every model. Default: the gateway's default.",
        examples=[MODEL],
    )
    n: int | None = Field(None, ge=1, le=10, description="Number of images. Default: 1.")
    size: Size | None = Field(None, description="`WIDTHxHEIGHT` or `auto`.", examples=["1024x1024"])
    quality: Quality | None = Field(
        None,
        description="`xhigh` and `max` from gpt-image-2.5 on; `standard` and `hd` for DALL·E.",
    )
    background: Literal["transparent", "opaque", "auto"] | None = Field(
        None, description="`transparent` requires png or webp."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="For jpeg and webp only."
    )
    complexity: Literal["low", "medium", "high"] | None = Field(
        None, description="For gpt-image-2.6 only."
    )
    safety_identifier: Identifier | None = None
    user: Identifier | None = None


class GenerationParams(_Fields):
    """The parameters of how an image is made."""

    moderation: Literal["auto", "low"] | None = None
    style: Literal["vivid", "natural"] | None = Field(None, description="For dall-e-3 only.")


class _Answered(BaseModel):
    """The parameters of how the answer is sent."""

    response_format: ResponseFormat | None = Field(
        None,
        description="For every model. Default: `b64_json`; for DALL·E `url`. Links expire.",
    )
    stream: bool | None = Field(None, description="Send server-sent events; for n=1 only.")
    partial_images: int | None = Field(None, ge=0, le=3, description="Only with `stream`.")


class ImageBody(_Answered, GenerationParams):
    """A request to generate images."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "A lighthouse at dawn",
                    "model": MODEL,
                    "size": "1024x1024",
                    "quality": "low",
                    "n": 1,
                }
            ]
        }
    )

    prompt: Prompt = Field(
        description="Description of the image. Older models accept 1000 or 4000 characters."
    )


class _EditFields(_Answered, _Fields):
    """The fields common to both forms of an edit."""

    prompt: Prompt = Field(
        description="Description of the change.", examples=["Add a red kite in the sky"]
    )
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="For gpt-image-1.x only."
    )


class EditForm(_EditFields):
    """Images to edit, as a form: `image`, or `image[]` once for each of up to 16."""

    model_config = ConfigDict(json_schema_extra=_as_edit_form)

    image: bytes | None = Field(None, description="PNG, JPEG or WebP.", json_schema_extra=FILE)
    images: list[bytes] | None = Field(
        None,
        alias="image[]",
        description="One of several images; repeat the field for each.",
        json_schema_extra=FILES,
    )
    mask: bytes | None = Field(
        None,
        description="PNG of the first image's size; transparent in the area to change.",
        json_schema_extra=FILE,
    )
    markup: bytes | None = Field(
        None,
        description="Instead of a mask, from gpt-image-2.5 on: a transparent PNG drawn over it.",
        json_schema_extra=FILE,
    )


class ImageReference(BaseModel):
    """An input image by link: a data: URL, or an https address."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(
        examples=["data:image/png;base64,…"], pattern="^(data:|https://|http://)"
    )


class EditBody(_EditFields):
    """Images to edit, as JSON with links to them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "Add a red kite in the sky",
                    "model": MODEL,
                    "images": [{"image_url": "https://example.com/beach.png"}],
                }
            ]
        }
    )

    images: list[ImageReference] = Field(min_length=1, max_length=16)
    mask: ImageReference | None = None
    markup: ImageReference | None = None


class VariationForm(BaseModel):
    """An image to vary, as a form."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_as_form)

    image: bytes = Field(description="A square PNG of less than 4 MB.", json_schema_extra=BINARY)
    model: str | None = Field(None, examples=["dall-e-2"])
    n: int | None = Field(None, ge=1, le=10)
    size: Literal["256x256", "512x512", "1024x1024"] | None = None
    response_format: ResponseFormat | None = None
    user: Identifier | None = None


class SimpleBody(BaseModel):
    """A request to generate images, with few parameters."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "A lighthouse at dawn", "params": {"model": MODEL, "n": 2}}]
        },
    )

    prompt: Prompt = Field(description="Description of the image.")
    params: GenerationParams | None = Field(
        None, description="Any other parameter of the full route."
    )


class SimpleForm(BaseModel):
    """An image to edit, with few parameters."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_as_form)

    prompt: Prompt = Field(
        description="Description of the change.", examples=["Add a red kite in the sky"]
    )
    image_file: bytes = Field(json_schema_extra=BINARY)
    mask_file: bytes | None = Field(None, json_schema_extra=FILE)
    params: str | None = Field(
        None,
        description="Any other parameter of the full route, as a JSON object.",
        examples=['{"size": "1024x1024"}'],
        json_schema_extra={"contentMediaType": "application/json"},
    )


class ToolBody(BaseModel):
    """The arguments of the MCP tool `generate_image`, except those for conversations."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "A lighthouse at dawn", "model": MODEL, "quality": "low"}]
        },
    )

    prompt: Prompt = Field(description="Description of the image.")
    model: str | None = Field(None, description="Default: the gateway's default model.")
    size: Size | None = Field(None, description="`WIDTHxHEIGHT` or `auto`.")
    quality: Quality | None = None
    n: int | None = Field(None, ge=1, le=10, description="Number of images. Default: 1.")
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="Same as the header `Idempotency-Key`, and takes precedence over it."
    )
