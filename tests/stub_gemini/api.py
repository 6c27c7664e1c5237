"""The API itself: checks a request, makes the answer and its bill. Pure.

https://ai.google.dev/api/generate-content and …/gemini-api/docs/pricing
"""

import base64
import io
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

KEY = "AIzaSy-stub-key-of-the-house"
MAX_REQUEST_BYTES = 20_000_000
INPUT_TOKENS = 1120
TEN = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
FOURTEEN = (*TEN, "1:4", "4:1", "1:8", "8:1")
PIXELS = {
    "1:1": (1024, 1024),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
    "1:4": (512, 2048),
    "4:1": (2048, 512),
    "1:8": (384, 3072),
    "8:1": (3072, 384),
}
SCALES = {"512": 0.5, "1K": 1, "2K": 2, "4K": 4}
BLOCKING: dict[str, dict[str, Any]] = {
    "refused_prompt": {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}},
    "refused_image": {"candidates": [{"index": 0, "finishReason": "IMAGE_SAFETY"}]},
    "no_image": {"candidates": [{"index": 0, "finishReason": "NO_IMAGE"}]},
    "max_tokens": {"candidates": [{"index": 0, "finishReason": "MAX_TOKENS"}]},
    "limited": {"candidates": [{"index": 0, "finishReason": "PUP_LIMITED_DISABLED"}]},
    "unknown_reason": {"candidates": [{"index": 0, "finishReason": "SOMETHING_NEW"}]},
}


@dataclass(frozen=True)
class Facts:
    """One model: nano-dollars per token, tokens of each tier, ratios and levels of thinking."""

    text_nano: int
    thought_nano: int
    image_nano: int
    tiers: dict[str, int]
    ratios: tuple[str, ...]
    levels: tuple[str, ...]


MODELS = {
    "gemini-nano-banana-2.1": Facts(
        1500,
        7500,
        30_000,
        {"1K": 1120, "2K": 2000, "4K": 3780},
        FOURTEEN,
        ("minimal", "medium", "high"),
    ),
    "gemini-3.1-flash-image": Facts(
        500,
        3000,
        60_000,
        {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520},
        FOURTEEN,
        ("minimal", "high"),
    ),
    "gemini-3.1-flash-lite-image": Facts(250, 1500, 30_000, {"1K": 1120}, TEN, ("minimal", "high")),
    "gemini-3-pro-image": Facts(
        2000, 12_000, 120_000, {"1K": 1120, "2K": 1120, "4K": 2000}, TEN, ()
    ),
}


@dataclass(frozen=True)
class GeminiCall:
    """One request as it arrived; `json` is None if the body is none."""

    model: str
    key: str
    json: dict[str, Any] | None
    headers: dict[str, str]


@dataclass(frozen=True)
class BillLine:
    """One charged call, and how many images it made."""

    model: str
    images: int
    cost_nano_usd: int


class Refused(Exception):
    """An error in Google's own form."""

    def __init__(self, code: int, status: str, message: str, *details: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "error": {
                "code": code,
                "message": message,
                "status": status,
                **({"details": list(details)} if details else {}),
            }
        }


def _invalid(message: str) -> Refused:
    return Refused(400, "INVALID_ARGUMENT", message)


