"""What each tool takes, as JSON Schema for a model to read.

The values are checked by `parse_image_request`, as REST's are: models differ in what they take,
and a refusal is to say which values the model in question knows.
"""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

PROMPT: Schema = {
    "type": "string",
    "minLength": 1,
    "description": "What the image shows, in any language. Be concrete: subject, setting, style, "
    "light, composition. Text to appear in the image goes in quotation marks.",
    "examples": ["A lighthouse at dawn, calm sea, watercolour, wide view"],
}
MODEL: Schema = {
    "type": "string",
    "description": "Leave out for the default. list_available_models names them all; "
    "gpt-image-2.5-flare is fast and cheap. Retired ones such as dall-e-3 still work.",
    "examples": ["gpt-image-2.5-flare"],
}
SIZE: Schema = {
    "type": "string",
    "description": "WIDTHxHEIGHT in pixels, or auto. Current models take any size whose edges are "
    "divisible by 16, up to 3:1, from 655360 pixels on.",
    "examples": ["1024x1024", "1536x1024", "1024x1536"],
}
QUALITY: Schema = {
    "type": "string",
    "description": "low, medium, high or auto (some models also xhigh, max). low is cheapest and "
    "fastest; auto may be dear.",
    "examples": ["low"],
}
COUNT: Schema = {
    "type": "integer",
    "minimum": 1,
    "maximum": 10,
    "default": 1,
    "description": "How many images; each one is paid for.",
}
BACKGROUND: Schema = {
    "type": "string",
    "enum": ["transparent", "opaque", "auto"],
    "description": "transparent needs output_format png or webp.",
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
    "description": "Return the whole image instead of a preview, where it has less than 750 kB. "
    "Fills the context; the link is enough for a person.",
}
IDEMPOTENCY_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "description": "A text of your choice that is new for each purchase, such as a UUID. Calling "
    "again with the same key and arguments within a day gives the same images and buys nothing: "
    "use it wherever a call may be repeated.",
}
PARTIAL_IMAGES: Schema = {
    "type": "integer",
    "minimum": 0,
    "maximum": 3,
    "default": 0,
    "description": "Report so many unfinished images as progress; each costs 100 more tokens. For "
    "n=1 and models that stream.",
}
REFERENCE = (
    "a generated-images:// URI of an image made here, an https link to a public host, or a data: "
    "URL with base64"
)
PICTURES: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 16},
    ],
    "description": f"The picture to change: {REFERENCE}. Or a list of up to 16, to combine them.",
    "examples": ["generated-images://img_19aa8c1e5d0_0123456789abcdef0123456789abcdef"],
}
PICTURE: Schema = {
    "type": "string",
    "description": f"A square PNG of less than 4 MB: {REFERENCE}.",
    "examples": ["generated-images://img_19aa8c1e5d0_0123456789abcdef0123456789abcdef"],
}
MASK: Schema = {
    "type": "string",
    "description": "A PNG of the first picture's size; where it is transparent, the picture is to "
    "change. Given in the same ways as image.",
}
VARIATION_MODEL: Schema = {
    "type": "string",
    "description": "Leave out: dall-e-2 is the one that makes variations, served by its successor.",
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
    "description": "How closely the input is kept, for gpt-image-1.5 and older; leave out for "
    "others.",
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
    image=PICTURES,
    mask=MASK,
    **DRAWING,
    input_fidelity=FIDELITY,
    partial_images=PARTIAL_IMAGES,
    **BUYING,
)
CREATE_VARIATION = _object(
    ("image",), image=PICTURE, model=VARIATION_MODEL, n=COUNT, size=VARIATION_SIZE, **BUYING
)
ESTIMATE_COST = _object(("prompt",), prompt=PROMPT, **DRAWING)
