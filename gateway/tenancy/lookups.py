"""Look-up of keys, users and tenants by an id, a name, or the last four characters.

An id is unique. A name and last characters must match exactly one: a command that revokes the
wrong key cannot be undone.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Text, cast, false, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.tables import ApiKeyRow, TenantRow, TenantUserRow
from gateway.errors import InvalidRequest, NotFound
from gateway.tenancy.tenants import Tenant, as_uuid, get
from gateway.tenancy.users import ensure_user

LAST = 4
"""The number of last characters that can stand for an id or a key."""
MAX_CANDIDATES = 8
Session = TenantSession | OperatorSession


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A matching key. `root_id`: the first of its line, to which reports and budgets refer."""

    id: UUID
    root_id: UUID
    tenant_id: UUID
    user_id: UUID | None
    name: str | None
    last4: str
    livemode: bool
    is_usable: bool

    def __str__(self) -> str:
        shown = f"igw_{'live' if self.livemode else 'test'}_…{self.last4} ({self.id})"
        return shown if self.name is None else f"{self.name}: {shown}"


@dataclass(frozen=True, slots=True)
class FoundAccount:
    """A matching tenant or user; a tenant's own id is its `tenant_id`."""

    id: UUID
    tenant_id: UUID
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


@dataclass(frozen=True, slots=True)
class KeyScope:
    """A filter of the keys to search; None: all of them."""

    user_id: UUID | None = None
    livemode: bool | None = None


ALL_KEYS = KeyScope()


async def find_key(
    session: Session,
    tenant_id: UUID | None,
    text: str,
    *,
    among: KeyScope = ALL_KEYS,
    param: str = "key",
) -> FoundKey:
    """Find the one key that matches `text`; ended keys count only if no usable key matches.

    Raises:
        NotFound: none matches.
        InvalidRequest: several match (code `ambiguous`).
    """
    found = await _keys(session, tenant_id, text, among)
    usable = [key for key in found if key.is_usable]
    return _only(usable or found, "API key", text, param)


async def find_line(
    session: Session,
    tenant_id: UUID | None,
    text: str,
    *,
    among: KeyScope = ALL_KEYS,
    param: str = "key",
) -> UUID:
    """Find the first key of the one line of rolled keys that matches `text`.

    Raises:
        NotFound: none matches.
        InvalidRequest: several match (code `ambiguous`).
    """
    found = await _keys(session, tenant_id, text, among)
    usable = [key for key in found if key.is_usable]
    lines = {key.root_id: key for key in usable or found}
    return _only(list(lines.values()), "API key", text, param).root_id


async def find_or_make_user(
    session: TenantSession, tenant_id: UUID, text: str | None
) -> UUID | None:
    """Find the id of the user that matches `text`, or create a user of this name; None for None.

    Raises:
        NotFound: it is an id, and there is no such user.
        InvalidRequest: it is not a valid name.
    """
    if text is None:
        return None
    if as_uuid(text) is None:
        return await ensure_user(session, tenant_id, text)
    return (await find_user(session, tenant_id, text)).id


async def find_user(
    session: Session,
    tenant_id: UUID | None,
    text: str,
    *,
    among: KeyScope = ALL_KEYS,
    param: str = "user",
) -> FoundAccount:
    """Find the one user that matches `text`; if `among` names a user, only that one.

    Raises:
        NotFound: none matches.
        InvalidRequest: several match (code `ambiguous`).
    """
    rows = await session.execute(
        select(TenantUserRow.id, TenantUserRow.tenant_id, TenantUserRow.name)
        .where(
            _meant(TenantUserRow.id, TenantUserRow.name, text),
            *([] if tenant_id is None else [TenantUserRow.tenant_id == tenant_id]),
        )
        .order_by(TenantUserRow.id.desc())
        .limit(MAX_CANDIDATES + 1)
    )
    found = [
        FoundAccount(row.id, row.tenant_id, row.name)
        for row in rows
        if among.user_id in {None, row.id}
    ]
    return _only(found, "user", text, param)


