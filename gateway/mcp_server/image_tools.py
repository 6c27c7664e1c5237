"""The tools that make images: each checks its arguments, calls the pipeline, shows the result."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from mcp.types import CallToolResult

from gateway.bootstrap import Gateway
from gateway.domain import Caller, IdempotencyClaim, ImageRequest, Operation
from gateway.errors import InvalidRequest
from gateway.generation.claims import claim_for
from gateway.generation.image_references import InputImageReference, check_length
from gateway.generation.parameters import parse_image_request
from gateway.mcp_server.calls import ToolCall, flag
from gateway.mcp_server.progress import Progress
from gateway.mcp_server.results import show_generation

NOT_BOUGHT = frozenset({"full_image", "idempotency_key"})
NOT_THE_MODELS = NOT_BOUGHT | {"partial_images", "image", "mask"}
MAX_INPUT_IMAGES = 20


async def generate_image(call: ToolCall) -> CallToolResult:
    """Make one or more images from a text.

    Costs money (estimate_cost says how much at most). Answers with a small preview of each,
    a link to the full image, and what it did cost. Show the link to the person. Takes some
    seconds up to two minutes.
    """
    request = await _parse(call, Operation.GENERATION)
    return await _make(call, request)


async def edit_image(call: ToolCall) -> CallToolResult:
    """Change one or more images by a prompt, or combine them into a new one.

    To go on from an image made before, give its generated-images:// URI. Costs money, input
    images included. Answers like generate_image.
    """
    request = await _with_input_images(call, await _parse(call, Operation.EDIT))
    return await _make(call, request)


async def create_variation(call: ToolCall) -> CallToolResult:
    """Make new images that resemble a square PNG, without a prompt.

    DALL·E 2 called them variations. To say what shall change, use edit_image. Costs money.
    Answers like generate_image.
    """
    request = await _with_input_images(call, await _parse(call, Operation.VARIATION))
    return await _make(call, request)


async def _parse(call: ToolCall, operation: Operation) -> ImageRequest:
    return await parse_call(call.gateway, call.caller, call.arguments, operation)


async def parse_call(
    gateway: Gateway, caller: Caller, arguments: Mapping[str, object], operation: Operation
) -> ImageRequest:
    """The same check as REST's, of the same words, and the claim of the call's key.

    Raises:
        InvalidRequest: an argument has a value that is not taken.
    """
    # Checked before anything else of the call is done: it decides what the answer looks like.
    flag(arguments, "full_image")
    fields = {name: value for name, value in arguments.items() if name not in NOT_THE_MODELS}
    partial_images = arguments.get("partial_images")
    if partial_images is not None and (isinstance(partial_images, bool) or partial_images != 0):
        fields |= {"partial_images": partial_images, "stream": True}
    request = parse_image_request(
        fields,
        caller,
        gateway.core.catalog,
        operation=operation,
        default_model=gateway.settings.default_model,
        defaults=gateway.settings.request_defaults,
        default_response_format="b64_json",
    )
    # A preview stands in the result beside the link; only a full image is one without it.
    return replace(
        request,
        idempotency=await _claim(arguments, operation),
        link_only=not flag(arguments, "full_image"),
    )


async def _claim(arguments: Mapping[str, object], operation: Operation) -> IdempotencyClaim | None:
    key = arguments.get("idempotency_key")
    if not isinstance(key, str | None):
        raise InvalidRequest(
            "Invalid type for 'idempotency_key': expected a string.",
            code="invalid_type",
            param="idempotency_key",
        )
    bought = {name: given for name, given in arguments.items() if name not in NOT_BOUGHT}
    # A preview is made of the images themselves.
    return await claim_for(key, f"mcp/{operation}", bought, wants_bytes=True)


async def _with_input_images(call: ToolCall, request: ImageRequest) -> ImageRequest:
    references = input_references(call.arguments)
    with ExitStack() as files:
        return await call.gateway.intake.with_images(call.caller, request, references, files)


def input_references(arguments: Mapping[str, object]) -> list[InputImageReference]:
    """Read the references of `image` (one, or a list) and `mask`.

    Raises:
        InvalidRequest: not texts, too many, or one that is too long.
    """
    given = arguments.get("image")
    if isinstance(given, list) and len(given) > MAX_INPUT_IMAGES:
        raise InvalidRequest(
            f"More than {MAX_INPUT_IMAGES} images: {len(given)}.",
            code="array_above_max_length",
            param="image",
        )
    if isinstance(given, list):
        named = [(f"image[{at}]", "image", one) for at, one in enumerate(given)]
    else:
        named = [] if given is None else [("image", "image", given)]
    if arguments.get("mask") is not None:
        named.append(("mask", "mask", arguments["mask"]))
    references = []
    for where, field, url in named:
        if not isinstance(url, str):
            raise InvalidRequest(
                f"Invalid type for '{where}': expected a string, namely a data: URL, "
                "generated-images://… or an https link.",
                code="invalid_type",
                param=where,
            )
        references.append(InputImageReference(where, field, url))
        check_length(references[-1])
    return references


async def _make(call: ToolCall, request: ImageRequest) -> CallToolResult:
    progress = Progress(call.context, call.gateway.finisher)
    generation = await progress.during(
        call.gateway.pipeline.generate(
            call.caller, request, progress.show if request.stream else None
        )
    )
    return await show_generation(
        generation,
        call.gateway.finisher,
        full_image=flag(call.arguments, "full_image"),
    )
