"""The gateway's own secrets, in versions that follow one another while every worker serves.

A new version is made beside the old ones. What it makes is accepted by every worker that has heard
of it, and those that have not look it up; the old versions open what they made until they are
retired.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import structlog
from sqlalchemy import ColumnElement, delete, func, select, update

from gateway.db.audit import Action, record
from gateway.db.engine import Database, DatabaseUnavailable, OperatorSession
from gateway.db.key_tables import OperatorKeyRow, SealedSecretRow
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.vault.key_format import Pepper
from gateway.vault.sealing import SealBroken, Vault

SECRETS_CHANGED = "sealed_secret"
"""What Postgres announces when a version comes or goes."""
REFRESH_SECONDS = 30.0
RETRY_SECONDS = 1.0
SIGNS_AFTER = timedelta(seconds=90)
"""Every worker has read a new link key by then, one that heard no announcement too."""
CLOCK_SLACK = timedelta(minutes=5)
RETIRED_AFTER = timedelta(days=1)
log = structlog.get_logger(__name__)


class Secret(StrEnum):
    """What a secret is for; also its name in the database."""

    PEPPER = "pepper"
    LINK_KEY = "link_key"
    WEBHOOK_KEY = "webhook_key"
    PROMPT_KEY = "prompt_key"
    RETIRED_PEPPER = "retired_pepper"
    """One that opens nothing any more, kept to recognise admin keys that ended under it."""


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version. It makes from `used_from` on, and opens until `accepted_until`."""

    version: int
    value: bytes = field(repr=False)
    created_at: datetime
    used_from: datetime
    accepted_until: datetime | None


Versions = Mapping[Secret, tuple[SecretVersion, ...]]
"""The versions of each secret, the newest first."""


