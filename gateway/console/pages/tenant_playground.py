"""The playground: a form for each model, its quote, and the images that it makes."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from gateway.catalog.vendors import LEGACY
from gateway.console.dependencies import FormDep, redirect, without_nul
from gateway.console.playground import drafts
from gateway.console.playground.call_snippets import Call, snippets_of
from gateway.console.playground.controls import controls_of, operations_of
from gateway.console.playground.drafts import ROUTE, Draft
from gateway.console.playground.making import (
    Result,
    ResultImage,
    budgets_of,
    buy,
    find_hosted,
    prepare,
    progress_of,
    result_of,
)
from gateway.console.playground.remedies import advise
from gateway.console.playground.views import View, draft_of, first_view
from gateway.console.portal import MakerPortal, Portal
from gateway.console.render import Crumb
from gateway.console.shown_images import find_in_any_mode, show_images
from gateway.domain import Caller, Generation, ImageRequest, Operation
from gateway.errors import GatewayError, NotFound
from gateway.generation.input_images import Upload
from gateway.identity.viewers import Permission
from gateway.library import history
from gateway.library.history import HostedImage, ImageFilter
from gateway.provider_answers import PartialImage
from gateway.request_record import current, note_error
from gateway.rest.dependencies import UploadsDep
from gateway.rest.uploads import UploadReader
from gateway.tenancy import credentials

TEMPLATE = "playground.html"
FILES = {"image": "image", "mask": "mask"}
MAKE, QUOTE, SHOW = "make", "quote", "show"
MAX_RESULT_IMAGES = 16
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
OPERATION_LABELS = {
    Operation.GENERATION: "From text",
    Operation.EDIT: "Edit images",
    Operation.VARIATION: "Variation",
}
ABOVE = (Crumb("Playground", ROUTE),)

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ShownModel:
    """A model of the list. `note`: who serves it, or that its provider has no key."""

    id: str
    provider: str
    note: str


@router.get(ROUTE)
async def show_playground(
    portal: MakerPortal, model: str = "", operation: str = "", image: str = "", same: str = ""
) -> Response:
    """Show an empty form; or one that uses a stored image, or makes the same again."""
    found = None
    if image or same:
        portal, found = await find_in_any_mode(portal, image or same)
    else:
        portal = await _with_usual_mode(portal)
    caller = await portal.caller()
    view = first_view(portal, caller, model, operation, found=found, is_same=not image)
    return await _page(portal, caller, view)


@router.post(ROUTE)
async def send_form(request: Request, portal: MakerPortal, uploads: UploadsDep) -> Response:
    """Make the images, show the quote, or show the form of another model: without scripts."""
    caller = await _buyer(portal)
    with ExitStack() as files:
        fields, given = await _read(request, uploads, caller, files)
        view = View(draft_of(portal, caller, fields))
        view.images, view.has_mask = _counts(view.draft, given)
        asked = fields.get("do", MAKE)
        try:
            view.hosted = await find_hosted(portal, view.draft)
            if asked == MAKE:
                return await _make(portal, caller, view.draft, given, files)
            if asked == QUOTE:
                await _quote_files(portal, caller, view, given, files)
        except GatewayError as error:
            _refuse(view, error)
    if given:
        view.notices = ("Choose the files again: a browser does not keep them in a form.",)
    return await _page(portal, caller, view)


@router.post(ROUTE + "/stream")
async def stream(request: Request, portal: MakerPortal, uploads: UploadsDep) -> Response:
    """Make the images, and send partial ones as they come, as server-sent events."""
    caller = await _buyer(portal)
    with ExitStack() as files:
        try:
            fields, given = await _read(request, uploads, caller, files)
            draft = draft_of(portal, caller, fields)
            ready = await prepare(portal, caller, draft, given, files, streams=True)
        except GatewayError as error:
            note_error(error)
            return _events(_only(_refusal_event(portal, error)))
    gateway = portal.gateway
    progress = progress_of(
        gateway.pipeline,
        caller,
        ready,
        keepalive_seconds=gateway.settings.stream_keepalive_seconds,
    )
    return _events(_told(portal, caller, progress))


@router.post(ROUTE + "/quote")
async def quote(portal: MakerPortal, form: FormDep) -> Response:
    """Quote a form that is being filled, and write it as code. Files are told by their sizes."""
    caller = await portal.caller()
    view = View(draft_of(portal, caller, form))
    files = [one for one in form.get("sizes", "").split(",") if one]
    view.images = len(view.draft.hosted) + len(files)
    view.has_mask = form.get("masked") == "yes"
    try:
        view.hosted = await find_hosted(portal, view.draft)
        parsed = drafts.parse(portal.gateway, caller, view.draft, streams=True)
        sized = drafts.with_sizes(
            parsed, view.hosted, form.get("sizes", ""), has_mask=view.has_mask
        )
        await _quote(portal, caller, view, sized)
    except GatewayError as error:
        # An empty form is no mistake.
        is_empty = error.param == "prompt" and not view.draft.values.get("prompt", "").strip()
        view.quote_error = "" if is_empty else error.message
    parts = _parts(portal, view)
    return JSONResponse(
        {name: portal.fragment(TEMPLATE, name, **parts) for name in ("quote", "code")}
    )


@router.post(ROUTE + "/fields")
async def show_fields(portal: MakerPortal, form: FormDep) -> Response:
    """Show the controls of another model or operation, with what was typed."""
    caller = await portal.caller()
    view = View(draft_of(portal, caller, form))
    try:
        view.hosted = await find_hosted(portal, view.draft)
    except GatewayError:
        view.draft = replace(view.draft, hosted=())
    text = portal.fragment(TEMPLATE, "fields", **_parts(portal, view))
    return JSONResponse({"fields": text})


@router.get(ROUTE + "/results/{generation_id}")
async def show_result(generation_id: str, portal: MakerPortal) -> Response:
    """Show the images of a generation that a form without scripts has bought."""
    caller = await portal.caller()
    found = await _images_of(portal, caller, generation_id)
    first = found[0]
    result = Result(
        generation_id=str(first.generation_id),
        images=tuple(
            ResultImage(shown.image.id, shown.source)
            for shown in show_images(portal.gateway, found)
        ),
        requested_model=first.requested_model,
        served_model=first.served_model,
        cost_nano=first.cost_nano,
        cost_status=first.cost_status.value,
        livemode=portal.livemode,
        budgets=await budgets_of(portal, caller),
    )
    return portal.page(
        "playground_result.html", title="Result", crumbs=ABOVE, result=result, key=""
    )


async def _images_of(portal: Portal, caller: Caller, generation_id: str) -> tuple[HostedImage, ...]:
    chosen = history.parse_generation(generation_id)
    async with portal.reading(Permission.IMAGES_READ) as session:
        page = await history.list_images(
            session, caller, limit=MAX_RESULT_IMAGES, chosen=ImageFilter(generation_id=chosen)
        )
    if not page.images:
        raise NotFound("There are no stored images of this generation.", code="image_not_found")
    return tuple(reversed(page.images))


# Reading forms


async def _buyer(portal: Portal) -> Caller:
    """Build the caller, and note it in the request's record, so that the tenant finds the call."""
    caller = await portal.caller()
    current().identify(caller)
    return caller


