"""Commands for keys at rest: the master key, data keys, and the gateway's own secrets."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.amounts import parse_duration
from gateway.cli.output import JsonOption, console, errors, invoker, print_json, read, run, show
from gateway.config import Settings
from gateway.core import Core, Reader
from gateway.db.audit import Action, record
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.tenancy import credentials
from gateway.vault import gateway_secrets, key_status
from gateway.vault.key_status import KeyStatus
from gateway.vault.rotation import (
    ROTATION_LOCK,
    RotationResult,
    retire_data_keys,
    rewrap_all,
    rotate_data_keys,
    used_master_key_ids,
)
from gateway.vault.sealing import MasterKeys, new_master_key, write_key_file
from gateway.webhooks import sealing

RESEALERS = (credentials.reseal, sealing.reseal, sealing.reseal_house)
master_key = typer.Typer(
    help="Keys at rest: the master key and the keys that it wraps.", no_args_is_help=True
)


class Rolled(StrEnum):
    """A secret that `roll` creates a new version of."""

    PEPPER = "pepper"
    LINK_KEY = "link-key"


@master_key.command("rotate")
def rotate_master_key(
    prune: Annotated[
        bool, typer.Option("--prune", help="Afterwards remove keys that are no longer used.")
    ] = False,
    data_keys: Annotated[
        bool,
        typer.Option("--data-keys", help="Replace the data keys instead of re-wrapping them."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Wrap every data key with a new master key while the gateway serves.

    With a key file: adds a new key to it and re-wraps; run again with --prune after every server
    has loaded it (a minute) to remove old keys. With GATEWAY_MASTER_KEY: set it to `new,old` on
    every server first, then run this, then remove the old one.

    With --data-keys: gives every tenant a new data key and re-encrypts its provider keys and
    webhook secrets. If interrupted, the next run resumes it.
    """
    if data_keys and prune:
        raise typer.BadParameter(
            "--data-keys and --prune cannot be combined; run them one after the other"
        )
    if data_keys:
        _rotate_data_keys(as_json=as_json)
        return

    async def work(core: Core) -> dict[str, object]:
        # One rotation at a time: two would overwrite each other's keys in the file.
        async with core.database.exclusive(ROTATION_LOCK):
            return await _rotate(core, prune=prune)

    result = run(work)
    if as_json:
        print_json(result)
    else:
        console.print(
            f"Master key {result['master_key']} wraps everything "
            f"({result['rewrapped']} re-wrapped)."
        )
        if result["removed"]:
            console.print(f"Removed: {result['removed']}")


