"""Answers as bytes. Parts that two calls share are rendered once and cached."""

import time
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Literal

import orjson

from tests.stub_openai.errors import ApiError
from tests.stub_openai.images import Look, base64_image
from tests.stub_openai.usage import Usage
from tests.stub_openai.validation import ImageCall

UsageForm = Literal["full", "missing", "no_details"]

_HTML = (
    b"<html>\r\n<head><title>%d %s</title></head>\r\n<body>\r\n<center><h1>%d %s</h1></center>\r\n"
    b"<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"
CLOCK_IS_BEHIND_SECONDS = 7
"""So that the provider's time of an image can be told from the gateway's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer: `head` ends with the blank line; `body` holds the chunks after it."""

    head: bytes
    body: tuple[bytes, ...]


def render_json(status: int, body: bytes, request_id: str, extra: str = "") -> Answer:
    head = (
        f"HTTP/1.1 {status} {_reason(status)}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        "openai-version: 2020-10-01\r\n"
        "openai-organization: org-stub\r\n"
        "openai-processing-ms: 1\r\n"
        f"x-request-id: {request_id}\r\n"
        f"{extra}\r\n"
    )
    return Answer(head.encode("latin-1"), (body,))


def render_error(error: ApiError, request_id: str, retry_after: str | None = None) -> Answer:
    wait = retry_after or error.retry_after
    extra = f"retry-after: {wait}\r\n" if wait else ""
    return render_json(error.status, error.body(), request_id, extra)


def render_html(status: int, retry_after: str | None = None) -> Answer:
    """The error page of a proxy in front of the API: no JSON, no request id."""
    reason = _reason(status).encode()
    body = _HTML % (status, reason, status, reason)
    extra = f"retry-after: {retry_after}\r\n" if retry_after else ""
    head = (
        f"HTTP/1.1 {status} {_reason(status)}\r\ncontent-type: text/html\r\n"
        f"content-length: {len(body)}\r\n{extra}\r\n"
    )
    return Answer(head.encode("latin-1"), (body,))


def render_bare_404() -> Answer:
    """The answer for a removed route, by a proxy before the API: no body, type or request id."""
    return Answer(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", ())


def render_unreadable(request_id: str) -> Answer:
    return render_json(
        200, b'{"created": 1790000000, "data": [{"b64_json": "iVBORw0KGgo', request_id
    )


def render_images(
    call: ImageCall,
    request_id: str,
    *,
    min_b64: int,
    sample: str = "",
    usage_form: UsageForm = "full",
) -> Answer:
    """The answer of a successful call without `stream`."""
    start, end = _frame(_look(call, min_b64, sample), call.n, call.quality)
    tail = b"}"
    if usage_form != "missing":
        tail = b',"usage":' + _usage(call.usage, usage_form) + b"}"
    if call.safety_identifier is not None:
        tail = b',"safety_identifier":' + orjson.dumps(call.safety_identifier) + tail
    created = b'{"created":%d' % (time.time() - CLOCK_IS_BEHIND_SECONDS)
    length = len(created) + len(start) + len(end) + len(tail)
    head = _success_head(length) + request_id.encode() + b"\r\n\r\n"
    return Answer(head, (created, start, end, tail))


def _look(call: ImageCall, min_b64: int, sample: str) -> Look:
    return Look(call.output_format, call.width, call.height, call.transparent, min_b64, sample)


@lru_cache(maxsize=128)
def _frame(look: Look, n: int, quality: str) -> tuple[bytes, bytes]:
    data = orjson.dumps([{"b64_json": base64_image(look, number)} for number in range(n)])
    shape = {
        "background": "transparent" if look.transparent else "opaque",
        "output_format": look.image_format,
        "quality": quality,
        "size": f"{look.width}x{look.height}",
    }
    return b',"data":' + data, b"," + orjson.dumps(shape)[1:-1]


@lru_cache(maxsize=1024)
def _success_head(length: int) -> bytes:
    head = render_json(200, b"", "", "").head
    with_length = head.replace(b"content-length: 0", b"content-length: %d" % length)
    return with_length.removesuffix(b"\r\n\r\n")


def _usage(usage: Usage, form: UsageForm) -> bytes:
    text_in, image_in = usage.input_text_tokens, usage.input_image_tokens
    text_out, image_out = usage.output_text_tokens, usage.output_image_tokens
    total_in, total_out = text_in + image_in, text_out + image_out
    if form == "no_details":
        return (
            f'{{"input_tokens":{total_in},"output_tokens":{total_out},'
            f'"total_tokens":{total_in + total_out}}}'
        ).encode()
    return (
        f'{{"input_tokens":{total_in},'
        f'"input_tokens_details":{{"image_tokens":{image_in},"text_tokens":{text_in}}},'
        f'"output_tokens":{total_out},'
        f'"output_tokens_details":{{"image_tokens":{image_out},"text_tokens":{text_out}}},'
        f'"total_tokens":{total_in + total_out}}}'
    ).encode()


def render_stream(
    call: ImageCall,
    request_id: str,
    *,
    min_b64: int,
    sample: str = "",
    usage_form: UsageForm = "full",
    error: ApiError | None = None,
) -> Answer:
    """The server-sent events of a streamed call; with `error` the last one is the failure.

    https://developers.openai.com/api/reference/resources/images (streaming events)
    """
    prefix = "image_generation" if call.endpoint == "generations" else "image_edit"
    shared: dict[str, object] = {
        "b64_json": base64_image(_look(call, min_b64, sample)),
        "background": "transparent" if call.transparent else "opaque",
        "created_at": int(time.time()),
        "output_format": call.output_format,
        "quality": call.quality,
        "size": call.size,
    }
    events = []
    for index in range(call.partial_images):
        name = f"{prefix}.partial_image"
        events.append(_event(name, {"type": name, **shared, "partial_image_index": index}))
    if error is not None:
        events.append(_event("error", {"type": "error", "error": error.fields()}))
    else:
        name = f"{prefix}.completed"
        last: dict[str, object] = {"type": name, **shared}
        if call.safety_identifier is not None:
            last["safety_identifier"] = call.safety_identifier
        if usage_form != "missing":
            last["usage"] = orjson.Fragment(_usage(call.usage, usage_form))
        events.append(_event(name, last))
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        "transfer-encoding: chunked\r\ncache-control: no-cache\r\n"
        "openai-version: 2020-10-01\r\nopenai-organization: org-stub\r\n"
        f"openai-processing-ms: 1\r\nx-request-id: {request_id}\r\n\r\n"
    )
    return Answer(head.encode("latin-1"), (*events, _LAST_CHUNK))


def _event(name: str, payload: dict[str, object]) -> bytes:
    text = b"event: " + name.encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"
    return b"%x\r\n" % len(text) + text + b"\r\n"


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
