"""The gateway's own secrets, in versions that roll while every worker serves.

A new version is added beside the old ones. Workers that do not know it yet look it up when they
meet something that was made with it; old versions stay valid for what was made with them until
they are retired.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial

from sqlalchemy import ColumnElement, delete, func, select, update

from gateway.background import repeat
from gateway.db.audit import Action, record
from gateway.db.engine import Database, DatabaseUnavailable, OperatorSession, answered_within
from gateway.db.key_tables import OperatorKeyRow, SealedSecretRow
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.vault.key_format import Pepper
from gateway.vault.sealing import SealBroken, Vault

SECRETS_CHANGED = "sealed_secret"
"""The Postgres notification sent when a version is added or removed."""
REFRESH_SECONDS = 30.0
RETRY_SECONDS = 1.0
READ_SECONDS = 10.0
"""Those who wait for a reading must not wait for a dead connection."""
SIGNS_AFTER = timedelta(seconds=90)
"""Enough time for every worker to read a new link key, even without a notification."""
CLOCK_SLACK = timedelta(minutes=5)
RETIRED_AFTER = timedelta(days=1)
log = logging.getLogger(__name__)
"""The standard library's: commands that read start faster without structlog."""


class SecretPurpose(StrEnum):
    """The purposes of secrets; also their names in the database."""

    PEPPER = "pepper"
    LINK_KEY = "link_key"
    WEBHOOK_KEY = "webhook_key"
    PROMPT_KEY = "prompt_key"
    CONSOLE_KEY = "console_key"
    """Seals what the console keeps for minutes or hours: it never rolls by itself."""
    RETIRED_PEPPER = "retired_pepper"
    """A pepper that accepts no key, kept to recognise admin keys that ended under it."""


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version, used for new things from `used_from`, accepted until `accepted_until`."""

    version: int
    value: bytes = field(repr=False)
    created_at: datetime
    used_from: datetime
    accepted_until: datetime | None


Versions = Mapping[SecretPurpose, tuple[SecretVersion, ...]]
"""The versions of each secret, the newest first."""


class GatewaySecrets:
    """The versions known to this process, refreshed when another is announced."""

    def __init__(self, vault: Vault, versions: Versions) -> None:
        self._vault = vault
        self._changed = asyncio.Event()
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._keep(versions)

    def start(self, database: Database) -> None:
        """Start the refresh task."""
        self._task = asyncio.create_task(
            repeat("gateway-secrets", partial(self._refresh_when_due, database)),
            name="gateway-secrets",
        )

    async def close(self) -> None:
        """Stop the refresh task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def expire(self, tag: str | None) -> None:
        """Schedule a refresh if a change of secrets, or an unknown change (None), was announced."""
        if tag in {None, SECRETS_CHANGED}:
            self._changed.set()

    async def refresh(self, database: Database, *, max_age_seconds: float = 0.0) -> None:
        """Read every version, unless last read less than `max_age_seconds` ago.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        async with self._reading:
            if time.monotonic() - self._read_at < max_age_seconds:
                return
            async with answered_within(READ_SECONDS), database.operator() as session:
                versions = await _read(session, self._vault)
            self._keep(versions)

    async def refresh_peppers(self, database: Database) -> bool:
        """Read every version if there is an unknown pepper; return True if there was one.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        rows = await database.call(
            "SELECT name FROM sealed_secret WHERE name = :name OR name LIKE :later",
            {"name": SecretPurpose.PEPPER.value, "later": f"{SecretPurpose.PEPPER}.%"},
        )
        known = {pepper.version for pepper in self.peppers}
        if {parse_name(row.name)[1] for row in rows} <= known:
            return False
        await self.refresh(database)
        return True

    async def refresh_in(self, session: OperatorSession) -> None:
        """Read every version within a transaction."""
        self._keep(await _read(session, self._vault))

    @property
    def pepper(self) -> Pepper:
        """Return the pepper of new keys."""
        return self.peppers[0]

    @property
    def retired_peppers(self) -> tuple[Pepper, ...]:
        """Return the peppers that accept no key, kept to recognise ended admin keys."""
        return _as_peppers(self._versions.get(SecretPurpose.RETIRED_PEPPER, ()))

    def newest(self, purpose: SecretPurpose) -> SecretVersion:
        """Return the newest version of a secret."""
        return self._versions[purpose][0]

    def link_keys(self, now: float) -> list[bytes]:
        """Return the keys whose links are accepted at `now` (Unix seconds), the newest first."""
        return [key.value for key in self._links if _is_accepted(key, now)]

    def signing_link_key(self, now: float) -> bytes:
        """Return the key that signs links at `now`: the newest that every worker knows."""
        started = (key.value for key in self._links if key.used_from.timestamp() <= now)
        # The database's clock may be ahead of this one when the first key is created.
        return next(started, self._links[-1].value)

    @property
    def webhook_keys(self) -> list[bytes]:
        """Return the keys of the operator's webhook secrets, the newest first."""
        return [version.value for version in self._versions[SecretPurpose.WEBHOOK_KEY]]

    @property
    def prompt_key(self) -> bytes:
        """Return the key of prompt hashes, which never rolls so that equal prompts hash equal."""
        return self._versions[SecretPurpose.PROMPT_KEY][0].value

    @property
    def console_key(self) -> bytes:
        """Return the key that seals the console's secrets: ID tokens and secrets to be shown."""
        return self._versions[SecretPurpose.CONSOLE_KEY][0].value

    def _keep(self, versions: Versions) -> None:
        self._versions = versions
        self._read_at = time.monotonic()
        self._links = versions[SecretPurpose.LINK_KEY]
        self.peppers = _as_peppers(versions[SecretPurpose.PEPPER])

    async def _refresh_when_due(self, database: Database) -> None:
        with suppress(TimeoutError):
            # Not `wait_for`, which can lose a cancellation that coincides with the event.
            async with asyncio.timeout(REFRESH_SECONDS):
                await self._changed.wait()
        self._changed.clear()
        is_read = False
        try:
            await self.refresh(database)
            is_read = True
        except (DatabaseUnavailable, ConfigurationError, SealBroken) as error:
            # The known versions stay in use.
            log.warning("gateway_secrets_not_read: %s", type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            if not is_read:
                self._changed.set()  # the next turn tries again


async def open_secrets(session: OperatorSession, vault: Vault) -> GatewaySecrets:
    """Read every version of each secret; create the first if there is none."""
    versions = await _read(session, vault)
    # Only if there is no version at all: the first one may have been retired.
    missing = {
        SecretPurpose.PEPPER,
        SecretPurpose.LINK_KEY,
        SecretPurpose.WEBHOOK_KEY,
        SecretPurpose.CONSOLE_KEY,
    } - versions.keys()
    for secret in missing:
        await vault.gateway_secret(session, secret)
    versions = await _read(session, vault) if missing else versions
    # Before this key was a separate secret, prompt hashes used the first link key.
    if SecretPurpose.PROMPT_KEY not in versions:
        await vault.keep_secret(
            session, SecretPurpose.PROMPT_KEY, versions[SecretPurpose.LINK_KEY][-1].value
        )
        versions = await _read(session, vault)
    return GatewaySecrets(vault, versions)


async def _read(session: OperatorSession, vault: Vault) -> Versions:
    found: dict[SecretPurpose, list[SecretVersion]] = {}
    for row in await session.scalars(
        select(SealedSecretRow).execution_options(populate_existing=True)
    ):
        name, version = parse_name(row.name)
        if name in set(SecretPurpose):
            found.setdefault(SecretPurpose(name), []).append(
                SecretVersion(
                    version,
                    vault.open_secret(row.name, row.sealed, row.master_key_id),
                    row.created_at,
                    row.used_from,
                    row.accepted_until,
                )
            )
    return {
        secret: tuple(sorted(versions, key=lambda one: one.version, reverse=True))
        for secret, versions in found.items()
    }


async def list_versions(session: OperatorSession, vault: Vault) -> Versions:
    """List every version of each secret, for the report of their ages."""
    return await _read(session, vault)


async def roll_pepper(session: OperatorSession, vault: Vault) -> int:
    """Add a pepper and return its version. Each key is rehashed with it at its next use."""
    version = await _add(session, vault, SecretPurpose.PEPPER, used_from=datetime.now(UTC))
    await _record(session, Action.GATEWAY_SECRET_ROLLED, SecretPurpose.PEPPER, version=version)
    return version


async def roll_webhook_key(session: OperatorSession, vault: Vault) -> int:
    """Add a key for the operator's webhook secrets, which the caller must reseal with it."""
    version = await _add(session, vault, SecretPurpose.WEBHOOK_KEY, used_from=datetime.now(UTC))
    await _record(session, Action.GATEWAY_SECRET_ROLLED, SecretPurpose.WEBHOOK_KEY, version=version)
    return version


async def roll_link_key(
    session: OperatorSession, vault: Vault, *, lifetime: timedelta | None
) -> tuple[int, datetime]:
    """Add a link key; return its version and the time from which it signs.

    Links of the old keys stay valid for `lifetime` after that; None: they are revoked now.
    """
    now = datetime.now(UTC)
    # In the past even for a worker whose clock is behind.
    used_from = now - CLOCK_SLACK if lifetime is None else now + SIGNS_AFTER
    ends_at = now if lifetime is None else used_from + lifetime + CLOCK_SLACK
    await session.execute(
        update(SealedSecretRow)
        .where(
            _is_version_of(SecretPurpose.LINK_KEY),
            SealedSecretRow.accepted_until.is_(None) | (SealedSecretRow.accepted_until > ends_at),
        )
        .values(accepted_until=ends_at)
        .execution_options(synchronize_session=False)
    )
    version = await _add(session, vault, SecretPurpose.LINK_KEY, used_from=used_from)
    await _record(
        session,
        Action.GATEWAY_SECRET_ROLLED,
        SecretPurpose.LINK_KEY,
        version=version,
        old_links_until=ends_at,
    )
    return version, used_from


async def retire_peppers(session: OperatorSession, vault: Vault, *, ended_keys: int) -> list[int]:
    """Retire every pepper but the newest; return their versions.

    Keys still hashed with a retired pepper are refused from now on; `ended_keys` of them were
    revoked.

    Raises:
        InvalidRequest: there is only one, or the newest is younger than a minute, so that some
            worker may not know it yet.
    """
    rows = await _peppers(session)
    if len(rows) < 2:  # noqa: PLR2004 - the newest and one to retire
        raise InvalidRequest(
            "There is only one pepper. Roll it first: gateway master-key roll pepper"
        )
    if datetime.now(UTC) - rows[0].created_at < SIGNS_AFTER:
        raise InvalidRequest(
            f"The newest pepper is younger than {SIGNS_AFTER.seconds} seconds, and some worker "
            "may not know it yet. Try again in a minute."
        )
    return await _retire(session, vault, rows[1:], ended_keys=ended_keys)


async def retire_due(
    session: OperatorSession, vault: Vault, *, is_pepper_unused: bool
) -> list[str]:
    """Remove expired link keys and webhook keys, and old peppers that no key uses."""
    due = await session.scalars(
        delete(SealedSecretRow)
        .where(SealedSecretRow.accepted_until < func.now())
        .returning(SealedSecretRow.name)
    )
    removed = sorted(due)
    for name in removed:
        secret, version = parse_name(name)
        await _record(session, Action.GATEWAY_SECRET_RETIRED, secret, version=version)
    rows = await _peppers(session)
    if is_pepper_unused and datetime.now(UTC) - rows[0].created_at > RETIRED_AFTER:
        removed += [
            f"pepper {version}" for version in await _retire(session, vault, rows[1:], ended_keys=0)
        ]
    return removed


async def end_webhook_keys(session: OperatorSession, *, before_version: int) -> None:
    """Expire older webhook keys in an hour: nothing is sealed with them any more."""
    ends_at = datetime.now(UTC) + timedelta(hours=1)
    for row in await session.scalars(
        select(SealedSecretRow).where(_is_version_of(SecretPurpose.WEBHOOK_KEY))
    ):
        if parse_name(row.name)[1] < before_version and row.accepted_until is None:
            row.accepted_until = ends_at


async def newest_pepper_version(session: OperatorSession) -> int:
    """Read the version of the pepper for new digests from the database."""
    return parse_name((await _peppers(session))[0].name)[1]


async def _peppers(session: OperatorSession) -> list[SealedSecretRow]:
    rows = await session.scalars(
        select(SealedSecretRow).where(_is_version_of(SecretPurpose.PEPPER))
    )
    return sorted(rows, key=lambda row: parse_name(row.name)[1], reverse=True)


async def _retire(
    session: OperatorSession, vault: Vault, rows: Sequence[SealedSecretRow], *, ended_keys: int
) -> list[int]:
    """Retire peppers, so that no key matches under them.

    An admin key that ended under a pepper can be recognised only with it, in case
    `GATEWAY_ADMIN_KEY` is set to that key again. The pepper is therefore kept under another name.
    """
    versions = []
    for row in rows:
        version = parse_name(row.name)[1]
        if await _knows_admin_keys(session, version):
            value = vault.open_secret(row.name, row.sealed, row.master_key_id)
            await vault.keep_secret(session, f"{SecretPurpose.RETIRED_PEPPER}.{version}", value)
        await session.delete(row)
        await _record(
            session,
            Action.GATEWAY_SECRET_RETIRED,
            SecretPurpose.PEPPER,
            version=version,
            ended_keys=ended_keys,
        )
        versions.append(version)
    return versions


async def _knows_admin_keys(session: OperatorSession, pepper_version: int) -> bool:
    query = select(OperatorKeyRow.id).where(OperatorKeyRow.pepper_version == pepper_version)
    return await session.scalar(query.limit(1)) is not None


def _as_peppers(versions: Sequence[SecretVersion]) -> tuple[Pepper, ...]:
    return tuple(Pepper(one.version, one.value) for one in versions)


async def _add(
    session: OperatorSession, vault: Vault, secret: SecretPurpose, *, used_from: datetime
) -> int:
    names = await session.scalars(select(SealedSecretRow.name).where(_is_version_of(secret)))
    version = max(parse_name(name)[1] for name in names) + 1
    await vault.gateway_secret(session, f"{secret}.{version}")
    await session.execute(
        update(SealedSecretRow)
        .where(SealedSecretRow.name == f"{secret}.{version}")
        .values(used_from=used_from)
        .execution_options(synchronize_session=False)
    )
    return version


async def _record(session: OperatorSession, action: Action, secret: str, **after: object) -> None:
    await record(session, action, tenant_id=None, object_id=secret, after=after)


def _is_version_of(secret: SecretPurpose) -> ColumnElement[bool]:
    return (SealedSecretRow.name == secret.value) | SealedSecretRow.name.startswith(f"{secret}.")


def parse_name(name: str) -> tuple[str, int]:
    """Split the name of a secret in the database into its purpose and version."""
    family, dot, version = name.partition(".")
    return family, int(version) if dot else 1


def _is_accepted(key: SecretVersion, now: float) -> bool:
    return key.accepted_until is None or key.accepted_until.timestamp() > now