class GatewaySecrets:
    """Every version that this process knows, renewed as soon as another is announced."""

    def __init__(self, vault: Vault, versions: Versions) -> None:
        self._vault = vault
        self._changed = asyncio.Event()
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._keep(versions)

    def start(self, database: Database) -> None:
        """Begin to renew what is known."""
        self._task = asyncio.create_task(self._refresh_for_ever(database), name="gateway-secrets")

    async def close(self) -> None:
        """Stop renewing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def expire(self, tag: str | None) -> None:
        """Renew what is known soon where its change, or an unknown one (None), was announced."""
        if tag in {None, SECRETS_CHANGED}:
            self._changed.set()

    async def refresh(self, database: Database, *, max_age_seconds: float = 0.0) -> None:
        """Read every version, unless that was done less than `max_age_seconds` ago.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        async with self._reading:
            if time.monotonic() - self._read_at < max_age_seconds:
                return
            async with database.operator() as session:
                versions = await _read(session, self._vault)
            self._keep(versions)

    async def refresh_peppers(self, database: Database) -> bool:
        """Read every version if there is a pepper that is not known; returns whether there is.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        rows = await database.call(
            "SELECT name FROM sealed_secret WHERE name = :name OR name LIKE :later",
            {"name": Secret.PEPPER.value, "later": f"{Secret.PEPPER}.%"},
        )
        known = {pepper.version for pepper in self.peppers}
        if {parse_name(row.name)[1] for row in rows} <= known:
            return False
        await self.refresh(database)
        return True

    async def refresh_in(self, session: OperatorSession) -> None:
        """The same within a transaction."""
        self._keep(await _read(session, self._vault))

    @property
    def pepper(self) -> Pepper:
        """The pepper of new keys."""
        return self.peppers[0]

    @property
    def retired_peppers(self) -> tuple[Pepper, ...]:
        """Those that accept no key, and under which admin keys that have ended are known."""
        return _as_peppers(self._versions.get(Secret.RETIRED_PEPPER, ()))

    def link_keys(self, now: float) -> list[bytes]:
        """The keys whose links are accepted at `now` (Unix seconds), the newest first."""
        return [key.value for key in self._links if _is_accepted(key, now)]

    def signing_link_key(self, now: float) -> bytes:
        """The key that signs links at `now`: the newest that every worker knows."""
        started = (key.value for key in self._links if key.used_from.timestamp() <= now)
        # The database's clock may be ahead of this one when the very first key is made.
        return next(started, self._links[-1].value)

    @property
    def webhook_keys(self) -> list[bytes]:
        """The keys of the house's webhook secrets, the newest first."""
        return [version.value for version in self._versions[Secret.WEBHOOK_KEY]]

    @property
    def prompt_key(self) -> bytes:
        """The key of the hashes of prompts. It does not change, or equal prompts would differ."""
        return self._versions[Secret.PROMPT_KEY][0].value

    def _keep(self, versions: Versions) -> None:
        self._versions = versions
        self._read_at = time.monotonic()
        self._links = versions[Secret.LINK_KEY]
        self.peppers = _as_peppers(versions[Secret.PEPPER])

    async def _refresh_for_ever(self, database: Database) -> None:
        while True:
            with suppress(TimeoutError):
                # Not `wait_for`, which can lose a cancellation to an event that comes with it.
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self.refresh(database)
            except (DatabaseUnavailable, ConfigurationError, SealBroken) as error:
                # What is known stays in use.
                log.warning("gateway_secrets_not_read", reason=type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
                self._changed.set()


async def open_secrets(session: OperatorSession, vault: Vault) -> GatewaySecrets:
    """Read every version of each secret; make the first where there is none."""
    versions = await _read(session, vault)
    # The first version is made where there is none: later it may have been retired.
    missing = {Secret.PEPPER, Secret.LINK_KEY, Secret.WEBHOOK_KEY} - versions.keys()
    for secret in missing:
        await vault.gateway_secret(session, secret)
    versions = await _read(session, vault) if missing else versions
    # Until this key was a secret of its own, hashes of prompts were made with the first link key.
    if Secret.PROMPT_KEY not in versions:
        await vault.keep_secret(session, Secret.PROMPT_KEY, versions[Secret.LINK_KEY][-1].value)
        versions = await _read(session, vault)
    return GatewaySecrets(vault, versions)


async def _read(session: OperatorSession, vault: Vault) -> Versions:
    found: dict[Secret, list[SecretVersion]] = {}
    for row in await session.scalars(
        select(SealedSecretRow).execution_options(populate_existing=True)
    ):
        name, version = parse_name(row.name)
        if name in set(Secret):
            found.setdefault(Secret(name), []).append(
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
    """Every version of each secret, for whoever asks how old they are."""
    return await _read(session, vault)


async def roll_pepper(session: OperatorSession, vault: Vault) -> int:
    """Make another pepper; returns its version. Each key takes it at its next use."""
    version = await _add(session, vault, Secret.PEPPER, used_from=datetime.now(UTC))
    await _record(session, Action.GATEWAY_SECRET_ROLLED, Secret.PEPPER, version=version)
    return version


async def roll_webhook_key(session: OperatorSession, vault: Vault) -> int:
    """Make another key for the house's webhook secrets; they are to be sealed anew with it."""
    version = await _add(session, vault, Secret.WEBHOOK_KEY, used_from=datetime.now(UTC))
    await _record(session, Action.GATEWAY_SECRET_ROLLED, Secret.WEBHOOK_KEY, version=version)
    return version


async def roll_link_key(
    session: OperatorSession, vault: Vault, *, lifetime: timedelta | None
) -> tuple[int, datetime]:
    """Make another link key; returns its version and when it begins to sign.

    Links of the old keys stay valid for `lifetime` after that; None: they end now.
    """
    now = datetime.now(UTC)
    # In the past for a worker whose clock is behind, too.
    used_from = now - CLOCK_SLACK if lifetime is None else now + SIGNS_AFTER
    ends_at = now if lifetime is None else used_from + lifetime + CLOCK_SLACK
    await session.execute(
        update(SealedSecretRow)
        .where(
            _is_version_of(Secret.LINK_KEY),
            SealedSecretRow.accepted_until.is_(None) | (SealedSecretRow.accepted_until > ends_at),
        )
        .values(accepted_until=ends_at)
        .execution_options(synchronize_session=False)
    )
    version = await _add(session, vault, Secret.LINK_KEY, used_from=used_from)
    await _record(
        session,
        Action.GATEWAY_SECRET_ROLLED,
        Secret.LINK_KEY,
        version=version,
        old_links_until=ends_at,
    )
    return version, used_from


async def retire_peppers(session: OperatorSession, vault: Vault, *, ended_keys: int) -> list[int]:
    """Retire every pepper but the newest; returns their versions.

    Keys that are still on one of them open nothing from now on: `ended_keys` were revoked.

    Raises:
        InvalidRequest: there is one alone, or the newest is younger than a minute, so that a
            worker may not know it yet.
    """
    rows = await _peppers(session)
    if len(rows) < 2:  # noqa: PLR2004 - the newest and one to retire
        raise InvalidRequest("There is one pepper. Roll it first: gateway master-key roll pepper")
    if datetime.now(UTC) - rows[0].created_at < SIGNS_AFTER:
        raise InvalidRequest(
            f"The newest pepper is younger than {SIGNS_AFTER.seconds} seconds, and a worker may "
            "not know it yet. Wait a moment."
        )
    return await _retire(session, vault, rows[1:], ended_keys=ended_keys)


async def retire_due(
    session: OperatorSession, vault: Vault, *, is_pepper_unused: bool
) -> list[str]:
    """Remove link keys and webhook keys whose time is over; old peppers where no key uses them."""
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
    """Let older webhook keys go in an hour: nothing is sealed with them any more."""
    ends_at = datetime.now(UTC) + timedelta(hours=1)
    for row in await session.scalars(
        select(SealedSecretRow).where(_is_version_of(Secret.WEBHOOK_KEY))
    ):
        if parse_name(row.name)[1] < before_version and row.accepted_until is None:
            row.accepted_until = ends_at


async def newest_pepper_version(session: OperatorSession) -> int:
    """The version that new digests are made with, as the database has it."""
    return parse_name((await _peppers(session))[0].name)[1]


async def _peppers(session: OperatorSession) -> list[SealedSecretRow]:
    rows = await session.scalars(select(SealedSecretRow).where(_is_version_of(Secret.PEPPER)))
    return sorted(rows, key=lambda row: parse_name(row.name)[1], reverse=True)


async def _retire(
    session: OperatorSession, vault: Vault, rows: Sequence[SealedSecretRow], *, ended_keys: int
) -> list[int]:
    """Let no key be found under these peppers any more.

    Admin keys that ended under one are known by it alone, so it stays under another name: their
    text may stand in a `GATEWAY_ADMIN_KEY` that is set again.
    """
    versions = []
    for row in rows:
        version = parse_name(row.name)[1]
        if await _knows_admin_keys(session, version):
            value = vault.open_secret(row.name, row.sealed, row.master_key_id)
            await vault.keep_secret(session, f"{Secret.RETIRED_PEPPER}.{version}", value)
        await session.delete(row)
        await _record(
            session,
            Action.GATEWAY_SECRET_RETIRED,
            Secret.PEPPER,
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
    session: OperatorSession, vault: Vault, secret: Secret, *, used_from: datetime
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


def _is_version_of(secret: Secret) -> ColumnElement[bool]:
    return (SealedSecretRow.name == secret.value) | SealedSecretRow.name.startswith(f"{secret}.")


def parse_name(name: str) -> tuple[str, int]:
    """What a secret is for and its version, from its name in the database."""
    family, dot, version = name.partition(".")
    return family, int(version) if dot else 1


def _is_accepted(key: SecretVersion, now: float) -> bool:
    return key.accepted_until is None or key.accepted_until.timestamp() > now
