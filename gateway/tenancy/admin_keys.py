"""Admin keys: create, find, roll and revoke them, and adopt the one in `GATEWAY_ADMIN_KEY`.

The setting names one key at a time: a new value revokes the key of the previous value.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, or_, select

from gateway.db.audit import Action, record
from gateway.db.engine import OperatorSession
from gateway.db.key_tables import OperatorKeyRow
from gateway.db.pages import Page, page_of
from gateway.domain import AdminScope, SecretText, new_id
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.tenancy.api_keys import MAX_GRACE, MAX_LIFETIME
from gateway.tenancy.tenants import as_uuid, check_name
from gateway.vault import key_format
from gateway.vault.key_format import Pepper

Origin = Literal["first_start", "setting", "command", "rest"]
SETTING = "GATEWAY_ADMIN_KEY"
FIRST_NAME = "first key"
LOCK = "operator_key"
log = logging.getLogger(__name__)
"""The standard library's: commands that read start faster without structlog."""


class LastAdminKey(Conflict):
    """A refusal to revoke the only usable key with the scope `admin` over REST."""

    code = "last_admin_key"


@dataclass(frozen=True, slots=True)
class AdminKeyInfo:
    """The public fields of an admin key. `origin` is None for keys of earlier releases."""

    id: UUID
    name: str
    scopes: tuple[str, ...]
    origin: Origin | None
    last4: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class IssuedAdminKey(AdminKeyInfo):
    """A new key with its secret, which is shown only once."""

    secret: SecretText


async def create(
    session: OperatorSession,
    name: str,
    *,
    pepper: Pepper,
    origin: Origin,
    scopes: Sequence[str] = (AdminScope.ADMIN,),
    expires_at: datetime | None = None,
    secret: SecretText | None = None,
) -> IssuedAdminKey:
    """Create an admin key, with `secret` if it is given; the database keeps only its HMAC.

    Raises:
        Conflict: a usable key has this name.
        InvalidRequest: an invalid name, scope or expiry.
    """
    check_name(name)
    _check_scopes(scopes)
    _check_expiry(expires_at)
    await _one_at_a_time(session)
    if await session.scalar(_usable().where(OperatorKeyRow.name == name).limit(1)) is not None:
        raise Conflict(
            f"There is a usable admin key {name!r} already. Choose another name.", param="name"
        )
    row, secret = _new_row(
        name, pepper=pepper, origin=origin, scopes=scopes, expires_at=expires_at, secret=secret
    )
    await _add(session, row)
    return IssuedAdminKey(**_public(row), secret=secret)


async def list_all(session: OperatorSession) -> list[AdminKeyInfo]:
    """List every admin key, newest first, without secrets."""
    rows = await session.scalars(select(OperatorKeyRow).order_by(OperatorKeyRow.id.desc()))
    return [_info(row) for row in rows]


