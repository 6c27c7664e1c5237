"""Sessions of the console: begin, find, list and end them.

A session is a row in Postgres and an opaque token in a cookie, so that it can be ended at once at
every gateway. Each sign-in and each change of rights makes a new token.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal_column, or_, select, update

from gateway.config import Settings
from gateway.db.audit import Action, record
from gateway.db.console_tables import ConsoleSessionRow
from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.pages import Page, page_of
from gateway.domain import SecretText, new_id
from gateway.errors import NotFound, Unauthenticated
from gateway.identity.tokens import digest_of, is_token, new_token
from gateway.identity.viewers import KeyRights, Permission, Role, Via, Viewer
from gateway.tenancy.tenants import keep_living
from gateway.vault.sealing import SealBroken, seal, unseal

MAX_AGENT_CHARACTERS = 200
MAX_ADDRESS_CHARACTERS = 64
MAX_OPEN = 100
"""Sessions that a person or a key may have open at once; the oldest end first."""
_ROW: ColumnElement[object] = literal_column("console_session")
END_REASONS = {
    "signed_out": "You have signed out.",
    "replaced": "You have signed in again since.",
    "too_many": "You have signed in many times since.",
    "too_old": "Your session has reached its longest time.",
    "idle": "You were not active for a while.",
    "person_changed": "Your role was changed, or your access was taken away.",
    "key_ended": "The key of this session was revoked or has expired.",
    "tenant_disabled": "Your tenant or your user is disabled.",
    "ended_by_owner": "You ended this session from another one.",
    "ended_by_operator": "An administrator ended this session.",
}
"""The reasons for which sessions end, as their owners read them."""


class SessionEnded(Unauthenticated):
    """There is no session, or it has ended; `end_reason` is one of `END_REASONS` or empty."""

    code = "session_ended"

    def __init__(self, end_reason: str = "") -> None:
        super().__init__(f"{END_REASONS.get(end_reason, '')} Sign in again.".strip())
        self.end_reason = end_reason


@dataclass(frozen=True, slots=True)
class Browser:
    """The browser of a request, as its owner will recognise it: network and User-Agent."""

    address: str
    agent: str


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A person who has just proved who they are, and what for."""

    name: str
    role: Role
    via: Via
    tenant_id: UUID | None = None
    user_id: UUID | None = None
    person_id: UUID | None = None
    api_key_id: UUID | None = None
    operator_key_id: UUID | None = None
    expires_at: datetime | None = None
    provider_token: SecretText | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The public fields of a session."""

    id: UUID
    name: str
    role: Role
    via: Via
    tenant_id: UUID | None
    person_id: UUID | None
    visited_tenant_id: UUID | None
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    address: str
    agent: str
    ended_at: datetime | None
    end_reason: str | None

    @property
    def is_break_glass(self) -> bool:
        """Return True for a session that an admin key opened."""
        return self.via == "admin_key"


async def begin(
    session: OperatorSession,
    who: SignedIn,
    browser: Browser,
    settings: Settings,
    *,
    sealing_key: bytes,
) -> SecretText:
    """Begin a session; return its token, which is stored as a digest alone.

    `sealing_key`: for the provider's token, which is sent again at the sign-out.
    """
    token, now, session_id = new_token(), datetime.now(UTC), new_id()
    idle, longest = _lifetime(who, settings)
    until = now + longest
    if who.expires_at is not None:
        until = min(until, who.expires_at)
    row = ConsoleSessionRow(
        id=session_id,
        digest=digest_of(token.reveal()),
        name=who.name,
        role=who.role,
        via=who.via,
        tenant_id=who.tenant_id,
        user_id=who.user_id,
        person_id=who.person_id,
        api_key_id=who.api_key_id,
        operator_key_id=who.operator_key_id,
        idle_seconds=max(1, round(idle.total_seconds())),
        idle_until=min(until, now + idle),
        absolute_until=until,
        address=browser.address[:MAX_ADDRESS_CHARACTERS],
        agent=browser.agent[:MAX_AGENT_CHARACTERS],
        provider_token=_sealed(who.provider_token, session_id, sealing_key),
    )
    session.add(row)
    await session.flush()
    await record(
        session,
        Action.SESSION_BEGUN,
        tenant_id=who.tenant_id,
        object_id=row.id,
        after=_shown(row),
    )
    await _make_room(session, who, row.id)
    return token


async def find(database: Database, token: str, *, touches: bool = True) -> Viewer:
    """Find the viewer of a session's token.

    `touches`: a person asked, so that the session does not end as idle; not so for what a page
    asks by itself.

    Raises:
        SessionEnded: there is no such session, or it has ended.
        DatabaseUnavailable: Postgres is away.
    """
    if not is_token(token):
        raise SessionEnded
    rows = await database.call(
        "SELECT * FROM find_console_session(:digest, :touches)",
        {"digest": digest_of(token), "touches": touches},
    )
    if not rows:
        raise SessionEnded
    row = rows[0]
    if row.end_reason is not None:
        raise SessionEnded(row.end_reason)
    key = None
    if row.api_key_id is not None:
        models = None if row.key_models is None else frozenset(row.key_models)
        key = KeyRights(row.key_root_id, frozenset(row.key_scopes), models, row.key_livemode)
    return Viewer(
        session_id=row.id,
        name=row.name,
        role=Role(row.role),
        via=row.via,
        tenant_id=row.visited_tenant_id or row.tenant_id,
        tenant_name=row.tenant_name,
        time_zone=row.tenant_zone or "UTC",
        user_id=row.user_id,
        person_id=row.person_id,
        api_key_id=row.api_key_id,
        operator_key_id=row.operator_key_id,
        is_visiting=row.visited_tenant_id is not None,
        key=key,
        created_at=row.created_at,
        idle_until=row.idle_until,
        expires_at=row.absolute_until,
    )


async def sign_out(
    session: OperatorSession, viewer: Viewer, *, sealing_key: bytes
) -> SecretText | None:
    """End the viewer's session; return the provider's token of it, if it had one.

    Raises:
        NotFound: it has ended already.
    """
    sealed = await _end_own(session, viewer, viewer.session_id)
    return None if sealed is None else _opened(sealed, viewer.session_id, sealing_key)


async def end_own(session: OperatorSession, viewer: Viewer, session_id: UUID) -> None:
    """End a session of the same person.

    Raises:
        NotFound: it is not one of this person's, or has ended already.
    """
    await _end_own(session, viewer, session_id)


async def end_others_of(session: OperatorSession, viewer: Viewer) -> int:
    """End all sessions of the same person but the one in use; return their number."""
    others = _of_same_person(viewer) & (ConsoleSessionRow.id != viewer.session_id)
    return await _end_all(session, others, "ended_by_owner", object_id=viewer.session_id)


async def end_one(session: OperatorSession | TenantSession, session_id: UUID) -> None:
    """End a session that this transaction sees: any for operators, a tenant's own otherwise.

    Raises:
        NotFound: there is none, or it has ended already.
    """
    if not await _end(session, ConsoleSessionRow.id == session_id, "ended_by_operator"):
        raise NotFound("There is no such session, or it has ended.", param="session_id")


async def end_of_person(session: OperatorSession | TenantSession, person_id: UUID) -> int:
    """End every session of a person; return their number."""
    of_person = ConsoleSessionRow.person_id == person_id
    return await _end_all(session, of_person, "person_changed", object_id=person_id)


async def visit(session: OperatorSession, viewer: Viewer, tenant_id: UUID | None) -> SecretText:
    """Open the portal of a tenant for an operator, or leave it (None); return a new token.

    Raises:
        Forbidden: the viewer is not an operator-admin.
        NotFound: there is no such tenant, or it was deleted.
    """
    viewer.require(Permission.PORTAL_VISIT)
    if tenant_id is not None:
        await keep_living(session, tenant_id)
    token = new_token()
    await session.execute(
        update(ConsoleSessionRow)
        .where(ConsoleSessionRow.id == viewer.session_id, ConsoleSessionRow.ended_at.is_(None))
        .values(digest=digest_of(token.reveal()), visited_tenant_id=tenant_id)
        .execution_options(synchronize_session=False)
    )
    visited = tenant_id or viewer.tenant_id
    await record(
        session,
        Action.PORTAL_LEFT if tenant_id is None else Action.PORTAL_OPENED,
        tenant_id=visited,
        object_id=viewer.session_id,
        after={"tenant_id": visited},
    )
    return token


async def replace(session: OperatorSession, token: str) -> None:
    """End the session that a browser had before it signed in again."""
    if is_token(token):
        await _end(session, ConsoleSessionRow.digest == digest_of(token), "replaced")


async def list_own(session: OperatorSession, viewer: Viewer) -> list[SessionInfo]:
    """List the person's sessions that have not ended, the newest first."""
    rows = await session.scalars(
        select(ConsoleSessionRow)
        .where(_of_same_person(viewer), _lasts())
        .order_by(ConsoleSessionRow.id.desc())
        .limit(MAX_OPEN)
    )
    return [_info(row) for row in rows]


