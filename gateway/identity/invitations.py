"""Invitations: one role for one verified e-mail address, accepted once within a week."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, true

from gateway.config import Settings
from gateway.db.audit import Action, record
from gateway.db.console_tables import InvitationRow
from gateway.db.engine import OperatorSession, TenantSession
from gateway.domain import SecretText, new_id
from gateway.errors import Forbidden, InvalidRequest, NotFound
from gateway.identity.people import check_role
from gateway.identity.tokens import digest_of, is_token, new_token
from gateway.identity.viewers import Role, Viewer

INVITATION_PATH = "/console/login/invitation"
MAX_EMAIL_CHARACTERS = 254
MAX_OPEN = 200
"""Open invitations of one tenant, or of the house."""
_EMAIL = re.compile(r"[^\s@<>\"(),;:\\]{1,64}@[^\s@<>\"(),;:\\]+\.[^\s@<>\"(),;:\\]+")


class InvitationRefused(Forbidden):
    """An invitation that does not exist, was used, revoked, is too old or is for someone else."""

    code = "invitation_refused"


@dataclass(frozen=True, slots=True)
class Invitation:
    """The public fields of an invitation."""

    id: UUID
    tenant_id: UUID | None
    email: str
    role: Role
    invited_by: str
    created_at: datetime
    expires_at: datetime


async def invite(
    session: OperatorSession | TenantSession,
    viewer: Viewer,
    *,
    email: str,
    role_name: str,
    tenant_id: UUID | None,
    settings: Settings,
) -> SecretText:
    """Invite a person; return the invitation's address, which is shown once and not stored.

    `tenant_id`: None for a role of operators.

    Raises:
        InvalidRequest: not an e-mail address, an unknown role, or one that does not fit the tenant;
            or too many open invitations.
        Forbidden: a role that the viewer may not give.
    """
    role = check_role(viewer, role_name, tenant_id=tenant_id)
    email = email.strip()
    if len(email) > MAX_EMAIL_CHARACTERS or not _EMAIL.fullmatch(email):
        raise InvalidRequest("email must be an address such as ada@example.com.", param="email")
    is_owner = InvitationRow.tenant_id.is_not_distinct_from(tenant_id)
    count = await session.scalar(
        select(func.count()).select_from(InvitationRow).where(is_owner, _is_open())
    )
    if count is not None and count >= MAX_OPEN:
        raise InvalidRequest(f"There are {count} open invitations. Revoke some first.")
    token = new_token()
    row = InvitationRow(
        id=new_id(),
        digest=digest_of(token.reveal()),
        tenant_id=tenant_id,
        email=email,
        role=role,
        # Tenants read it, and the names of operators are no business of theirs.
        invited_by="an operator" if viewer.is_operator and tenant_id else viewer.name,
        expires_at=datetime.now(UTC) + timedelta(seconds=settings.console_invitation_seconds),
    )
    session.add(row)
    await session.flush()
    await record(
        session,
        Action.INVITATION_MADE,
        tenant_id=tenant_id,
        object_id=row.id,
        after=_shown(row),
    )
    base_url = settings.public_url.rstrip("/")
    return SecretText(f"{base_url}{INVITATION_PATH}?token={token.reveal()}")


async def list_open(session: OperatorSession | TenantSession, viewer: Viewer) -> list[Invitation]:
    """List the open invitations of the viewer's tenant, or for operators all, newest first."""
    rows = await session.scalars(
        select(InvitationRow)
        .where(_in_sight(viewer), _is_open())
        .order_by(InvitationRow.id.desc())
        .limit(MAX_OPEN)
    )
    return [_invitation(row) for row in rows]


async def revoke(
    session: OperatorSession | TenantSession, viewer: Viewer, invitation_id: UUID
) -> None:
    """Revoke an open invitation.

    Raises:
        NotFound: the viewer sees no such open invitation.
    """
    row = await session.scalar(
        select(InvitationRow)
        .where(InvitationRow.id == invitation_id, _in_sight(viewer), _is_open())
        .with_for_update()
    )
    if row is None:
        raise NotFound("There is no such open invitation.", param="invitation_id")
    row.revoked_at = datetime.now(UTC)
    await session.flush()
    await record(
        session,
        Action.INVITATION_REVOKED,
        tenant_id=row.tenant_id,
        object_id=row.id,
        before=_shown(row),
    )


async def find_open(session: OperatorSession, token: str) -> Invitation | None:
    """Find the open invitation of a token; None if there is none."""
    row = await _row_of(session, digest_of(token)) if is_token(token) else None
    return None if row is None else _invitation(row)


async def accept(session: OperatorSession, digest: bytes, *, email: str | None) -> Invitation:
    """Accept the invitation whose token has this digest.

    `email`: the address that the identity provider has verified.

    Raises:
        InvitationRefused: there is no such open invitation, or it is for another address.
    """
    row = await _row_of(session, digest)
    if row is None:
        raise InvitationRefused(
            "This invitation was used or revoked, or is too old. Ask for a new one."
        )
    if email is None or email.casefold() != row.email.casefold():
        raise InvitationRefused(
            "This invitation is for another e-mail address than the one that your identity "
            "provider has verified. Sign in with the invited address."
        )
    row.accepted_at = datetime.now(UTC)
    await session.flush()
    await record(
        session,
        Action.INVITATION_ACCEPTED,
        tenant_id=row.tenant_id,
        object_id=row.id,
        after=_shown(row),
    )
    return _invitation(row)


async def _row_of(session: OperatorSession, digest: bytes) -> InvitationRow | None:
    row: InvitationRow | None = await session.scalar(
        select(InvitationRow).where(InvitationRow.digest == digest, _is_open()).with_for_update()
    )
    return row


def _is_open() -> ColumnElement[bool]:
    return (
        InvitationRow.accepted_at.is_(None)
        & InvitationRow.revoked_at.is_(None)
        & (InvitationRow.expires_at > func.now())
    )


def _in_sight(viewer: Viewer) -> ColumnElement[bool]:
    return true() if viewer.tenant_id is None else InvitationRow.tenant_id == viewer.tenant_id


def _shown(row: InvitationRow) -> dict[str, object]:
    return {
        "email": row.email,
        "role": str(row.role),
        "invited_by": row.invited_by,
        "expires_at": row.expires_at,
    }


def _invitation(row: InvitationRow) -> Invitation:
    return Invitation(
        id=row.id,
        tenant_id=row.tenant_id,
        email=row.email,
        role=Role(row.role),
        invited_by=row.invited_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
