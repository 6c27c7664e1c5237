"""Commands that back up a gateway with the embedded Postgres, and restore it."""

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gateway.backup.archive import Manifest
from gateway.backup.making import make_backup, new_file
from gateway.backup.restoring import restore_backup
from gateway.cli.output import JsonOption, errors, guarded, print_json
from gateway.config import Settings, load_settings
from gateway.errors import ConfigurationError

STREAM = "-"
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for a pipe.")]


def backup(file: FileArgument, as_json: JsonOption = False) -> None:
    """Write database, images and master key to one file, while the gateway serves.

    The file opens everything that the gateway has: keep it as a secret.
    """

    async def work(settings: Settings) -> Manifest:
        if file != STREAM:
            with new_file(Path(file)) as out:
                return await make_backup(settings, out)
        if sys.stdout.isatty():
            raise ConfigurationError("A backup is not written to a terminal. Name a file.")
        return await make_backup(settings, sys.stdout.buffer)

    made = guarded(lambda: asyncio.run(work(load_settings())))
    _show(made, "Backed up", as_json=as_json and file != STREAM)


def restore(file: FileArgument, as_json: JsonOption = False) -> None:
    """Restore a backup into an empty data directory, and migrate it to this release."""

    async def work(settings: Settings) -> Manifest:
        if file == STREAM:
            return await restore_backup(settings, sys.stdin.buffer)
        try:
            source = Path(file).open("rb")  # noqa: ASYNC230, SIM115 - before anything else runs
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from error
        with source:
            return await restore_backup(settings, source)

    restored = guarded(lambda: asyncio.run(work(load_settings())))
    _show(restored, "Restored", as_json=as_json)


def _show(manifest: Manifest, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(manifest))
        return
    # To standard error: standard output may be the backup.
    errors.print(
        f"{done}: {manifest.ledger_entries} ledger entries and {manifest.images} images "
        f"({manifest.image_bytes / 1_000_000:.1f} MB), as of {manifest.made_at}."
    )
    if manifest.missing_images:
        errors.print(f"{manifest.missing_images} images were deleted meanwhile.")
    if manifest.are_images_elsewhere:
        errors.print("Images are in S3: they are not in the backup (docs/backup.md).")
    if manifest.master_key_digest is None:
        errors.print("The master key is in GATEWAY_MASTER_KEY: it is not in the backup.")
