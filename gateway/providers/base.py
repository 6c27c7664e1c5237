"""The interface of image providers, and their failures."""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from typing import Protocol

from gateway.domain import ImageRequest, PartialSink, SecretText
from gateway.image_models import Model
from gateway.provider_answers import MadeCall, Outcome, ProviderAnswer, ProviderReply, Usage


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
    redacted before they reach a client or a log. `reply` is None if no answer came. `microseconds`:
    the time that the call took, where it is billed. `calls`: those that it stands for; empty if it
    is the only one.
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
        self.microseconds: int | None = None
        self.calls: tuple[MadeCall, ...] = ()

    @property
    def made(self) -> tuple[MadeCall, ...]:
        """The calls that have failed so."""
        return self.calls or (MadeCall(self.outcome, reply=self.reply, usage=self.usage),)


class CredentialTester(Protocol):
    """A provider that can test a credential."""

    async def test_credential(self, credential: SecretText) -> CredentialState:
        """Return the state of the credential at the provider, without a paid call."""
        ...


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


class VendorProvider(ImageProvider, CredentialTester, Protocol):
    """A provider that calls a vendor with a credential."""

    async def shutdown_dates(self, credential: SecretText) -> Mapping[str, date]:
        """Return the shutdown dates that the vendor's API announces, by model.

        Raises:
            ProviderFailure: no readable answer.
        """
        ...


class CatalogueVendor(VendorProvider, Protocol):
    """A vendor of the catalogue's models, which lists those that it has."""

    async def listed_models(self, credential: SecretText) -> frozenset[str]:
        """Return the names of the models that the vendor lists for a credential, without a call.

        Raises:
            ProviderFailure: no readable answer.
        """
        ...


class HostProvider(VendorProvider, Protocol):
    """An operator's own host, which can be asked if a model is ready."""

    async def is_ready(self, model: Model, credential: SecretText) -> bool:
        """Return True if the host says that a model is ready; the model is not run."""
        ...


def interrupted(*, sent: bool) -> ProviderFailure:
    """Return the failure of a broken connection, or of one never established (`sent` false)."""
    if not sent:
        return ProviderFailure(
            Outcome.NOT_SENT, Reason.UNREACHABLE, "The provider cannot be reached."
        )
    return ProviderFailure(
        Outcome.AMBIGUOUS, Reason.UNKNOWN, "The connection to the provider broke during the call."
    )


def too_large(max_bytes: int) -> ProviderFailure:
    """Return the failure of an answer over the size limit, which may have been paid for."""
    return ProviderFailure(
        Outcome.AMBIGUOUS,
        Reason.UNKNOWN,
        f"The provider's answer is longer than {max_bytes} bytes.",
    )
