"""The step of a provider call, as the conventions of OpenTelemetry for generative AI name it.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from types import TracebackType
from typing import Self

from gateway.domain import ImageRequest
from gateway.provider_answers import ProviderAnswer
from gateway.providers.base import ProviderFailure
from gateway.tracing import step

OPERATION = "generate_content"
NAMES = {"gemini": "gcp.gemini"}
"""The conventions' names of providers that have another one here."""


class CallStep:
    """The step of a paid call, for the block that makes it."""

    def __init__(self, provider: str, served: ImageRequest) -> None:
        self._step = step(
            f"{OPERATION} {served.model.id}",
            is_call=True,
            gen_ai__operation__name=OPERATION,
            gen_ai__provider__name=NAMES.get(provider, provider),
            gen_ai__request__model=served.model.id,
            gen_ai__request__choice__count=served.n,
            gen_ai__output__type="image",
        )

    def note(self, answer: ProviderAnswer) -> None:
        """Add what the provider reported."""
        usage = answer.usage
        self._step.set(
            gen_ai__response__model=answer.model_version,
            gen_ai__usage__input_tokens=None if usage is None else usage.input_tokens,
            gen_ai__usage__output_tokens=None if usage is None else usage.output_tokens,
            http__response__status_code=None if answer.reply is None else answer.reply.status,
        )

    def __enter__(self) -> Self:
        self._step.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, ProviderFailure):
            status = None if error.reply is None else error.reply.status
            self._step.set(error__type=error.outcome.value, http__response__status_code=status)
        self._step.__exit__(kind, error, traceback)
