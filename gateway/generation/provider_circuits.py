"""Which circuits a provider call goes through, what counts against them, and what is said then.

A house credential has two for each model: one that its tenants share, which one tenant's failures
alone never open, and one for each tenant. A replaced credential starts with new ones.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.domain import Caller, Outcome
from gateway.errors import CredentialRejected, GatewayError, RateLimited, Unavailable
from gateway.load.circuit_breaker import CircuitOpen, Trouble
from gateway.load.circuits import CircuitName, Circuits, ProviderCall
from gateway.providers.base import ProviderFailure, Reason
from gateway.tenancy.credentials import CredentialChoice

SANDBOX = "sandbox"
HOUSE = "house"
_TROUBLE = {Reason.CREDENTIAL: Trouble.CREDENTIAL, Reason.QUOTA: Trouble.QUOTA}


@contextmanager
def provider_call(
    circuits: Circuits, caller: Caller, provider: str, model: str, credential: CredentialChoice
) -> Iterator[ProviderCall]:
    """Make a call; what comes of it is for `note_failure` and `ProviderCall.succeeded`.

    Raises:
        Unavailable, RateLimited, CredentialRejected: it would fail as the last ones did.
    """
    names = _names(caller, provider, model, credential)
    with circuits.call(caller.tenant_id) as call:
        try:
            for name in names:
                call.pass_through(name)
        except CircuitOpen as refusal:
            raise _refusal(refusal, provider, is_house=credential.owner == HOUSE) from None
        yield call


def note_failure(call: ProviderCall, failure: ProviderFailure) -> None:
    """Count a failure for what it says of the provider; of many it says nothing.

    A picture or a prompt that was refused tells nothing of the next one.
    """
    if failure.reason is Reason.RATE_LIMITED and failure.retry_after_seconds is not None:
        call.put_off(failure.retry_after_seconds)
    elif failure.outcome is Outcome.NOT_SENT:
        call.failed(Trouble.UNREACHABLE)
    elif failure.outcome is Outcome.AMBIGUOUS and failure.reason is not Reason.MODERATION:
        call.failed(Trouble.FAILING)
    elif failure.outcome is Outcome.SUCCESS:
        call.succeeded()
    elif failure.outcome is Outcome.REJECTED and failure.reason in _TROUBLE:
        call.failed(_TROUBLE[failure.reason])


def _names(
    caller: Caller, provider: str, model: str, credential: CredentialChoice
) -> tuple[CircuitName, ...]:
    owner, sealed = credential.owner, credential.sealed
    if owner == SANDBOX:
        return ()
    if sealed is None:
        return (
            CircuitName(provider, model, owner, owner, None),
            CircuitName(provider, model, owner, owner, caller.tenant_id),
        )
    secret = f"{sealed.id}.{sealed.version}"
    return (CircuitName(provider, model, owner, secret, sealed.tenant_id),)


def _refusal(refusal: CircuitOpen, provider: str, *, is_house: bool) -> GatewayError:
    """What is true of the calls before it; the house's own trouble is never presented as his."""
    seconds = max(1, math.ceil(refusal.seconds))
    if refusal.trouble is Trouble.RATE_LIMITED:
        return RateLimited(
            "The provider's rate limit is reached. Try again later.", retry_after_seconds=seconds
        )
    if refusal.trouble in {Trouble.CREDENTIAL, Trouble.QUOTA} and not is_house:
        return CredentialRejected(
            "The provider has refused your own key several times "
            f"({'its quota is used up' if refusal.trouble is Trouble.QUOTA else 'not valid'}). "
            f"Replace it with PUT /v1/credentials/{provider}.",
        )
    return Unavailable(
        "The provider does not serve this model right now: the calls before this one failed. "
        "Nothing was bought; try again later.",
        code="provider_unavailable",
        retry_after_seconds=seconds,
    )
