"""Make a backup while the gateway serves."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import asyncpg

from gateway import __version__
from gateway.backup.archive import DATABASE, FORMAT, MASTER_KEY, BackupWriter, Manifest
from gateway.config import Settings
from gateway.db.embedded import DATABASE_NAME, EmbeddedPostgres, has_cluster
from gateway.errors import ConfigurationError
from gateway.vault.rotation import ROTATION_LOCK

_STORED = "SELECT path FROM image WHERE deleted_at IS NULL ORDER BY path"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One state of the database, as pg_dump can read it too."""

    name: str
    made_at: datetime
    revision: str
    ledger_entries: int


async def make_backup(settings: Settings, out: IO[bytes]) -> Manifest:
    """Write a backup of database, images and master key; the gateway may serve meanwhile.

    The database is that of one moment. Images that were made later are left out, and those that
    were deleted since are counted.

    Raises:
        ConfigurationError: there is no data, or it is not in the embedded Postgres.
        OSError: `out` or the disk does not take it.
    """
    if settings.database_url is not None:
        raise ConfigurationError(
            "This gateway uses the database of GATEWAY_DATABASE_URL. Back it up with its own "
            "means: point-in-time recovery, or pg_dump (docs/backup.md)."
        )
    if not has_cluster(settings.data_dir):
        raise ConfigurationError(
            f"No gateway data in {settings.data_dir}. Set another location with GATEWAY_DATA_DIR."
        )
    postgres = EmbeddedPostgres(settings.data_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=settings.data_dir) as folder:
            return await _write(settings, postgres, Path(folder), BackupWriter(out))
    finally:
        await postgres.close()


async def _write(
    settings: Settings, postgres: EmbeddedPostgres, folder: Path, writer: BackupWriter
) -> Manifest:
    dump, paths = folder / DATABASE, folder / "images"
    key_digest = None
    url = postgres.owner_url().set(drivername="postgresql")
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        # A key that is retired meanwhile would be missing in the file, but needed by the dump.
        await connection.execute("SELECT pg_advisory_lock($1)", ROTATION_LOCK)
        snapshot = await _dump(connection, postgres, dump, paths)
        if settings.master_key is None:
            key_digest = await asyncio.to_thread(
                _add, writer, MASTER_KEY, settings.resolved_master_key_file
            )
    finally:
        await connection.close()
    database_digest = await asyncio.to_thread(_add, writer, DATABASE, dump)
    store = local_store(settings)
    missing = 0 if store is None else await asyncio.to_thread(_add_images, writer, store, paths)
    manifest = Manifest(
        format=FORMAT,
        version=__version__,
        revision=snapshot.revision,
        made_at=snapshot.made_at.astimezone(UTC).isoformat(),
        ledger_entries=snapshot.ledger_entries,
        images=writer.image_count,
        image_bytes=writer.image_bytes,
        missing_images=missing,
        database_digest=database_digest,
        images_digest=writer.images_digest,
        master_key_digest=key_digest,
        are_images_elsewhere=store is None,
    )
    writer.finish(manifest)
    return manifest


async def _dump(
    connection: asyncpg.Connection, postgres: EmbeddedPostgres, dump: Path, paths: Path
) -> _Snapshot:
    """Dump the database, and list the images of the same moment."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(
            "SELECT pg_export_snapshot() AS name, now() AS made_at, "
            "(SELECT version_num FROM alembic_version) AS revision, "
            "(SELECT count(*) FROM ledger) AS ledger_entries"
        )
        with paths.open("w") as out:
            async for image in connection.cursor(_STORED, prefetch=1000):
                out.write(f"{image['path']}\n")
        # While this transaction lasts, so that its snapshot exists.
        await asyncio.to_thread(
            postgres.run_program,
            "pg_dump",
            *("--format=custom", f"--snapshot={row['name']}", f"--dbname={DATABASE_NAME}"),
            output=dump,
        )
    return _Snapshot(**dict(row))


def _add(writer: BackupWriter, name: str, path: Path) -> str:
    with path.open("rb") as content:
        return writer.add(name, content, os.fstat(content.fileno()).st_size)


def _add_images(writer: BackupWriter, store: Path, paths: Path) -> int:
    """Add the listed images; return the number of those that are gone."""
    missing = 0
    with paths.open() as listed:
        for line in listed:
            path = line.removesuffix("\n")
            try:
                content = (store / path).open("rb")
            except FileNotFoundError:
                missing += 1
                continue
            with content:
                writer.add_image(path, content, os.fstat(content.fileno()).st_size)
    return missing


def local_store(settings: Settings) -> Path | None:
    """The folder of images; None where they are in S3."""
    parts = urlsplit(settings.image_storage_url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name once it is complete, readable by its owner alone.

    Raises:
        ConfigurationError: the file exists, or cannot be written.
    """
    if path.exists():
        raise ConfigurationError(f"{path} exists. Name another file, or remove it.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
