"""The request bodies for images, for the API's description only: JSON Schema for OpenAPI 3.1.

The parameters come from `image_parameters.py`; requests are checked by `generation/parameters.py`,
with the catalogue's rules.
"""

from collections.abc import Iterable, Mapping

from gateway.domain import Operation
from gateway.image_parameters import EXAMPLE_MODEL, Kind, Parameter, parameters_of
from gateway.rest.openapi import SCHEMAS

JsonSchema = dict[str, object]
NULL: JsonSchema = {"type": "null"}
BINARY: JsonSchema = {"type": "string", "format": "binary"}
MAX_INPUT_IMAGES = 16
SIZE_PATTERN = r"^(auto|[1-9][0-9]{2,3}x[1-9][0-9]{2,3})$"


def _fields(parameters: Iterable[Parameter], *, in_form: bool = False) -> dict[str, JsonSchema]:
    """Draw the fields of a body. A form carries no null: a field is present or absent."""
    return {
        one.name: _field(
            one.name,
            _values(one) if in_form or one.is_required else {"anyOf": [_values(one), NULL]},
            description=one.description,
            examples=one.examples,
        )
        for one in parameters
    }


def _field(
    name: str, values: JsonSchema, *, description: str = "", examples: Iterable[object] = ()
) -> JsonSchema:
    about = {"description": description, "examples": list(examples)}
    title = name.replace("_", " ").title()
    return {**values, "title": title, **{key: text for key, text in about.items() if text}}


def _values(parameter: Parameter) -> JsonSchema:
    """Draw the schema of a parameter's values: the widest that some model accepts."""
    schema: JsonSchema = {"type": parameter.kind.json_type}
    is_text = parameter.kind not in {Kind.INTEGER, Kind.NUMBER}
    if parameter.minimum is not None:
        schema["minLength" if is_text else "minimum"] = parameter.minimum
    if parameter.maximum is not None:
        schema["maxLength" if is_text else "maximum"] = parameter.maximum
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    elif parameter.kind is Kind.SIZE:
        schema["pattern"] = SIZE_PATTERN
    elif parameter.kind is Kind.PROMPT:
        schema["pattern"] = r"\S"
    return schema


def _object(
    title: str,
    description: str,
    fields: Mapping[str, JsonSchema],
    required: Iterable[str] = (),
    **more: object,
) -> JsonSchema:
    names = {"required": list(required)} if required else {}
    return {
        "title": title,
        "description": description,
        "type": "object",
        "properties": dict(fields),
        **names,
        "additionalProperties": False,
        **more,
    }


def _of_image(operation: Operation) -> list[Parameter]:
    """Return the parameters but the prompt that say how an image is made."""
    return [one for one in parameters_of(operation) if one.is_of_image and one.name != "prompt"]


def _prompt(operation: Operation) -> dict[str, JsonSchema]:
    return _fields(one for one in parameters_of(operation) if one.name == "prompt")


def _file(name: str, description: str = "") -> dict[str, JsonSchema]:
    return {name: _field(name, BINARY, description=description)}


def _reference(name: str) -> JsonSchema:
    return {"$ref": f"{SCHEMAS}{name}"}


