"""OpenAI's Images API through its own SDK: one shared client, one key per call, no retries."""

from collections.abc import Mapping

import aiohttp
import httpx2
import openai
import orjson
from openai import AsyncOpenAI, DefaultAioHttpClient

from gateway.domain import ImageRequest, Outcome, ProviderAnswer, SecretText, Usage
from gateway.providers.base import ProviderFailure, Reason

MODERATION_CODES = frozenset({"moderation_blocked", "content_policy_violation"})
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# Refusals that OpenAI does not charge for, as long as they come from OpenAI: with its error body.
# Every other status may have been charged.
UNCHARGED_STATUSES = frozenset({400, 401, 403, 404, 413, 429})
GENERATIONS_PATH = "/images/generations"
FORMATS = frozenset({"png", "jpeg", "webp"})
MAX_TOKENS = 1_000_000_000
"""Usage beyond it is no usage: no answer takes a billion tokens."""
KEEPALIVE_SECONDS = 30.0
POOL_TIMEOUT_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 3600


class OpenAIImages:
    """The provider `openai`."""

    def __init__(
        self,
        *,
        base_url: str,
        connect_timeout_seconds: float,
        read_timeout_seconds: float | None,
        max_connections: int,
    ) -> None:
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._client = AsyncOpenAI(
            api_key="one is given with each call",
            base_url=base_url,
            max_retries=0,
            http_client=DefaultAioHttpClient(
                limits=httpx2.Limits(
                    max_connections=max_connections, keepalive_expiry=KEEPALIVE_SECONDS
                ),
                # A redirect would carry the prompt, and could buy twice.
                follow_redirects=False,
            ),
        )
        # The SDK reads these from the environment; they would be sent with tenants' keys.
        self._client.organization = None
        self._client.project = None

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()

    async def generate(self, request: ImageRequest, credential: SecretText) -> ProviderAnswer:
        """Buy the images of `request`.

        Raises:
            ProviderFailure: anything but images.
        """
        read_timeout = self._read_timeout_seconds or request.model.read_timeout_seconds
        try:
            # The SDK's own way to call a path: the typed method would only check once more what
            # the catalogue has checked, and parse megabytes of base64 into objects.
            response = await self._client.post(
                GENERATIONS_PATH,
                cast_to=httpx2.Response,
                body=_parameters(request),
                options={
                    "headers": {"Authorization": f"Bearer {credential.reveal()}"},
                    "timeout": httpx2.Timeout(
                        connect=self._connect_timeout_seconds,
                        read=read_timeout,
                        write=read_timeout,
                        pool=POOL_TIMEOUT_SECONDS,
                    ),
                },
            )
        except openai.APIStatusError as error:
            raise _refused(error) from error
        except openai.APIConnectionError as error:
            raise _interrupted(error) from error
        return read_answer(response.content, request)


def _parameters(request: ImageRequest) -> dict[str, str | int]:
    """The fields that the client gave, and no others: the vendor's defaults stay the vendor's."""
    given: dict[str, str | int | None] = {
        "model": request.model.id,
        "prompt": request.prompt,
        "n": request.n,
        "size": request.size,
        "quality": request.quality,
        "background": request.background,
        "output_format": request.output_format,
        "output_compression": request.output_compression,
        "moderation": request.moderation,
        "complexity": request.complexity,
        "safety_identifier": request.safety_identifier,
        "user": request.user,
    }
    return {name: value for name, value in given.items() if value is not None}


def read_answer(content: bytes, request: ImageRequest) -> ProviderAnswer:
    """Read the body of a 200.

    Raises:
        ProviderFailure: it holds no images; it may have been charged all the same.
    """
    try:
        body = orjson.loads(content)
        images = tuple(item["b64_json"] for item in body["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable() from error
    if not images or not all(isinstance(image, str) and image for image in images):
        raise _unreadable()
    reported = _optional_text(body, "output_format")
    return ProviderAnswer(
        images=images,
        created=body["created"] if isinstance(body.get("created"), int) else 0,
        usage=read_usage(body.get("usage")),
        size=_optional_text(body, "size"),
        quality=_optional_text(body, "quality"),
        background=_optional_text(body, "background"),
        output_format=reported
        if reported and reported in FORMATS
        else request.output_format or "png",
    )


def read_usage(usage: object) -> Usage | None:
    """Read `usage`; tokens that no detail explains count as the dearer kind.

    Returns None where it is missing or makes no sense.
    """
    if not isinstance(usage, Mapping):
        return None
    text_in, image_in = _split(usage, "input_tokens", rest_is_image=False)
    text_out, image_out = _split(usage, "output_tokens", rest_is_image=True)
    if text_in is None or image_in is None or text_out is None or image_out is None:
        return None
    return Usage(text_in, image_in, text_out, image_out)


def _split(
    usage: Mapping[str, object], name: str, *, rest_is_image: bool
) -> tuple[int, int] | tuple[None, None]:
    total = _count(usage.get(name))
    if total is None:
        return None, None
    details = usage.get(f"{name}_details")
    if details is None:
        # Without pictures among the inputs, what goes in is text.
        return (0, total) if rest_is_image else (total, 0)
    if not isinstance(details, Mapping):
        return None, None
    text, image = _count(details.get("text_tokens", 0)), _count(details.get("image_tokens", 0))
    if text is None or image is None:
        return None, None
    return text, image + max(0, total - text - image)


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
    return value if is_count else None  # type: ignore[return-value]


def _optional_text(body: Mapping[str, object], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _unreadable() -> ProviderFailure:
    return ProviderFailure(
        Outcome.AMBIGUOUS, Reason.UNKNOWN, "The provider's answer holds no readable image."
    )


def _refused(error: openai.APIStatusError) -> ProviderFailure:
    is_theirs = isinstance(error.body, Mapping) and isinstance(error.body.get("message"), str)
    if error.status_code not in UNCHARGED_STATUSES or not is_theirs:
        return ProviderFailure(
            Outcome.AMBIGUOUS, Reason.UNKNOWN, f"The provider answered {error.status_code}."
        )
    message = str(error.body["message"]) if isinstance(error.body, Mapping) else ""
    code = error.code if isinstance(error.code, str) else None
    return ProviderFailure(
        Outcome.MODERATION if code in MODERATION_CODES else Outcome.REJECTED,
        _reason(error.status_code, code, message),
        message,
        code=code,
        param=error.param if isinstance(error.param, str) else None,
        retry_after_seconds=_retry_after(error.response.headers),
    )


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


def _retry_after(headers: httpx2.Headers) -> int | None:
    text = headers.get("retry-after", "")
    return min(int(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdecimal() else None


def _interrupted(error: openai.APIConnectionError) -> ProviderFailure:
    """Tell a connection that never came about from one that broke.

    The transport's own mapping cannot be used: it reports a connection that was reset after the
    request was sent as a connect timeout. The innermost cause, aiohttp's, says which it was.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return ProviderFailure(
                Outcome.NOT_SENT, Reason.UNREACHABLE, "The provider cannot be reached."
            )
        cause = cause.__cause__
    return ProviderFailure(
        Outcome.AMBIGUOUS, Reason.UNKNOWN, "The connection to the provider broke during the call."
    )
