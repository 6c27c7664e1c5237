"""Restore a backup into an empty data directory."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import IO

from sqlalchemy import text

from gateway.backup.archive import DATABASE, MASTER_KEY, BackupReader, BackupRefused, Manifest
from gateway.backup.making import local_store
from gateway.config import Settings
from gateway.db.addresses import create_engine
from gateway.db.embedded import DATABASE_NAME, EmbeddedPostgres, prepare_data_dir
from gateway.db.migrate import ensure_database, migrate
from gateway.errors import ConfigurationError

ROLES_DATABASE = "roles_of_a_restore"
"""Migrated only so that the server has the roles to which the dump grants rights."""


async def restore_backup(settings: Settings, source: IO[bytes]) -> Manifest:
    """Restore database, images and master key; migrate to this release's schema.

    Everything is unpacked and checked beside its place first: a backup that is refused leaves the
    data directory as it was.

    Raises:
        ConfigurationError: the data directory is in use, or the gateway uses another database.
        BackupRefused: the file is no backup, or a damaged one.
        OSError: the disk does not take it.
    """
    if settings.database_url is not None:
        raise ConfigurationError(
            "GATEWAY_DATABASE_URL is set: a backup is restored into the embedded Postgres of an "
            "empty data directory. For another server see docs/backup.md."
        )
    prepare_data_dir(settings.data_dir)
    store = local_store(settings)
    targets = [settings.data_dir / "postgres", settings.resolved_master_key_file]
    targets += [] if store is None else [store]
    for target in targets:
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise ConfigurationError(
                f"{target} exists. Restore into another directory (GATEWAY_DATA_DIR), or move it "
                "away."
            )
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=settings.data_dir) as name:
        staging = Path(name)
        images = staging / "images"
        images.mkdir(mode=0o700)
        manifest = await asyncio.to_thread(BackupReader(source).unpack, staging, images)
        if settings.master_key is None and manifest.master_key_digest is None:
            raise BackupRefused(
                "The backup holds no master key: it was kept in GATEWAY_MASTER_KEY. Set it."
            )
        await _restore_database(staging)
        await asyncio.to_thread(_move_in, settings, staging, images, store)
    return manifest


async def _restore_database(staging: Path) -> None:
    postgres = EmbeddedPostgres(staging)
    try:
        maintenance = postgres.owner_url("postgres")
        await ensure_database(maintenance, ROLES_DATABASE)
        await migrate(postgres.owner_url(ROLES_DATABASE), login_role=True)
        await _drop(maintenance, ROLES_DATABASE)
        await ensure_database(maintenance, DATABASE_NAME)
        await asyncio.to_thread(
            postgres.run_program,
            "pg_restore",
            *("--exit-on-error", "--single-transaction", f"--dbname={DATABASE_NAME}"),
            source=staging / DATABASE,
        )
        await migrate(postgres.owner_url(), login_role=True)
    finally:
        await postgres.close()


async def _drop(maintenance_url: object, name: str) -> None:
    engine = create_engine(maintenance_url, role=None)  # type: ignore[arg-type]
    try:
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    finally:
        await engine.dispose()


def _move_in(settings: Settings, staging: Path, images: Path, store: Path | None) -> None:
    """Put everything in its place, the database last: with it the directory is in use."""
    if store is not None:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in images.iterdir():
            shutil.move(entry, store / entry.name)
    key = staging / MASTER_KEY
    if key.exists() and settings.master_key is None:
        key.replace(settings.resolved_master_key_file)
    (staging / "postgres").rename(settings.data_dir / "postgres")
