"""Parsing of Gemini's answers: the image, its usage, and refusals inside a 200.

https://ai.google.dev/api/generate-content. Refusals and empty answers are billed: the prompt and
what the model thought. So each of them carries its usage.
"""

from collections.abc import Iterator, Mapping

import pybase64

from gateway.domain import ImageRequest
from gateway.provider_answers import Outcome, ProviderAnswer, ProviderReply, Usage
from gateway.providers.base import ProviderFailure, Reason
from gateway.providers.image_sizes import read_image_header
from gateway.providers.values import clean, count, identified, optional_text, parse_loosely

REFUSED_PROMPTS = frozenset(
    {
        *("SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY"),
        *("MODEL_ARMOR", "JAILBREAK"),
    }
)
REFUSED_IMAGES = frozenset(
    {
        *("SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT"),
        *("BLOCKLIST", "SPII", "RECITATION", "IMAGE_RECITATION", "MODEL_ARMOR"),
    }
)
LIMITED_ACCOUNT = "PUP_LIMITED_DISABLED"
MODERATION_CODE = "moderation_blocked"
MAX_SAID_CHARACTERS = 200
HEADER_CHARACTERS = 400_000
"""Base64 in which an image's size stands; metadata may come before it."""


def read_answer(
    content: bytes, request: ImageRequest, reply: ProviderReply | None
) -> ProviderAnswer:
    """Read the body of a 200: one image. `reply` gets Gemini's id of the call, the `responseId`.

    Raises:
        ProviderFailure: it holds a refusal, no image, or cannot be read. `usage` is what it cost.
    """
    try:
        body = parse_loosely(content)
    except ValueError:
        raise _unreadable() from None
    if not isinstance(body, dict):
        raise _unreadable()
    reply = identified(reply, body, "responseId")
    image = _image(body)
    usage = read_usage(body.get("usageMetadata"), request, has_image=image is not None)
    if image is None:
        failure = _without_image(body, usage)
        failure.reply = reply
        raise failure
    media_type, size = _facts(image)
    return ProviderAnswer(
        images=(image,),
        created=0,
        usage=usage,
        size=size or request.size,
        quality=request.quality if request.quality in request.model.thinking else None,
        background=None,
        output_format=media_type,
        reply=reply,
        model_version=optional_text(body, "modelVersion"),
    )


def read_usage(given: object, request: ImageRequest, *, has_image: bool) -> Usage | None:
    """Map `usageMetadata`: thinking and text are text output; None if it is missing or invalid.

    Tokens without details are images', the dearer kind, if there are images.
    """
    if not isinstance(given, Mapping):
        return None
    prompt, candidates, thoughts, tools = (
        count(given.get(name, 0))
        for name in (
            *("promptTokenCount", "candidatesTokenCount"),
            *("thoughtsTokenCount", "toolUsePromptTokenCount"),
        )
    )
    if "promptTokenCount" not in given or prompt is None:
        return None
    if candidates is None or thoughts is None or tools is None:
        return None
    inputs = _by_modality(given.get("promptTokensDetails"))
    outputs = _by_modality(given.get("candidatesTokensDetails"))
    if inputs is None or outputs is None:
        return None
    image_input = inputs.get("IMAGE", 0) + inputs.get("VIDEO", 0)
    if not inputs and request.inputs:
        image_input = prompt
    image_output = outputs.get("IMAGE", 0)
    if not outputs and has_image:
        image_output = candidates
    return Usage(
        text_input_tokens=max(0, prompt - image_input) + tools,
        image_input_tokens=image_input,
        text_output_tokens=max(0, candidates - image_output) + thoughts,
        image_output_tokens=image_output,
    )


def _by_modality(details: object) -> dict[str, int] | None:
    """Sum the tokens of each modality; empty without details, None if they are invalid."""
    if details is None:
        return {}
    if not isinstance(details, list):
        return None
    sums: dict[str, int] = {}
    for detail in details:
        tokens = count(detail.get("tokenCount", 0)) if isinstance(detail, dict) else None
        if tokens is None:
            return None
        name = str(detail.get("modality"))
        sums[name] = sums.get(name, 0) + tokens
    return sums


def _candidate(body: Mapping[str, object]) -> Mapping[str, object]:
    candidates = body.get("candidates")
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    return first if isinstance(first, dict) else {}


def _parts(body: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    content = _candidate(body).get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            yield part


def _image(body: Mapping[str, object]) -> str | None:
    """Return the last image that is not a thought: drafts come before it, marked as thoughts."""
    found = None
    for part in _parts(body):
        inline = part.get("inlineData")
        data = inline.get("data") if isinstance(inline, dict) else None
        if isinstance(data, str) and data and part.get("thought") is not True:
            found = data
    return found


def _facts(image: str) -> tuple[str, str | None]:
    """Return the file format and the size that the bytes have; the model chooses both."""
    head = image[:HEADER_CHARACTERS]
    try:
        header = read_image_header(pybase64.b64decode(head[: len(head) // 4 * 4]))
    except ValueError:
        header = None
    return ("png", None) if header is None else (header.format, header.size)


def _without_image(body: Mapping[str, object], usage: Usage | None) -> ProviderFailure:
    """Return the failure of a 200 without an image; without usage its cost is not known."""
    feedback = body.get("promptFeedback")
    blocked = optional_text(feedback, "blockReason") if isinstance(feedback, dict) else None
    ended = optional_text(_candidate(body), "finishReason")
    if blocked in REFUSED_PROMPTS or ended in REFUSED_IMAGES:
        return ProviderFailure(
            Outcome.AMBIGUOUS if usage is None else Outcome.REFUSED_CHARGED,
            Reason.MODERATION,
            f"Your request was rejected by the safety system ({blocked or ended}).",
            code=MODERATION_CODE,
            usage=usage,
        )
    if usage is None:
        return _unreadable()
    if ended == LIMITED_ACCOUNT:
        return ProviderFailure(
            Outcome.REFUSED_CHARGED,
            Reason.CREDENTIAL,
            "The provider has limited this account.",
            usage=usage,
        )
    return ProviderFailure(Outcome.SUCCESS, Reason.UNKNOWN, _said(body, ended), usage=usage)


def _said(body: Mapping[str, object], ended: str | None) -> str:
    """Say why there is no image, with the first words of the model's own text, if it wrote one."""
    text = " ".join(str(part["text"]) for part in _parts(body) if isinstance(part.get("text"), str))
    printable = "".join(sign if sign.isprintable() else " " for sign in clean(text))
    said = " ".join(printable.split())[:MAX_SAID_CHARACTERS]
    reason = "" if ended in {None, "STOP"} else f" ({ended})"
    return f"The model made no image{reason}." + (f' It said: "{said}".' if said else "")


def _unreadable() -> ProviderFailure:
    return ProviderFailure(
        Outcome.AMBIGUOUS,
        Reason.UNKNOWN,
        "The provider's answer contains no readable image.",
    )


def read_model_names(content: bytes) -> frozenset[str]:
    """Parse the names of a list of models.

    Raises:
        ProviderFailure: this is not a list of models.
    """
    try:
        body = parse_loosely(content)
        models = body["models"] if isinstance(body, dict) else None
        names = [model["name"] for model in models] if isinstance(models, list) else None
    except (ValueError, KeyError, TypeError):
        names = None
    if names is None:
        raise ProviderFailure(
            Outcome.REJECTED, Reason.UNKNOWN, "The list of models cannot be read."
        )
    return frozenset(str(name).removeprefix("models/") for name in names)