async def list_page(
    session: OperatorSession, *, limit: int, after: UUID | None = None
) -> Page[AdminKeyInfo]:
    """List one page of admin keys, newest first, after `after`."""
    query = select(OperatorKeyRow).order_by(OperatorKeyRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(OperatorKeyRow.id < after)
    return page_of([_info(row) for row in await session.scalars(query)], limit)


async def get(session: OperatorSession, key_id: UUID) -> AdminKeyInfo:
    """Return the key with this id.

    Raises:
        NotFound: there is none.
    """
    row = await session.get(OperatorKeyRow, key_id)
    if row is None:
        raise _unknown(key_id)
    return _info(row)


async def find(session: OperatorSession, text: str) -> AdminKeyInfo:
    """Find a key by its id, name or last four characters; a usable one takes precedence.

    Raises:
        NotFound: there is none.
        InvalidRequest: several usable keys match; the id is needed.
    """
    key_id = as_uuid(text)
    if key_id is not None:
        return await get(session, key_id)
    matches = (OperatorKeyRow.name == text) | (OperatorKeyRow.last4 == text)
    rows = list(await session.scalars(_usable().where(matches)))
    if not rows:
        newest = select(OperatorKeyRow).where(matches).order_by(OperatorKeyRow.id.desc()).limit(1)
        rows = list(await session.scalars(newest))
    if not rows:
        raise NotFound(
            f"There is no admin key {text!r}. `gateway admin-keys list` shows them.",
            param="admin_key_id",
        )
    if len(rows) > 1:
        raise InvalidRequest(
            f"{len(rows)} usable admin keys match {text!r}. Name one by its id: "
            f"{', '.join(str(row.id) for row in rows)}.",
            param="admin_key_id",
        )
    return _info(rows[0])


async def roll(
    session: OperatorSession, key_id: UUID, *, pepper: Pepper, origin: Origin, grace: timedelta
) -> IssuedAdminKey:
    """Issue a successor of a key; the old key stays valid for `grace`.

    Raises:
        InvalidRequest: a grace of more than a year.
        NotFound: there is no such key, or it has ended.
    """
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise InvalidRequest(
            f"The grace must be from 0 to {int(MAX_GRACE.total_seconds())} seconds (a year; got "
            f"{int(grace.total_seconds())}).",
            param="grace_seconds",
        )
    await _one_at_a_time(session)
    old = await session.scalar(_usable().where(OperatorKeyRow.id == key_id).with_for_update())
    if old is None:
        raise NotFound(f"There is no usable admin key {key_id}.", param="admin_key_id")
    before = _shown(old)
    twin, secret = _new_row(
        old.name, pepper=pepper, origin=origin, scopes=old.scopes, expires_at=old.expires_at
    )
    session.add(twin)
    ends_at = datetime.now(UTC) + grace
    old.expires_at = min(old.expires_at or ends_at, ends_at)
    await session.flush()
    await record(
        session,
        Action.OPERATOR_KEY_ROLLED,
        tenant_id=None,
        object_id=old.id,
        before=before,
        after=_shown(old) | {"twin": {"id": twin.id, **_shown(twin)}},
    )
    return IssuedAdminKey(**_public(twin), secret=secret)


async def revoke(session: OperatorSession, key_id: UUID, *, keeps_one: bool) -> AdminKeyInfo:
    """Revoke a key; every worker applies it within a second. Idempotent.

    `keeps_one`: refuse the last usable key, for callers who could not create another one.

    Raises:
        LastAdminKey: no other usable key would have the scope `admin`.
        NotFound: there is no such key.
    """
    # Two operators who revoke each other's keys at the same time must not both succeed.
    await _one_at_a_time(session)
    row = await session.get(OperatorKeyRow, key_id, with_for_update=True)
    if row is None:
        raise _unknown(key_id)
    if row.revoked_at is None:
        if keeps_one and not await _has_other(session, row):
            raise LastAdminKey(
                f"{row.name!r} is the last usable key with the scope admin. Create another first: "
                "POST /admin/v1/admin-keys, or `gateway admin-keys create` on the server."
            )
        await _end(session, row)
    return _info(row)


async def adopt_setting(
    session: OperatorSession,
    secret: SecretText,
    *,
    peppers: Sequence[Pepper],
    retired_peppers: Sequence[Pepper] = (),
) -> None:
    """Activate the key in `GATEWAY_ADMIN_KEY`, and revoke the setting's previous key.

    `peppers`: those that a key's digest may use, the newest first. `retired_peppers`: those that
    only the digest of an ended key may use.

    A key that has ended stays ended and revokes none: a replica that restarts with the previous
    value must not undo a newer replica's change.
    """
    await _one_at_a_time(session)
    digests = [
        key_format.digest(pepper, secret.reveal()) for pepper in (*peppers, *retired_peppers)
    ]
    row = await session.scalar(select(OperatorKeyRow).where(OperatorKeyRow.digest.in_(digests)))
    if row is None:
        # The previous key, which is about to be revoked, has the same name.
        row, _ = _new_row(
            SETTING,
            pepper=peppers[0],
            origin="setting",
            scopes=(AdminScope.ADMIN,),
            expires_at=None,
            secret=secret,
        )
        await _add(session, row)
    else:
        known = await session.scalar(_usable().where(OperatorKeyRow.id == row.id))
        if known is None:
            log.warning("admin_key_setting_ended: %s, last4 %s", SETTING, row.last4)
            return
        row.origin = row.origin or "setting"
        # A configured but rarely used key would otherwise end when its pepper is retired.
        if row.digest != digests[0]:
            await session.execute(
                select(func.rehash_key(row.digest, digests[0], peppers[0].version))
            )
    former = _usable().where(OperatorKeyRow.origin == "setting", OperatorKeyRow.id != row.id)
    for other in await session.scalars(former.with_for_update()):
        await _end(session, other)


async def was_any_made(session: OperatorSession) -> bool:
    """Tell if any admin key was ever created."""
    return await session.scalar(select(OperatorKeyRow.id).limit(1)) is not None


async def _one_at_a_time(session: OperatorSession) -> None:
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(LOCK, 0))))


