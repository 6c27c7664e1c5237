"""The provider calls of a reservation, as its row lists them.

A request is one call or several: one for each image at some vendors, and one for each model of a
fallback. They share the reservation and its ledger line; the list says what each of them was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.provider_answers import Outcome, Usage


@dataclass(frozen=True, slots=True)
class ListedCall:
    """One call: the model that was asked, its outcome, and what it used.

    `version`: the model that the vendor says it used. `status` and `request_id`: of its answer.
    `usage` is None where none was reported.
    """

    provider: str
    model: str
    outcome: Outcome
    version: str | None = None
    status: int | None = None
    request_id: str | None = None
    images: int = 0
    usage: Usage | None = None


def to_json(calls: Sequence[ListedCall]) -> list[dict[str, object]]:
    """Render a list of calls for their row, without what is not known."""
    return [_to_object(call) for call in calls]


def read_calls(value: Sequence[Mapping[str, Any]] | None) -> tuple[ListedCall, ...] | None:
    """Read the calls of a row; None if they were not listed.

    They are not while a call is under way, after a kill, and in rows of earlier releases.
    """
    return None if value is None else tuple(_from_object(one) for one in value)


def count_sent(calls: Sequence[ListedCall] | None) -> int | None:
    """Count the calls that reached the provider."""
    if calls is None:
        return None
    return sum(call.outcome is not Outcome.NOT_SENT for call in calls)


def version_served(calls: Sequence[ListedCall] | None) -> str | None:
    """The model version of the last call whose vendor named one."""
    versions = [call.version for call in calls or () if call.version is not None]
    return versions[-1] if versions else None


def render_calls(calls: Sequence[ListedCall] | None) -> dict[str, object]:
    """Render the calls of a generation for the API and the command line."""
    return {
        "provider_calls": count_sent(calls),
        "model_version": version_served(calls),
        "calls": None if calls is None else [render_call(call) for call in calls],
    }


def render_call(call: ListedCall) -> dict[str, object]:
    """Render one call."""
    usage = call.usage
    return {
        "provider": call.provider,
        "model": call.model,
        "model_version": call.version,
        "outcome": call.outcome.value,
        "provider_status": call.status,
        "provider_request_id": call.request_id,
        "images": call.images,
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
    }


def _to_object(call: ListedCall) -> dict[str, object]:
    usage = call.usage
    tokens = (
        None
        if usage is None
        else [
            *(usage.text_input_tokens, usage.image_input_tokens),
            *(usage.text_output_tokens, usage.image_output_tokens),
        ]
    )
    fields: dict[str, object | None] = {
        "provider": call.provider,
        "model": call.model,
        "outcome": call.outcome.value,
        "version": call.version,
        "status": call.status,
        "request_id": call.request_id,
        "images": call.images or None,
        "tokens": tokens,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _from_object(found: Mapping[str, Any]) -> ListedCall:
    tokens = found.get("tokens")
    return ListedCall(
        provider=found["provider"],
        model=found["model"],
        outcome=Outcome(found["outcome"]),
        version=found.get("version"),
        status=found.get("status"),
        request_id=found.get("request_id"),
        images=found.get("images", 0),
        usage=None if tokens is None else Usage(*tokens),
    )
