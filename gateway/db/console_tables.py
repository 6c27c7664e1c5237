"""The console's people, their sessions and sign-ins. The gateway's own tokens are digests alone.

Secrets that are needed again are sealed with the gateway's console key: the code verifier of a
sign-in that has begun, the ID token of an open session, and a new secret until it is shown.

Rows of operators have no tenant; row-level security hides them from every tenant. Users and API
keys are looked up within the row's tenant, without foreign keys: those tables can be distributed.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, MappedColumn, mapped_column

from gateway.db.tables import Table, Timestamp

ROLES = (
    "'operator-admin', 'operator-viewer', 'tenant-admin', 'tenant-member', 'tenant-billing-viewer'"
)


def _owner() -> MappedColumn[UUID | None]:
    return mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))


def _role_of_owner(table: str) -> tuple[CheckConstraint, CheckConstraint]:
    """A known role, and a tenant exactly where the role is one of a tenant."""
    return (
        CheckConstraint(f"role IN ({ROLES})", name=f"{table}_role"),
        CheckConstraint("(role LIKE 'tenant-%') = (tenant_id IS NOT NULL)", name=f"{table}_owner"),
    )


class PersonRow(Table):
    """A person who signs in through the identity provider, with one role.

    The identity is (issuer, subject). `has_claimed_role`: the provider's claims gave the role, and
    are read again at each sign-in; otherwise an invitation gave it.
    """

    __tablename__ = "console_person"
    __table_args__ = (
        *_role_of_owner("console_person"),
        UniqueConstraint("issuer", "subject", name="console_person_identity"),
        CheckConstraint("status IN ('active', 'disabled')", name="console_person_status"),
        Index("console_person_tenant", "tenant_id", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None] = _owner()
    user_id: Mapped[UUID | None]
    issuer: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    email: Mapped[str | None] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    has_claimed_role: Mapped[bool]
    status: Mapped[str] = mapped_column(Text, server_default="active")
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    last_sign_in_at: Mapped[datetime | None] = mapped_column(Timestamp)


class ConsoleSessionRow(Table):
    """A signed-in browser. `via` is the way of sign-in; what it used is in one of the ids.

    `visited_tenant_id`: the tenant whose portal an operator has opened. `provider_token`: the ID
    token, with which the provider is asked to end its own session; removed when this one ends.
    """

    __tablename__ = "console_session"
    __table_args__ = (
        *_role_of_owner("console_session"),
        CheckConstraint(
            "via IN ('oidc', 'link', 'admin_key', 'api_key')", name="console_session_via"
        ),
        CheckConstraint("idle_seconds > 0", name="console_session_idle"),
        CheckConstraint(
            "(ended_at IS NULL) = (end_reason IS NULL)", name="console_session_end_reason"
        ),
        CheckConstraint(
            "visited_tenant_id IS NULL OR role = 'operator-admin'", name="console_session_visit"
        ),
        Index("console_session_tenant", "tenant_id", "id"),
        Index(
            "console_session_api_key",
            "api_key_id",
            "id",
            postgresql_where=text("api_key_id IS NOT NULL AND ended_at IS NULL"),
        ),
        Index(
            "console_session_operator_key",
            "operator_key_id",
            "id",
            postgresql_where=text("operator_key_id IS NOT NULL AND ended_at IS NULL"),
        ),
        Index("console_session_person", "person_id"),
        Index("console_session_until", "absolute_until"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    name: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    via: Mapped[str] = mapped_column(Text)
    tenant_id: Mapped[UUID | None] = _owner()
    user_id: Mapped[UUID | None]
    person_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("console_person.id", ondelete="CASCADE")
    )
    api_key_id: Mapped[UUID | None]
    operator_key_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("operator_key.id", ondelete="RESTRICT")
    )
    visited_tenant_id: Mapped[UUID | None] = _owner()
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    idle_seconds: Mapped[int]
    idle_until: Mapped[datetime] = mapped_column(Timestamp)
    absolute_until: Mapped[datetime] = mapped_column(Timestamp)
    address: Mapped[str] = mapped_column(Text)
    agent: Mapped[str] = mapped_column(Text)
    provider_token: Mapped[str | None] = mapped_column(Text)
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)
    end_reason: Mapped[str | None] = mapped_column(Text)


class InvitationRow(Table):
    """An invitation of one verified e-mail address to one role; it can be accepted once."""

    __tablename__ = "console_invitation"
    __table_args__ = (
        *_role_of_owner("console_invitation"),
        Index("console_invitation_tenant", "tenant_id", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    tenant_id: Mapped[UUID | None] = _owner()
    email: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    invited_by: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    accepted_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)


class SignInLinkRow(Table):
    """A one-time link that signs in as operator-admin."""

    __tablename__ = "console_link"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    made_by: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    used_at: Mapped[datetime | None] = mapped_column(Timestamp)


class PendingSignInRow(Table):
    """A sign-in at the identity provider that has begun: its state, nonce and code verifier."""

    __tablename__ = "console_sign_in"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    state: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    expires_at: Mapped[datetime] = mapped_column(Timestamp)


class SentFormRow(Table):
    """A form that made a secret. `path`: where the secret is shown; `sealed`: until it was.

    `digest`: of the session, the form and its content, so that a second sending is recognised.
    """

    __tablename__ = "console_form"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    session_id: Mapped[UUID]
    path: Mapped[str] = mapped_column(Text)
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    shown_until: Mapped[datetime] = mapped_column(Timestamp)
    expires_at: Mapped[datetime] = mapped_column(Timestamp)


class SignInFailureRow(Table):
    """Failed sign-ins of one account in a row, and the time until which it must wait."""

    __tablename__ = "console_failure"

    account: Mapped[str] = mapped_column(Text, primary_key=True)
    failures: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    not_before: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
