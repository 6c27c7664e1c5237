"""A tenant's users: the persons and applications that own keys, budgets and images."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.console import forms
from gateway.console.dependencies import FormDep, redirect
from gateway.console.forms import UNTOUCHED, FormState, typed
from gateway.console.portal import ChangerPortal, Portal, ReaderPortal
from gateway.console.render import Crumb
from gateway.console.tenant_forms import (
    PAGE_SIZE,
    REFUSALS,
    ObjectId,
    administrator,
    flash_of,
    state_of,
)
from gateway.errors import InvalidRequest
from gateway.identity.viewers import Permission
from gateway.tenancy import self_service, users
from gateway.tenancy.users import UserChanges

PATH = "/console/users"
DONE = {
    "created": "The user was created.",
    "renamed": "The user was renamed.",
    "disabled": "The user was disabled: keys and tokens of this user are refused.",
    "active": "The user was enabled.",
    "deleted": "The user was deleted, with images, prompts and credentials.",
}
STATUSES: tuple[Literal["active"], Literal["disabled"]] = ("active", "disabled")
DELETE = "delete"
"""The word that must be typed to delete a user."""

router = APIRouter()


@router.get(PATH)
async def list_users(
    portal: ReaderPortal, after: Annotated[UUID | None, Query()] = None, done: str = ""
) -> Response:
    """List users, newest first, with the form of a new one."""
    return await _list_page(portal, after=after, done=done)


@router.post(PATH)
async def create_user(portal: ChangerPortal, form: FormDep) -> Response:
    """Create a user."""
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            made = await users.create_user(session, portal.tenant_id, typed(form, "name"))
    except REFUSALS as error:
        return await _list_page(portal, state_of("user", form, error))
    return redirect(f"{PATH}/{made.id}?done=created")


@router.get(PATH + "/{object_id}")
async def show_user(portal: ReaderPortal, object_id: ObjectId, done: str = "") -> Response:
    """Show one user, with the forms that change them."""
    return await _user_page(portal, object_id, done=done)


@router.post(PATH + "/{object_id}/rename")
async def rename_user(portal: ChangerPortal, object_id: ObjectId, form: FormDep) -> Response:
    """Rename a user."""
    changes = UserChanges(name=typed(form, "name"))
    return await _change(portal, object_id, form, changes, name="rename", done="renamed")


@router.post(PATH + "/{object_id}/status")
async def set_status(portal: ChangerPortal, object_id: ObjectId, form: FormDep) -> Response:
    """Disable or enable a user."""
    asked = forms.one_of(form, "status", STATUSES)
    for status in STATUSES:
        if status == asked:
            changes = UserChanges(status=status)
    return await _change(portal, object_id, form, changes, name="status", done=asked)


@router.post(PATH + "/{object_id}/delete")
async def delete_user(portal: ChangerPortal, object_id: ObjectId, form: FormDep) -> Response:
    """Delete a user for ever."""
    caller = await administrator(portal)
    try:
        if typed(form, "confirm") != DELETE:
            raise InvalidRequest(f"Type {DELETE} to delete the user.", param="confirm")
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await self_service.delete_user(session, caller, object_id)
    except REFUSALS as error:
        return await _user_page(portal, object_id, state_of("delete", form, error))
    return redirect(f"{PATH}?done=deleted")


async def _change(
    portal: Portal,
    user_id: UUID,
    form: FormDep,
    changes: UserChanges,
    *,
    name: str,
    done: str,
) -> Response:
    caller = await administrator(portal)
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await self_service.change_user(session, caller, user_id, changes)
    except REFUSALS as error:
        return await _user_page(portal, user_id, state_of(name, form, error))
    return redirect(f"{PATH}/{user_id}?done={done}")


async def _list_page(
    portal: Portal, state: FormState = UNTOUCHED, *, after: UUID | None = None, done: str = ""
) -> Response:
    async with portal.reading(Permission.TENANT_READ) as session:
        page = await users.list_users(session, portal.tenant_id, limit=PAGE_SIZE, after=after)
    return portal.page(
        "tenant/users.html",
        title="Users",
        lead="Persons and applications of yours that have keys, budgets, images and credentials "
        "of their own. They are the same in live and test mode.",
        status=state.status,
        flash=flash_of(DONE, done),
        state=state,
        users=page.items,
        newest=PATH if after else "",
        older=f"{PATH}?after={page.items[-1].id}" if page.has_more else "",
    )


async def _user_page(
    portal: Portal, user_id: UUID, state: FormState = UNTOUCHED, *, done: str = ""
) -> Response:
    """Render the page of a user.

    Raises:
        NotFound: the tenant has no such user.
    """
    async with portal.reading(Permission.TENANT_READ) as session:
        user = await users.get(session, portal.tenant_id, user_id)
    return portal.page(
        "tenant/user.html",
        title=user.name,
        crumbs=[Crumb("Users", PATH)],
        status=state.status,
        flash=flash_of(DONE, done),
        state=state,
        user=user,
        word=DELETE,
        is_self=user.id == portal.viewer.user_id,
    )
