"""The interface of image providers, and their failures."""

from enum import StrEnum
from typing import Protocol

from gateway.domain import (
    ImageRequest,
    Outcome,
    PartialSink,
    ProviderAnswer,
    ProviderReply,
    SecretText,
    Usage,
)


class Reason(StrEnum):
    """Reason why a provider did not return images."""

    UNREACHABLE = "unreachable"
    INVALID = "invalid"
    MODERATION = "moderation"
    CREDENTIAL = "credential"
    QUOTA = "quota"
    MODEL = "model"
    RATE_LIMITED = "rate_limited"
    UNKNOWN = "unknown"


class CredentialState(StrEnum):
    """State of a credential at its provider. `unreachable`: the provider could not be asked."""

    VALID = "valid"
    INVALID = "invalid"
    UNREACHABLE = "unreachable"


class ProviderFailure(Exception):
    """A call that returned no images; `outcome` says what it may cost, `usage` what it did cost.

    `message`, `code` and `param` are the provider's own and may echo parts of a key, so they are
    redacted before they reach a client or a log. `reply` is None if no answer came.
    """

    def __init__(
        self,
        outcome: Outcome,
        reason: Reason,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        usage: Usage | None = None,
        reply: ProviderReply | None = None,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.reason = reason
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.usage = usage
        self.reply = reply


class ImageProvider(Protocol):
    """A provider of images: one paid call per method call, never a retry of its own."""

    async def generate(
        self,
        request: ImageRequest,
        credential: SecretText,
        partials: PartialSink | None = None,
    ) -> ProviderAnswer:
        """Buy the images of `request`: a generation, or an edit of its inputs.

        `partials` receives the partial images that `request.stream` asks for. The input files are
        read from their beginning, at any position.

        Raises:
            ProviderFailure: the call returned no images.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
