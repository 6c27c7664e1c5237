"""Sealing of secrets: AES-256-GCM, a data key per tenant, wrapped by the master key.

Associated data binds every ciphertext to its place, so that one moved to another row, tenant or
version does not open.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.key_tables import SealedSecretRow
from gateway.db.tables import DataKeyRow
from gateway.domain import SecretText
from gateway.errors import ConfigurationError

KEY_BYTES = 32
NONCE_BYTES = 12
REWRAP_BATCH = 500


class SealBroken(Exception):
    """A ciphertext that does not belong where it stands, or was changed."""


def seal(key: bytes, plaintext: bytes, *place: object) -> bytes:
    """Encrypt `plaintext` for one place; returns nonce and ciphertext."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, _associated_data(place))


def unseal(key: bytes, sealed: bytes, *place: object) -> bytes:
    """Decrypt what was sealed for this very place.

    Raises:
        SealBroken: other place, other key, or changed bytes.
    """
    try:
        return AESGCM(key).decrypt(
            sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _associated_data(place)
        )
    except (InvalidTag, ValueError):
        raise SealBroken(" / ".join(str(part) for part in place)) from None


def _associated_data(place: Sequence[object]) -> bytes:
    return "\x1f".join(str(part) for part in place).encode()


class MasterKeys:
    """The keys that wrap all others: the first wraps, every one opens.

    They come from `GATEWAY_MASTER_KEY` (comma-separated while rolling) or from a file with one
    key a line, which is read again when it has changed.
    """

    def __init__(self, text: str | None, path: Path | None) -> None:
        self._path = path
        self._modified_ns = 0
        self._keys: dict[str, bytes] = {}
        if text is not None:
            self._keys = _parse_keys(text.split(","), "GATEWAY_MASTER_KEY")
        else:
            self._read_file()

    @classmethod
    def from_new_file(cls, path: Path) -> "MasterKeys":
        """Open the key file; write one with a new random key where there is none."""
        if not path.exists():
            write_key_file(path, [new_master_key()])
        return cls(None, path)

    def wrapping(self) -> tuple[str, bytes]:
        """Id and bytes of the key that wraps from now on."""
        self._read_file()
        return next(iter(self._keys.items()))

    def opening(self, key_id: str) -> bytes:
        """The key with this id.

        Raises:
            ConfigurationError: it is not among the configured keys.
        """
        if key_id not in self._keys:
            self._read_file()
        if key_id not in self._keys:
            raise ConfigurationError(
                f"The database was sealed with master key {key_id}, which is not configured "
                f"(configured: {', '.join(self._keys)}). Restore it in GATEWAY_MASTER_KEY or its "
                "file; it may stand beside a newer one."
            )
        return self._keys[key_id]

    @property
    def path(self) -> Path | None:
        """The file the keys come from, if any."""
        return self._path

    @property
    def ids(self) -> tuple[str, ...]:
        """Every configured key's id, the wrapping one first."""
        return tuple(self._keys)

    def _read_file(self) -> None:
        if self._path is None:
            return
        try:
            modified_ns = self._path.stat().st_mtime_ns
            if modified_ns == self._modified_ns:
                return
            lines = self._path.read_text().split()
        except OSError as error:
            raise ConfigurationError(
                f"The master key file {self._path} cannot be read: {error.strerror}"
            ) from error
        self._keys = _parse_keys(lines, str(self._path))
        self._modified_ns = modified_ns


def new_master_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_BYTES)


def master_key_id(key: bytes) -> str:
    """A short name of a key that says nothing about it."""
    return hashlib.sha256(b"image-gateway master key id" + key).hexdigest()[:12]


