"""Commands for limits: requests and images per minute, and concurrent generations."""

from typing import Annotated, Any

import typer

from gateway.cli.accounts import TenantOption, UserOption, find_owner
from gateway.cli.output import (
    JsonOption,
    console,
    fields,
    invoker,
    print_json,
    read,
    refuse,
    run,
    show,
)
from gateway.core import Core, Reader
from gateway.db.engine import TenantSession
from gateway.domain import LimitKind
from gateway.tenancy import limit_rows, lookups
from gateway.tenancy.limit_rows import StoredLimit

limits = typer.Typer(help="Rate limits and concurrency limits.", no_args_is_help=True)

KeyOption = Annotated[
    str | None,
    typer.Option("--key", help="Only for this API key: id, name or last four characters."),
]
TestOption = Annotated[bool, typer.Option("--test", help="For test keys instead of live.")]
WORDS = {
    LimitKind.REQUESTS: "requests per minute",
    LimitKind.IMAGES: "images per minute",
    LimitKind.CONCURRENT: "concurrent generations",
}


@limits.command("set")
def set_limits(
    tenant: TenantOption,
    requests: Annotated[int | None, typer.Option(help="Requests per minute.", min=0)] = None,
    images: Annotated[
        int | None, typer.Option(help="Images per minute; each image of n counts.", min=0)
    ] = None,
    concurrent: Annotated[int | None, typer.Option(help="Concurrent generations.", min=0)] = None,
    key: KeyOption = None,
    user: UserOption = None,
    test: TestOption = False,
    as_json: JsonOption = False,
) -> None:
    """Limit a tenant, one of its users or one of its keys. 0 refuses every request."""
    given = {"requests": requests, "images": images, "concurrent": concurrent}
    values = {kind: value for kind, value in given.items() if value is not None}
    if not values:
        raise typer.BadParameter("give at least one of --requests, --images and --concurrent")

    async def work(core: Core) -> list[StoredLimit]:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
        async with core.database.tenant(owner.id, by=invoker()) as session:
            key_id, user_id = await find_owner(session, owner.id, key, user)
            return [
                await limit_rows.set_limit(
                    session,
                    owner.id,
                    kind=kind,
                    value=value,
                    livemode=not test,
                    api_key_id=key_id,
                    user_id=user_id,
                )
                for kind, value in values.items()
            ]

    made = run(work)
    if as_json:
        print_json([_row(limit) for limit in made])
        return
    for limit in made:
        console.print(
            f"The {limit.owner} may make {limit.value} {WORDS[limit.kind]} "
            f"({'live' if limit.livemode else 'test'}). It applies now."
        )


@limits.command("list")
def list_limits(tenant: TenantOption, as_json: JsonOption = False) -> None:
    """List the limits of a tenant, its users and its keys, and the defaults that apply."""

    async def work(core: Reader) -> tuple[list[StoredLimit], list[dict[str, object]]]:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
            found = await limit_rows.list_limits(TenantSession(session), owner.id)
        settings = core.settings
        defaults = zip(
            LimitKind,
            (
                settings.default_requests_per_minute,
                settings.default_images_per_minute,
                settings.default_concurrent_generations,
            ),
            strict=True,
        )
        own = {(one.kind, one.livemode) for one in found if one.owner == "tenant"}
        in_force: list[dict[str, object]] = [
            {"owner": "tenant", "livemode": livemode, "kind": kind, "value": value}
            for kind, value in defaults
            for livemode in (True, False)
            if value is not None and (kind, livemode) not in own
        ]
        return found, in_force

    found, defaults = read(work)
    rows = [{**_row(limit), "default": False} for limit in found]
    no_owner = dict.fromkeys(("key", "key_name", "user", "user_name"))
    rows += [{"id": None, **row, **no_owner, "default": True} for row in defaults]
    if as_json:
        print_json(rows)
        return
    show(
        [
            {
                "of": f"{row['owner']} {row['key_name'] or row['user_name'] or ''}".strip(),
                "id": row["key"] or row["user"],
                "mode": "live" if row["livemode"] else "test",
                "limit": row["value"],
                "kind": WORDS[LimitKind(str(row["kind"]))],
                "set": "default" if row["default"] else "for this owner",
            }
            for row in rows
        ],
        as_json=False,
        title="Limits",
        empty="No limits: only budgets limit this tenant.",
        right=("limit",),
    )


@limits.command("remove")
def remove_limits(
    tenant: TenantOption,
    kind: Annotated[
        LimitKind | None, typer.Option(help="Only this kind. Default: all of the owner.")
    ] = None,
    key: KeyOption = None,
    user: UserOption = None,
    test: TestOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove limits of a tenant, or of one of its users or keys."""

    async def work(core: Core) -> list[StoredLimit]:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
        async with core.database.tenant(owner.id, by=invoker()) as session:
            key_id, user_id = await find_owner(session, owner.id, key, user)
            removed = [
                limit
                for limit in await limit_rows.list_limits(session, owner.id)
                if (limit.api_key_id, limit.user_id) == (key_id, user_id)
                and (limit.livemode is not test or key is not None)
                and kind in {None, limit.kind}
            ]
            for limit in removed:
                await limit_rows.remove_limit(session, owner.id, limit.id)
        return removed

    removed = run(work)
    if not removed:
        refuse("There is no such limit. `gateway limits list` shows the existing ones.")
    if as_json:
        print_json([_row(limit) for limit in removed])
        return
    for limit in removed:
        console.print(f"Removed: {limit.value} {WORDS[limit.kind]} of the {limit.owner}.")


def _row(limit: StoredLimit) -> dict[str, Any]:
    return {
        **fields(limit, "id", "owner", "livemode", "kind", "value"),
        "key": limit.api_key_id,
        "key_name": limit.api_key_name,
        "user": limit.user_id,
        "user_name": limit.user_name,
    }