IMAGE_REFERENCE = _object(
    "ImageReference",
    "An input image by link: a data: URL, or an https address.",
    {
        "image_url": _field(
            "image_url",
            {"type": "string", "pattern": "^(data:|https://|http://)"},
            examples=["data:image/png;base64,…"],
        )
    },
    ["image_url"],
)
_LINKED_IMAGE: JsonSchema = {"anyOf": [_reference("ImageReference"), NULL]}
GENERATION_PARAMS = _object(
    "GenerationParams",
    "The parameters of how an image is made.",
    _fields(_of_image(Operation.GENERATION)),
)
IMAGE_BODY = _object(
    "ImageBody",
    "A request to generate images.",
    _fields(parameters_of(Operation.GENERATION)),
    ["prompt"],
    examples=[
        {
            "prompt": "A lighthouse at dawn",
            "model": EXAMPLE_MODEL,
            "size": "1024x1024",
            "quality": "low",
            "n": 1,
        }
    ],
)
EDIT_FORM = _object(
    "EditForm",
    "Images to edit, as a form: `image`, or `image[]` once for each of up to 16.",
    _file("image", "PNG, JPEG or WebP.")
    | {
        "image[]": _field(
            "image[]",
            {"type": "array", "items": BINARY, "minItems": 1, "maxItems": MAX_INPUT_IMAGES},
            description="One of several images; repeat the field for each.",
        )
    }
    | _file("mask", "PNG of the first image's size; transparent in the area to change.")
    | _file("markup", "Instead of a mask, from gpt-image-2.5 on: a transparent PNG drawn over it.")
    | _fields(parameters_of(Operation.EDIT), in_form=True),
    ["prompt"],
    anyOf=[{"required": ["image"]}, {"required": ["image[]"]}],
)
EDIT_BODY = _object(
    "EditBody",
    "Images to edit, as JSON with links to them.",
    {
        "images": _field(
            "images",
            {
                "type": "array",
                "items": _reference("ImageReference"),
                "minItems": 1,
                "maxItems": MAX_INPUT_IMAGES,
            },
        ),
        "mask": _LINKED_IMAGE,
        "markup": _LINKED_IMAGE,
    }
    | _fields(parameters_of(Operation.EDIT)),
    ["prompt", "images"],
    examples=[
        {
            "prompt": "Add a red kite in the sky",
            "model": EXAMPLE_MODEL,
            "images": [{"image_url": "https://example.com/beach.png"}],
        }
    ],
)
EDIT_BODY["$defs"] = {"ImageReference": IMAGE_REFERENCE}
VARIATION_FORM = _object(
    "VariationForm",
    "An image to vary, as a form.",
    _file("image", "A square PNG of less than 4 MB.")
    | _fields(parameters_of(Operation.VARIATION), in_form=True),
    ["image"],
)
SIMPLE_BODY = _object(
    "SimpleBody",
    "A request to generate images, with few parameters.",
    _prompt(Operation.GENERATION)
    | {
        "params": {
            "anyOf": [_reference("GenerationParams"), NULL],
            "description": "Any other parameter of the full route.",
        }
    },
    ["prompt"],
    examples=[{"prompt": "A lighthouse at dawn", "params": {"model": EXAMPLE_MODEL, "n": 2}}],
)
SIMPLE_BODY["$defs"] = {"GenerationParams": GENERATION_PARAMS}
SIMPLE_FORM = _object(
    "SimpleForm",
    "An image to edit, with few parameters.",
    _prompt(Operation.EDIT)
    | _file("image_file")
    | _file("mask_file")
    | {
        "params": _field(
            "params",
            {"type": "string", "contentMediaType": "application/json"},
            description="Any other parameter of the full route, as a JSON object.",
            examples=['{"size": "1024x1024"}'],
        )
    },
    ["prompt", "image_file"],
)
TOOL_ARGUMENTS = _prompt(Operation.GENERATION) | _fields(_of_image(Operation.GENERATION))
TOOL_ARGUMENTS |= {
    name: _field(
        name,
        {"anyOf": [{"type": "integer", "minimum": 1}, NULL]},
        description="In pixels. Instead of `size`; both or neither.",
    )
    for name in ("width", "height")
}
TOOL_ARGUMENTS["idempotency_key"] = _field(
    "idempotency_key",
    {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 255}, NULL]},
    description="Same as the header `Idempotency-Key`, and takes precedence over it.",
)
TOOL_BODY = _object(
    "ToolBody",
    "The arguments of the MCP tool `generate_image`, except those for conversations.",
    TOOL_ARGUMENTS,
    ["prompt"],
    examples=[{"prompt": "A lighthouse at dawn", "model": EXAMPLE_MODEL, "quality": "low"}],
)
