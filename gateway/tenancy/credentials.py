"""Credentials: the sealed provider keys of users and tenants, and the choice for a call.

The user's credential comes first, then the tenant's, then the house credential.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Literal
from uuid import UUID

import orjson
from sqlalchemy import Select, func, select, true

from gateway.catalog.vendors import VENDORS
from gateway.db.audit import Action, record
from gateway.db.cache import Cache
from gateway.db.engine import Database, OperatorSession, TenantSession, one_at_a_time
from gateway.db.owners import check_user
from gateway.db.pages import Page, page_of
from gateway.db.tables import CredentialRow, DataKeyRow
from gateway.domain import Caller, SecretText, new_id
from gateway.errors import InvalidRequest, NotConfigured, NotFound, RateLimited
from gateway.tenancy.tenants import keep_living
from gateway.vault.rotation import ResealedBatch
from gateway.vault.sealing import DataKeyMissing, SealBroken, Vault, WrappedKey, unseal

Owner = Literal["user", "tenant", "house", "sandbox"]
MIN_CHARACTERS, MAX_CHARACTERS = 8, 500
TEST_INTERVAL = timedelta(seconds=5)
_SECRET_FORM = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class CredentialInfo:
    """The public fields of a credential."""

    id: UUID
    provider: str
    owner: Literal["user", "tenant"]
    user_id: UUID | None
    last4: str
    version: int
    updated_at: datetime

    @property
    def is_new(self) -> bool:
        """True if it replaced no earlier credential."""
        return self.version == 1


@dataclass(frozen=True, slots=True)
class SealedCredential:
    """A credential in its stored form."""

    id: UUID
    tenant_id: UUID
    user_id: UUID | None
    provider: str
    version: int
    data_key_version: int
    sealed: bytes
    data_key: WrappedKey | None = None
    """The data key that opens it, if it was read together with it."""


OwnCredentials = Mapping[str, SealedCredential]
"""A caller's credentials by provider: the user's, else the tenant's."""
NO_CREDENTIALS: OwnCredentials = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class CredentialChoice:
    """The credential chosen for a call; it is opened immediately before the call."""

    owner: Owner
    sealed: SealedCredential | None = None


class Credentials:
    """The choice and opening of a call's credential."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        house: Mapping[str, SecretText],
        owned: Cache[tuple[UUID, UUID | None], OwnCredentials],
    ) -> None:
        self._database = database
        self._vault = vault
        self._house = house
        self._owned = owned

    async def choose(self, caller: Caller, provider: str) -> CredentialChoice:
        """Choose the user's credential, else the tenant's, else the house credential.

        Raises:
            NotConfigured: there is none (code `no_credential`).
        """
        key = (caller.tenant_id, caller.user_id)
        owned = await self._owned.get(key, lambda: self._load(*key)) or NO_CREDENTIALS
        if (found := owned.get(provider)) is not None:
            return CredentialChoice("tenant" if found.user_id is None else "user", found)
        if provider not in self._house:
            raise no_credential(provider)
        return CredentialChoice("house")

    async def open(self, choice: CredentialChoice, provider: str) -> SecretText:
        """Decrypt the secret for the call that is about to be made."""
        if choice.sealed is None:
            return self._house[provider]
        found = choice.sealed
        try:
            return await self._open(found)
        except DataKeyMissing:
            # Resealed since it was read, before this worker's cache was invalidated.
            return await self._open(await self._read_again(found.tenant_id, found))

    async def _open(self, found: SealedCredential) -> SecretText:
        return await self._vault.open_for_tenant(
            self._database,
            found.tenant_id,
            found.data_key_version,
            found.sealed,
            *_place(found),
            wrapped=found.data_key,
        )

    async def _read_again(self, tenant_id: UUID, found: SealedCredential) -> SealedCredential:
        async with self._database.tenant(tenant_id) as session:
            row = await session.scalar(
                select(CredentialRow).where(
                    CredentialRow.tenant_id == tenant_id, CredentialRow.id == found.id
                )
            )
        return found if row is None else _sealed(row)

    async def _load(self, tenant_id: UUID, user_id: UUID | None) -> tuple[OwnCredentials, str]:
        rows = await self._database.call(
            "SELECT credentials_of(:tenant_id, :user_id) AS credentials",
            {"tenant_id": tenant_id, "user_id": user_id},
        )
        return read_credentials(tenant_id, rows[0].credentials), str(tenant_id)


def read_credentials(tenant_id: UUID, text: str | None) -> OwnCredentials:
    """Parse the result of the SQL function `credentials_of`."""
    if text is None:
        return NO_CREDENTIALS
    owned: dict[str, SealedCredential] = {}
    # The tenant's first, so that the user's replace them.
    for fields in sorted(orjson.loads(text), key=lambda one: one["user_id"] is not None):
        wrapped, user_id = fields["wrapped"], fields["user_id"]
        owned[fields["provider"]] = SealedCredential(
            UUID(fields["id"]),
            tenant_id,
            None if user_id is None else UUID(user_id),
            fields["provider"],
            fields["version"],
            fields["data_key_version"],
            bytes.fromhex(fields["sealed"]),
            wrapped and WrappedKey(bytes.fromhex(wrapped), fields["master_key_id"]),
        )
    return owned


async def reseal(
    session: OperatorSession, vault: Vault, after: UUID | None, limit: int
) -> ResealedBatch:
    """Reseal credentials after the id `after`, each under its tenant's newest data key."""
    newest = (
        select(func.max(DataKeyRow.version))
        .where(DataKeyRow.tenant_id == CredentialRow.tenant_id)
        .scalar_subquery()
    )
    query = (
        select(CredentialRow)
        .where(CredentialRow.data_key_version < newest)
        .order_by(CredentialRow.id)
        .limit(limit)
        .with_for_update()
    )
    if after is not None:
        query = query.where(CredentialRow.id > after)
    rows = (await session.scalars(query)).all()
    unreadable = []
    for row in rows:
        place = _place(_sealed(row))
        try:
            key = await vault.data_key(session, row.tenant_id, row.data_key_version)
            plain = unseal(key, row.sealed, row.tenant_id, *place)
        except SealBroken:
            unreadable.append(row.id)
            continue
        row.data_key_version, row.sealed = await vault.seal_for_tenant(
            TenantSession(session), row.tenant_id, SecretText(plain.decode()), *place
        )
    last = rows[-1].id if len(rows) == limit else None
    return ResealedBatch(len(rows) - len(unreadable), tuple(unreadable), last)


