"""The simple form: a prompt, perhaps an input image, and links to the results."""

from contextlib import ExitStack
from dataclasses import replace

import orjson
from fastapi import APIRouter, Request, Response

from gateway.bootstrap import Gateway
from gateway.domain import Caller, ImageRequest, Operation
from gateway.errors import InvalidRequest
from gateway.generation.claims import claim_for
from gateway.generation.parameters import parse_image_request
from gateway.image_parameters import PARAMETERS
from gateway.rest.answers import generation_headers
from gateway.rest.bodies import SIMPLE_BODY, SIMPLE_FORM
from gateway.rest.dependencies import (
    GatewayDep,
    ImageWriter,
    UploadsDep,
    idempotency_key_of,
    read_json_object,
)
from gateway.rest.images import documented_purchase, purchase_answers
from gateway.rest.schemas import SimpleAnswer

router = APIRouter(tags=["simple"])
FILES = {"image_file": "image", "mask_file": "mask"}
NOT_HERE = ("prompt", *(one.name for one in PARAMETERS if not one.is_of_image))


@router.post(
    "/generate_image",
    summary="Make images from a prompt",
    response_model=SimpleAnswer,
    responses=purchase_answers(streamed=False),
    openapi_extra=documented_purchase(json=SIMPLE_BODY),
)
async def generate_image(request: Request, gateway: GatewayDep, caller: ImageWriter) -> Response:
    """Like `/v1/images/generations`, answered with links alone."""
    body = await read_json_object(request, gateway.settings)
    image_request = _parse(body, gateway, caller, Operation.GENERATION)
    claim = await claim_for(idempotency_key_of(request), request.url.path, body)
    return await _answer(gateway, caller, replace(image_request, idempotency=claim))


@router.post(
    "/edit_image",
    summary="Edit an image by a prompt",
    response_model=SimpleAnswer,
    responses=purchase_answers(streamed=False),
    openapi_extra=documented_purchase(form=SIMPLE_FORM),
)
async def edit_image(
    request: Request, gateway: GatewayDep, caller: ImageWriter, uploads: UploadsDep
) -> Response:
    """Like `/v1/images/edits` with one image, answered with links alone."""
    with ExitStack() as files:
        form = await uploads.read(request, caller, files, names=FILES)
        fields = dict(form.fields)
        if isinstance(text := fields.get("params"), str):
            fields["params"] = _json_object(text)
        image_request = _parse(fields, gateway, caller, Operation.EDIT)
        key = idempotency_key_of(request)
        claim = await claim_for(key, request.url.path, fields, form.inputs)
        image_request = replace(image_request, idempotency=claim)
        image_request = await gateway.intake.with_images(caller, image_request, form.inputs, files)
    return await _answer(gateway, caller, image_request)


def _json_object(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _wrong_params() from None


def _parse(
    body: dict[str, object], gateway: Gateway, caller: Caller, operation: Operation
) -> ImageRequest:
    """`prompt` and `params`, which holds what the whole form has beside it."""
    for name in body:
        if name not in {"prompt", "params"}:
            raise InvalidRequest(
                f"Unknown parameter: '{name}'. Put it into 'params'.",
                code="unknown_parameter",
                param=name,
            )
    params = {} if body.get("params") is None else body["params"]
    if not isinstance(params, dict):
        raise _wrong_params()
    for name in NOT_HERE:
        if name in params:
            raise InvalidRequest(
                f"'{name}' does not belong into 'params': the answer is always a list of links.",
                code="unknown_parameter",
                param=f"params.{name}",
            )
    return parse_image_request(
        {**params, "prompt": body.get("prompt"), "response_format": "url"},
        caller,
        gateway.core.catalog,
        operation=operation,
        default_model=gateway.settings.default_model,
        defaults=gateway.settings.request_defaults,
    )


def _wrong_params() -> InvalidRequest:
    return InvalidRequest(
        'Invalid type for \'params\': expected a JSON object, such as {"size": "1024x1024"}.',
        code="invalid_type",
        param="params",
    )


async def _answer(gateway: Gateway, caller: Caller, image_request: ImageRequest) -> Response:
    generation = await gateway.pipeline.generate(caller, image_request)
    return Response(
        orjson.dumps({"image_urls": [image.url for image in generation.images]}),
        media_type="application/json",
        headers=generation_headers(generation),
    )
