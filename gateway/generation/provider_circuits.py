"""Circuit breakers of provider calls: their names, the failures they count, and their errors.

A house credential has two circuits for each model: one shared by its tenants, which a single
tenant's failures never open, and one for each tenant. A replaced credential starts with new ones.
"""

import math

from gateway.billing.settlement import CHARGED
from gateway.domain import Caller
from gateway.errors import CredentialRejected, GatewayError, RateLimited, Unavailable
from gateway.load.circuits import CircuitName, CircuitOpen, Circuits, ProviderCall, Trouble
from gateway.provider_answers import Outcome
from gateway.providers.base import ProviderFailure, Reason
from gateway.tenancy.credentials import CredentialChoice

SANDBOX = "sandbox"
HOUSE = "house"
_ANSWERED = frozenset({Outcome.REJECTED, Outcome.REFUSED_CHARGED})
_TROUBLE = {Reason.CREDENTIAL: Trouble.CREDENTIAL, Reason.QUOTA: Trouble.QUOTA}


def provider_call(
    circuits: Circuits, caller: Caller, provider: str, model: str, credential: CredentialChoice
) -> ProviderCall:
    """Guard the call that the block makes; report its outcome to `note_failure` or `succeeded`.

    Raises:
        Unavailable, RateLimited, CredentialRejected: a circuit is open after earlier failures.
    """
    call = circuits.call(caller.tenant_id)
    try:
        for name in _names(caller, provider, model, credential):
            call.pass_through(name)
    except CircuitOpen as refusal:
        call.ended()
        raise _refusal(refusal, provider, is_house=credential.owner == HOUSE) from None
    return call


def note_failure(call: ProviderCall, failure: ProviderFailure) -> None:
    """Report a failure to the circuits if it concerns the provider and not only the request.

    A refused image or prompt does not predict the outcome of the next request.
    """
    if failure.reason is Reason.RATE_LIMITED and failure.retry_after_seconds is not None:
        call.put_off(failure.retry_after_seconds)
    elif failure.outcome is Outcome.NOT_SENT:
        call.failed(Trouble.UNREACHABLE)
    elif failure.outcome is Outcome.AMBIGUOUS and failure.reason is not Reason.MODERATION:
        call.failed(Trouble.FAILING)
    elif failure.outcome in _ANSWERED and failure.reason in _TROUBLE:
        call.failed(_TROUBLE[failure.reason])
    elif failure.outcome in CHARGED:
        call.succeeded()


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
    """Return the client's error for an open circuit.

    A failure of the house credential is never reported as one of the client's own key.
    """
    seconds = max(1, math.ceil(refusal.seconds))
    if refusal.trouble is Trouble.RATE_LIMITED:
        return RateLimited(
            "The provider's rate limit is reached. Try again later.", retry_after_seconds=seconds
        )
    if refusal.trouble in {Trouble.CREDENTIAL, Trouble.QUOTA} and not is_house:
        return CredentialRejected(
            "The provider has rejected your own key several times "
            f"({'its quota is used up' if refusal.trouble is Trouble.QUOTA else 'not valid'}). "
            f"Replace it with PUT /v1/credentials/{provider}.",
        )
    return Unavailable(
        "The provider does not serve this model right now: the calls before this one failed. "
        "Nothing was bought; try again later.",
        code="provider_unavailable",
        retry_after_seconds=seconds,
    )