def _only(given: dict[str, Any], known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise _invalid(f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}'")


def answer_of(
    model: str, body: dict[str, Any], *, seed: int = 0, twist: str = ""
) -> tuple[dict[str, Any], BillLine | None]:
    """The answer to a valid request and what it is billed for.

    Raises:
        Refused: the API would refuse it.
    """
    facts = MODELS.get(model)
    if facts is None:
        raise Refused(404, "NOT_FOUND", f"models/{model} is not found for API version v1beta")
    ratio, tier, inputs, prompt = _read(body, facts)
    chance = random.Random(f"{seed}/{prompt}")
    thoughts = 0 if twist == "no_thoughts" else chance.randrange(3900)
    words = -(-len(prompt.encode()) // 4) + 3
    produced = {} if twist in BLOCKING or twist == "text_only" else {"IMAGE": facts.tiers[tier]}
    text = 20 if twist == "text_only" else 0
    usage: dict[str, Any] = {
        "promptTokenCount": words + inputs * INPUT_TOKENS,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": words},
            *([{"modality": "IMAGE", "tokenCount": inputs * INPUT_TOKENS}] if inputs else []),
        ],
        "totalTokenCount": words + inputs * INPUT_TOKENS + sum(produced.values()) + text + thoughts,
    }
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    if produced or text:
        usage["candidatesTokenCount"] = sum(produced.values()) + text
    if produced and twist != "no_details":
        usage["candidatesTokensDetails"] = [
            {"modality": name, "tokenCount": tokens} for name, tokens in produced.items()
        ]
    cost = (
        (words + inputs * INPUT_TOKENS) * facts.text_nano
        + (thoughts + text) * facts.thought_nano
        + sum(produced.values()) * facts.image_nano
    )
    answer = {
        **_content(ratio, tier, twist),
        "modelVersion": "gemini-of-another-kind" if twist == "other_version" else model,
        "responseId": f"r-{seed}",
    }
    if twist != "no_usage":
        answer["usageMetadata"] = usage
    return answer, BillLine(model, len(produced), cost)


def _read(body: dict[str, Any], facts: Facts) -> tuple[str, str, int, str]:
    """Check the request as the API does; return ratio, tier, number of inputs and the prompt."""
    _only(body, {"contents", "generationConfig", "safetySettings"}, "request")
    [content] = body["contents"]
    parts = content["parts"]
    images = [part["inlineData"] for part in parts if "inlineData" in part]
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image["data"], validate=True))) as opened:
            if Image.MIME[opened.format or ""] != image["mimeType"]:
                raise _invalid("The mime type does not match the image.")
    if len(images) > 14:
        raise _invalid("At most 14 images.")
    config = body["generationConfig"]
    _only(config, {"responseModalities", "imageConfig", "thinkingConfig"}, "generation_config")
    image_config = config.get("imageConfig", {})
    _only(image_config, {"aspectRatio", "imageSize"}, "generation_config.image_config")
    level = config.get("thinkingConfig", {}).get("thinkingLevel")
    if level is not None and level not in facts.levels:
        raise _invalid(f"Thinking level {level} is not supported for this model.")
    ratio, tier = image_config.get("aspectRatio", "1:1"), image_config.get("imageSize", "1K")
    if ratio not in facts.ratios or tier not in facts.tiers:
        raise _invalid(f"Aspect ratio {ratio} or size {tier} is not supported for this model.")
    for setting in body.get("safetySettings", ()):
        assert setting["threshold"] == "BLOCK_ONLY_HIGH"
    return ratio, tier, len(images), parts[0]["text"]


def _content(ratio: str, tier: str, twist: str) -> dict[str, Any]:
    if twist in BLOCKING:
        return dict(BLOCKING[twist])
    parts: list[dict[str, Any]] = []
    if twist == "text_only":
        parts = [{"text": "I cannot draw that,\n\x07 but here is a poem."}]
    else:
        draft = {"mimeType": "image/png", "data": drawn("1:1", "512", "PNG")}
        parts = [{"thought": True, "inlineData": draft}] * (3 if twist == "drafts" else 1)
        if twist != "only_thoughts":
            file_format = "JPEG" if twist == "jpeg" else "PNG"
            data = drawn(ratio, tier, file_format)
            mime = f"image/{file_format.lower()}"
            parts.append(
                {"inlineData": {"mimeType": mime, "data": data}, "thoughtSignature": "c2ln"}
            )
    return {
        "candidates": [
            {"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": parts}}
        ]
    }


@lru_cache(maxsize=64)
def drawn(ratio: str, tier: str, file_format: str) -> str:
    width, height = (int(edge * SCALES[tier]) for edge in PIXELS[ratio])
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, file_format)
    return base64.b64encode(out.getvalue()).decode()
