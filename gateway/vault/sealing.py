"""Envelope encryption of secrets: AES-256-GCM, one data key per tenant, wrapped by the master key.

Associated data binds every ciphertext to its place: moved to another row, tenant or version, it
does not open.
"""

import asyncio
import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from gateway.db.cache import Cache
from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.key_tables import SealedSecretRow
from gateway.db.tables import DataKeyRow
from gateway.domain import SecretText
from gateway.errors import ConfigurationError

KEY_BYTES = 32
NONCE_BYTES = 12
DATA_KEY_SECONDS = 300.0
"""Retention of an unwrapped data key in memory."""
DATA_KEY_LOAD_SECONDS = 10.0
MAX_DATA_KEYS = 100_000


class SealBroken(Exception):
    """A ciphertext that was moved from its place, or changed."""


def seal(key: bytes, plaintext: bytes, *place: object) -> bytes:
    """Encrypt `plaintext` for one place; return nonce and ciphertext."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, _associated_data(place))


def unseal(key: bytes, sealed: bytes, *place: object) -> bytes:
    """Decrypt a ciphertext sealed for this place.

    Raises:
        SealBroken: another place, another key, or changed bytes.
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
    """The keys that wrap all others: the first wraps, every one unwraps.

    They come from `GATEWAY_MASTER_KEY` (comma-separated while rolling) or from a file with one
    key per line, which is read again after a change.
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
        """Open the key file; create one with a random key if there is none.

        If several processes start at once, one creates the file and all open it.
        """
        if not path.exists():
            with suppress(FileExistsError):
                _write_key_file(path, [new_master_key()], place=os.link)
        return cls(None, path)

    def wrapping(self) -> tuple[str, bytes]:
        """Return the id and bytes of the wrapping key."""
        self._read_file()
        return next(iter(self._keys.items()))

    def opening(self, key_id: str) -> bytes:
        """Return the key with this id.

        Raises:
            ConfigurationError: it is not configured.
        """
        if key_id not in self._keys:
            self._read_file()
        if key_id not in self._keys:
            raise ConfigurationError(
                f"The database was sealed with master key {key_id}, which is not configured "
                f"(configured: {', '.join(self._keys)}). Restore it in GATEWAY_MASTER_KEY or its "
                "file; it can be listed after a newer one."
            )
        return self._keys[key_id]

    @property
    def path(self) -> Path | None:
        """The file of the keys, if any."""
        return self._path

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all configured keys, the wrapping one first."""
        return tuple(self._keys)

    def _read_file(self) -> None:
        if self._path is None:
            return
        try:
            modified_ns = self._path.stat().st_mtime_ns
            if modified_ns == self._modified_ns:
                return
            # Any byte is a character of this encoding: a binary key is refused below, by its form.
            lines = self._path.read_text(encoding="latin-1").split()
        except OSError as error:
            raise ConfigurationError(
                f"The master key file {self._path} cannot be read: {error.strerror}"
            ) from error
        self._keys = _parse_keys(lines, str(self._path))
        self._modified_ns = modified_ns


def new_master_key() -> bytes:
    """Generate 32 random bytes."""
    return os.urandom(KEY_BYTES)


def master_key_id(key: bytes) -> str:
    """Compute a short id of a key, which does not disclose the key."""
    return hashlib.sha256(b"image-gateway master key id" + key).hexdigest()[:12]


def write_key_file(path: Path, keys: Sequence[bytes]) -> None:
    """Write the key file atomically, readable by its owner only."""
    _write_key_file(path, keys, place=os.replace)


def _write_key_file(
    path: Path, keys: Sequence[bytes], *, place: Callable[[str, Path], None]
) -> None:
    """Write a temporary file and `place` it; `os.link` does not overwrite an existing one."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.writelines(base64.urlsafe_b64encode(key).decode() + "\n" for key in keys)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    # The directory entry must be on disk too before anything is wrapped with the new key.
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
                f"{source} must hold 32 random bytes in base64. Generate them with\n"
                "    python3 -c 'import base64,os;"
                "print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"
            )
        keys[master_key_id(key)] = key
    if not keys:
        raise ConfigurationError(f"{source} holds no key")
    return keys


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key in its stored form."""

    wrapped: bytes = field(repr=False)
    master_key_id: str


class DataKeyMissing(SealBroken):
    """A replaced data key: the ciphertext is stale, and the row holds a newer one."""


