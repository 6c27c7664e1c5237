"""API keys: issuing, finding the caller behind one, rolling and revoking."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, select, update

from gateway.db.cache import Cache
from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.tables import ApiKeyRow, OperatorKeyRow
from gateway.domain import Caller, Operator, Scope, SecretText, TenantSettings, new_id
from gateway.errors import NotFound, Unauthenticated
from gateway.tenancy import key_format
from gateway.tenancy.rate_limits import read_limits
from gateway.tenancy.tenants import refuse_suspended


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key; its secret is known only now."""

    id: UUID
    secret: SecretText
    livemode: bool
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be shown of a key."""

    id: UUID
    user_id: UUID | None
    last4: str
    livemode: bool
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class ApiKeys:
    """Finds who is behind a key: the cache in front of Postgres."""

    def __init__(
        self, database: Database, pepper: bytes, callers: Cache[bytes, Caller | Operator]
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._callers = callers

    async def authenticate(self, text: str) -> Caller | Operator:
        """Who sends this key.

        Raises:
            Unauthenticated: malformed, unknown, revoked or expired.
            Forbidden: the tenant is suspended.
            DatabaseUnavailable: the key is not cached and Postgres is away.
        """
        kind = key_format.key_kind(text)
        if kind is None:
            raise Unauthenticated(
                "This is not an API key of this gateway (igw_live_… or igw_test_…), "
                "or it was copied incompletely."
            )
        digest = key_format.digest(self._pepper, text)
        load = self._load_operator if kind == "admin" else self._load_caller
        caller = await self._callers.get(digest, lambda: load(digest))
        if caller is None:
            raise Unauthenticated("This API key is not known here, or it was revoked.")
        if isinstance(caller, Caller):
            _refuse_expired(caller)
        return caller

    async def _load_caller(self, digest: bytes) -> tuple[Caller | Operator, str] | None:
        rows = await self._database.call(
            "SELECT c.*, limits_of(c.tenant_id, c.id, c.user_id, c.livemode) AS limits"
            " FROM find_caller(:digest) c",
            {"digest": digest},
        )
        if not rows or rows[0].revoked_at is not None:
            return None
        row = rows[0]
        caller = Caller(
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            api_key_id=row.id,
            livemode=row.livemode,
            scopes=frozenset(row.scopes),
            models=None if row.models is None else frozenset(row.models),
            expires_at=row.expires_at,
            tenant_status=row.tenant_status,
            tenant_settings=TenantSettings(
                continuity=row.continuity,
                stores_prompts=row.stores_prompts,
                image_retention_seconds=row.image_retention_seconds,
            ),
            limits=read_limits(row.limits),
        )
        return caller, str(row.tenant_id)

    async def _load_operator(self, digest: bytes) -> tuple[Caller | Operator, str] | None:
        rows = await self._database.call(
            "SELECT id FROM operator_key WHERE digest = :digest AND revoked_at IS NULL",
            {"digest": digest},
        )
        return (Operator(rows[0].id), "operator_key") if rows else None


def _refuse_expired(caller: Caller) -> None:
    if caller.expires_at is not None and caller.expires_at <= datetime.now(UTC):
        raise Unauthenticated("This API key has expired. Ask your administrator for a new one.")
    refuse_suspended(caller.tenant_status)


async def issue(
    session: TenantSession,
    tenant_id: UUID,
    *,
    pepper: bytes,
    livemode: bool,
    user_id: UUID | None = None,
    scopes: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    expires_at: datetime | None = None,
    root_id: UUID | None = None,
) -> IssuedKey:
    """Make a key for a tenant, or for one of its users; the database keeps only its HMAC."""
    secret = key_format.new_key("live" if livemode else "test")
    granted = tuple(sorted(scopes)) if scopes is not None else tuple(sorted(Scope))
    key_id = new_id()
    session.add(
        ApiKeyRow(
            id=key_id,
            tenant_id=tenant_id,
            user_id=user_id,
            root_id=root_id or key_id,
            digest=key_format.digest(pepper, secret.reveal()),
            last4=secret.reveal()[-4:],
            livemode=livemode,
            scopes=list(granted),
            models=None if models is None else sorted(models),
            expires_at=expires_at,
        )
    )
    await session.flush()
    return IssuedKey(
        id=key_id,
        secret=secret,
        livemode=livemode,
        scopes=granted,
        models=None if models is None else tuple(sorted(models)),
        expires_at=expires_at,
    )


async def list_keys(session: TenantSession, tenant_id: UUID) -> list[KeyInfo]:
    """Every key of the tenant, newest first, without secrets."""
    rows = await session.scalars(
        select(ApiKeyRow)
        .where(ApiKeyRow.tenant_id == tenant_id)
        .order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id.desc())
    )
    return [
        KeyInfo(
            id=row.id,
            user_id=row.user_id,
            last4=row.last4,
            livemode=row.livemode,
            scopes=tuple(row.scopes),
            models=None if row.models is None else tuple(row.models),
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            created_at=row.created_at,
        )
        for row in rows
    ]


async def revoke(session: OperatorSession, key_id: UUID) -> None:
    """End a key now; every worker hears of it within a second.

    Raises:
        NotFound: there is no such key.
    """
    changed = await session.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.id == key_id)
        .values(revoked_at=func.coalesce(ApiKeyRow.revoked_at, func.now()))
        .returning(ApiKeyRow.id)
    )
    if changed.first() is None:
        raise NotFound(f"There is no API key {key_id}.")


async def roll(
    session: OperatorSession, key_id: UUID, *, pepper: bytes, grace: timedelta
) -> IssuedKey:
    """Issue a twin of a key, with its budgets; the old one stays valid for `grace`.

    Raises:
        NotFound: there is no such key, or it was revoked.
    """
    old = await session.scalar(
        select(ApiKeyRow).where(ApiKeyRow.id == key_id, _is_usable()).with_for_update()
    )
    if old is None:
        raise NotFound(f"There is no usable API key {key_id}.")
    issued = await issue(
        TenantSession(session),
        old.tenant_id,
        pepper=pepper,
        livemode=old.livemode,
        user_id=old.user_id,
        scopes=old.scopes,
        models=old.models,
        expires_at=old.expires_at,
        root_id=old.root_id,
    )
    ends_at = datetime.now(UTC) + grace
    await session.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.id == key_id)
        .values(expires_at=func.least(func.coalesce(ApiKeyRow.expires_at, ends_at), ends_at))
    )
    return issued


def _is_usable() -> ColumnElement[bool]:
    return ApiKeyRow.revoked_at.is_(None) & or_(
        ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()
    )


async def add_operator_key(session: OperatorSession, *, pepper: bytes, secret: SecretText) -> None:
    """Make this admin key valid; a key that already is stays as it is."""
    digest = key_format.digest(pepper, secret.reveal())
    known = await session.scalar(select(OperatorKeyRow.id).where(OperatorKeyRow.digest == digest))
    if known is None:
        session.add(OperatorKeyRow(id=new_id(), digest=digest, last4=secret.reveal()[-4:]))


async def has_operator_key(session: OperatorSession) -> bool:
    """Whether any admin key works."""
    query = select(OperatorKeyRow.id).where(OperatorKeyRow.revoked_at.is_(None)).limit(1)
    return await session.scalar(query) is not None
