"""What the pipeline expects of a provider."""

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
    """Why a provider did not answer with images."""

    UNREACHABLE = "unreachable"
    INVALID = "invalid"
    MODERATION = "moderation"
    CREDENTIAL = "credential"
    QUOTA = "quota"
    MODEL = "model"
    RATE_LIMITED = "rate_limited"
    UNKNOWN = "unknown"


class CredentialState(StrEnum):
    """What a provider says of a credential. `unreachable`: it says nothing of it now."""

    VALID = "valid"
    INVALID = "invalid"
    UNREACHABLE = "unreachable"


class ProviderFailure(Exception):
    """A call that brought no images; `outcome` says what it may have cost, `usage` what it did.

    `message`, `code` and `param` are the provider's own and may echo parts of a key: they are
    redacted before anybody else sees them. `reply` is None where no answer came.
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
    """Makes images, one paid call per method call; it never retries by itself."""

    async def generate(
        self,
        request: ImageRequest,
        credential: SecretText,
        partials: PartialSink | None = None,
    ) -> ProviderAnswer:
        """Buy the images of `request`: a generation, or an edit of its inputs.

        `partials` takes the images on their way, where `request.stream` asks for them. The input
        files are read from their beginning, wherever they stand.

        Raises:
            ProviderFailure: anything but images.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
