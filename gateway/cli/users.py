"""Commands for users: the persons and applications of a tenant."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal
from uuid import UUID

import typer

from gateway.cli.accounts import TenantOption
from gateway.cli.output import JsonOption, confirm, console, invoker, print_json, read, run, show
from gateway.core import Core, Reader
from gateway.db.engine import TenantSession
from gateway.tenancy import erasure, lookups
from gateway.tenancy import users as tenancy
from gateway.tenancy.tenants import keep_living
from gateway.tenancy.users import User

users = typer.Typer(help="Persons and applications of a tenant.", no_args_is_help=True)
SHOWN_AT_MOST = 10_000

UserArgument = Annotated[
    str, typer.Argument(metavar="USER", help="Name, id, or the id's last four characters.")
]


@users.command("list")
def list_users(tenant: TenantOption, as_json: JsonOption = False) -> None:
    """List the users of a tenant, newest first."""

    async def work(reader: Reader) -> list[User]:
        async with reader.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
            page = await tenancy.list_users(TenantSession(session), owner.id, limit=SHOWN_AT_MOST)
        return list(page.items)

    found = read(work)
    if as_json:
        print_json(found)
    else:
        show(
            [_row(user) for user in found],
            as_json=False,
            empty="No users yet: `gateway keys create --user NAME` creates one.",
        )


@users.command("show")
def show_user(user: UserArgument, tenant: TenantOption, as_json: JsonOption = False) -> None:
    """Show one user."""
    _show(_find(user, tenant), as_json=as_json)


@users.command("disable")
def disable_user(user: UserArgument, tenant: TenantOption, as_json: JsonOption = False) -> None:
    """Disable a user: all keys and tokens of the user are refused from now on."""
    _set_status(user, tenant, "disabled", as_json=as_json)


@users.command("enable")
def enable_user(user: UserArgument, tenant: TenantOption, as_json: JsonOption = False) -> None:
    """Enable a disabled user: keys and tokens work again."""
    _set_status(user, tenant, "active", as_json=as_json)


@users.command("delete")
def delete_user(
    user: UserArgument,
    tenant: TenantOption,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a user permanently: keys, provider keys, images, prompts and name; costs are kept."""
    if not yes:
        found = _find(user, tenant)
        confirm(
            f"User {found.name} and all images of this user are deleted permanently.", found.name
        )
    _show(_change(user, tenant, erasure.delete_user), as_json=as_json)


def _set_status(
    user: str, tenant: str, status: Literal["active", "disabled"], *, as_json: bool
) -> None:
    async def change(session: TenantSession, tenant_id: UUID, user_id: UUID) -> User:
        return await tenancy.change(session, tenant_id, user_id, status=status)

    _show(_change(user, tenant, change), as_json=as_json)


def _find(user: str, tenant: str) -> User:
    async def work(reader: Reader) -> User:
        async with reader.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
            found = await lookups.find_user(session, owner.id, user)
            return await tenancy.get(TenantSession(session), owner.id, found.id)

    return read(work)


def _change(
    user: str, tenant: str, change: Callable[[TenantSession, UUID, UUID], Awaitable[User]]
) -> User:
    async def work(core: Core) -> User:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
        async with core.database.tenant(owner.id, by=invoker()) as tenant_session:
            await keep_living(tenant_session, owner.id)
            found = await lookups.find_user(tenant_session, owner.id, user)
            return await change(tenant_session, owner.id, found.id)

    return run(work)


def _show(user: User, *, as_json: bool) -> None:
    if as_json:
        print_json(user)
    else:
        console.print(f"User {user.name} ({user.id}) is {user.status}.")


def _row(user: User) -> dict[str, object]:
    return {
        "name": user.name,
        "id": user.id,
        "status": user.status,
        "created_at": user.created_at,
    }