async def _read(
    request: Request, uploads: UploadReader, caller: Caller, files: ExitStack
) -> tuple[Mapping[str, str], list[Upload]]:
    """Read a multipart form: its texts, and the files that were really chosen."""
    form = await uploads.read(request, caller, files, names=FILES)
    fields = without_nul({name: _text(value) for name, value in form.fields.items()})
    # A field without a chosen file is sent as an empty one.
    given = [one for one in form.inputs if isinstance(one, Upload) and one.size_bytes > 0]
    return fields, given


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _counts(draft: Draft, given: Sequence[Upload]) -> tuple[int, bool]:
    images = sum(one.field == "image" for one in given)
    return len(draft.hosted) + images, any(one.field == "mask" for one in given)


# Quotes and purchases


async def _quote_files(
    portal: Portal, caller: Caller, view: View, given: Sequence[Upload], files: ExitStack
) -> None:
    sized = await prepare(
        portal, caller, view.draft, given, files, streams=False, is_purchase=False
    )
    try:
        await _quote(portal, caller, view, sized)
    finally:
        sized.close()


async def _quote(portal: Portal, caller: Caller, view: View, request: ImageRequest) -> None:
    served, quote = await portal.gateway.pipeline.quote_most(caller, request)
    view.quote_nano = quote.amount_nano
    view.served_model = served.model.id


async def _make(
    portal: Portal, caller: Caller, draft: Draft, given: Sequence[Upload], files: ExitStack
) -> Response:
    ready = await prepare(portal, caller, draft, given, files, streams=False)
    generation = await buy(portal.gateway.pipeline, caller, ready)
    may_reload = portal.viewer.may(Permission.IMAGES_READ)
    if may_reload and all(one.url is not None for one in generation.images):
        # So that a reload shows the result, and sends nothing again.
        return redirect(f"{ROUTE}/results/{generation.id}?mode={portal.mode}")
    result = await result_of(portal, caller, generation)
    return portal.page(
        "playground_result.html", title="Result", crumbs=ABOVE, result=result, key=""
    )


