"""The gallery of a tenant's portal: its stored images, one image, and deleting some."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.billing.usage import parse_moment
from gateway.console.dependencies import FormDep, redirect
from gateway.console.portal import ImagePortal, MakerPortal, Portal
from gateway.console.render import Crumb, Flash
from gateway.console.shown_images import find_in_any_mode, show_image, show_images
from gateway.db.engine import TenantSession
from gateway.domain import Caller, Operation
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.viewers import Permission
from gateway.library import history
from gateway.library.history import ImageFilter, ImagePage
from gateway.library.storage import is_image_id
from gateway.request_record import current
from gateway.tenancy.lookups import KeyScope, find_line, find_user

PATH = "/console/gallery"
DELETE = "/console/gallery/delete"
PAGE_SIZE = 48
"""The images of a page; also the most that are deleted at once."""
NO_IMAGES = ImagePage((), has_more=False)
ABOVE = (Crumb("Gallery", PATH),)
OPERATIONS = (
    ("", "Any"),
    (Operation.GENERATION.value, "Generation"),
    (Operation.EDIT.value, "Edit"),
    (Operation.VARIATION.value, "Variation"),
)

router = APIRouter()


class GalleryForm(BaseModel):
    """The filters, all in the address. An empty field is none."""

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)

    model: str = ""
    operation: str = ""
    user: str = ""
    key: str = ""
    start: str = ""
    end: str = ""
    after: str = ""
    mode: str = ""
    deleted: str = ""

    @property
    def is_filtered(self) -> bool:
        """Tell whether any filter is set."""
        return any((self.model, self.operation, self.user, self.key, self.start, self.end))

    def address(self, **changes: str) -> str:
        """Write the address of this form with some fields changed; empty ones are left out."""
        fields = self.model_dump(exclude={"deleted", "mode"}) | changes
        asked = {name: value for name, value in fields.items() if value}
        return f"{PATH}?{urlencode(asked)}" if asked else PATH


@dataclass(slots=True)
class _Chosen:
    """The filters as the core takes them, and the refused ones by the names of their fields."""

    since: datetime | None = None
    filter: ImageFilter = history.EVERY_IMAGE
    errors: dict[str, str] = field(default_factory=dict)


@router.get(PATH)
async def show_gallery(portal: ImagePortal, form: Annotated[GalleryForm, Query()]) -> Response:
    """List the stored images, newest first."""
    caller = await portal.caller(whole_tenant=True)
    async with portal.reading(Permission.IMAGES_READ, is_report=True) as session:
        chosen = await _choose(session, portal, caller, form)
        found = NO_IMAGES
        if not chosen.errors:
            found = await history.list_images(
                session,
                caller,
                limit=PAGE_SIZE,
                after=form.after or None,
                since=chosen.since,
                model=form.model or None,
                chosen=chosen.filter,
            )
    images = show_images(portal.gateway, found.images)
    models = sorted(portal.gateway.core.catalog.models)
    return portal.page(
        "gallery.html",
        title="Gallery",
        lead=_lead(portal, caller),
        status=400 if chosen.errors else 200,
        flash=_flash(form),
        form=form,
        errors=chosen.errors,
        images=images,
        models=[("", "Any"), *((name, name) for name in models)],
        operations=OPERATIONS,
        sees_users=caller.user_id is None and portal.viewer.may(Permission.TENANT_READ),
        older=form.address(after=found.images[-1].id) if found.has_more else "",
        newest=form.address(after="") if form.after else "",
    )


def _lead(portal: Portal, caller: Caller) -> str:
    whose = "Your images" if caller.user_id is not None else "All images"
    return f"{whose} of the {portal.mode} mode that are still stored, newest first."


def _flash(form: GalleryForm) -> Flash | None:
    if not form.deleted.isdecimal():
        return None
    number = int(form.deleted[:3])
    noun = "image was" if number == 1 else "images were"
    return Flash(f"{number} {noun} deleted permanently. Costs stay in the usage report.")


async def _choose(
    session: TenantSession, portal: Portal, caller: Caller, form: GalleryForm
) -> _Chosen:
    """Resolve names and dates; what is refused is told beside its field."""
    chosen = _Chosen()
    known = {value for value, _ in OPERATIONS}
    if form.operation not in known:
        chosen.errors["operation"] = "Choose one of the list."
    among = KeyScope(user_id=caller.user_id, livemode=caller.livemode)
    user_id = key_id = before = None
    try:
        if form.user:
            user_id = (await find_user(session, caller.tenant_id, form.user, among=among)).id
        if form.key:
            key_id = await find_line(session, caller.tenant_id, form.key, among=among)
        zone = portal.viewer.time_zone
        if form.start:
            chosen.since = parse_moment(form.start, "start", zone, is_end=False)
        if form.end:
            before = parse_moment(form.end, "end", zone, is_end=True)
    except (InvalidRequest, NotFound) as error:
        chosen.errors[error.param or "key"] = error.message
    chosen.filter = ImageFilter(
        user_id=user_id, key_id=key_id, operation=form.operation or None, before=before
    )
    return chosen


@router.get(PATH + "/{image_id}")
async def show_one(image_id: str, portal: ImagePortal) -> Response:
    """Show an image with all that is known of it, and with fresh links."""
    portal, image = await find_in_any_mode(portal, image_id)
    caller = await portal.caller(whole_tenant=True)
    async with portal.reading(Permission.IMAGES_READ) as session:
        siblings = await history.list_images(
            session,
            caller,
            limit=PAGE_SIZE,
            chosen=ImageFilter(generation_id=image.generation_id),
        )
    shown = show_image(portal.gateway, image)
    others = [one for one in siblings.images if one.id != image.id]
    return portal.page(
        "image.html",
        title="Image",
        crumbs=ABOVE,
        image=image,
        shown=shown,
        link_until=_link_until(shown.address),
        others=show_images(portal.gateway, others),
        model=portal.gateway.core.catalog.models.get(image.requested_model),
    )


def _link_until(address: str) -> datetime:
    """Read the expiry of a link from its address."""
    seconds = int(address.partition("exp=")[2].partition("&")[0])
    return datetime.fromtimestamp(seconds).astimezone()


@router.post(DELETE)
async def delete(portal: MakerPortal, form: FormDep) -> Response:
    """Ask before images are deleted, then delete them."""
    chosen = [name for name in form if is_image_id(name)][:PAGE_SIZE]
    if not chosen:
        raise InvalidRequest("No image was chosen. Tick the images to delete first.")
    caller = await portal.caller(whole_tenant=True)
    if form.get("confirmed") != "yes":
        return await _ask(portal, caller, chosen)
    number = 0
    for image_id in chosen:
        number += await _delete_one(portal, caller, image_id)
    return redirect(f"{PATH}?deleted={number}")


async def _ask(portal: Portal, caller: Caller, chosen: list[str]) -> Response:
    async with portal.reading(Permission.IMAGES_READ) as session:
        found = await history.find_images(session, caller, chosen)
    if not found:
        raise NotFound("These images are not stored any more.", code="image_not_found")
    number = len(found)
    return portal.page(
        "gallery_delete.html",
        title=f"Delete {number} image{'s' if number > 1 else ''}?",
        crumbs=ABOVE,
        images=show_images(portal.gateway, found),
    )


async def _delete_one(portal: Portal, caller: Caller, image_id: str) -> int:
    gateway, actor = portal.gateway, portal.viewer.actor(current().request_id)
    try:
        await history.delete_image(gateway.database, gateway.store, caller, image_id, by=actor)
    except NotFound:
        return 0  # it was deleted or has expired meanwhile
    return 1
