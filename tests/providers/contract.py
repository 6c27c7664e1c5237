"""The failures that every provider must classify alike, and each vendor's spelling of them.

test_contract.py runs them against a raw socket; test_fault_matrix.py takes the answers.
"""

import base64
import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from gateway.catalog.declared import Kind
from gateway.provider_answers import Outcome
from gateway.providers.base import Reason

SECRET = "secret-key-0123456789"
CALL_ID = "mAitaLmkHPPlz7IP-vaH_4QU"
HANG, RESET = "hang", "reset"
END = "end"
"""Ways in which a connection goes on after the bytes of an answer."""


@dataclass(frozen=True)
class Failure:
    """One row: what the upstream does, and what the call has then cost.

    `status` and the vendor's error named `error` make the answer; `then` ends the connection.
    """

    name: str
    outcome: Outcome
    reason: Reason
    status: int = 0
    error: str = ""
    then: str = END
    cut: bool = False
    retry_after_seconds: int | None = None


_AMBIGUOUS = (Outcome.AMBIGUOUS, Reason.UNKNOWN)
_REJECTED = Outcome.REJECTED
FAILURES = (
    Failure("connection refused", Outcome.NOT_SENT, Reason.UNREACHABLE),
    Failure("no TLS at an https address", Outcome.NOT_SENT, Reason.UNREACHABLE),
    Failure("reset after the request", *_AMBIGUOUS, then=RESET),
    Failure("closed without an answer", *_AMBIGUOUS),
    Failure("no answer within the read timeout", *_AMBIGUOUS, then=HANG),
    Failure("reset after half of the answer", *_AMBIGUOUS, status=200, cut=True, then=RESET),
    Failure("half of the answer", *_AMBIGUOUS, status=200, cut=True),
    Failure("half of the answer, then silence", *_AMBIGUOUS, status=200, cut=True, then=HANG),
    Failure("200 with HTML", *_AMBIGUOUS, status=200, error="html"),
    Failure("200 with other JSON", *_AMBIGUOUS, status=200, error="other"),
    Failure("200 without images or usage", *_AMBIGUOUS, status=200, error="empty"),
    Failure("longer than the limit", *_AMBIGUOUS, status=200, error="long"),
    Failure("302", *_AMBIGUOUS, status=302, error="invalid"),
    Failure("400", _REJECTED, Reason.INVALID, 400, "invalid"),
    Failure("400 of a proxy", *_AMBIGUOUS, status=400, error="html"),
    Failure("401", _REJECTED, Reason.CREDENTIAL, 401, "credential"),
    Failure("403", _REJECTED, Reason.CREDENTIAL, 403, "denied"),
    Failure("404", _REJECTED, Reason.MODEL, 404, "model"),
    Failure("408", *_AMBIGUOUS, status=408, error="invalid"),
    Failure("409", *_AMBIGUOUS, status=409, error="invalid"),
    Failure(
        "429 with a delay", _REJECTED, Reason.RATE_LIMITED, 429, "limited", retry_after_seconds=12
    ),
    Failure("429, out of credit", _REJECTED, Reason.QUOTA, 429, "quota"),
    Failure("500", *_AMBIGUOUS, status=500, error="invalid"),
    Failure("502", *_AMBIGUOUS, status=502, error="html"),
    Failure("503", *_AMBIGUOUS, status=503, error="invalid"),
    Failure("504", *_AMBIGUOUS, status=504, error="invalid"),
)