def _refuse(view: View, error: GatewayError) -> None:
    note_error(error)
    view.refusal = error
    if error.param is not None:
        view.errors[error.param] = error.message


# Events


def _events(events: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream", headers=EVENT_HEADERS)


async def _only(event: bytes) -> AsyncIterator[bytes]:
    yield event


async def _told(
    portal: Portal, caller: Caller, progress: AsyncIterator[PartialImage | Generation | None]
) -> AsyncIterator[bytes]:
    """Tell the progress of a purchase; the last event is the result or the refusal."""
    yield KEEP_ALIVE
    made = None
    try:
        async for event in progress:
            if event is None:
                yield KEEP_ALIVE
            elif isinstance(event, Generation):
                made = event
            else:
                source = f"data:image/{event.output_format or 'png'};base64,{event.base64}"
                yield _event("partial", index=event.index, source=source)
    except GatewayError as error:
        note_error(error)
        yield _refusal_event(portal, error)
    if made is not None:
        # Outside of the `try`: after a purchase nothing may be told as its refusal.
        yield await _result_event(portal, caller, made)


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(fields))


async def _result_event(portal: Portal, caller: Caller, generation: Generation) -> bytes:
    result = await result_of(portal, caller, generation)
    html = portal.fragment(TEMPLATE, "result", result=result)
    return _event("result", html=html, key=drafts.new_key())


def _refusal_event(portal: Portal, error: GatewayError) -> bytes:
    html = portal.fragment(
        TEMPLATE,
        "refusal",
        refusal=error,
        advice=advise(error),
        request_id=current().request_id,
    )
    return _event("refused", html=html, param=error.param or "")


# The page


async def _with_usual_mode(portal: Portal) -> Portal:
    """Begin in test mode where no mode was chosen and no live call would find a key."""
    if portal.was_chosen or False not in portal.viewer.modes or not portal.livemode:
        return portal
    keys = await _providers_with_key(portal, await portal.caller())
    return portal if keys else portal.in_mode(livemode=False)


async def _providers_with_key(portal: Portal, caller: Caller) -> frozenset[str]:
    settings = portal.gateway.settings
    house = {*settings.house_keys, *portal.gateway.core.catalog.hosts}
    if settings.legacy_base_url is not None:
        house.add(LEGACY)
    async with portal.reading(Permission.IMAGES_MAKE) as session:
        own = await credentials.list_credentials(session, caller.tenant_id)
    return frozenset(house | {one.provider for one in own if one.user_id in {None, caller.user_id}})


async def _page(portal: Portal, caller: Caller, view: View) -> Response:
    keys = await _providers_with_key(portal, caller) if portal.livemode else frozenset()
    catalog = portal.gateway.core.catalog
    shown = []
    for model in catalog.available(caller):
        serving = catalog.serving(model, livemode=portal.livemode)
        note = "" if serving.id == model.id else f"served by {serving.id}"
        if portal.livemode and serving.provider not in keys:
            note = "no credential"
        shown.append(ShownModel(model.id, serving.provider, note))
    serving = catalog.serving(view.draft.model, livemode=portal.livemode)
    lacks_key = portal.livemode and serving.provider not in keys
    error = view.refusal
    return portal.page(
        TEMPLATE,
        title="Playground",
        lead="Live: images are made by the provider and cost money."
        if portal.livemode
        else "Test: the sandbox draws, nothing is charged. Costs are those of the real model.",
        status=200 if error is None else error.status,
        crumbs=(),
        flash=None,
        models=shown,
        lacks_key=serving.provider if lacks_key else "",
        **_parts(portal, view),
        refusal=error,
        advice=None if error is None else advise(error),
        request_id=current().request_id,
        notices=view.notices,
    )


def _parts(portal: Portal, view: View) -> dict[str, object]:
    """The values of the parts of the page that are also rendered alone."""
    draft = view.draft
    call = Call(draft.operation, draft.body, view.images, view.has_mask)
    chosen = [(one.value, OPERATION_LABELS[one]) for one in operations_of(draft.model)]
    return {
        "draft": draft,
        "controls": controls_of(draft.model, draft.operation, draft.values),
        "operations": chosen,
        "hosted": show_images(portal.gateway, view.hosted),
        "errors": view.errors,
        "quote_nano": view.quote_nano,
        "served_model": view.served_model,
        "quote_error": view.quote_error,
        "snippets": snippets_of(call, portal.gateway.settings.public_url.rstrip("/")),
        "result": None,
    }
