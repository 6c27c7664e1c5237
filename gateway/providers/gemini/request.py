"""The request of one image in Gemini's words.

https://ai.google.dev/gemini-api/docs/image-generation. The Developer API knows ratio and tier alone
of `imageConfig`, and refuses a field that it does not know.
"""

from collections.abc import Sequence
from typing import BinaryIO

import orjson
import pybase64

from gateway.domain import ImageRequest, InputImage
from gateway.image_models import Model

FILTERED = (
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
)


def encode_request(request: ImageRequest) -> bytes:
    """Encode the request of one image as JSON, its inputs included; they are read, not moved."""
    return orjson.dumps(
        {
            "contents": [{"role": "user", "parts": _parts(request.prompt, request.inputs)}],
            "generationConfig": _config(request),
            **_safety(request),
        }
    )


def _parts(prompt: str, inputs: Sequence[InputImage]) -> list[dict[str, object]]:
    """Return the prompt and then the images, in their order."""
    return [{"text": prompt}, *(_part(image) for image in inputs)]


def _part(image: InputImage) -> dict[str, object]:
    data = pybase64.b64encode(_content(image.file)).decode()
    return {"inlineData": {"mimeType": image.media_type, "data": data}}


def _content(file: BinaryIO) -> bytes:
    """Read a whole file. Several calls of one request read it in turn."""
    file.seek(0)
    return file.read()


def _config(request: ImageRequest) -> dict[str, object]:
    level = request.model.thinking.get(request.quality or "")
    return {
        "responseModalities": ["IMAGE"],
        "imageConfig": _image_config(request.model, request.size),
        **({} if level is None else {"thinkingConfig": {"thinkingLevel": level}}),
    }


def _image_config(model: Model, size: str | None) -> dict[str, str]:
    """Return ratio and tier. Without a size the ratio is the model's choice, the tier is not: it
    decides the price.
    """
    tiers = {shape.tier for shape in model.shapes.values()}
    shape = model.shapes.get(size or "")
    usual = model.shapes[model.usual.size]
    # A model of one tier may refuse to be told it.
    tier = {"imageSize": (shape or usual).tier} if len(tiers) > 1 else {}
    return tier if shape is None else {"aspectRatio": shape.ratio, **tier}


def _safety(request: ImageRequest) -> dict[str, object]:
    if request.moderation != "low":
        return {}
    threshold = "BLOCK_ONLY_HIGH"
    return {"safetySettings": [{"category": name, "threshold": threshold} for name in FILTERED]}
