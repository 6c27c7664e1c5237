"""Status report of the keys at rest: their ages, and the rows that need old versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, func, or_, select, update

from gateway.db.engine import OperatorSession
from gateway.db.key_tables import (
    KeyDirectoryRow,
    KeyRotationRow,
    OperatorKeyRow,
    SealedSecretRow,
)
from gateway.db.tables import ApiKeyRow, DataKeyRow
from gateway.vault.gateway_secrets import SecretPurpose, parse_name


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """One version of one key. `needed_by`: the number of rows that need it to open."""

    name: str
    version: str
    age_days: int | None
    state: str
    needed_by: int | None


async def read_status(session: OperatorSession, master_keys: Sequence[str]) -> list[KeyStatus]:
    """Report all versions: master keys, data keys by age, and the gateway's own secrets.

    `master_keys`: the ids of the configured keys, the wrapping one first.
    """
    return [
        *await _master_keys(session, master_keys),
        *await _data_keys(session),
        *await _secrets(session),
    ]


async def count_on_old_peppers(session: OperatorSession, newest: int) -> int:
    """Count the usable keys that have not been used since the pepper was rolled."""
    by_version = await _keys_by_pepper(session)
    return sum(count for version, count in by_version.items() if version < newest)


async def end_keys_on_old_peppers(session: OperatorSession, newest: int) -> int:
    """Revoke the usable keys that match only under an older pepper; return their number."""
    old = select(KeyDirectoryRow.api_key_id).where(KeyDirectoryRow.pepper_version < newest)
    ended = 0
    for table, is_old in (
        (ApiKeyRow, ApiKeyRow.id.in_(old)),
        (OperatorKeyRow, OperatorKeyRow.pepper_version < newest),
    ):
        rows = await session.scalars(
            update(table)
            .where(is_old, _is_usable(table))
            .values(revoked_at=func.now())
            .returning(table.id)
            .execution_options(synchronize_session=False)
        )
        ended += len(rows.all())
    return ended


async def _keys_by_pepper(session: OperatorSession) -> dict[int, int]:
    api_keys = (
        select(KeyDirectoryRow.pepper_version, func.count())
        .join(
            ApiKeyRow,
            (ApiKeyRow.tenant_id == KeyDirectoryRow.tenant_id)
            & (ApiKeyRow.id == KeyDirectoryRow.api_key_id),
        )
        .where(_is_usable(ApiKeyRow))
        .group_by(KeyDirectoryRow.pepper_version)
    )
    admin_keys = (
        select(OperatorKeyRow.pepper_version, func.count())
        .where(_is_usable(OperatorKeyRow))
        .group_by(OperatorKeyRow.pepper_version)
    )
    counts: dict[int, int] = {}
    for query in (api_keys, admin_keys):
        for version, count in await session.execute(query):
            counts[version] = counts.get(version, 0) + count
    return counts


def _is_usable(table: type[ApiKeyRow | OperatorKeyRow]) -> ColumnElement[bool]:
    return table.revoked_at.is_(None) & or_(
        table.expires_at.is_(None), table.expires_at > func.clock_timestamp()
    )


async def _master_keys(session: OperatorSession, configured: Sequence[str]) -> list[KeyStatus]:
    counts: dict[str, int] = {}
    for table in (SealedSecretRow, DataKeyRow):
        rows = await session.execute(
            select(table.master_key_id, func.count()).group_by(table.master_key_id)
        )
        for key_id, count in rows:
            counts[key_id] = counts.get(key_id, 0) + count
    return [
        KeyStatus(
            "master key",
            key_id,
            None,
            "missing"
            if key_id not in configured
            else "wraps"
            if key_id == configured[0]
            else "old",
            counts.get(key_id, 0),
        )
        for key_id in dict.fromkeys((*configured, *sorted(counts)))
    ]


async def _data_keys(session: OperatorSession) -> list[KeyStatus]:
    newest = (
        select(DataKeyRow.tenant_id, func.max(DataKeyRow.version).label("version"))
        .group_by(DataKeyRow.tenant_id)
        .subquery()
    )
    is_newest = (DataKeyRow.tenant_id == newest.c.tenant_id) & (
        DataKeyRow.version == newest.c.version
    )
    used, oldest = (
        await session.execute(
            select(func.count(), func.min(DataKeyRow.created_at)).join(newest, is_newest)
        )
    ).one()
    every = await session.scalar(select(func.count()).select_from(DataKeyRow)) or 0
    running = await session.scalar(
        select(KeyRotationRow.started_at).where(KeyRotationRow.finished_at.is_(None)).limit(1)
    )
    state = "in use" if running is None else "rotation unfinished: run it again"
    found = [KeyStatus("data keys", "newest", _age_days(oldest), state, used)]
    if every > used:
        found.append(KeyStatus("data keys", "replaced", None, "to be removed", every - used))
    return found


async def _secrets(session: OperatorSession) -> list[KeyStatus]:
    by_pepper = await _keys_by_pepper(session)
    now = datetime.now(UTC)
    rows = {parse_name(row.name): row for row in await session.scalars(select(SealedSecretRow))}
    return [
        KeyStatus(
            name.replace("_", " ").removeprefix("retired "),
            str(version),
            _age_days(row.created_at),
            "retired: recognises ended admin keys"
            if name == SecretPurpose.RETIRED_PEPPER
            else _state(row, now, is_newest=(name, version + 1) not in rows),
            by_pepper.get(version, 0) if name == SecretPurpose.PEPPER else None,
        )
        for (name, version), row in sorted(rows.items())
    ]


def _state(row: SealedSecretRow, now: datetime, *, is_newest: bool) -> str:
    if row.accepted_until is not None:
        return f"accepted until {row.accepted_until:%Y-%m-%d %H:%M}"
    if row.used_from > now:
        return f"used from {row.used_from:%Y-%m-%d %H:%M:%S}"
    return "in use" if is_newest else "accepted"


def _age_days(since: datetime | None) -> int | None:
    return None if since is None else (datetime.now(UTC) - since).days
