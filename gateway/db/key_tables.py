"""API keys: their directory and last use; the gateway's own keys, secrets and rotations."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from gateway.db.tables import Table, Timestamp, tenant_key


class KeyDirectoryRow(Table):
    """The tenant and id of the API key with this HMAC, looked up before the tenant is known."""

    __tablename__ = "key_directory"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    tenant_id: Mapped[UUID]
    api_key_id: Mapped[UUID]
    pepper_version: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))


class ApiKeyUseRow(Table):
    """The last request with a key of a line, by the line's first key; accurate to half a minute.

    `record_requests` writes it with the request log. It outlives its key: no foreign key.
    """

    __tablename__ = "api_key_use"

    tenant_id: Mapped[UUID] = tenant_key()
    api_key_id: Mapped[UUID] = mapped_column(primary_key=True)
    last_used_at: Mapped[datetime] = mapped_column(Timestamp)


class ChangeRow(Table):
    """An announced change, for gateways that did not hear the announcement.

    `xid`: the transaction that made it, which orders changes by the visibility of their commits.
    """

    __tablename__ = "change"
    __table_args__ = (Index("change_xid", "xid"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    xid: Mapped[int] = mapped_column(
        BigInteger, server_default=text("pg_current_xact_id()::text::bigint")
    )
    at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.clock_timestamp())
    tag: Mapped[str] = mapped_column(Text)


class OperatorKeyRow(Table):
    """An admin key; only its HMAC is stored.

    `origin` is null for keys older than that column.
    """

    __tablename__ = "operator_key"
    __table_args__ = (
        CheckConstraint(
            "cardinality(scopes) > 0 AND scopes <@ ARRAY['admin', 'admin:read', 'metrics']",
            name="operator_key_scopes",
        ),
        CheckConstraint(
            "origin IN ('first_start', 'setting', 'command', 'rest')", name="operator_key_origin"
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, server_default="")
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{admin}")
    origin: Mapped[Literal["first_start", "setting", "command", "rest"] | None] = mapped_column(
        Text
    )
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    pepper_version: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    last4: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_used_at: Mapped[datetime | None] = mapped_column(Timestamp)


class SealedSecretRow(Table):
    """A secret of the gateway itself (pepper, link key), sealed by the master key.

    The name is `pepper` for the first version and `pepper.2` for the second. A version is used for
    new things from `used_from`, and accepted until `accepted_until` (null: until it is removed).
    """

    __tablename__ = "sealed_secret"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    master_key_id: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    used_from: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    accepted_until: Mapped[datetime | None] = mapped_column(Timestamp)


class KeyRotationRow(Table):
    """A rotation of all data keys. An unfinished one is resumed by the next command."""

    __tablename__ = "key_rotation"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