async def _add(session: OperatorSession, row: OperatorKeyRow) -> None:
    session.add(row)
    await session.flush()
    await record(
        session,
        Action.OPERATOR_KEY_CREATED,
        tenant_id=None,
        object_id=row.id,
        after=_shown(row),
    )


async def _end(session: OperatorSession, row: OperatorKeyRow) -> None:
    before = _shown(row)
    row.revoked_at = func.now()
    await session.flush()
    await session.refresh(row, ["revoked_at"])
    await record(
        session,
        Action.OPERATOR_KEY_REVOKED,
        tenant_id=None,
        object_id=row.id,
        before=before,
        after=_shown(row),
    )


async def _has_other(session: OperatorSession, row: OperatorKeyRow) -> bool:
    if AdminScope.ADMIN not in row.scopes:
        return True
    others = _usable().where(
        OperatorKeyRow.id != row.id, OperatorKeyRow.scopes.any_() == AdminScope.ADMIN.value
    )
    return await session.scalar(others.limit(1)) is not None


def _usable() -> Select[OperatorKeyRow]:
    return select(OperatorKeyRow).where(is_usable())


def is_usable() -> ColumnElement[bool]:
    """Build the condition for a key that is neither revoked nor expired."""
    return OperatorKeyRow.revoked_at.is_(None) & or_(
        OperatorKeyRow.expires_at.is_(None), OperatorKeyRow.expires_at > func.clock_timestamp()
    )


def _check_scopes(scopes: Sequence[str]) -> None:
    unknown = sorted(set(scopes) - set(AdminScope))
    if unknown or not scopes:
        raise InvalidRequest(
            f"Unknown scope {unknown[0]!r}. "
            if unknown
            else f"scopes must not be empty. Choose from: {', '.join(AdminScope)}.",
            param="scopes",
        )


def _check_expiry(expires_at: datetime | None) -> None:
    if expires_at is None:
        return
    now = datetime.now(UTC)
    if not now < expires_at <= now + MAX_LIFETIME:
        raise InvalidRequest(
            f"expires_at must be in the future and within ten years (got {expires_at:%Y-%m-%d}).",
            param="expires_at",
        )


def _new_row(
    name: str,
    *,
    pepper: Pepper,
    origin: Origin,
    scopes: Sequence[str],
    expires_at: datetime | None,
    secret: SecretText | None = None,
) -> tuple[OperatorKeyRow, SecretText]:
    secret = secret or key_format.new_key("admin")
    row = OperatorKeyRow(
        id=new_id(),
        name=name,
        scopes=sorted(set(scopes)),
        origin=origin,
        digest=key_format.digest(pepper, secret.reveal()),
        pepper_version=pepper.version,
        last4=secret.reveal()[-4:],
        expires_at=expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    return row, secret


def _unknown(key_id: UUID) -> NotFound:
    return NotFound(f"There is no admin key {key_id}.", param="admin_key_id")


def _info(row: OperatorKeyRow) -> AdminKeyInfo:
    return AdminKeyInfo(**_public(row))


def _public(row: OperatorKeyRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "scopes": tuple(row.scopes),
        "origin": row.origin,
        "last4": row.last4,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "last_used_at": row.last_used_at,
    }


def _shown(row: OperatorKeyRow) -> dict[str, object]:
    """Render a key for the audit trail, without secret and digest."""
    hidden = {"id", "created_at", "last_used_at"}
    return {name: value for name, value in _public(row).items() if name not in hidden}
