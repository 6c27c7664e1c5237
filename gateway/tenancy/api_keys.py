"""API keys of tenants: issue, list, rename, roll and revoke."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, any_, func, literal, or_, select, update

from gateway.db.audit import Action, record
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.key_tables import KeyDirectoryRow
from gateway.db.owners import check_user
from gateway.db.pages import Page, page_of
from gateway.db.tables import ApiKeyRow, TenantUserRow
from gateway.domain import USUAL_KEY_SCOPES, Scope, SecretText, new_id
from gateway.errors import InvalidRequest, NotFound
from gateway.tenancy.tenants import check_name, keep_living
from gateway.vault import key_format
from gateway.vault.key_format import Pepper

MAX_LIFETIME = timedelta(days=3653)
MAX_GRACE = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """The public fields of an API key.

    `root_id`: the first of a line of rolled keys, which stands for all in budgets and reports.
    """

    id: UUID
    root_id: UUID
    name: str | None
    user_id: UUID | None
    last4: str
    livemode: bool
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class IssuedKey(KeyInfo):
    """A new key with its secret, which is shown only once."""

    secret: SecretText


async def issue(
    session: TenantSession,
    tenant_id: UUID,
    *,
    pepper: Pepper,
    livemode: bool,
    name: str | None = None,
    user_id: UUID | None = None,
    scopes: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    expires_at: datetime | None = None,
) -> IssuedKey:
    """Issue a key to a tenant, or to one of its users; the database keeps only its HMAC.

    Raises:
        InvalidRequest: an unknown scope, an expiry more than ten years away, or an invalid name.
        NotFound: the user does not belong to this tenant, or user or tenant was deleted.
    """
    name = checked_name(name)
    unknown = sorted(set(scopes or ()) - set(Scope))
    if unknown:
        raise InvalidRequest(
            f"Unknown scope {unknown[0]!r}. Choose from: {', '.join(Scope)}.", param="scopes"
        )
    if expires_at is not None and expires_at > datetime.now(UTC) + MAX_LIFETIME:
        raise InvalidRequest(
            f"expires_at must be within ten years (got {expires_at:%Y-%m-%d}).", param="expires_at"
        )
    await keep_living(session, tenant_id)
    if user_id is not None:
        await check_user(session, tenant_id, user_id)
    secret, row = _add_key(
        session,
        tenant_id,
        pepper=pepper,
        livemode=livemode,
        name=name,
        user_id=user_id,
        scopes=scopes if scopes is not None else USUAL_KEY_SCOPES,
        models=models,
        expires_at=expires_at,
    )
    await session.flush()
    await record(
        session,
        Action.API_KEY_ISSUED,
        tenant_id=tenant_id,
        object_id=row.id,
        after=_shown(row),
    )
    return _issued(row, secret)


async def list_keys(session: TenantSession, tenant_id: UUID) -> list[KeyInfo]:
    """List every key of the tenant, newest first, without secrets."""
    rows = await session.scalars(
        select(ApiKeyRow)
        .where(ApiKeyRow.tenant_id == tenant_id)
        .order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id.desc())
    )
    return [_info(row) for row in rows]


async def get(session: TenantSession, tenant_id: UUID, key_id: UUID) -> KeyInfo:
    """Return the tenant's key with this id.

    Raises:
        NotFound: the tenant has no such key.
    """
    row = await session.scalar(
        select(ApiKeyRow).where(ApiKeyRow.tenant_id == tenant_id, ApiKeyRow.id == key_id)
    )
    if row is None:
        raise NotFound(f"There is no API key {key_id}.", param="key_id")
    return _info(row)


async def has_other_admin(session: TenantSession, tenant_id: UUID, *, but: KeyInfo) -> bool:
    """Tell if another usable key can administer the tenant (live keys administer test keys too)."""
    found = await session.scalar(
        select(ApiKeyRow.id)
        .outerjoin(TenantUserRow, TenantUserRow.id == ApiKeyRow.user_id)
        .where(
            ApiKeyRow.tenant_id == tenant_id,
            ApiKeyRow.id != but.id,
            ApiKeyRow.livemode | (not but.livemode),
            literal(Scope.TENANT_ADMIN.value) == any_(ApiKeyRow.scopes),
            func.coalesce(TenantUserRow.status, "active") == "active",
            _is_usable(),
        )
        .limit(1)
    )
    return found is not None


async def list_page(
    session: TenantSession,
    tenant_id: UUID,
    *,
    limit: int,
    after: UUID | None = None,
    livemode: bool | None = None,
) -> Page[KeyInfo]:
    """List one page of the tenant's keys (of one mode), newest first, after `after`."""
    query = (
        select(ApiKeyRow)
        .where(ApiKeyRow.tenant_id == tenant_id)
        .order_by(ApiKeyRow.id.desc())
        .limit(limit + 1)
    )
    if after is not None:
        query = query.where(ApiKeyRow.id < after)
    if livemode is not None:
        query = query.where(ApiKeyRow.livemode.is_(livemode))
    return page_of([_info(row) for row in await session.scalars(query)], limit)