@master_key.command("roll")
def roll_secret(
    what: Annotated[Rolled, typer.Argument(help="pepper (of API keys) or link-key (of images).")],
    links_end_now: Annotated[
        bool, typer.Option("--links-end-now", help="After a leak: invalidate old links now.")
    ] = False,
    links_valid_for: Annotated[
        str | None,
        typer.Option(help="Validity of old links. Default: GATEWAY_IMAGE_TTL_SECONDS."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a new pepper or link key while the gateway serves.

    Each API key moves to the new pepper at its next use; `status` counts those still on the old
    one, and `retire-pepper` ends it. New links are signed with the new key from a minute and a half
    later; the old one is accepted until the longest link has expired.
    """
    if what is Rolled.PEPPER and (links_end_now or links_valid_for):
        raise typer.BadParameter("the --links-… options require link-key")
    lifetime = None if links_valid_for is None else parse_duration(links_valid_for)

    async def work(core: Core) -> dict[str, object]:
        async with (
            core.database.exclusive(ROTATION_LOCK),
            core.database.operator(by=invoker()) as session,
        ):
            if what is Rolled.PEPPER:
                version = await gateway_secrets.roll_pepper(session, core.vault)
                return {"secret": what.value, "version": version, "used_from": datetime.now(UTC)}
            longest = lifetime or timedelta(seconds=core.settings.image_ttl_seconds)
            version, used_from = await gateway_secrets.roll_link_key(
                session, core.vault, lifetime=None if links_end_now else longest
            )
            return {"secret": what.value, "version": version, "used_from": used_from}

    result = run(work)
    if as_json:
        print_json(result)
    else:
        console.print(f"{what.value} version {result['version']} is created.")


@master_key.command("retire-pepper")
def retire_pepper(
    end_keys: Annotated[
        bool, typer.Option("--end-keys", help="Revoke the keys that are still on an old pepper.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove every pepper but the newest. Keys not used since the roll must be revoked.

    A day after the roll the gateway does this itself, once no usable key needs an old pepper.
    """

    async def work(core: Core) -> dict[str, object]:
        async with (
            core.database.exclusive(ROTATION_LOCK),
            core.database.operator(by=invoker()) as session,
        ):
            left = await key_status.count_on_old_peppers(session, core.pepper.version)
            if left and not end_keys:
                raise InvalidRequest(
                    f"{left} usable keys have not been used since the pepper was rolled. Wait "
                    "until they are used, or revoke them with --end-keys."
                )
            ended = await key_status.end_keys_on_old_peppers(session, core.pepper.version)
            retired = await gateway_secrets.retire_peppers(session, core.vault, ended_keys=ended)
            return {"retired": retired, "ended_keys": ended}

    result = run(work)
    if as_json:
        print_json(result)
    else:
        console.print(f"Retired: pepper {result['retired']}. Keys revoked: {result['ended_keys']}.")


@master_key.command("status")
def show_status(as_json: JsonOption = False) -> None:
    """Show the versions of all keys, their ages, and the objects that still need an old one."""

    async def work(reader: Reader) -> list[KeyStatus]:
        configured = _configured(reader.settings).ids
        async with reader.database.operator() as session:
            return await key_status.read_status(session, configured)

    found = read(work)
    show(
        [
            {
                "key": status.name,
                "version": status.version,
                "age_days": status.age_days,
                "state": status.state,
                "needed_by": status.needed_by,
            }
            for status in found
        ],
        as_json=as_json,
        right=("age_days", "needed_by"),
    )


def _configured(settings: Settings) -> MasterKeys:
    if settings.master_key is not None:
        return MasterKeys(settings.master_key.get_secret_value(), None)
    return MasterKeys(None, settings.resolved_master_key_file)


def _rotate_data_keys(*, as_json: bool) -> None:
    async def work(core: Core) -> RotationResult:
        async with core.database.exclusive(ROTATION_LOCK):
            with errors.status("Replacing data keys …"):
                done = await rotate_data_keys(core.database, core.vault, RESEALERS)
            async with core.database.operator(by=invoker()) as session:
                await retire_data_keys(session)
                await record(
                    session,
                    Action.DATA_KEYS_ROTATED,
                    tenant_id=None,
                    object_id="data_keys",
                    after={
                        "tenants": done.tenants,
                        "secrets": done.secrets,
                        "unreadable": len(done.unreadable),
                        "resumed": done.resumed,
                    },
                )
            return done

    done = run(work)
    if as_json:
        print_json(done)
    else:
        console.print(
            f"{'Resumed. ' if done.resumed else ''}{done.tenants} tenants have a new data key; "
            f"{done.secrets} secrets are re-encrypted. Old data keys are deleted in five minutes."
        )
    if done.unreadable:
        errors.print(
            f"{len(done.unreadable)} secrets cannot be decrypted and are unchanged; store them "
            f"again: {', '.join(str(one) for one in done.unreadable[:10])}"
        )
        raise typer.Exit(1)


async def _rotate(core: Core, *, prune: bool) -> dict[str, object]:
    keys = core.vault.master_keys
    keys.wrapping()  # read the file again, in case another rotation has changed it
    removed: list[str] = []
    if prune:
        removed = await _prune(core, keys)
    elif keys.path is not None:
        _add_key(keys, keys.path)
    with errors.status("Re-wrapping data keys …"):
        count = await rewrap_all(core.database, keys)
    done = {"rewrapped": count, "removed": removed}
    key_id = keys.wrapping()[0]
    async with core.database.operator(by=invoker()) as session:
        await record(
            session, Action.MASTER_KEY_ROTATED, tenant_id=None, object_id=key_id, after=done
        )
    return {"master_key": key_id, **done}


def _add_key(keys: MasterKeys, path: Path) -> None:
    write_key_file(path, [new_master_key(), *(keys.opening(key_id) for key_id in keys.ids)])
    keys.wrapping()


async def _prune(core: Core, keys: MasterKeys) -> list[str]:
    if keys.path is None:
        raise ConfigurationError(
            "--prune edits a key file; with GATEWAY_MASTER_KEY, remove the old key yourself."
        )
    used = await used_master_key_ids(core.database) | {keys.wrapping()[0]}
    removed = [key_id for key_id in keys.ids if key_id not in used]
    write_key_file(keys.path, [keys.opening(key_id) for key_id in keys.ids if key_id in used])
    return removed
