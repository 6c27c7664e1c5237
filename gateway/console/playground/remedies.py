"""Advice to a person about a refusal, by its code. The message itself says what was wrong."""

from dataclasses import dataclass

from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Remedy:
    """A heading, a sentence that says what to do, and perhaps the page to do it on."""

    heading: str
    text: str
    label: str = ""
    path: str = ""


BY_CODE = {
    "budget_exceeded": Remedy(
        "A budget is used up",
        "Nothing was bought. Wait until the budget resets, ask for a higher one, or choose a "
        "cheaper model, quality or size.",
        "Budgets",
        "/console",
    ),
    "no_credential": Remedy(
        "There is no key for this provider",
        "Store a credential of your own, or try the request in test mode, which needs none.",
        "Credentials",
        "/console/credentials",
    ),
    "credential_rejected": Remedy(
        "The provider refuses your own key",
        "Nothing was bought. Replace the key with a valid one.",
        "Credentials",
        "/console/credentials",
    ),
    "rate_limit_exceeded": Remedy(
        "Too many requests at once", "Nothing was bought. Wait a moment, then try again."
    ),
    "moderation_blocked": Remedy(
        "The provider's safety system refused this",
        "Change the prompt or the input image. The same request would be refused again.",
    ),
    "outcome_unknown": Remedy(
        "The outcome is not known",
        "The provider may have charged this call. It is settled later, and not bought again by "
        "this form. Look at its request before you make the image anew.",
        "Requests",
        "/console/portal/requests",
    ),
    "provider_unreachable": Remedy(
        "The provider cannot be reached", "Nothing was bought. Try again in a minute."
    ),
    "provider_unavailable": Remedy(
        "The provider does not serve this model now",
        "Nothing was bought. Try again later, or choose another model.",
    ),
    "overloaded": Remedy("The gateway is busy", "Nothing was bought. Try again in a moment."),
    "storage_failed": Remedy(
        "The image could not be stored", "It was charged. Tell the operator of this gateway."
    ),
    "model_not_allowed": Remedy(
        "This key may not use the model", "Choose another model, or sign in with another key."
    ),
    "database_unavailable": Remedy(
        "The database does not answer",
        "Send this form again in a few seconds: it buys its images once, however often it is sent.",
    ),
    "image_not_found": Remedy("An image is missing", "Remove it from the form, or choose another."),
    "invalid_image_file": Remedy(
        "An image cannot be used", "Send a PNG, JPEG or WebP file that opens in a viewer."
    ),
    "unsupported_file_mimetype": Remedy(
        "An image cannot be used", "Send a PNG, JPEG or WebP file that opens in a viewer."
    ),
    "payload_too_large": Remedy("The images are too large", "Send smaller or fewer images."),
}
FIX = Remedy("This request cannot be made", "Change the field that the message names.")
RETRY = Remedy("This did not work", "Try again in a moment.")
CLIENT_ERRORS = range(400, 500)


def advise(error: GatewayError) -> Remedy:
    """Return the advice for a refusal."""
    known = BY_CODE.get(error.code)
    if known is not None:
        return known
    return FIX if error.status in CLIENT_ERRORS else RETRY