async def list_page(
    session: OperatorSession | TenantSession,
    *,
    limit: int,
    after: UUID | None = None,
    with_ended: bool = False,
) -> Page[SessionInfo]:
    """List one page of the sessions that this transaction sees, the newest first."""
    query = select(ConsoleSessionRow).order_by(ConsoleSessionRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(ConsoleSessionRow.id < after)
    if not with_ended:
        query = query.where(_lasts())
    return page_of([_info(row) for row in await session.scalars(query)], limit)


async def sweep(database: Database, *, days: int) -> int:
    """Delete what ended more than `days` ago, and what is of no use; return the number of rows.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    [row] = await database.call("SELECT sweep_console(:days)", {"days": days})
    return int(row[0])


async def _end_own(session: OperatorSession, viewer: Viewer, session_id: UUID) -> str | None:
    is_own = (ConsoleSessionRow.id == session_id) & _of_same_person(viewer)
    reason = "signed_out" if session_id == viewer.session_id else "ended_by_owner"
    tokens = await _end(session, is_own, reason)
    if not tokens:
        raise NotFound("There is no such session, or it has ended.", param="session_id")
    return tokens[0]


def _sealed(token: SecretText | None, session_id: UUID, key: bytes) -> str | None:
    if token is None:
        return None
    sealed = seal(key, token.reveal().encode(), "console_session", "provider_token", session_id)
    return b64encode(sealed).decode()


def _opened(sealed: str, session_id: UUID, key: bytes) -> SecretText | None:
    try:
        content = unseal(key, b64decode(sealed), "console_session", "provider_token", session_id)
    except (SealBroken, ValueError):
        # Of the release before, which did not seal it: the provider's own session goes on.
        return None
    return SecretText(content.decode())


async def _end(
    session: OperatorSession | TenantSession, which: ColumnElement[bool], reason: str
) -> Sequence[str | None]:
    """End sessions; return the sealed tokens that they had."""
    found = await session.scalars(
        select(ConsoleSessionRow)
        .where(which, ConsoleSessionRow.ended_at.is_(None))
        .with_for_update()
    )
    tokens = []
    for row in found.all():
        before = _shown(row)
        tokens.append(row.provider_token)
        await session.execute(
            update(ConsoleSessionRow)
            .where(ConsoleSessionRow.id == row.id)
            .values(ended_at=func.now(), end_reason=reason, provider_token=None)
            .execution_options(synchronize_session=False)
        )
        await record(
            session,
            Action.SESSION_ENDED,
            tenant_id=row.tenant_id,
            object_id=row.id,
            before=before,
            after=before | {"end_reason": reason},
        )
    return tokens


async def _end_all(
    session: OperatorSession | TenantSession,
    which: ColumnElement[bool],
    reason: str,
    *,
    object_id: UUID,
) -> int:
    """End sessions of one owner, with one entry of the audit trail; return their number."""
    ended = await session.execute(
        update(ConsoleSessionRow)
        .where(which, ConsoleSessionRow.ended_at.is_(None))
        .values(ended_at=func.now(), end_reason=reason, provider_token=None)
        .returning(ConsoleSessionRow.id, ConsoleSessionRow.tenant_id)
        .execution_options(synchronize_session=False)
    )
    rows = ended.all()
    if rows:
        await record(
            session,
            Action.SESSION_ENDED,
            tenant_id=rows[0].tenant_id,
            object_id=object_id,
            after={
                "end_reason": reason,
                "sessions": len(rows),
                "session_ids": [row.id for row in rows[:MAX_OPEN]],
            },
        )
    return len(rows)


async def _make_room(session: OperatorSession, who: SignedIn, session_id: UUID) -> None:
    """End the oldest sessions of a key or a person, so that at most `MAX_OPEN` stay open."""
    if who.person_id is not None:
        of_owner = ConsoleSessionRow.person_id == who.person_id
    elif who.operator_key_id is not None:
        of_owner = ConsoleSessionRow.operator_key_id == who.operator_key_id
    elif who.api_key_id is not None:
        of_owner = ConsoleSessionRow.api_key_id == who.api_key_id
    else:
        return
    oldest = (
        select(ConsoleSessionRow.id)
        .where(of_owner, ConsoleSessionRow.ended_at.is_(None))
        .order_by(ConsoleSessionRow.id.desc())
        .offset(MAX_OPEN)
    )
    await _end_all(session, ConsoleSessionRow.id.in_(oldest), "too_many", object_id=session_id)


def _of_same_person(viewer: Viewer) -> ColumnElement[bool]:
    """The sessions of one person or of one key; that of a sign-in link has no others."""
    owned: ColumnElement[bool] = ConsoleSessionRow.id == viewer.session_id
    if viewer.person_id is not None:
        owned = or_(owned, ConsoleSessionRow.person_id == viewer.person_id)
    elif viewer.operator_key_id is not None:
        owned = or_(owned, ConsoleSessionRow.operator_key_id == viewer.operator_key_id)
    elif viewer.api_key_id is not None:
        owned = or_(owned, ConsoleSessionRow.api_key_id == viewer.api_key_id)
    return owned


def _lasts() -> ColumnElement[bool]:
    return func.console_session_end(_ROW).is_(None)


def _lifetime(who: SignedIn, settings: Settings) -> tuple[timedelta, timedelta]:
    """The idle and the longest time of a session."""
    if who.via == "admin_key":
        longest = timedelta(seconds=settings.console_break_glass_seconds)
        return longest, longest
    if who.role.is_operator:
        idle, seconds = (
            settings.console_operator_idle_seconds,
            settings.console_operator_session_seconds,
        )
    else:
        idle, seconds = (
            settings.console_tenant_idle_seconds,
            settings.console_tenant_session_seconds,
        )
    return timedelta(seconds=idle), timedelta(seconds=seconds)


def _shown(row: ConsoleSessionRow) -> dict[str, object]:
    return {
        "name": row.name,
        "role": str(row.role),
        "via": row.via,
        "person_id": row.person_id,
        "api_key_id": row.api_key_id,
        "operator_key_id": row.operator_key_id,
        "address": row.address,
        "expires_at": row.absolute_until,
    }


def _info(row: ConsoleSessionRow) -> SessionInfo:
    return SessionInfo(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        via=row.via,  # type: ignore[arg-type]  # as the table's check says
        tenant_id=row.tenant_id,
        person_id=row.person_id,
        visited_tenant_id=row.visited_tenant_id,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        expires_at=min(row.idle_until, row.absolute_until),
        address=row.address,
        agent=row.agent,
        ended_at=row.ended_at,
        end_reason=row.end_reason,
    )
