"""Making and editing images, and quoting them."""

from contextlib import ExitStack
from dataclasses import replace

import orjson
from fastapi import APIRouter, Request, Response

from gateway.bootstrap import Gateway
from gateway.domain import Caller, ImageRequest, Operation
from gateway.generation.claims import claim_for
from gateway.generation.parameters import parse_image_request
from gateway.money import format_usd_short
from gateway.rest.answers import generation_headers, render_generation
from gateway.rest.bodies import (
    EDIT_BODY,
    EDIT_FORM,
    IMAGE_BODY,
    VARIATION_FORM,
    JsonSchema,
)
from gateway.rest.dependencies import (
    GatewayDep,
    ImageWriter,
    UploadsDep,
    get_gateway,
    idempotency_key_of,
    image_writer,
    old_sdk_of,
    read_json_object,
)
from gateway.rest.openapi import shared_headers
from gateway.rest.refusals import refused_with
from gateway.rest.schemas import ImageAnswer, QuoteAnswer
from gateway.rest.streaming import stream_generation
from gateway.rest.uploads import UploadReader

router = APIRouter(tags=["images"])

PURCHASED = (
    *("X-Gateway-Generation-Id", "X-Gateway-Cost-Usd", "X-Gateway-Cost-Status"),
    *("X-Gateway-Requested-Model", "X-Gateway-Served-Model", "X-Gateway-Provider"),
    "Idempotent-Replayed",
    *("RateLimit", "RateLimit-Policy", "Deprecation", "Sunset", "Link"),
)
EVENTS = {
    "itemSchema": {
        "type": "object",
        "properties": {
            "event": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
        "required": ["data"],
    },
    "example": "event: image_generation.completed\ndata: "
    '{"type": "image_generation.completed", "b64_json": "…"}\n\n',
}


def documented(**bodies: JsonSchema) -> dict[str, object]:
    """The body's documentation by content type; its fields are checked by the catalogue."""
    names = {"json": "application/json", "form": "multipart/form-data"}
    content = {names[kind]: {"schema": body} for kind, body in bodies.items()}
    return {"requestBody": {"required": True, "content": content}}


def documented_purchase(**bodies: JsonSchema) -> dict[str, object]:
    """The same for a route that buys something, and may be told to buy it once."""
    header = {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "The same request with the same key is answered again, not bought again.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    }
    return {"parameters": [header], **documented(**bodies)}


def purchase_answers(*, streamed: bool) -> dict[int | str, dict[str, object]]:
    """Document the answers of a purchasing route, its body excepted."""
    content = {"text/event-stream": EVENTS} if streamed else {}
    return {
        200: {"headers": shared_headers(*PURCHASED), "content": content},
        **refused_with(402, 404, 409, 422, 424, 429, 500, 502, 504),
    }


@router.post(
    "/v1/images/generations",
    summary="Make images",
    response_model=ImageAnswer,
    responses=purchase_answers(streamed=True),
    openapi_extra=documented_purchase(json=IMAGE_BODY),
)
async def create_images(request: Request) -> Response:
    """Make images with one paid call, held against every budget that applies before it is made."""
    # Without dependencies, whose resolution would take a fortieth of the request's time.
    gateway, caller = await get_gateway(request), await image_writer(request)
    image_request = await _read_generation(request, gateway, caller)
    return await answer(gateway, caller, image_request)


@router.post(
    "/v1/images/edits",
    summary="Edit images",
    response_model=ImageAnswer,
    responses=purchase_answers(streamed=True),
    openapi_extra=documented_purchase(form=EDIT_FORM, json=EDIT_BODY),
)
async def edit_images(
    request: Request, gateway: GatewayDep, caller: ImageWriter, uploads: UploadsDep
) -> Response:
    """Change one to sixteen images by a prompt; a mask's transparent area says where."""
    image_request = await read_inputs(request, gateway, caller, uploads, Operation.EDIT)
    return await answer(gateway, caller, image_request)


@router.post(
    "/v1/images/variations",
    summary="Make variations of an image",
    response_model=ImageAnswer,
    responses=purchase_answers(streamed=False),
    openapi_extra=documented_purchase(form=VARIATION_FORM),
)
async def vary_image(
    request: Request, gateway: GatewayDep, caller: ImageWriter, uploads: UploadsDep
) -> Response:
    """DALL·E 2's variations, which its vendor shut down; served by a successor's edit."""
    image_request = await read_inputs(request, gateway, caller, uploads, Operation.VARIATION)
    return await answer(gateway, caller, image_request)


@router.post(
    "/v1/images/quotes",
    summary="Quote the maximum cost of a request",
    response_model=QuoteAnswer,
    responses=refused_with(404),
    openapi_extra=documented(json=IMAGE_BODY),
)
async def create_quote(request: Request, gateway: GatewayDep, caller: ImageWriter) -> Response:
    """The same body as for generations; nothing is bought and nothing held."""
    image_request = await _read_generation(request, gateway, caller)
    served, quote = await gateway.pipeline.quote_most(caller, image_request)
    quoted = QuoteAnswer(
        model=image_request.requested_model,
        served_model=served.model.id,
        cost_usd_max=format_usd_short(quote.amount_nano),
    )
    return Response(quoted.model_dump_json(), media_type="application/json")


async def answer(gateway: Gateway, caller: Caller, image_request: ImageRequest) -> Response:
    """Make the images and answer with them, whole or as a stream."""
    if image_request.stream:
        return await stream_generation(
            gateway.pipeline,
            caller,
            image_request,
            keepalive_seconds=gateway.settings.stream_keepalive_seconds,
        )
    generation = await gateway.pipeline.generate(caller, image_request)
    return Response(
        orjson.dumps(render_generation(generation)),
        media_type="application/json",
        headers=generation_headers(generation),
    )


async def _read_generation(request: Request, gateway: Gateway, caller: Caller) -> ImageRequest:
    body = await read_json_object(request, gateway.settings)
    image_request = parse_image_request(
        body,
        caller,
        gateway.core.catalog,
        default_model=gateway.settings.default_model,
        defaults=gateway.settings.request_defaults,
        user_agent=old_sdk_of(request, gateway.settings),
    )
    key = idempotency_key_of(request)
    if key is None:
        return image_request
    claim = await claim_for(key, request.url.path, body)
    return replace(image_request, idempotency=claim)


async def read_inputs(
    request: Request,
    gateway: Gateway,
    caller: Caller,
    uploads: UploadReader,
    operation: Operation,
) -> ImageRequest:
    """Read and check a request with input images; the result owns their files."""
    with ExitStack() as files:
        form = await uploads.read(request, caller, files)
        image_request = parse_image_request(
            form.fields,
            caller,
            gateway.core.catalog,
            operation=operation,
            default_model=gateway.settings.default_model,
            defaults=gateway.settings.request_defaults,
            user_agent=old_sdk_of(request, gateway.settings),
        )
        key = idempotency_key_of(request)
        claim = await claim_for(key, request.url.path, form.fields, form.inputs)
        image_request = replace(image_request, idempotency=claim)
        return await gateway.intake.with_images(caller, image_request, form.inputs, files)
