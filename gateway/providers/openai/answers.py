"""Parsing of the OpenAI Images API's answers, and what each failure may have cost."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import cast

import orjson

from gateway.domain import ImageRequest
from gateway.provider_answers import Outcome, PartialImage, ProviderAnswer, ProviderReply, Usage
from gateway.providers.base import ProviderFailure, Reason
from gateway.providers.values import (
    MAX_INTEGER_DIGITS,
    MAX_RETRY_AFTER_SECONDS,
    clean,
    count,
    optional_text,
    parse_loosely,
    well_formed,
    whole_number,
)

MODERATION_CODES = frozenset({"moderation_blocked", "content_policy_violation"})
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# Refusals that OpenAI does not charge for. They must have OpenAI's error body: a proxy may answer
# with the same status. Any other status may have been charged.
UNCHARGED_STATUSES = frozenset({400, 401, 403, 404, 413, 429})
FORMATS = frozenset({"png", "jpeg", "webp"})
MAX_CREATED = 253_402_300_799
"""The end of the year 9999, as Unix seconds."""
MAX_PARTIAL_INDEX = 1000
MAX_REVISED_CHARACTERS = 100_000
_IMAGE_OPENING = re.compile(rb'"b64_json"\s*:\s*"')


def read_body(content: bytes) -> Mapping[str, object]:
    """Parse the body of a 200, whose `data` must be a list of objects.

    Raises:
        ProviderFailure: it is not; the call may have been charged all the same.
    """
    try:
        body = _parse(content)
    except ValueError as error:
        raise unreadable() from error
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise unreadable()
    return cast("Mapping[str, object]", body)


def _parse(content: bytes) -> object:
    """Parse JSON. Megabytes of base64 are cut out beforehand, which is faster."""
    short, images = _cut_images(content)
    if images:
        body = parse_loosely(short)
        if _put_back(body, images) == len(images):
            return body
    return parse_loosely(content)


def _cut_images(content: bytes) -> tuple[bytes, list[str]]:
    """Replace each image in the JSON by its number; return no images if one is not plain base64."""
    parts: list[bytes] = []
    images: list[str] = []
    view, at = memoryview(content), 0
    while (opening := _IMAGE_OPENING.search(content, at)) is not None:
        start = opening.end()
        end = content.find(b'"', start)
        if end < 0 or content.find(b"\\", start, end) >= 0:
            return content, []
        try:
            images.append(str(view[start:end], "ascii"))
        except UnicodeDecodeError:
            return content, []
        parts += (content[at:start], b"%d" % (len(images) - 1))
        at = end
    return b"".join((*parts, content[at:])), images


def _put_back(body: object, images: Sequence[str]) -> int:
    """Restore the image of every item of `data`; return the number of images restored."""
    data = body.get("data") if isinstance(body, dict) else None
    restored = 0
    for item in data if isinstance(data, list) else ():
        number = item.get("b64_json") if isinstance(item, dict) else None
        if isinstance(number, str) and number == str(restored) and restored < len(images):
            item["b64_json"] = images[restored]
            restored += 1
    return restored


def read_answer(
    body: Mapping[str, object],
    images: Sequence[object],
    request: ImageRequest,
    reply: ProviderReply | None = None,
) -> ProviderAnswer:
    """Build the answer from a body and its base64 `images`.

    Raises:
        ProviderFailure: an image is missing; the call may have been charged all the same.
    """
    answer = _answer(body, tuple(images), body.get("created"), request, reply)
    items = cast("list[dict[str, object]]", body["data"])
    revised = tuple(
        clean(text[:MAX_REVISED_CHARACTERS])
        for item in items
        if isinstance(text := item.get("revised_prompt"), str)
    )
    if len(revised) == len(images):
        return replace(answer, revised_prompts=revised)
    return answer


def read_completed(
    event: Mapping[str, object], request: ImageRequest, reply: ProviderReply | None = None
) -> ProviderAnswer:
    """Build the answer from the last event of a stream, which contains the image and its usage.

    Raises:
        ProviderFailure: it contains no image; the call may have been charged all the same.
    """
    return _answer(event, (event.get("b64_json"),), event.get("created_at"), request, reply)


def read_partial(event: Mapping[str, object], request: ImageRequest) -> PartialImage | None:
    """Parse a partial image; None if it is malformed, because the final image still follows."""
    index = whole_number(event.get("partial_image_index"), most=MAX_PARTIAL_INDEX)
    encoded = event.get("b64_json")
    if index is None or not isinstance(encoded, str):
        return None
    return PartialImage(
        index=index,
        base64=well_formed(encoded),
        created=_created(event.get("created_at")),
        size=optional_text(event, "size"),
        quality=optional_text(event, "quality"),
        background=optional_text(event, "background"),
        output_format=_format(event, request),
    )


def _answer(
    body: Mapping[str, object],
    images: tuple[object, ...],
    created: object,
    request: ImageRequest,
    reply: ProviderReply | None,
) -> ProviderAnswer:
    texts = tuple(well_formed(image) for image in images if isinstance(image, str) and image)
    usage = read_usage(body.get("usage"), has_inputs=bool(request.inputs))
    if not texts or len(texts) < len(images):
        raise unreadable(usage)
    return ProviderAnswer(
        images=texts,
        created=_created(created),
        usage=usage,
        size=optional_text(body, "size"),
        quality=optional_text(body, "quality"),
        background=optional_text(body, "background"),
        output_format=_format(body, request),
        reply=reply,
    )


def _format(body: Mapping[str, object], request: ImageRequest) -> str:
    reported = optional_text(body, "output_format")
    return reported if reported in FORMATS else request.output_format or "png"


def read_shutdown_dates(content: bytes) -> dict[str, date]:
    """Parse shutdown dates by model; entries with a missing or malformed date are left out.

    Raises:
        ProviderFailure: this is not a list of models.
    """
    dates = {name: _date(value) for name, value in _listed(content)}
    return {name: found for name, found in dates.items() if found is not None}


def read_model_names(content: bytes) -> frozenset[str]:
    """Parse the names of the models.

    Raises:
        ProviderFailure: this is not a list of models.
    """
    return frozenset(name for name, _ in _listed(content))


def _listed(content: bytes) -> list[tuple[str, object]]:
    """Parse the names of a list of models, and their shutdown dates as they stand."""
    try:
        entries = orjson.loads(content)["data"]
        named = [(entry["id"], entry.get("shutdown_date")) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProviderFailure(
            Outcome.REJECTED, Reason.UNKNOWN, "The list of models cannot be read."
        ) from error
    return [(name, value) for name, value in named if isinstance(name, str)]


def _date(value: object) -> date | None:
    """Parse a date given as text (`2026-12-01`) or Unix seconds; None for anything else."""
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).date()
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC).date()
    except (ValueError, OverflowError, OSError):
        return None
    return None


def read_usage(usage: object, *, has_inputs: bool = False) -> Usage | None:
    """Parse `usage`; tokens without details count as image tokens, the more expensive kind.

    Without input images, input tokens without details are text.

    Returns None if it is missing or invalid.
    """
    if not isinstance(usage, Mapping):
        return None
    text_in, image_in = _split(usage, "input_tokens", rest_is_image=has_inputs)
    text_out, image_out = _split(usage, "output_tokens", rest_is_image=True)
    if text_in is None or image_in is None or text_out is None or image_out is None:
        return None
    return Usage(text_in, image_in, text_out, image_out)


def _split(
    usage: Mapping[str, object], name: str, *, rest_is_image: bool
) -> tuple[int, int] | tuple[None, None]:
    total = count(usage.get(name))
    if total is None:
        return None, None
    details = usage.get(f"{name}_details")
    if details is None:
        return (0, total) if rest_is_image else (total, 0)
    if not isinstance(details, Mapping):
        return None, None
    text, image = count(details.get("text_tokens", 0)), count(details.get("image_tokens", 0))
    if text is None or image is None:
        return None, None
    return text, image + max(0, total - text - image)


def _created(value: object) -> int:
    """Parse Unix seconds; 0 if missing or invalid."""
    return whole_number(value, most=MAX_CREATED) or 0


def unreadable(usage: Usage | None = None) -> ProviderFailure:
    """Return the failure of a 200 without images: paid for if it reports usage, else ambiguous."""
    return ProviderFailure(
        Outcome.AMBIGUOUS if usage is None else Outcome.SUCCESS,
        Reason.UNKNOWN,
        "The provider's answer contains no readable image.",
        usage=usage,
    )


def refused(status: int, headers: Mapping[str, str], content: bytes) -> ProviderFailure:
    """Return the failure of an error status; only one with OpenAI's error body costs nothing."""
    error = _error(content)
    message = error.get("message")
    if status not in UNCHARGED_STATUSES or not isinstance(message, str):
        return ProviderFailure(
            Outcome.AMBIGUOUS, Reason.UNKNOWN, f"The provider answered {status}."
        )
    code = optional_text(error, "code")
    return ProviderFailure(
        Outcome.MODERATION if code in MODERATION_CODES else Outcome.REJECTED,
        _reason(status, code, message),
        clean(message),
        code=code,
        param=optional_text(error, "param"),
        retry_after_seconds=_retry_after(headers),
    )


