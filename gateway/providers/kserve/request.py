"""The request of one image in the words of a model on KServe. Pure.

There is no standard for text to image on KServe, so the models file says what differs:
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol and …/v2-protocol
"""

from collections.abc import Mapping
from typing import BinaryIO, cast
from urllib.parse import quote

import orjson
import pybase64

from gateway.domain import ImageRequest, InputImage
from gateway.image_models import Wording, parse_size

Values = Mapping[str, object]
USUAL_FIELDS = {"steps": "num_inference_steps"}
USUAL_INPUTS = {"image": "image", "mask": "mask_image"}
NOT_SENT = ("model", "n", "size", "quality", "user", "response_format")
"""Names that only a template sends; width and height say the size."""
ABSENT = object()


def wording_of(request: ImageRequest) -> Wording:
    """Return the words of a declared model."""
    return cast("Wording", request.model.wording)


def path_of(wording: Wording, protocol: str) -> str:
    """Return the path of a model's predictions."""
    name = quote(wording.name, safe="")
    return f"/v2/models/{name}/infer" if protocol == "v2" else f"/v1/models/{name}:predict"


def encode_request(request: ImageRequest, *, protocol: str, seed: int) -> bytes:
    """Encode the request of one image, its inputs included."""
    wording = wording_of(request)
    values = values_of(request, seed=seed)
    if wording.template is not None:
        body = _filled(wording.template, {**values, **wording.constants})
        return orjson.dumps(_without_empty_inputs(body) if protocol == "v2" else body)
    names = {**USUAL_FIELDS, **USUAL_INPUTS, **wording.fields, **wording.input_fields}
    sent = {
        names.get(name, name): (value, wording.types.get(name, "BYTES"))
        for name, value in values.items()
        if name not in NOT_SENT or name in wording.fields
    }
    sent |= {name: (value, "BYTES") for name, value in wording.constants.items()}
    if protocol == "v1":
        return orjson.dumps({"instances": [{name: value for name, (value, _) in sent.items()}]})
    return orjson.dumps({"inputs": [_tensor(name, *one) for name, one in sent.items()]})


def values_of(request: ImageRequest, *, seed: int) -> dict[str, object]:
    """Return the values of one image by our names; every option that the model has is among them.

    Servers fail on a missing field, so an open option is filled from the model's defaults.
    """
    wording = wording_of(request)
    size = wording.default_size if request.size in {None, "auto"} else str(request.size)
    width, height = parse_size(size)
    defaults = wording.defaults
    declared = request.model.parameters
    values: dict[str, object | None] = {
        "prompt": request.prompt,
        "negative_prompt": _first(
            request.negative_prompt,
            defaults.get("negative_prompt"),
            "" if "negative_prompt" in declared else None,
        ),
        "width": width,
        "height": height,
        "size": size,
        "steps": _first(
            request.steps,
            wording.steps.get(request.quality or "") or None,
            defaults.get("steps"),
        ),
        "guidance_scale": _first(request.guidance_scale, defaults.get("guidance_scale")),
        "seed": seed,
        "quality": request.quality,
        "model": wording.name,
        "user": request.user,
        "n": 1,
        "image": _base64(request.inputs[0]) if request.inputs else None,
        "mask": None if request.mask is None else _base64(request.mask),
    }
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in wording.dropped
    }


def _first(*values: object) -> object | None:
    return next((value for value in values if value is not None), None)


def _base64(image: InputImage) -> str:
    """Read a whole input. Several calls of one request read it in turn."""
    file: BinaryIO = image.file
    file.seek(0)
    return pybase64.b64encode(file.read()).decode()


def _tensor(name: str, value: object, datatype: str) -> dict[str, object]:
    if datatype == "BYTES" and not isinstance(value, str):
        value = orjson.dumps(value).decode()
    return {"name": name, "shape": [1], "datatype": datatype, "data": [value]}


def _filled(template: object, values: Values) -> object:
    """Put values in place of `$name`; a member or item without a value is left out.

    `$$` begins a text that begins with one `$`.
    """
    if isinstance(template, str):
        if template.startswith("$$"):
            return template[1:]
        return values.get(template[1:], ABSENT) if template.startswith("$") else template
    if isinstance(template, list):
        return [one for item in template if (one := _filled(item, values)) is not ABSENT]
    if isinstance(template, Mapping):
        filled = ((name, _filled(item, values)) for name, item in template.items())
        return {name: one for name, one in filled if one is not ABSENT}
    return template


def _without_empty_inputs(body: object) -> object:
    """Leave out each v2 input whose value is not there; texts of BYTES are written as texts."""
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, list) or not isinstance(body, dict):
        return body
    kept = []
    for one in inputs:
        data = one.get("data") if isinstance(one, dict) else None
        if data == []:
            continue
        if isinstance(data, list) and one.get("datatype") == "BYTES":
            texts = [x if isinstance(x, str) else orjson.dumps(x).decode() for x in data]
            one = {**one, "data": texts}  # noqa: PLW2901 - the same input, in its words
        kept.append(one)
    return {**body, "inputs": kept}
