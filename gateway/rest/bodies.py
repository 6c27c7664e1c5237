"""What requests for images look like, for the API's description.

Nothing here checks a request: `images/parameters.py` does, with the catalogue's rules.
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
    """For a form: it carries no null, so that a field is there or is not."""
    for field in schema["properties"].values():
        if "anyOf" in field:
            [given] = [choice for choice in field.pop("anyOf") if choice != {"type": "null"}]
            field.pop("default", None)
            field.update(given)


def _as_edit_form(schema: dict[str, Any]) -> None:
    """For a form with one picture or several."""
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
    """What every way of asking for images shares. It documents: the catalogue checks."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None,
        description="`GET /v1/models` lists them, with what each accepts: not every value below "
        "goes with every model. The gateway's default where left out.",
        examples=[MODEL],
    )
    n: int | None = Field(None, ge=1, le=10, description="How many images. Default 1.")
    size: Size | None = Field(None, description="`WIDTHxHEIGHT` or `auto`.", examples=["1024x1024"])
    quality: Quality | None = Field(
        None,
        description="`xhigh` and `max` from gpt-image-2.5 on; `standard` and `hd` with DALL·E.",
    )
    background: Literal["transparent", "opaque", "auto"] | None = Field(
        None, description="`transparent` needs png or webp."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="jpeg and webp only.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="2.6 only.")
    safety_identifier: Identifier | None = None
    user: Identifier | None = None


class GenerationParams(_Fields):
    """What says how an image is to be made."""

    moderation: Literal["auto", "low"] | None = None
    style: Literal["vivid", "natural"] | None = Field(None, description="dall-e-3 only.")


class _Answered(BaseModel):
    """How the answer is to come."""

    response_format: ResponseFormat | None = Field(
        None,
        description="For every model; `b64_json` where left out, with DALL·E `url`. Links expire.",
    )
    stream: bool | None = Field(None, description="Server-sent events; n=1 only.")
    partial_images: int | None = Field(None, ge=0, le=3, description="With `stream` only.")


class ImageBody(_Answered, GenerationParams):
    """Images to make."""

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

    prompt: Prompt = Field(description="What to show. Older models take 1000 or 4000 characters.")


class _EditFields(_Answered, _Fields):
    """What both forms of an edit share."""

    prompt: Prompt = Field(description="What to change.", examples=["Add a red kite in the sky"])
    input_fidelity: Literal["low", "high"] | None = Field(None, description="gpt-image-1.x only.")


class EditForm(_EditFields):
    """Pictures to edit, as a form: `image`, or `image[]` once for each of up to 16."""

    model_config = ConfigDict(json_schema_extra=_as_edit_form)

    image: bytes | None = Field(None, description="PNG, JPEG or WebP.", json_schema_extra=FILE)
    images: list[bytes] | None = Field(
        None,
        alias="image[]",
        description="The same, several times.",
        json_schema_extra=FILES,
    )
    mask: bytes | None = Field(
        None,
        description="PNG of the first image's size; transparent where to change.",
        json_schema_extra=FILE,
    )
    markup: bytes | None = Field(
        None,
        description="From gpt-image-2.5 on, in place of a mask: a transparent PNG drawn over it.",
        json_schema_extra=FILE,
    )


class ImageReference(BaseModel):
    """A picture by link: a data: URL, or an https address."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(
        examples=["data:image/png;base64,…"], pattern="^(data:|https://|http://)"
    )


class EditBody(_EditFields):
    """Pictures to edit, as JSON with links to them."""

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
    """A picture to vary, as a form."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_as_form)

    image: bytes = Field(description="A square PNG of less than 4 MB.", json_schema_extra=BINARY)
    model: str | None = Field(None, examples=["dall-e-2"])
    n: int | None = Field(None, ge=1, le=10)
    size: Literal["256x256", "512x512", "1024x1024"] | None = None
    response_format: ResponseFormat | None = None
    user: Identifier | None = None


class SimpleBody(BaseModel):
    """Images to make, with few words."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "A lighthouse at dawn", "params": {"model": MODEL, "n": 2}}]
        },
    )

    prompt: Prompt = Field(description="What to show.")
    params: GenerationParams | None = Field(None, description="Anything else.")


class SimpleForm(BaseModel):
    """A picture to edit, with few words."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_as_form)

    prompt: Prompt = Field(description="What to change.", examples=["Add a red kite in the sky"])
    image_file: bytes = Field(json_schema_extra=BINARY)
    mask_file: bytes | None = Field(None, json_schema_extra=FILE)
    params: str | None = Field(
        None,
        description="Anything else, as a JSON object.",
        examples=['{"size": "1024x1024"}'],
        json_schema_extra={"contentMediaType": "application/json"},
    )


class ToolBody(BaseModel):
    """The arguments of the MCP tool `generate_image`, without those that shape a conversation."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "A lighthouse at dawn", "model": MODEL, "quality": "low"}]
        },
    )

    prompt: Prompt = Field(description="What to show.")
    model: str | None = Field(None, description="The gateway's default where left out.")
    size: Size | None = Field(None, description="`WIDTHxHEIGHT` or `auto`.")
    quality: Quality | None = None
    n: int | None = Field(None, ge=1, le=10, description="How many images. Default 1.")
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="As the header `Idempotency-Key`, which counts where this is left out."
    )