def small_png() -> str:
    """A small image as base64."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


IMAGE = small_png()


@dataclass(frozen=True)
class Dialect:
    """One vendor: a model, its answers by name, and the outcome of its refusal of a prompt.

    `kind`: that of an operator's own host, which reports no usage. `lacks`: failures that it
    cannot express. `names_calls_in_body`: answers of 200 have the call's id, no header has it.
    """

    provider: str
    model: str
    path: str
    answers: Mapping[str, object]
    headers: Mapping[str, str]
    refusal: tuple[int, Outcome] | None
    kind: Kind | None = None
    lacks: frozenset[str] = frozenset()
    names_calls_in_body: bool = False


def _openai_error(message: str, code: str | None = None) -> dict[str, object]:
    fields = {"message": message, "type": "invalid_request_error", "code": code}
    return {"error": fields}


def _google_error(status: str, *details: dict[str, object]) -> dict[str, object]:
    return {"error": {"status": status, "message": "No.", "details": list(details)}}


_GOOGLE_USAGE = {
    "promptTokenCount": 1131,
    "candidatesTokenCount": 1120,
    "thoughtsTokenCount": 240,
    "toolUsePromptTokenCount": 4,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 11},
        {"modality": "IMAGE", "tokenCount": 1120},
    ],
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1120}],
}
_PART = {"inlineData": {"data": IMAGE}}
_HTML = "<html>502 Bad Gateway</html>"

DIALECTS = (
    Dialect(
        "openai",
        "gpt-image-2",
        "/v1",
        {
            "good": {
                "created": 1,
                "data": [{"b64_json": IMAGE}],
                "usage": {
                    "input_tokens": 1135,
                    "input_tokens_details": {"text_tokens": 15, "image_tokens": 1120},
                    "output_tokens": 1360,
                    "output_tokens_details": {"text_tokens": 240, "image_tokens": 1120},
                },
            },
            "other": {"hello": "world"},
            "empty": {"created": 1, "data": []},
            "html": _HTML,
            "invalid": _openai_error("Invalid size.", "invalid_value"),
            "credential": _openai_error("Incorrect API key provided.", "invalid_api_key"),
            "denied": _openai_error("Your organization must be verified."),
            "model": _openai_error("The model does not exist.", "model_not_found"),
            "limited": _openai_error("Rate limit reached.", "rate_limit_exceeded"),
            "quota": _openai_error("You exceeded your quota.", "insufficient_quota"),
            "refusal": _openai_error("Rejected by the safety system.", "moderation_blocked"),
        },
        {"limited": "Retry-After: 12\r\n"},
        (400, Outcome.MODERATION),
    ),
    Dialect(
        "gemini",
        "gemini-nano-banana-2.1",
        "",
        {
            "good": {
                "candidates": [
                    {
                        "finishReason": "STOP",
                        "content": {"parts": [{"inlineData": {"data": IMAGE}}]},
                    }
                ],
                "usageMetadata": _GOOGLE_USAGE,
                "responseId": CALL_ID,
            },
            "other": {"hello": "world", "responseId": CALL_ID},
            "empty": {"candidates": [{"finishReason": "STOP"}], "responseId": CALL_ID},
            "html": _HTML,
            "invalid": _google_error("INVALID_ARGUMENT"),
            "credential": _google_error("UNAUTHENTICATED"),
            "denied": _google_error("PERMISSION_DENIED"),
            "model": _google_error("NOT_FOUND"),
            "limited": _google_error("RESOURCE_EXHAUSTED", {"retryDelay": "11.5s"}),
            "quota": _google_error(
                "RESOURCE_EXHAUSTED", {"violations": [{"quotaId": "RequestsPerDayPerProject"}]}
            ),
            "refusal": {
                "promptFeedback": {"blockReason": "SAFETY"},
                "usageMetadata": {"promptTokenCount": 11, "thoughtsTokenCount": 240},
                "responseId": CALL_ID,
            },
        },
        {},
        (200, Outcome.REFUSED_CHARGED),
        names_calls_in_body=True,
    ),
    Dialect(
        "kserve",
        "diffuser",
        "",
        {
            "good": {"predictions": [{"image": {"format": "PNG", "b64": IMAGE}}]},
            "other": {"hello": "world"},
            "empty": {"predictions": []},
            "html": _HTML,
            "invalid": {"error": "num_inference_steps must be positive"},
            "credential": {"detail": "Unauthorized"},
            "denied": {"error": "RBAC: access denied"},
            "model": {"error": "Model with name diffuser does not exist."},
            "limited": {"error": "Too many requests."},
        },
        {"limited": "Retry-After: 12\r\n"},
        None,
        "kserve",
        frozenset({"429, out of credit"}),
    ),
    Dialect(
        "openai-compatible",
        "compatible",
        "/v1",
        {
            "good": {"created": 1, "data": [{"b64_json": IMAGE}]},
            "other": {"hello": "world"},
            "empty": {"created": 1, "data": []},
            "html": _HTML,
            "invalid": {"detail": [{"loc": ["body", "size"], "msg": "Input should be valid"}]},
            "credential": {"detail": "Invalid token"},
            "denied": {"detail": "Forbidden"},
            "model": {"error": {"message": "The model does not exist."}},
            "limited": {"detail": "Too many requests."},
            "quota": _openai_error("You exceeded your quota.", "insufficient_quota"),
            "refusal": _openai_error("Rejected by the safety system.", "moderation_blocked"),
        },
        {"limited": "Retry-After: 12\r\n"},
        (400, Outcome.MODERATION),
        "openai-compatible",
    ),
)
VENDORS_OF_CATALOGUE = tuple(one.provider for one in DIALECTS if one.kind is None)


def answer_bytes(
    dialect: Dialect, status: int, name: str, *, cut: bool = False, compressed: bool = False
) -> bytes:
    """An HTTP answer in a vendor's words, or its first half."""
    body = {"padding": "x" * 3_000_000} if name == "long" else dialect.answers[name or "good"]
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    content = gzip.compress(content) if compressed else content
    named = "" if dialect.names_calls_in_body else f"x-request-id: {CALL_ID}\r\n"
    head = (
        f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\nset-cookie: a=1\r\n"
        f"{named}{dialect.headers.get(name, '')}location: http://127.0.0.1:9/\r\n"
        f"{'content-encoding: gzip' if compressed else 'server: upstream'}\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode()
    return head + (content[: len(content) // 2] if cut else content)
