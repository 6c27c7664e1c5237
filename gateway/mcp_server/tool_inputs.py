"""The tools' input schemas, as JSON Schema for a model to read.

The values are checked by `parse_image_request`, as REST's are: models accept different values, and
a refusal should list those of the model in question.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.domain import Operation
from gateway.image_parameters import PARAMETERS, Kind, Parameter, ToolArgument, parameters_of
from gateway.mcp_server.spellings import EDGE_SCHEMAS

Schema = Mapping[str, Any]

FULL_IMAGE: Schema = {
    "type": "boolean",
    "default": False,
    "description": "Return the whole image instead of a preview, if it is smaller than 750 kB. "
    "Uses much context; the link is enough for a person.",
}
IDEMPOTENCY_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "description": "A string of your choice, unique for each purchase, such as a UUID. Calling "
    "again with the same key and arguments within a day returns the same images and buys nothing: "
    "use it whenever a call may be repeated.",
}
REFERENCE = (
    "a generated-images:// URI of an image made here, an https link to a public host, or a data: "
    "URL with base64"
)
INPUT_IMAGES: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 16},
    ],
    "description": f"The image to change: {REFERENCE}. Or a list of up to 16, to combine them.",
    "examples": ["generated-images://img_19aa8c1e5d0_0123456789abcdef0123456789abcdef"],
}
INPUT_IMAGE: Schema = {
    "type": "string",
    "description": f"A square PNG of less than 4 MB: {REFERENCE}.",
    "examples": ["generated-images://img_19aa8c1e5d0_0123456789abcdef0123456789abcdef"],
}
MASK: Schema = {
    "type": "string",
    "description": "A PNG of the first image's size; its transparent area marks the part to "
    "change. Accepts the same references as image.",
}
OF_ANSWER = {one.name for one in PARAMETERS if not one.is_of_image}
BUYING = {"full_image": FULL_IMAGE, "idempotency_key": IDEMPOTENCY_KEY}


def _arguments(operation: Operation) -> dict[str, Schema]:
    schemas: dict[str, Schema] = {}
    for one in parameters_of(operation):
        if one.argument is not None:
            schemas[one.name] = _argument(one, one.argument)
        if one.name == "size":
            schemas |= EDGE_SCHEMAS
    return schemas


def _argument(parameter: Parameter, tool: ToolArgument) -> Schema:
    schema: dict[str, Any] = {"type": parameter.kind.json_type}
    if parameter.kind is Kind.PROMPT:
        schema["minLength"] = parameter.minimum
    if parameter.kind in {Kind.INTEGER, Kind.NUMBER}:
        bounds = {"minimum": parameter.minimum, "maximum": parameter.maximum}
        schema |= {name: bound for name, bound in bounds.items() if bound is not None}
    if tool.choices:
        schema["enum"] = list(tool.choices)
    if tool.default is not None:
        schema["default"] = tool.default
    schema["description"] = tool.description
    if tool.examples:
        schema["examples"] = list(tool.examples)
    return schema


def _tool(arguments: Mapping[str, Schema], *, required: Sequence[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": {name: dict(schema) for name, schema in arguments.items()},
        "required": list(required),
        "additionalProperties": False,
    }


_GENERATION = _arguments(Operation.GENERATION)
_EDIT = _arguments(Operation.EDIT)
# After the prompt; a model reads the arguments in this order.
_EDITED = {"prompt": _EDIT["prompt"], "image": INPUT_IMAGES, "mask": MASK}

NOTHING = _tool({})
GENERATE_IMAGE = _tool(_GENERATION | BUYING, required=["prompt"])
EDIT_IMAGE = _tool(_EDITED | _EDIT | BUYING, required=["prompt", "image"])
CREATE_VARIATION = _tool(
    {"image": INPUT_IMAGE} | _arguments(Operation.VARIATION) | BUYING, required=["image"]
)
ESTIMATE_COST = _tool(
    {name: schema for name, schema in _GENERATION.items() if name not in OF_ANSWER},
    required=["prompt"],
)