async def find_tenant(session: OperatorSession, text: str, *, param: str = "tenant") -> Tenant:
    """Find the one tenant that matches `text`.

    Raises:
        NotFound: none matches.
        InvalidRequest: several match (code `ambiguous`).
    """
    rows = await session.execute(
        select(TenantRow.id, TenantRow.name)
        .where(_meant(TenantRow.id, TenantRow.name, text))
        .order_by(TenantRow.id.desc())
        .limit(MAX_CANDIDATES + 1)
    )
    found = [FoundAccount(row.id, row.id, row.name) for row in rows]
    return await get(session, _only(found, "tenant", text, param).id)


def find_among(ids: Sequence[UUID], text: str, *, noun: str, param: str) -> UUID:
    """Find the one of these ids that equals `text`, or ends with its four characters.

    Raises:
        NotFound: none matches.
        InvalidRequest: several match (code `ambiguous`).
    """
    given = as_uuid(text)
    if given is not None:
        return given
    ending = text.lower() if len(text) == LAST else None
    return _only([one for one in ids if str(one)[-LAST:] == ending], noun, text, param)


async def _keys(
    session: Session, tenant_id: UUID | None, text: str, among: KeyScope
) -> list[FoundKey]:
    is_usable = ApiKeyRow.revoked_at.is_(None) & or_(
        ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.clock_timestamp()
    )
    query = (
        select(ApiKeyRow, is_usable)
        .where(_meant(ApiKeyRow.id, ApiKeyRow.name, text, last4=ApiKeyRow.last4))
        .order_by(ApiKeyRow.id.desc())
        .limit(10 * MAX_CANDIDATES)
    )
    if tenant_id is not None:
        query = query.where(ApiKeyRow.tenant_id == tenant_id)
    if among.user_id is not None:
        query = query.where(ApiKeyRow.user_id == among.user_id)
    if among.livemode is not None:
        query = query.where(ApiKeyRow.livemode.is_(among.livemode))
    found = [
        FoundKey(
            id=row.id,
            root_id=row.root_id,
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            name=row.name,
            last4=row.last4,
            livemode=row.livemode,
            is_usable=usable,
        )
        for row, usable in (await session.execute(query)).all()
    ]
    exact = [key for key in found if key.id == as_uuid(text)]
    return exact or found


def _meant(
    row_id: InstrumentedAttribute[UUID],
    name: InstrumentedAttribute[Any],
    text: str,
    *,
    last4: InstrumentedAttribute[str] | None = None,
) -> ColumnElement[bool]:
    """Build the condition for rows with this id or name, or with an id or secret that ends so."""
    if not text.isprintable():
        return false()  # Postgres refuses NUL, and no name contains it
    given = as_uuid(text)
    ways: list[ColumnElement[bool]] = [name.in_({text, unicodedata.normalize("NFC", text)})]
    if given is not None:
        ways.append(row_id == given)
    if len(text) == LAST:
        ways.append(func.right(cast(row_id, Text), LAST) == text.lower())
        if last4 is not None:
            ways.append(last4 == text)
    return or_(*ways)


Meant = TypeVar("Meant", FoundKey, FoundAccount, UUID)


def _only(found: Sequence[Meant], noun: str, text: str, param: str) -> Meant:
    exact = [one for one in found if not isinstance(one, UUID) and one.id == as_uuid(text)]
    found = exact or found
    if not found:
        raise NotFound(
            f"There is no {noun} {text!r}. Give an id, a name, or the last four characters.",
            param=param,
        )
    if len(found) > 1:
        listed = "; ".join(str(one) for one in found[:MAX_CANDIDATES])
        more = "; …" if len(found) > MAX_CANDIDATES else ""
        raise InvalidRequest(
            f"{text!r} matches more than one {noun}: {listed}{more}. Give the id.",
            code="ambiguous",
            param=param,
        )
    return found[0]


async def find_key_and_user(
    session: TenantSession | OperatorSession,
    tenant_id: UUID | None,
    key: str | None,
    user: str | None,
    *,
    among: KeyScope = ALL_KEYS,
) -> tuple[UUID | None, UUID | None]:
    """Find the key and user of a report's filters by id, name or last four characters.

    Raises:
        NotFound: there is no such key or user.
        InvalidRequest: several match (code `ambiguous`).
    """
    key_id = user_id = None
    if key is not None:
        key_id = await find_line(session, tenant_id, key, among=among)
    if user is not None:
        user_id = (await find_user(session, tenant_id, user, among=among)).id
    return key_id, user_id
