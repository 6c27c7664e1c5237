"""The tools' input schemas, as JSON Schema for a model to read.

The values are checked by `parse_image_request`, as REST's are: models accept different values, and
a refusal should list those of the model in question.
"""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

PROMPT: Schema = {
    "type": "string",
    "minLength": 1,
    "description": "Description of the image, in any language. Be concrete: subject, setting, "
    "style, light, composition. Text to appear in the image goes in quotation marks.",
    "examples": ["A lighthouse at dawn, calm sea, watercolour, wide view"],
}
MODEL: Schema = {
    "type": "string",
    "description": "Omit for the default. list_available_models lists all; "
    "gpt-image-2.5-flare is fast and cheap. Retired ones such as dall-e-3 still work.",
    "examples": ["gpt-image-2.5-flare"],
}
SIZE: Schema = {
    "type": "string",
    "description": "WIDTHxHEIGHT in pixels, or auto. Current models accept any size whose edges "
    "are divisible by 16, up to 3:1, of at least 655360 pixels.",
    "examples": ["1024x1024", "1536x1024", "1024x1536"],
}
QUALITY: Schema = {
    "type": "string",
    "description": "low, medium, high or auto (some models also xhigh, max). low is cheapest and "
    "fastest; auto may be expensive.",
    "examples": ["low"],
}
COUNT: Schema = {
    "type": "integer",
    "minimum": 1,
    "maximum": 10,
    "default": 1,
    "description": "Number of images; each one is charged.",
}
BACKGROUND: Schema = {
    "type": "string",
    "enum": ["transparent", "opaque", "auto"],
    "description": "transparent requires output_format png or webp.",
}
OUTPUT_FORMAT: Schema = {
    "type": "string",
    "enum": ["png", "jpeg", "webp"],
    "default": "png",
    "description": "File format.",
}
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
PARTIAL_IMAGES: Schema = {
    "type": "integer",
    "minimum": 0,
    "maximum": 3,
    "default": 0,
    "description": "Number of partial images to report as progress; each costs 100 more tokens. "
    "For n=1 and models that stream.",
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
VARIATION_MODEL: Schema = {
    "type": "string",
    "description": "Omit: only dall-e-2 makes variations, served by its successor.",
    "examples": ["dall-e-2"],
}
VARIATION_SIZE: Schema = {
    "type": "string",
    "enum": ["256x256", "512x512", "1024x1024"],
    "default": "1024x1024",
    "description": "Width and height in pixels.",
}
FIDELITY: Schema = {
    "type": "string",
    "enum": ["high", "low"],
    "description": "Fidelity to the input, for gpt-image-1.5 and older; omit for others.",
}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {name: dict(schema) for name, schema in properties.items()},
        "required": list(required),
        "additionalProperties": False,
    }


DRAWING = {
    "model": MODEL,
    "size": SIZE,
    "quality": QUALITY,
    "n": COUNT,
    "background": BACKGROUND,
    "output_format": OUTPUT_FORMAT,
}
BUYING = {"full_image": FULL_IMAGE, "idempotency_key": IDEMPOTENCY_KEY}

NOTHING = _object()
GENERATE_IMAGE = _object(
    ("prompt",), prompt=PROMPT, **DRAWING, partial_images=PARTIAL_IMAGES, **BUYING
)
EDIT_IMAGE = _object(
    ("prompt", "image"),
    prompt=PROMPT,
    image=INPUT_IMAGES,
    mask=MASK,
    **DRAWING,
    input_fidelity=FIDELITY,
    partial_images=PARTIAL_IMAGES,
    **BUYING,
)
CREATE_VARIATION = _object(
    ("image",), image=INPUT_IMAGE, model=VARIATION_MODEL, n=COUNT, size=VARIATION_SIZE, **BUYING
)
ESTIMATE_COST = _object(("prompt",), prompt=PROMPT, **DRAWING)
