"""Several calls that answer one request, at vendors that make one image a call."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import structlog

from gateway.provider_answers import Outcome, ProviderAnswer, Usage
from gateway.providers.base import ProviderFailure

_WEIGHT = {
    Outcome.AMBIGUOUS: 3,
    Outcome.SUCCESS: 2,
    Outcome.REFUSED_CHARGED: 2,
    Outcome.MODERATION: 1,
    Outcome.REJECTED: 1,
    Outcome.NOT_SENT: 0,
}
"""The failure that stands for all: one whose cost is unknown, else one that cost something."""
log = structlog.get_logger(__name__)


async def make_all(calls: Sequence[Coroutine[Any, Any, ProviderAnswer]]) -> ProviderAnswer:
    """Make all calls at once, and combine them; each is logged, their sum alone is in the ledger.

    Raises:
        ProviderFailure: no call returned an image.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    for number, result in enumerate(results, start=1):
        log.info("provider_call", number=number, of=len(results), **_logged(result))
    return combine(results)


def _logged(result: ProviderAnswer | BaseException) -> dict[str, object]:
    if not isinstance(result, ProviderAnswer | ProviderFailure):
        return {"outcome": Outcome.AMBIGUOUS.value}
    [made] = result.made
    logged: dict[str, object] = {
        "outcome": made.outcome.value,
        "usage": None if made.usage is None else asdict(made.usage),
        "provider_request_id": None if made.reply is None else made.reply.request_id,
    }
    return logged if made.version is None else logged | {"version": made.version}


def combine(results: Sequence[ProviderAnswer | BaseException]) -> ProviderAnswer:
    """Return the images that came and what all calls together cost.

    If the cost of a call is not known, `usage` is None and `is_cost_open` true: the request is then
    estimated as a whole.

    Raises:
        ProviderFailure: no call returned an image.
    """
    answers = [one for one in results if isinstance(one, ProviderAnswer)]
    failures = [one for one in results if isinstance(one, ProviderFailure)]
    for one in results:
        if isinstance(one, BaseException) and not isinstance(one, ProviderFailure):
            raise one
    calls = tuple(
        call
        for one in results
        if isinstance(one, ProviderAnswer | ProviderFailure)
        for call in one.made
    )
    charged = [*(answer.usage for answer in answers), *(_charged(failures))]
    usage = _sum(charged)
    if answers:
        return replace(
            answers[0],
            images=tuple(image for answer in answers for image in answer.images),
            usage=usage,
            seeds=tuple(seed for answer in answers for seed in answer.seeds),
            microseconds=sum(answer.microseconds or 0 for answer in answers),
            calls=calls,
            is_cost_open=any(failure.outcome is Outcome.AMBIGUOUS for failure in failures),
        )
    heaviest = max(failures, key=lambda failure: _WEIGHT[failure.outcome])
    if heaviest.outcome is not Outcome.AMBIGUOUS:
        heaviest.usage = usage if charged else None
    heaviest.calls = calls
    raise heaviest


def _charged(failures: Iterable[ProviderFailure]) -> Iterable[Usage | None]:
    """Yield the usage of each failure that cost something; None if that is not known."""
    for failure in failures:
        if failure.outcome is Outcome.AMBIGUOUS:
            yield None
        elif failure.usage is not None:
            yield failure.usage


def _sum(usages: Sequence[Usage | None]) -> Usage | None:
    known = [usage for usage in usages if usage is not None]
    if len(known) < len(usages):
        return None
    return Usage(
        text_input_tokens=sum(usage.text_input_tokens for usage in known),
        image_input_tokens=sum(usage.image_input_tokens for usage in known),
        text_output_tokens=sum(usage.text_output_tokens for usage in known),
        image_output_tokens=sum(usage.image_output_tokens for usage in known),
    )