def _error(content: bytes) -> Mapping[str, object]:
    """Return the error object of OpenAI's envelope, or of a host without one; else an empty one."""
    try:
        body = parse_loosely(content, errors="replace")
    except ValueError:
        return {}
    error = body.get("error", body) if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _reason(status: int, code: str | None, message: str) -> Reason:
    if code in MODERATION_CODES:
        return Reason.MODERATION
    if code in QUOTA_CODES:
        return Reason.QUOTA
    if code == "model_not_found" or (message.startswith("The model") and "not exist" in message):
        return Reason.MODEL
    by_status = {
        401: Reason.CREDENTIAL,
        403: Reason.CREDENTIAL,
        404: Reason.MODEL,
        429: Reason.RATE_LIMITED,
    }
    return by_status.get(status, Reason.INVALID)


def _retry_after(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Retry-After", "")
    if not (text.isascii() and text.isdecimal()) or len(text) > MAX_INTEGER_DIGITS:
        return None
    return min(int(text), MAX_RETRY_AFTER_SECONDS)


def read_event(event: object) -> Mapping[str, object]:
    """Return one parsed event of a stream; anything but an object counts as an empty event."""
    return event if isinstance(event, dict) else {}


def stream_failed(body: object) -> ProviderFailure:
    """Return the failure of a stream that reports an error, which does not include the usage."""
    code = optional_text(body, "code") if isinstance(body, dict) else None
    return ProviderFailure(
        Outcome.AMBIGUOUS,
        Reason.MODERATION if code in MODERATION_CODES else Reason.UNKNOWN,
        "The provider failed while the image was being made.",
    )
