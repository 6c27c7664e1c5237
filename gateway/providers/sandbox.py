"""The provider of test keys: real pictures, realistic usage, failures on demand, no money.

A prompt that holds one of the magic words fails in that way (docs/sandbox.md).
"""

import asyncio
import base64
import time
from collections.abc import Mapping

from gateway.domain import ImageRequest, Outcome, ProviderAnswer, SecretText, Usage, parse_size
from gateway.providers.base import ProviderFailure, Reason
from gateway.providers.sandbox_drawing import Background, OutputFormat, draw

SLOW_SECONDS = 5.0
BYTES_PER_TOKEN = 4
DEFAULT_SIZE = "1024x1024"
DEFAULT_QUALITY = "medium"
MAGIC_NO_USAGE = "[sandbox:no_usage]"
MAGIC_SLOW = "[sandbox:slow]"

_FORMATS: Mapping[str, OutputFormat] = {"png": "png", "jpeg": "jpeg", "webp": "webp"}
_FAILURES: Mapping[str, tuple[Outcome, Reason, str, str | None]] = {
    "[sandbox:moderation]": (
        Outcome.MODERATION,
        Reason.MODERATION,
        "Your request was rejected by the safety system.",
        "moderation_blocked",
    ),
    "[sandbox:rejected]": (
        Outcome.REJECTED,
        Reason.INVALID,
        "The sandbox refuses this prompt, as asked.",
        "invalid_value",
    ),
    "[sandbox:rate_limited]": (
        Outcome.REJECTED,
        Reason.RATE_LIMITED,
        "Rate limit reached. Please try again in 1s.",
        "rate_limit_exceeded",
    ),
    "[sandbox:credential]": (
        Outcome.REJECTED,
        Reason.CREDENTIAL,
        "Incorrect API key provided.",
        "invalid_api_key",
    ),
    "[sandbox:unreachable]": (
        Outcome.NOT_SENT,
        Reason.UNREACHABLE,
        "The provider cannot be reached.",
        None,
    ),
    "[sandbox:unknown]": (
        Outcome.AMBIGUOUS,
        Reason.UNKNOWN,
        "The connection to the provider broke during the call.",
        None,
    ),
}


class Sandbox:
    """The provider `sandbox`."""

    async def generate(self, request: ImageRequest, credential: SecretText) -> ProviderAnswer:
        """Draw the images of `request`; the credential is not used.

        Raises:
            ProviderFailure: the prompt asks for it.
        """
        del credential
        if MAGIC_SLOW in request.prompt:
            await asyncio.sleep(SLOW_SECONDS)
        for word, (outcome, reason, message, code) in _FAILURES.items():
            if word in request.prompt:
                retry_after = 1 if reason is Reason.RATE_LIMITED else None
                raise ProviderFailure(
                    outcome, reason, message, code=code, retry_after_seconds=retry_after
                )
        return await self._draw_all(request)

    async def close(self) -> None:
        """Nothing is open."""

    async def _draw_all(self, request: ImageRequest) -> ProviderAnswer:
        size = DEFAULT_SIZE if request.size in {None, "auto"} else str(request.size)
        quality = DEFAULT_QUALITY if request.quality in {None, "auto"} else str(request.quality)
        width, height = parse_size(size)
        output_format = _FORMATS[request.output_format or "png"]
        background: Background = "transparent" if request.background == "transparent" else "opaque"
        images = []
        for index in range(request.n):
            content = await asyncio.to_thread(
                draw,
                request.prompt,
                index=index,
                width=width,
                height=height,
                output_format=output_format,
                background=background,
                compression=request.output_compression,
            )
            images.append(base64.b64encode(content).decode())
        tokens = request.n * request.model.tokens.output_tokens(quality, width, height)
        usage = Usage(-(-len(request.prompt.encode()) // BYTES_PER_TOKEN), 0, 0, tokens)
        return ProviderAnswer(
            images=tuple(images),
            created=int(time.time()),
            usage=None if MAGIC_NO_USAGE in request.prompt else usage,
            size=size,
            quality=quality,
            background=background,
            output_format=output_format,
        )
