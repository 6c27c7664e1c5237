"""A filled form of the playground, and the request that it asks for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO

from gateway.bootstrap import Gateway
from gateway.console.playground.controls import operations_of, takes
from gateway.domain import Caller, IdempotencyClaim, ImageRequest, InputImage, Operation, new_id
from gateway.errors import InvalidRequest
from gateway.generation.claims import claim_for
from gateway.generation.input_images import Upload
from gateway.generation.parameters import parse_image_request
from gateway.image_models import Model
from gateway.image_parameters import parameters_of
from gateway.library.history import HostedImage
from gateway.library.storage import is_image_id
from gateway.rest.uploads import read_value

ROUTE = "/console/playground"
MAX_INPUTS = 16
KEY_FORM = re.compile(r"[0-9a-f-]{36}", re.ASCII)
SIZE_FORM = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
HASH_CHARACTERS = 24
PNG = "image/png"


@dataclass(frozen=True, slots=True)
class Draft:
    """A form as it was sent or is to be shown.

    `values`: parameters by name, as typed. `hosted`: ids of stored images that are inputs. `key`:
    the rendered form's own, under which the same content is bought once.
    """

    model: Model
    operation: Operation
    values: Mapping[str, str] = field(default_factory=dict)
    hosted: tuple[str, ...] = ()
    key: str = ""

    @property
    def needs_images(self) -> bool:
        """Tell whether the operation starts from images."""
        return self.operation is not Operation.GENERATION

    @property
    def max_images(self) -> int:
        """The most input images."""
        return min(MAX_INPUTS, self.model.inputs.max_images)

    @property
    def body(self) -> dict[str, object]:
        """The fields of the same request over REST: those that were filled and the model takes."""
        names = [one.name for one in parameters_of(self.operation) if takes(self.model, one)]
        typed = {
            name: read_value(name, self.values[name])
            for name in names
            if self.values.get(name, "") != "" and name != "partial_images"
        }
        if typed.get("n") == 1:
            del typed["n"]  # what it is anyway; code is shorter without
        return {"model": self.model.id, **typed}


def new_key() -> str:
    """Make the key of a form that is rendered anew."""
    return str(new_id())


def read_draft(fields: Mapping[str, str], model: Model) -> Draft:
    """Read a form for a model; an operation that it does not serve becomes one that it does."""
    served = operations_of(model)
    asked = fields.get("operation", "")
    operation = next((one for one in served if one == asked), served[0])
    hosted = [one for one in fields.get("hosted", "").split(",") if is_image_id(one)]
    key = fields.get("key", "")
    known = {one.name for one in parameters_of(operation)} - {"model"}
    # A browser sends the line breaks of a text field as two characters.
    values = {name: text.replace("\r\n", "\n") for name, text in fields.items() if name in known}
    return Draft(
        model,
        operation,
        values,
        tuple(dict.fromkeys(hosted))[:MAX_INPUTS],
        key if KEY_FORM.fullmatch(key) else new_key(),
    )


def parse(gateway: Gateway, caller: Caller, draft: Draft, *, streams: bool) -> ImageRequest:
    """Check a form by the rules of its model; input images are added later.

    Raises:
        GatewayError: a value is refused (`param`), or the model may not be used.
    """
    body = draft.body | {"response_format": "url"}
    if streams and "stream" in draft.model.parameters and body.get("n", 1) == 1:
        body["stream"] = True
        partial = draft.values.get("partial_images", "")
        if partial and "partial_images" in draft.model.parameters:
            body["partial_images"] = read_value("partial_images", partial)
    return parse_image_request(
        body,
        caller,
        gateway.core.catalog,
        operation=draft.operation,
        default_model=gateway.settings.default_model,
        defaults=gateway.settings.request_defaults,
    )


async def claim(draft: Draft, uploads: Sequence[Upload]) -> IdempotencyClaim:
    """The claim of a form: the same form with the same content is bought once.

    Changed content is another purchase, although the form, which a browser may show again by its
    "back", still has its key.
    """
    fields = {**draft.body, "hosted": ",".join(draft.hosted)}
    found = await claim_for(draft.key, ROUTE, fields, uploads)
    if found is None:
        raise AssertionError
    content = found.request_hash.hex()[:HASH_CHARACTERS]
    return replace(found, key=f"console-{draft.key}-{content}")


def with_sizes(
    request: ImageRequest, hosted: Sequence[HostedImage], sizes: str, *, has_mask: bool
) -> ImageRequest:
    """Add stand-ins for input images, of which a quote needs the sizes alone.

    `sizes`: those of files that were chosen but not sent yet, such as "1024x768,512x512". A mask
    has the size of the first image.

    Raises:
        InvalidRequest: the operation needs an image.
    """
    if request.operation is Operation.GENERATION:
        return request
    known = [(one.width or 0, one.height or 0) for one in hosted]
    chosen = [SIZE_FORM.fullmatch(one) for one in sizes.split(",")[:MAX_INPUTS]]
    known += [(int(one[1]), int(one[2])) for one in chosen if one is not None]
    if not known:
        raise InvalidRequest("Choose an image first.", param="image")
    inputs = tuple(_stand_in(*one) for one in known[: request.model.inputs.max_images])
    is_masked = has_mask and request.model.inputs.masks
    return replace(request, inputs=inputs, mask=_stand_in(*known[0]) if is_masked else None)


def _stand_in(width: int, height: int) -> InputImage:
    """Stand in for an image that every model takes: a fallback that may refuse it counts too."""
    return InputImage(
        BytesIO(), PNG, width, height, size_bytes=0, has_alpha=True, is_transparent=True
    )
