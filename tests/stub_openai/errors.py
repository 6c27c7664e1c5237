"""OpenAI's error answers: one exception that carries status, code and the exact body.

The texts are OpenAI's own, as published in
https://developers.openai.com/api/docs/guides/error-codes and in public bug reports.
"""

from typing import Final

import orjson

INVALID_REQUEST: Final = "invalid_request_error"
IMAGE_USER_ERROR: Final = "image_generation_user_error"


class ApiError(Exception):
    """An answer with status >= 400 and OpenAI's envelope `{"error": {...}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        moderation: dict[str, object] | None = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.moderation = moderation
        self.retry_after = retry_after

    def fields(self) -> dict[str, object]:
        """The fields of the error; the `error` event of a stream carries the same ones."""
        inner: dict[str, object] = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        if self.moderation is not None:
            inner["moderation_details"] = self.moderation
        return inner

    def body(self) -> bytes:
        return orjson.dumps({"error": self.fields()}, option=orjson.OPT_INDENT_2)


def unknown_parameter(name: str) -> ApiError:
    return ApiError(400, f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)


def missing_parameter(name: str) -> ApiError:
    text = f"Missing required parameter: '{name}'."
    return ApiError(400, text, code="missing_required_parameter", param=name)


def invalid_value(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)


def invalid_type(param: str, expected: str, got: object) -> ApiError:
    text = f"Invalid type for '{param}': expected {expected}, but got {json_type(got)} instead."
    return ApiError(400, text, code="invalid_type", param=param)


def model_gone(model: str) -> ApiError:
    """A retired or unknown model, refused before any other parameter is looked at."""
    text = f"The model '{model}' does not exist."
    return ApiError(400, text, kind=IMAGE_USER_ERROR, code="invalid_value")


def moderation_blocked(request_id: str) -> ApiError:
    text = (
        "Your request was rejected by the safety system. If you believe this is an error, contact "
        f"us at help.openai.com and include the request ID {request_id}. "
        "safety_violations=[violence]."
    )
    details: dict[str, object] = {"moderation_stage": "input", "categories": ["violence"]}
    return ApiError(400, text, kind=IMAGE_USER_ERROR, code="moderation_blocked", moderation=details)


def missing_key() -> ApiError:
    return ApiError(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
    )


def wrong_key(key: str) -> ApiError:
    """OpenAI echoes the key with its middle masked; the gateway must remove even that."""
    masked = key[:8] + "*" * max(len(key) - 12, 4) + key[-4:]
    return ApiError(
        401,
        f"Incorrect API key provided: {masked}. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )


def bad_json() -> ApiError:
    return ApiError(
        400,
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
        "using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was "
        "sent was not valid JSON.)",
    )


def invalid_url(method: str, path: str) -> ApiError:
    return ApiError(404, f"Invalid URL ({method} {path})")


def model_not_found(model: str) -> ApiError:
    text = f"The model '{model}' does not exist"
    return ApiError(404, text, code="model_not_found", param="model")


def json_type(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    names |= {list: "an array", dict: "an object"}
    return names.get(type(value), "null")


_SERVER_TEXT = (
    "The server had an error while processing your request. Sorry about that! You can retry your "
    "request, or contact us through our help center at help.openai.com if the error persists."
)
_RATE_TEXT = (
    "Rate limit reached for gpt-image-2 in organization org-stub on input-images per min: "
    "Limit 5, Used 5, Requested 1. Please try again in 12s."
)
_QUOTA_TEXT = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, read the docs: "
    "https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_VERIFY_TEXT = (
    "Your organization must be verified to use the model `gpt-image-2`. Please go to: "
    "https://platform.openai.com/settings/organization/general and click on Verify Organization."
)
_NO_ACCESS_TEXT = "Project `proj_stub` does not have access to model `gpt-image-2`"
_HARD_LIMIT_TEXT = "Billing hard limit has been reached."


def _server(status: int, text: str = _SERVER_TEXT) -> ApiError:
    return ApiError(status, text, kind="server_error")


PRESETS: dict[str, ApiError] = {
    "bad_request": invalid_value("size", "Invalid size '1x1'."),
    "hostile_message": ApiError(
        400, "<img src=x onerror=\"document.title='owned'\">", code="invalid_value"
    ),
    "billing_hard_limit": ApiError(
        400, _HARD_LIMIT_TEXT, kind="billing_limit_user_error", code="billing_hard_limit_reached"
    ),
    "moderation_blocked": moderation_blocked("req_preset"),
    "content_policy_violation": ApiError(
        400,
        "Your request was rejected as a result of our safety system.",
        code="content_policy_violation",
    ),
    "invalid_api_key": wrong_key("sk-proj-0123456789abcdefWXYZ"),
    "unverified_organization": ApiError(403, _VERIFY_TEXT),
    "no_model_access": ApiError(403, _NO_ACCESS_TEXT, code="model_not_found"),
    "model_not_found": ApiError(
        404,
        "The model `gpt-image-2` does not exist or you do not have access to it.",
        code="model_not_found",
    ),
    "request_timeout": ApiError(408, "Request timed out.", kind="timeout"),
    "conflict": ApiError(409, "The resource was changed by another request. Please try again."),
    "too_large": ApiError(413, "The request body is too large."),
    "rate_limited": ApiError(
        429, _RATE_TEXT, kind="input-images", code="rate_limit_exceeded", retry_after="12"
    ),
    "insufficient_quota": ApiError(
        429, _QUOTA_TEXT, kind="insufficient_quota", code="insufficient_quota"
    ),
    "server_error": _server(500),
    "bad_gateway": _server(502, "Bad gateway."),
    "overloaded": _server(503, "The server is currently overloaded with other requests."),
    "gateway_timeout": _server(504, "Gateway timeout."),
}
"""Ready-made errors that a fault can name in `Fault.preset`."""

PRESET_BY_STATUS: dict[int, str] = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "unverified_organization",
    404: "model_not_found",
    408: "request_timeout",
    409: "conflict",
    413: "too_large",
    429: "rate_limited",
    500: "server_error",
    502: "bad_gateway",
    503: "overloaded",
    504: "gateway_timeout",
}