def _sealed(row: CredentialRow) -> SealedCredential:
    return SealedCredential(
        row.id,
        row.tenant_id,
        row.user_id,
        row.provider,
        row.version,
        row.data_key_version,
        row.sealed,
    )


def _place(found: SealedCredential) -> tuple[object, ...]:
    return ("credential", found.id, found.user_id, found.provider, found.version)


async def store(
    session: TenantSession,
    tenant_id: UUID,
    *,
    vault: Vault,
    user_id: UUID | None,
    provider: str,
    secret: SecretText,
    vendors: Collection[str] = VENDORS,
) -> CredentialInfo:
    """Seal and store a provider key, replacing an earlier one.

    Raises:
        InvalidRequest: the text is not in the form of a key.
        NotFound: unknown provider, the user does not belong to this tenant, or the tenant was
            deleted.
    """
    check_provider(provider, vendors)
    text = secret.reveal()
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS or not _SECRET_FORM.fullmatch(text):
        raise InvalidRequest(
            f"A provider key must have {MIN_CHARACTERS} to {MAX_CHARACTERS} characters "
            "and no spaces.",
            param="secret",
        )
    await keep_living(session, tenant_id)
    await one_at_a_time(session, tenant_id)
    if user_id is not None:
        await check_user(session, tenant_id, user_id)
    row = await session.scalar(_owned(tenant_id, user_id, provider))
    before = None if row is None else _shown(row)
    if row is None:
        row = CredentialRow(
            id=new_id(), tenant_id=tenant_id, user_id=user_id, provider=provider, version=0
        )
    row.version += 1
    row.last4 = text[-4:]
    row.updated_at = func.now()
    row.data_key_version, row.sealed = await vault.seal_for_tenant(
        session, tenant_id, secret, "credential", row.id, user_id, provider, row.version
    )
    session.add(row)
    await session.flush()
    await session.refresh(row, ["updated_at"])
    await record(
        session,
        Action.CREDENTIAL_STORED,
        tenant_id=tenant_id,
        object_id=row.id,
        before=before,
        after=_shown(row),
    )
    return _info(row)


async def list_credentials(session: TenantSession, tenant_id: UUID) -> list[CredentialInfo]:
    """List every credential of the tenant and its users, without secrets."""
    rows = await session.scalars(
        select(CredentialRow)
        .where(CredentialRow.tenant_id == tenant_id)
        .order_by(CredentialRow.provider, CredentialRow.created_at)
    )
    return [_info(row) for row in rows]