class Vault:
    """Sealing and opening, with unwrapped data keys cached in memory for a bounded time."""

    def __init__(
        self, master_keys: MasterKeys, *, data_key_seconds: float = DATA_KEY_SECONDS
    ) -> None:
        self.master_keys = master_keys
        self._data_key_seconds = data_key_seconds
        self.opened: Cache[tuple[UUID, int], bytes] = Cache(
            ttl_seconds=data_key_seconds,
            max_entries=MAX_DATA_KEYS,
            load_seconds=DATA_KEY_LOAD_SECONDS,
        )

    async def gateway_secret(self, session: OperatorSession, name: str) -> bytes:
        """Return one of the gateway's own secrets (32 bytes), created on first use."""
        return await self.keep_secret(session, name, os.urandom(KEY_BYTES))

    async def keep_secret(self, session: OperatorSession, name: str, value: bytes) -> bytes:
        """Seal and store a secret of the gateway; an existing one is kept and returned instead."""
        key_id, key = self.master_keys.wrapping()
        await session.execute(
            insert(SealedSecretRow)
            .values(name=name, sealed=seal(key, value, "sealed_secret", name), master_key_id=key_id)
            .on_conflict_do_nothing()
        )
        row = (
            await session.execute(
                select(SealedSecretRow.sealed, SealedSecretRow.master_key_id).where(
                    SealedSecretRow.name == name
                )
            )
        ).one()
        return self.open_secret(name, row.sealed, row.master_key_id)

    def open_secret(self, name: str, sealed: bytes, master_key_id: str) -> bytes:
        """Open a secret of the gateway.

        Raises:
            SealBroken: it was moved from the place that it was sealed for.
            ConfigurationError: the master key behind it is not configured.
        """
        return unseal(self.master_keys.opening(master_key_id), sealed, "sealed_secret", name)

    async def seal_for_tenant(
        self, session: TenantSession, tenant_id: UUID, secret: SecretText, *place: object
    ) -> tuple[int, bytes]:
        """Seal a tenant's secret; return the data key's version and the ciphertext."""
        return await self.seal_bytes_for_tenant(
            session, tenant_id, secret.reveal().encode(), *place
        )

    async def seal_bytes_for_tenant(
        self, session: TenantSession, tenant_id: UUID, content: bytes, *place: object
    ) -> tuple[int, bytes]:
        """Seal a tenant's bytes; return the data key's version and the ciphertext."""
        version, key = await self.newest_data_key(session, tenant_id)
        return version, seal(key, content, tenant_id, *place)

    async def open_for_tenant(
        self,
        database: Database,
        tenant_id: UUID,
        version: int,
        sealed: bytes,
        *place: object,
        wrapped: WrappedKey | None = None,
    ) -> SecretText:
        """Open a tenant's secret; load the data key from Postgres if it is not in memory.

        `wrapped`: the data key as it was read together with the secret.

        Raises:
            DataKeyMissing: the data key was replaced; read the row again.
            SealBroken: the ciphertext was moved from the place that it was sealed for.
        """
        content = await self.open_bytes_for_tenant(
            database, tenant_id, version, sealed, *place, wrapped=wrapped
        )
        return SecretText(content.decode())

    async def open_bytes_for_tenant(
        self,
        database: Database,
        tenant_id: UUID,
        version: int,
        sealed: bytes,
        *place: object,
        wrapped: WrappedKey | None = None,
    ) -> bytes:
        """Open a tenant's bytes; load the data key from Postgres if it is not in memory.

        Raises:
            DataKeyMissing: the data key was replaced; read the row again.
            SealBroken: the ciphertext was moved from the place that it was sealed for.
        """

        async def load() -> tuple[bytes, str]:
            if wrapped is not None and wrapped.master_key_id in self.master_keys.ids:
                key = self._unwrap(tenant_id, version, wrapped.wrapped, wrapped.master_key_id)
            else:
                async with database.tenant(tenant_id) as session:
                    key = await self.data_key(session, tenant_id, version)
            tag = str(tenant_id)
            # An expired key would otherwise stay in memory until its next use.
            loop = asyncio.get_running_loop()
            loop.call_later(self._data_key_seconds, self.opened.clear, tag)
            return key, tag

        key = await self.opened.get((tenant_id, version), load)
        if key is None:
            raise DataKeyMissing(f"data_key / {tenant_id} / {version}")
        return unseal(key, sealed, tenant_id, *place)

    def forget(self, tenant_id: str | None) -> None:
        """Drop a tenant's unwrapped data keys from memory; None: those of all tenants."""
        self.opened.clear(tenant_id)

    async def data_key(
        self, session: TenantSession | OperatorSession, tenant_id: UUID, version: int
    ) -> bytes:
        """Load a tenant's data key of this version.

        Raises:
            DataKeyMissing: it was removed.
        """
        row = (
            await session.execute(
                select(DataKeyRow.wrapped, DataKeyRow.master_key_id).where(
                    DataKeyRow.tenant_id == tenant_id, DataKeyRow.version == version
                )
            )
        ).one_or_none()
        if row is None:
            raise DataKeyMissing(f"data_key / {tenant_id} / {version}")
        return self._unwrap(tenant_id, version, row.wrapped, row.master_key_id)

    async def newest_data_key(
        self, session: TenantSession | OperatorSession, tenant_id: UUID
    ) -> tuple[int, bytes]:
        """Load the newest data key, or create the first.

        Not cached: this transaction may still be rolled back, and the key with it.
        """
        newest = (
            select(DataKeyRow.version, DataKeyRow.wrapped, DataKeyRow.master_key_id)
            .where(DataKeyRow.tenant_id == tenant_id)
            .order_by(DataKeyRow.version.desc())
            .limit(1)
        )
        row = (await session.execute(newest)).one_or_none()
        if row is None:
            await self.add_data_key(session, tenant_id, 1)
            row = (await session.execute(newest)).one()
        return row.version, self._unwrap(tenant_id, row.version, row.wrapped, row.master_key_id)

    async def add_data_key(
        self, session: TenantSession | OperatorSession, tenant_id: UUID, version: int
    ) -> None:
        """Create a data key of this version, unless another transaction already has."""
        key_id, master_key = self.master_keys.wrapping()
        wrapped = seal(master_key, os.urandom(KEY_BYTES), "data_key", tenant_id, version)
        await session.execute(
            insert(DataKeyRow)
            .values(tenant_id=tenant_id, version=version, wrapped=wrapped, master_key_id=key_id)
            .on_conflict_do_nothing()
        )

    def _unwrap(self, tenant_id: UUID, version: int, wrapped: bytes, master_key_id: str) -> bytes:
        master_key = self.master_keys.opening(master_key_id)
        return unseal(master_key, wrapped, "data_key", tenant_id, version)


async def shred(session: OperatorSession, tenant_id: UUID) -> None:
    """Destroy a tenant's data keys, so that everything sealed with them is unreadable."""
    await session.execute(delete(DataKeyRow).where(DataKeyRow.tenant_id == tenant_id))
