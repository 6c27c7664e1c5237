"""Advice on a failed request, by its error code: the log keeps no message of an error."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """The meaning of an error, what to do, and the page on which to do it, if there is one."""

    meaning: str
    remedy: str
    label: str = ""
    path: str = ""


_RETRY = "Nothing was charged. Send the request again in a while."
BY_CODE: Mapping[str, Advice] = {
    "budget_exceeded": Advice(
        "A budget had too little left for the most that the call could cost.",
        "Raise the budget, or wait until it resets. Smaller sizes and lower qualities hold less.",
        "Budgets",
        "/console/portal/budgets",
    ),
    "rate_limit_exceeded": Advice(
        "A limit of requests, images or calls at once was reached, here or at the provider.",
        "Send fewer at once, and wait as long as Retry-After says. Nothing was charged.",
        "Limits",
        "/console/portal/budgets#limits",
    ),
    "invalid_api_key": Advice(
        "The key is unknown, revoked or expired.",
        "Create another key, and give it to the application.",
        "API keys",
        "/console/keys",
    ),
    "insufficient_scope": Advice(
        "The key lacks a scope that this request needs.",
        "Create a key with this scope; the scopes of a key cannot be changed.",
        "API keys",
        "/console/keys",
    ),
    "model_not_allowed": Advice(
        "The key is limited to other models.",
        "Use one of its models, or a key that is not limited.",
        "API keys",
        "/console/keys",
    ),
    "model_not_found": Advice(
        "There is no model of this name.", "Correct the name: GET /v1/models lists all."
    ),
    "model_retired": Advice(
        "The vendor has shut this model down, and the tenant does not continue it.",
        "Ask for its successor: GET /v1/models names it.",
    ),
    "moderation_blocked": Advice(
        "The provider's moderation refused the prompt or an input image.",
        "Change the prompt. The same one will be refused again.",
    ),
    "credential_rejected": Advice(
        "The provider refused your own key.",
        "Test the stored key, and replace it if it was revoked at the provider or has no quota.",
        "Credentials",
        "/console/credentials",
    ),
    "no_credential": Advice(
        "There is no key for this provider.",
        "Store your own, or ask the operator of this gateway. Test keys need none.",
        "Credentials",
        "/console/credentials",
    ),
    "provider_unreachable": Advice("The provider could not be reached; nothing was sent.", _RETRY),
    "provider_unavailable": Advice("The provider does not serve this request at present.", _RETRY),
    "provider_error": Advice("The provider failed.", _RETRY),
    "outcome_unknown": Advice(
        "The call was sent, and its answer was lost: the provider may have charged it.",
        "Do not repeat it blindly. Its money stays held until the gateway or the operator knows.",
    ),
    "storage_failed": Advice(
        "The image was made and paid, and could not be stored at once.",
        "It is kept and stored as soon as possible. Look into the gallery before buying again.",
        "Gallery",
        "/console/gallery",
    ),
    "overloaded": Advice("The gateway was too busy to start.", _RETRY),
    "idempotency_in_flight": Advice(
        "An earlier request with this idempotency key is still under way.",
        "Wait, and repeat the request with the same key: it gets the same answer.",
    ),
    "idempotency_conflict": Advice(
        "The idempotency key was used for another request.", "Use a new key for each new request."
    ),
    "client_disconnected": Advice(
        "The application closed the connection before the answer.",
        "Give its client a longer timeout, such as five minutes. A call that was sent is still "
        "charged, and its image stored if it was asked for by link.",
    ),
    "tenant_suspended": Advice("The tenant is suspended.", "Ask the operator of this gateway."),
    "user_disabled": Advice(
        "The user of this key is disabled.", "Enable the user again.", "Users", "/console/users"
    ),
}
_BY_STATUS: Mapping[int, Advice] = {
    400: Advice(
        "The request has a mistake, or asks for what the model cannot do.",
        "Correct the parameter that is named here.",
    ),
    404: Advice("There is nothing at this address, or under this id.", "Check address and id."),
    405: Advice("This address does not take this method.", "Check the method."),
    413: Advice("The request is too large.", "Send smaller images."),
    500: Advice(
        "The gateway failed unexpectedly.", "Send the request's id to the operator of this gateway."
    ),
}
_REFUSED, _FAILED = 400, 500


def advice_on(status: int, code: str | None) -> Advice | None:
    """Return the advice on a failed request; None if it did not fail."""
    if code is None and status < _REFUSED:
        return None
    found = BY_CODE.get(code or "") or _BY_STATUS.get(status)
    if found is not None:
        return found
    return _BY_STATUS[500 if status >= _FAILED else 400]