async def list_page(
    session: TenantSession, tenant_id: UUID, *, limit: int, after: UUID | None = None
) -> Page[CredentialInfo]:
    """List one page of credentials of the tenant and its users, newest first, after `after`."""
    query = (
        select(CredentialRow)
        .where(CredentialRow.tenant_id == tenant_id)
        .order_by(CredentialRow.id.desc())
        .limit(limit + 1)
    )
    if after is not None:
        query = query.where(CredentialRow.id < after)
    return page_of([_info(row) for row in await session.scalars(query)], limit)


async def get(
    session: TenantSession, tenant_id: UUID, *, user_id: UUID | None, provider: str
) -> CredentialInfo:
    """Return the credential of exactly this owner.

    Raises:
        NotFound: there is none.
    """
    row = await session.scalar(_owned(tenant_id, user_id, provider))
    if row is None:
        raise _not_stored(provider)
    return _info(row)


async def start_test(
    session: TenantSession, tenant_id: UUID, *, user_id: UUID | None, provider: str
) -> tuple[CredentialInfo, CredentialChoice]:
    """Record that the credential of exactly this owner is being tested, and return it sealed.

    Raises:
        NotFound: there is none.
        RateLimited: it was tested a few seconds ago.
    """
    row = await session.scalar(_owned(tenant_id, user_id, provider).with_for_update())
    if row is None:
        raise _not_stored(provider)
    due = await session.scalar(
        select(
            func.coalesce(CredentialRow.tested_at + TEST_INTERVAL <= func.clock_timestamp(), true())
        ).where(CredentialRow.tenant_id == tenant_id, CredentialRow.id == row.id)
    )
    if not due:
        seconds = int(TEST_INTERVAL.total_seconds())
        raise RateLimited(
            f"This {provider} key was tested less than {seconds} seconds ago. Try again later.",
            retry_after_seconds=seconds,
        )
    row.tested_at = func.clock_timestamp()
    await session.flush()
    sealed = SealedCredential(
        row.id, tenant_id, user_id, provider, row.version, row.data_key_version, row.sealed
    )
    owner: Owner = "tenant" if user_id is None else "user"
    return _info(row), CredentialChoice(owner, sealed)


async def delete(
    session: TenantSession, tenant_id: UUID, *, user_id: UUID | None, provider: str
) -> None:
    """Delete the credential of exactly this owner.

    Raises:
        NotFound: there is none.
    """
    await one_at_a_time(session, tenant_id)
    row = await session.scalar(_owned(tenant_id, user_id, provider))
    if row is None:
        raise _not_stored(provider)
    await session.delete(row)
    await record(
        session,
        Action.CREDENTIAL_DELETED,
        tenant_id=tenant_id,
        object_id=row.id,
        before=_shown(row),
    )


def no_credential(provider: str) -> NotConfigured:
    """Build the refusal of a live call for which there is no key of the provider."""
    return NotConfigured(
        f"No {provider} key is configured: store your own with PUT /v1/credentials/{provider} or "
        f"`gateway credentials set`, or let the operator set {_key_setting(provider)}. Test keys "
        "(igw_test_…) work without one.",
        code="no_credential",
    )


def _key_setting(provider: str) -> str:
    return VENDORS[provider].key_setting if provider in VENDORS else "its key"


def _not_stored(provider: str) -> NotFound:
    return NotFound(f"No {provider} key is stored for this owner.", param="provider")


def check_provider(provider: str, vendors: Collection[str]) -> None:
    """Raise `NotFound` for a provider that takes no credentials."""
    if provider not in vendors:
        raise NotFound(
            f"No credentials are kept for {provider!r}. Choose from: {', '.join(vendors)}.",
            param="provider",
        )


def _owned(tenant_id: UUID, user_id: UUID | None, provider: str) -> Select[CredentialRow]:
    return select(CredentialRow).where(
        CredentialRow.tenant_id == tenant_id,
        CredentialRow.provider == provider,
        CredentialRow.user_id.is_(None) if user_id is None else CredentialRow.user_id == user_id,
    )


def _shown(row: CredentialRow) -> dict[str, object]:
    """Render a credential for the audit trail, without the secret and its sealed form."""
    return {
        "provider": row.provider,
        "user_id": row.user_id,
        "last4": row.last4,
        "version": row.version,
    }


def _info(row: CredentialRow) -> CredentialInfo:
    return CredentialInfo(
        id=row.id,
        provider=row.provider,
        owner="tenant" if row.user_id is None else "user",
        user_id=row.user_id,
        last4=row.last4,
        version=row.version,
        updated_at=row.updated_at,
    )
