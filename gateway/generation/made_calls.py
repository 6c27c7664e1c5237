"""The calls that a provider's answer took: listed for their reservation, and their versions."""

from collections.abc import Sequence
from uuid import UUID

import structlog

from gateway import telemetry
from gateway.db.listed_calls import ListedCall
from gateway.domain import ImageRequest
from gateway.image_models import Model, Unit
from gateway.provider_answers import MadeCall, Outcome, ProviderAnswer

log = structlog.get_logger(__name__)


def unanswered(served: ImageRequest) -> tuple[MadeCall, ...]:
    """Return the calls that are about to go out, as they stand until their answers are known."""
    return (MadeCall(Outcome.AMBIGUOUS),) * (served.n if served.model.one_image_per_call else 1)


def listed(
    model: str, provider: str, unit: Unit, made: Sequence[MadeCall]
) -> tuple[ListedCall, ...]:
    """Return calls as their reservation lists them; `unit` is the one that they are billed by."""
    return tuple(
        ListedCall(
            provider,
            model,
            Outcome.SUCCESS_NO_USAGE
            if call.outcome is Outcome.SUCCESS and call.usage is None and unit is Unit.TOKEN
            else call.outcome,
            version=call.version,
            status=None if call.reply is None else call.reply.status,
            request_id=None if call.reply is None else call.reply.request_id,
            images=call.images,
            usage=call.usage,
        )
        for call in made
    )


def check_version(generation_id: UUID, model: Model, answer: ProviderAnswer) -> None:
    """Raise an alarm where a vendor used another model than was asked for: its price may differ.

    An operator's own host numbers its versions as it likes, and has its price from the operator.
    """
    for version in sorted({call.version for call in answer.made if call.version is not None}):
        log.info("model_version", generation=str(generation_id), version=version)
        if model.wording is None and not version.startswith(model.id):
            telemetry.alarm("model_rerouted", model=model.id, served=version)