async def rename(
    session: OperatorSession | TenantSession, key_id: UUID, name: str | None
) -> KeyInfo:
    """Rename a key and all others of its line; None removes the name.

    Raises:
        InvalidRequest: an invalid name.
        NotFound: there is no such key that this session sees.
    """
    name = checked_name(name)
    row = await session.scalar(select(ApiKeyRow).where(ApiKeyRow.id == key_id).with_for_update())
    if row is None:
        raise NotFound(f"There is no API key {key_id}.", param="key_id")
    before = _shown(row)
    if name != row.name:
        await session.execute(
            update(ApiKeyRow)
            .where(ApiKeyRow.tenant_id == row.tenant_id, ApiKeyRow.root_id == row.root_id)
            .values(name=name)
            .execution_options(synchronize_session="fetch")
        )
    await record(
        session,
        Action.API_KEY_RENAMED,
        tenant_id=row.tenant_id,
        object_id=row.id,
        before=before,
        after=_shown(row),
    )
    return _info(row)


async def revoke(session: OperatorSession | TenantSession, key_id: UUID) -> KeyInfo:
    """Revoke a key; every worker applies it within a second. Idempotent.

    Raises:
        NotFound: there is no such key that this session sees.
    """
    row = await session.scalar(select(ApiKeyRow).where(ApiKeyRow.id == key_id).with_for_update())
    if row is None:
        raise NotFound(f"There is no API key {key_id}.", param="key_id")
    before = _shown(row)
    if row.revoked_at is None:
        row.revoked_at = func.now()
        await session.flush()
        await session.refresh(row, ["revoked_at"])
    await record(
        session,
        Action.API_KEY_REVOKED,
        tenant_id=row.tenant_id,
        object_id=row.id,
        before=before,
        after=_shown(row),
    )
    return _info(row)


async def roll(
    session: OperatorSession | TenantSession, key_id: UUID, *, pepper: Pepper, grace: timedelta
) -> IssuedKey:
    """Issue a successor of a key, with its budgets; the old key stays valid for `grace`.

    Raises:
        InvalidRequest: a grace of more than a year.
        NotFound: there is no such key that this session sees, or it was revoked.
    """
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise InvalidRequest(
            f"The grace must be from 0 to {int(MAX_GRACE.total_seconds())} seconds (a year; got "
            f"{int(grace.total_seconds())}).",
            param="grace_seconds",
        )
    old = await session.scalar(
        select(ApiKeyRow).where(ApiKeyRow.id == key_id, _is_usable()).with_for_update()
    )
    if old is None:
        raise NotFound(f"There is no usable API key {key_id}.", param="key_id")
    before = _shown(old)
    secret, twin = _add_key(
        session,
        old.tenant_id,
        pepper=pepper,
        livemode=old.livemode,
        name=old.name,
        user_id=old.user_id,
        scopes=old.scopes,
        models=old.models,
        expires_at=old.expires_at,
        root_id=old.root_id,
    )
    ends_at = datetime.now(UTC) + grace
    old.expires_at = min(old.expires_at or ends_at, ends_at)
    await session.flush()
    await record(
        session,
        Action.API_KEY_ROLLED,
        tenant_id=old.tenant_id,
        object_id=old.id,
        before=before,
        after=_shown(old) | {"twin": {"id": twin.id, **_shown(twin)}},
    )
    return _issued(twin, secret)


def _add_key(
    session: TenantSession | OperatorSession,
    tenant_id: UUID,
    *,
    pepper: Pepper,
    livemode: bool,
    name: str | None,
    user_id: UUID | None,
    scopes: Sequence[str],
    models: Sequence[str] | None,
    expires_at: datetime | None,
    root_id: UUID | None = None,
) -> tuple[SecretText, ApiKeyRow]:
    """Generate a secret; add the key's row, and its digest to the directory."""
    secret = key_format.new_key("live" if livemode else "test")
    key_id = new_id()
    row = ApiKeyRow(
        id=key_id,
        tenant_id=tenant_id,
        user_id=user_id,
        root_id=root_id or key_id,
        name=name,
        last4=secret.reveal()[-4:],
        livemode=livemode,
        scopes=sorted(set(scopes)),
        models=None if models is None else sorted(set(models)),
        expires_at=expires_at,
        revoked_at=None,
    )
    entry = KeyDirectoryRow(
        digest=key_format.digest(pepper, secret.reveal()),
        tenant_id=tenant_id,
        api_key_id=key_id,
        pepper_version=pepper.version,
    )
    session.add_all((row, entry))
    return secret, row


def checked_name(name: str | None) -> str | None:
    """Check a name, and normalise it to NFC so that equal names compare equal."""
    if name is None:
        return None
    composed = unicodedata.normalize("NFC", name)
    check_name(composed)
    return composed


def _info(row: ApiKeyRow) -> KeyInfo:
    return KeyInfo(**_public(row))


def _issued(row: ApiKeyRow, secret: SecretText) -> IssuedKey:
    return IssuedKey(**_public(row), secret=secret)


def _public(row: ApiKeyRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "root_id": row.root_id,
        "name": row.name,
        "user_id": row.user_id,
        "last4": row.last4,
        "livemode": row.livemode,
        "scopes": tuple(row.scopes),
        "models": None if row.models is None else tuple(row.models),
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "created_at": row.created_at,
    }


def _shown(row: ApiKeyRow) -> dict[str, object]:
    """Render a key for the audit trail, without secret and digest."""
    return {name: value for name, value in _public(row).items() if name not in {"id", "created_at"}}


def _is_usable() -> ColumnElement[bool]:
    return ApiKeyRow.revoked_at.is_(None) & or_(
        ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.clock_timestamp()
    )