def write_key_file(path: Path, keys: Sequence[bytes]) -> None:
    """Write the keys for their owner alone, all or nothing."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(base64.urlsafe_b64encode(key).decode() + "\n" for key in keys)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    # The rename too must be on disk before anything is wrapped with the new key.
    if os.name == "posix":
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def _parse_keys(texts: Sequence[str], source: str) -> dict[str, bytes]:
    keys = {}
    for text in texts:
        try:
            standard = text.strip().replace("-", "+").replace("_", "/")
            key = base64.b64decode(standard, validate=True)
        except (ValueError, binascii.Error):
            key = b""
        if len(key) != KEY_BYTES or len(set(key)) < KEY_BYTES // 4:
            raise ConfigurationError(
                f"{source} must hold 32 random bytes in base64. Make one with\n"
                "    python3 -c 'import base64,os;"
                "print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"
            )
        keys[master_key_id(key)] = key
    if not keys:
        raise ConfigurationError(f"{source} holds no key")
    return keys


class Vault:
    """Opens and seals; keeps unwrapped data keys in memory."""

    def __init__(self, master_keys: MasterKeys) -> None:
        self.master_keys = master_keys
        self._data_keys: dict[tuple[UUID, int], bytes] = {}

    async def gateway_secret(self, session: OperatorSession, name: str) -> bytes:
        """One of the gateway's own secrets (32 bytes), made on first use."""
        key_id, key = self.master_keys.wrapping()
        sealed = seal(key, os.urandom(KEY_BYTES), "sealed_secret", name)
        await session.execute(
            insert(SealedSecretRow)
            .values(name=name, sealed=sealed, master_key_id=key_id)
            .on_conflict_do_nothing()
        )
        row = (
            await session.execute(
                select(SealedSecretRow.sealed, SealedSecretRow.master_key_id).where(
                    SealedSecretRow.name == name
                )
            )
        ).one()
        return unseal(
            self.master_keys.opening(row.master_key_id), row.sealed, "sealed_secret", name
        )

    async def seal_for_tenant(
        self, session: TenantSession, tenant_id: UUID, secret: SecretText, *place: object
    ) -> tuple[int, bytes]:
        """Seal a tenant's secret; returns the data key's version and the ciphertext."""
        return await self.seal_bytes_for_tenant(
            session, tenant_id, secret.reveal().encode(), *place
        )

    async def seal_bytes_for_tenant(
        self, session: TenantSession, tenant_id: UUID, content: bytes, *place: object
    ) -> tuple[int, bytes]:
        """Seal a tenant's bytes; returns the data key's version and the ciphertext."""
        version = 1
        # Not kept in memory: this transaction may yet be rolled back, and the key with it.
        key = await self._data_key(session, tenant_id, version)
        return version, seal(key, content, tenant_id, *place)

    async def open_for_tenant(
        self, database: Database, tenant_id: UUID, version: int, sealed: bytes, *place: object
    ) -> SecretText:
        """Open a tenant's secret; asks Postgres for the data key only the first time.

        Raises:
            SealBroken: the ciphertext stands in another place than it was sealed for.
        """
        content = await self.open_bytes_for_tenant(database, tenant_id, version, sealed, *place)
        return SecretText(content.decode())

    async def open_bytes_for_tenant(
        self, database: Database, tenant_id: UUID, version: int, sealed: bytes, *place: object
    ) -> bytes:
        """Open a tenant's bytes; asks Postgres for the data key only the first time.

        Raises:
            SealBroken: the ciphertext stands in another place than it was sealed for.
        """
        key = self._data_keys.get((tenant_id, version))
        if key is None:
            async with database.tenant(tenant_id) as session:
                key = await self._data_key(session, tenant_id, version)
            self._data_keys[tenant_id, version] = key
        return unseal(key, sealed, tenant_id, *place)

    def forget(self, tenant_id: str | None) -> None:
        """Drop a tenant's opened data keys from memory; None: those of all."""
        for key in [key for key in self._data_keys if tenant_id in {None, str(key[0])}]:
            del self._data_keys[key]

    async def _data_key(self, session: TenantSession, tenant_id: UUID, version: int) -> bytes:
        key_id, master_key = self.master_keys.wrapping()
        wrapped = seal(master_key, os.urandom(KEY_BYTES), "data_key", tenant_id, version)
        await session.execute(
            insert(DataKeyRow)
            .values(tenant_id=tenant_id, version=version, wrapped=wrapped, master_key_id=key_id)
            .on_conflict_do_nothing()
        )
        row = (
            await session.execute(
                select(DataKeyRow.wrapped, DataKeyRow.master_key_id).where(
                    DataKeyRow.tenant_id == tenant_id, DataKeyRow.version == version
                )
            )
        ).one()
        return unseal(
            self.master_keys.opening(row.master_key_id),
            row.wrapped,
            "data_key",
            tenant_id,
            version,
        )


async def shred(session: OperatorSession, tenant_id: UUID) -> None:
    """Destroy a tenant's data keys: what was sealed with them can never be opened again."""
    await session.execute(delete(DataKeyRow).where(DataKeyRow.tenant_id == tenant_id))


async def rewrap_all(database: Database, master_keys: MasterKeys) -> int:
    """Wrap every data key and gateway secret with the first master key; returns how many.

    Works in small commits and leaves out what is done: it may be stopped and run again, with the
    gateway serving all the while.
    """
    done = 0
    while True:
        async with database.operator() as session:
            count = await _rewrap_batch(session, master_keys)
        done += count
        if count == 0:
            return done


async def _rewrap_batch(session: OperatorSession, master_keys: MasterKeys) -> int:
    new_id, new_key = master_keys.wrapping()
    secrets = await session.execute(
        select(SealedSecretRow.name, SealedSecretRow.sealed, SealedSecretRow.master_key_id)
        .where(SealedSecretRow.master_key_id != new_id)
        .with_for_update()
    )
    count = 0
    for name, sealed, old_id in secrets:
        place = ("sealed_secret", name)
        plain = unseal(master_keys.opening(old_id), sealed, *place)
        await session.execute(
            update(SealedSecretRow)
            .where(SealedSecretRow.name == name)
            .values(sealed=seal(new_key, plain, *place), master_key_id=new_id)
        )
        count += 1
    data_keys = await session.execute(
        select(
            DataKeyRow.tenant_id, DataKeyRow.version, DataKeyRow.wrapped, DataKeyRow.master_key_id
        )
        .where(DataKeyRow.master_key_id != new_id)
        .limit(REWRAP_BATCH)
        .with_for_update()
    )
    for tenant_id, version, wrapped, old_id in data_keys:
        plain = unseal(master_keys.opening(old_id), wrapped, "data_key", tenant_id, version)
        await session.execute(
            update(DataKeyRow)
            .where(DataKeyRow.tenant_id == tenant_id, DataKeyRow.version == version)
            .values(
                wrapped=seal(new_key, plain, "data_key", tenant_id, version), master_key_id=new_id
            )
        )
        count += 1
    return count


async def used_master_key_ids(database: Database) -> set[str]:
    """Which master keys still wrap something."""
    async with database.operator() as session:
        return await _used_ids(session)


async def _used_ids(session: OperatorSession) -> set[str]:
    secrets = await session.scalars(select(SealedSecretRow.master_key_id).distinct())
    data_keys = await session.scalars(select(DataKeyRow.master_key_id).distinct())
    return {*secrets, *data_keys}
