"""An MCP tool as a plain JSON call, for programs that do not speak the protocol."""

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from gateway.domain import Operation
from gateway.mcp_server.image_tools import parse_call
from gateway.mcp_server.results import ImagesMade, images_made
from gateway.mcp_server.spellings import own_arguments
from gateway.rest.answers import generation_headers
from gateway.rest.bodies import TOOL_ARGUMENTS, TOOL_BODY
from gateway.rest.dependencies import (
    GatewayDep,
    ImageWriter,
    idempotency_key_of,
    read_json_object,
)
from gateway.rest.images import documented_purchase, purchase_answers

router = APIRouter(tags=["mcp"])


@router.post(
    "/mcp/v1/tools/generate_image",
    summary="Call the tool generate_image",
    response_model=ImagesMade,
    responses=purchase_answers(streamed=False),
    openapi_extra=documented_purchase(json=TOOL_BODY),
)
async def generate_image(request: Request, gateway: GatewayDep, caller: ImageWriter) -> Response:
    """Call the MCP tool with its arguments; the answer is the structured content of its result.

    The same `idempotency_key` is the same purchase over either interface.
    """
    body = await read_json_object(request, gateway.settings)
    arguments = dict(own_arguments("generate_image", body, TOOL_ARGUMENTS))
    key = idempotency_key_of(request)
    if key is not None and arguments.get("idempotency_key") is None:
        arguments["idempotency_key"] = key
    image_request = replace(
        await parse_call(gateway, caller, arguments, Operation.GENERATION), response_format="url"
    )
    generation = await gateway.pipeline.generate(caller, image_request)
    return Response(
        images_made(generation).model_dump_json(),
        media_type="application/json",
        headers=generation_headers(generation),
    )
