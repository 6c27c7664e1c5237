"""Making the images of a form through the pipeline, and telling how far it is."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import structlog

from gateway.billing import budgets
from gateway.billing.budgets import Budget
from gateway.bootstrap import Gateway
from gateway.console.playground import drafts
from gateway.console.playground.drafts import Draft
from gateway.console.portal import Portal
from gateway.db.audit import Action, record
from gateway.domain import Admitted, Caller, Generation, ImageRequest, ProgressSink
from gateway.errors import GatewayError, IdempotencyInFlight, NotFound
from gateway.generation.idempotency import repeated
from gateway.generation.image_references import InputImageReference
from gateway.generation.input_images import Upload
from gateway.generation.pipeline import Pipeline
from gateway.identity.viewers import Permission
from gateway.library import history
from gateway.library.history import HostedImage
from gateway.provider_answers import PartialImage

TWIN_SECONDS = 2.0
TWIN_TRIES = 150
"""A form that was sent twice waits for its first sending, up to five minutes."""
LINK_SECONDS = 600
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ResultImage:
    """An image of a result. If it was not stored, `id` is empty and `source` has the bytes."""

    id: str
    source: str


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a purchase by a form. Money in nano-USD."""

    generation_id: str
    images: tuple[ResultImage, ...]
    requested_model: str
    served_model: str
    cost_nano: int | None
    cost_status: str
    livemode: bool
    budgets: tuple[Budget, ...]
    revised_prompt: str = ""
    seeds: tuple[int, ...] = ()
    is_replayed: bool = False


async def prepare(
    portal: Portal,
    caller: Caller,
    draft: Draft,
    uploads: Sequence[Upload],
    files: ExitStack,
    *,
    streams: bool,
    is_purchase: bool = True,
) -> ImageRequest:
    """Build the checked request of a form, with its input images; the request owns their files.

    Raises:
        GatewayError: a value or an image is refused.
    """
    gateway = portal.gateway
    request = drafts.parse(gateway, caller, draft, streams=streams)
    if is_purchase:
        request = replace(request, idempotency=await drafts.claim(draft, uploads))
        await _note_visitor(portal, request)
    if not draft.needs_images:
        return request
    links = _links(gateway, await find_hosted(portal, draft))
    given: list[Upload | InputImageReference] = [*links, *uploads]
    given.sort(key=lambda one: one.field != "image")
    return await gateway.intake.with_images(caller, request, given, files)


async def _note_visitor(portal: Portal, request: ImageRequest) -> None:
    """Record in the tenant's audit trail that a visiting operator is going to buy.

    Not afterwards: the browser may leave, and Postgres may be away, while the call goes on.
    """
    if not portal.viewer.is_visiting:
        return
    async with portal.changing(Permission.IMAGES_MAKE) as session:
        await record(
            session,
            Action.IMAGES_ORDERED,
            tenant_id=portal.tenant_id,
            object_id=request.requested_model,
            after={
                "model": request.requested_model,
                "operation": request.operation.value,
                "images": request.n,
                "mode": portal.mode,
            },
        )


async def find_hosted(portal: Portal, draft: Draft) -> tuple[HostedImage, ...]:
    """Find the stored images that a form uses, in its order.

    Raises:
        Forbidden: the viewer sees no images.
        NotFound: one of them is not stored, or not to be seen by the viewer.
    """
    if not draft.hosted:
        return ()
    caller = await portal.caller(whole_tenant=True)
    async with portal.reading(Permission.IMAGES_READ) as session:
        found = {one.id: one for one in await history.find_images(session, caller, draft.hosted)}
    if len(found) < len(draft.hosted):
        raise NotFound(
            "An image that this form uses is not stored any more. Remove it.",
            code="image_not_found",
            param="image",
        )
    return tuple(found[image_id] for image_id in draft.hosted)


def _links(gateway: Gateway, hosted: Sequence[HostedImage]) -> list[InputImageReference]:
    until = int(time.time()) + LINK_SECONDS
    return [
        InputImageReference("image", "image", gateway.links.sign(one.id, one.path, until))
        for one in hosted
    ]


async def buy(
    pipeline: Pipeline,
    caller: Caller,
    request: ImageRequest,
    progress: ProgressSink | None = None,
) -> Generation:
    """Make the images; a form that was sent twice waits for its first sending.

    Raises:
        GatewayError: refused or failed.
    """
    for _ in range(TWIN_TRIES):
        try:
            return await pipeline.generate(caller, request, progress)
        except IdempotencyInFlight:
            # The pipeline has closed its files; a repeated request needs none.
            request = replace(
                request, inputs=(), mask=None, markup=None, idempotency=repeated(request)
            )
            await asyncio.sleep(TWIN_SECONDS)
    return await pipeline.generate(caller, request, progress)


async def progress_of(
    pipeline: Pipeline, caller: Caller, request: ImageRequest, *, keepalive_seconds: float
) -> AsyncIterator[PartialImage | Generation | None]:
    """Yield partial images as they come, None as a sign of life, and the generation at the end.

    A browser that leaves stops nothing: the call belongs to the process.

    Raises:
        GatewayError: refused or failed.
    """
    arrived: asyncio.Queue[PartialImage | None] = asyncio.Queue()

    def take(event: Admitted | PartialImage) -> None:
        if isinstance(event, PartialImage):
            arrived.put_nowait(event)

    making = asyncio.create_task(buy(pipeline, caller, request, take))
    making.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while True:
            try:
                async with asyncio.timeout(keepalive_seconds):
                    partial = await arrived.get()
            except TimeoutError:
                yield None
                continue
            if partial is None:
                break
            yield partial
        yield await making
    finally:
        making.cancel()


async def result_of(portal: Portal, caller: Caller, generation: Generation) -> Result:
    """Describe a generation, with the budgets as they are after it."""
    host = portal.gateway.links.public_url
    answer = generation.answer
    return Result(
        generation_id=str(generation.id),
        images=tuple(
            ResultImage(one.id, one.url.removeprefix(host))
            if one.url is not None
            else ResultImage("", f"data:{one.media_type};base64,{one.base64}")
            for one in generation.images
        ),
        requested_model=generation.request.requested_model,
        served_model=generation.served.model.id,
        cost_nano=generation.cost_nano,
        cost_status=generation.cost_status.value,
        livemode=caller.livemode,
        budgets=await budgets_of(portal, caller),
        revised_prompt=answer.revised_prompts[0] if answer.revised_prompts else "",
        seeds=answer.seeds,
        is_replayed=generation.replayed,
    )


async def budgets_of(portal: Portal, caller: Caller) -> tuple[Budget, ...]:
    """Read the budgets that a call of this caller counts in; none if they cannot be read.

    They are shown beside images that are bought: an error here must not hide these.
    """
    try:
        async with portal.reading(Permission.IMAGES_MAKE) as session:
            return tuple(await budgets.for_caller(session, caller))
    except GatewayError as error:
        log.warning("budgets_unread", tenant=str(caller.tenant_id), code=error.code)
        return ()
