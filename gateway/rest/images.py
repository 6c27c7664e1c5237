"""Making images, quoting them, and serving their links."""

import time
from datetime import UTC, datetime
from datetime import time as day_time

import orjson
from fastapi import APIRouter, Request, Response

from gateway.domain import Generation, Model, Usage
from gateway.images.parameters import parse_image_request
from gateway.images.storage import MEDIA_TYPES
from gateway.money import format_usd, format_usd_short
from gateway.rest.dependencies import GatewayDep, ImageWriter, read_json_object
from gateway.rest.schemas import ErrorAnswer, ImageAnswer, ImageBody, QuoteAnswer

router = APIRouter(tags=["images"])
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ImageBody.model_json_schema()}},
    }
}
ERRORS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorAnswer}
    for status in (400, 401, 402, 403, 404, 413, 424, 429, 502, 503, 504)
}


@router.post(
    "/v1/images/generations",
    summary="Make images",
    response_model=ImageAnswer,
    responses=ERRORS,
    openapi_extra=BODY,
)
async def create_images(request: Request, gateway: GatewayDep, caller: ImageWriter) -> Response:
    """Make images with one paid call, held against every budget that applies before it is made."""
    body = await read_json_object(request, max_bytes=gateway.settings.max_body_bytes)
    image_request = parse_image_request(
        body, caller, gateway.core.catalog, default_model=gateway.settings.default_model
    )
    generation = await gateway.pipeline.generate(caller, image_request)
    return Response(
        orjson.dumps(render_generation(generation)),
        media_type="application/json",
        headers=generation_headers(generation),
    )


@router.post(
    "/v1/images/quotes",
    summary="What a request can cost at most",
    response_model=QuoteAnswer,
    responses=ERRORS,
    openapi_extra=BODY,
)
async def create_quote(request: Request, gateway: GatewayDep, caller: ImageWriter) -> Response:
    """The same body as for generations; nothing is bought and nothing held."""
    body = await read_json_object(request, max_bytes=gateway.settings.max_body_bytes)
    image_request = parse_image_request(
        body, caller, gateway.core.catalog, default_model=gateway.settings.default_model
    )
    quote = await gateway.pipeline.quote(image_request)
    answer = QuoteAnswer(
        model=image_request.requested_model,
        served_model=image_request.model.id,
        cost_usd_max=format_usd_short(quote.amount_nano),
    )
    return Response(answer.model_dump_json(), media_type="application/json")


@router.head("/images/{image_id}", include_in_schema=False)
@router.get("/images/{image_id}", summary="The bytes of an image")
async def get_image(image_id: str, gateway: GatewayDep, exp: str = "", sig: str = "") -> Response:
    """Served by signed, expiring link; no key is needed."""
    now = int(time.time())
    path = gateway.links.verify(image_id, exp, sig, now=now)
    content = await gateway.store.get(path)
    return Response(
        content,
        media_type=MEDIA_TYPES[path.rpartition(".")[2]],
        headers={
            "ETag": f'"{image_id}"',
            "Cache-Control": f"private, max-age={max(0, int(exp) - now)}, immutable",
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": f'inline; filename="{path.rpartition("/")[2]}"',
        },
    )


def render_generation(generation: Generation) -> dict[str, object]:
    """OpenAI's images response."""
    answer = generation.answer
    by_url = generation.request.response_format == "url"
    rendered: dict[str, object] = {
        "created": answer.created or int(time.time()),
        "data": [
            {"url": image.url} if by_url else {"b64_json": image.base64}
            for image in generation.images
        ],
        "background": answer.background,
        "output_format": answer.output_format,
        "quality": answer.quality,
        "size": answer.size,
    }
    if answer.usage is not None:
        rendered["usage"] = render_usage(answer.usage)
    return rendered


def render_usage(usage: Usage) -> dict[str, object]:
    """OpenAI's usage object."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "text_tokens": usage.text_input_tokens,
            "image_tokens": usage.image_input_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {
            "text_tokens": usage.text_output_tokens,
            "image_tokens": usage.image_output_tokens,
        },
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def generation_headers(generation: Generation) -> dict[str, str]:
    """What the answer cost, which model served it, and how long that model lives."""
    return {
        "X-Gateway-Generation-Id": str(generation.id),
        "X-Gateway-Cost-Usd": format_usd(generation.cost_nano),
        "X-Gateway-Cost-Status": generation.cost_status,
        "X-Gateway-Requested-Model": generation.request.requested_model,
        "X-Gateway-Served-Model": generation.request.model.id,
        **lifetime_headers(generation.request.model),
    }


def lifetime_headers(model: Model) -> dict[str, str]:
    """`Deprecation` (RFC 9745), `Sunset` (RFC 8594), successor: where a vendor gave dates."""
    headers = {}
    if model.deprecation_date is not None:
        since = datetime.combine(model.deprecation_date, day_time(), UTC)
        headers["Deprecation"] = f"@{int(since.timestamp())}"
    if model.shutdown_date is not None:
        sunset = datetime.combine(model.shutdown_date, day_time(), UTC)
        headers["Sunset"] = sunset.strftime("%a, %d %b %Y %H:%M:%S GMT")
    if model.successor is not None:
        headers["Link"] = f'</v1/models/{model.successor}>; rel="successor-version"'
    return headers
