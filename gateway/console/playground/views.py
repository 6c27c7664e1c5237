"""The first state of the playground's form: empty, with a stored image, or to make one again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.console.playground import drafts
from gateway.console.playground.controls import operations_of
from gateway.console.playground.drafts import Draft
from gateway.console.portal import Portal
from gateway.domain import Caller, Operation
from gateway.errors import GatewayError, InvalidRequest, ModelRetired
from gateway.generation.parameters import check_value
from gateway.image_models import Model
from gateway.library.history import HostedImage
from gateway.money import NanoUsd


@dataclass(slots=True)
class View:
    """Everything that the page shows of one form."""

    draft: Draft
    hosted: tuple[HostedImage, ...] = ()
    quote_nano: NanoUsd | None = None
    served_model: str = ""
    quote_error: str = ""
    images: int = 0
    has_mask: bool = False
    refusal: GatewayError | None = None
    errors: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def draft_of(portal: Portal, caller: Caller, fields: Mapping[str, str]) -> Draft:
    return drafts.read_draft(fields, model_of(portal, caller, fields.get("model", "")))


def model_of(portal: Portal, caller: Caller, name: str) -> Model:
    """Choose the model that is named, or the usual one.

    Raises:
        NotFound, ModelRetired, Forbidden: it does not exist, or may not be used.
    """
    catalog = portal.gateway.core.catalog
    if name:
        return catalog.find(caller, name)
    available = list(catalog.available(caller))
    usual = portal.gateway.settings.default_model
    chosen = next((one for one in available if one.id == usual), None)
    if chosen is None and not available:
        raise ModelRetired(usual)
    return chosen or available[0]


def first_view(
    portal: Portal,
    caller: Caller,
    model: str,
    operation: str,
    *,
    found: HostedImage | None,
    is_same: bool,
) -> View:
    """Build the first state of a form; `found` is its input or (`is_same`) what to make again.

    Raises:
        GatewayError: the model may not be used, or none edits images.
    """
    fields = {"model": model, "operation": operation}
    if found is None:
        return View(draft_of(portal, caller, fields))
    try:
        chosen = model_of(portal, caller, model or found.requested_model)
    except GatewayError:
        chosen = model_of(portal, caller, model)
    if not is_same:
        image = found.id
        editing = operation or Operation.EDIT.value
        draft = drafts.read_draft({"operation": editing, "hosted": image}, chosen)
        if not draft.needs_images:
            draft = _for_edits(portal, caller, image)
        return View(draft, hosted=(found,))
    view = View(drafts.read_draft(_same(found, chosen), chosen))
    if found.prompt is None and found.operation != Operation.VARIATION:
        view.notices = ("Its prompt is not stored. Write it again.",)
    if view.draft.needs_images:
        view.notices += ("Input images are not kept with an image. Choose them again.",)
    return view


def _for_edits(portal: Portal, caller: Caller, image: str) -> Draft:
    """Build an edit by the first model that makes edits.

    Raises:
        InvalidRequest: none that the caller may use does.
    """
    usual = model_of(portal, caller, "")
    for model in (usual, *portal.gateway.core.catalog.available(caller)):
        if Operation.EDIT in operations_of(model):
            return drafts.read_draft({"operation": "edit", "hosted": image}, model)
    raise InvalidRequest("No model that you may use edits images.", param="model")


def _same(found: HostedImage, model: Model) -> dict[str, str]:
    """The fields of a form that makes the same image again, as far as they are known."""
    size = found.size or (f"{found.width}x{found.height}" if found.width else "")
    known = {
        "operation": found.operation,
        "prompt": found.prompt or "",
        "size": size,
        "quality": found.quality or "",
        "output_format": found.media_type.removeprefix("image/"),
        "seed": "" if found.seed is None else str(found.seed),
    }
    return {name: text for name, text in known.items() if text and _suits(model, name, text)}


def _suits(model: Model, name: str, text: str) -> bool:
    if name in {"operation", "prompt"}:
        return True
    try:
        check_value(name, int(text) if name == "seed" else text, model)
    except InvalidRequest:
        return False
    return True
