"""The tables as SQLAlchemy sees them. Functions, views and policies live in the migrations."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Timestamp = TIMESTAMP(timezone=True)


class Table(DeclarativeBase):
    """Base of every table."""


def _own_user(table: str) -> ForeignKeyConstraint:
    """A user of the same tenant: the database refuses a reference across tenants."""
    return ForeignKeyConstraint(
        ["tenant_id", "user_id"],
        ["tenant_user.tenant_id", "tenant_user.id"],
        name=f"{table}_own_user",
        ondelete="RESTRICT",
    )


class TenantRow(Table):
    """The paying customer, owner of everything below."""

    __tablename__ = "tenant"
    __table_args__ = (
        CheckConstraint("status IN ('active', 'suspended')", name="tenant_status"),
        CheckConstraint(
            "image_retention_seconds BETWEEN 60 AND 315360000", name="tenant_image_retention"
        ),
        CheckConstraint("max_image_bytes >= 0", name="tenant_max_image_bytes"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    status: Mapped[str] = mapped_column(Text, server_default="active")
    time_zone: Mapped[str] = mapped_column(Text, server_default="UTC")
    continuity: Mapped[bool] = mapped_column(server_default=text("true"))
    stores_prompts: Mapped[bool] = mapped_column(server_default=text("false"))
    image_retention_seconds: Mapped[int | None]
    max_image_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class TenantUserRow(Table):
    """A person or application of a tenant."""

    __tablename__ = "tenant_user"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name", name="tenant_user_name"),
        UniqueConstraint("tenant_id", "id", name="tenant_user_of_tenant"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class ApiKeyRow(Table):
    """A secret we issued; only its HMAC is kept.

    `root_id`: the first key of a line of rolled keys; it stands for all in budgets and reports.
    """

    __tablename__ = "api_key"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id", name="api_key_of_tenant"),
        _own_user("api_key"),
        Index("api_key_tenant", "tenant_id", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    user_id: Mapped[UUID | None]
    root_id: Mapped[UUID]
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    last4: Mapped[str] = mapped_column(Text)
    livemode: Mapped[bool]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class OperatorKeyRow(Table):
    """An admin key; only its HMAC is kept."""

    __tablename__ = "operator_key"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    last4: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)


class SealedSecretRow(Table):
    """A secret of the gateway itself (pepper, link key), sealed by the master key."""

    __tablename__ = "sealed_secret"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    master_key_id: Mapped[str] = mapped_column(Text)


class DataKeyRow(Table):
    """A tenant's data key, wrapped by the master key."""

    __tablename__ = "data_key"

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenant.id", ondelete="RESTRICT"), primary_key=True
    )
    version: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    master_key_id: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class CredentialRow(Table):
    """Somebody's secret for a provider, sealed by the tenant's data key."""

    __tablename__ = "credential"
    __table_args__ = (
        UniqueConstraint(
            "tenant_id",
            "user_id",
            "provider",
            name="credential_owner",
            postgresql_nulls_not_distinct=True,
        ),
        _own_user("credential"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    user_id: Mapped[UUID | None]
    provider: Mapped[str] = mapped_column(Text)
    version: Mapped[int]
    data_key_version: Mapped[int] = mapped_column(SmallInteger)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    last4: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class PriceRow(Table):
    """One version of a price: nano-USD per million tokens, and per image. Never edited."""

    __tablename__ = "price"
    __table_args__ = (
        UniqueConstraint("model", "effective_from", name="price_version"),
        CheckConstraint(
            "text_input_nano >= 0 AND image_input_nano >= 0"
            " AND image_output_nano >= 0 AND text_output_nano >= 0",
            name="price_not_negative",
        ),
        CheckConstraint("per_image_nano >= 0", name="price_per_image_not_negative"),
        CheckConstraint(
            "greatest(text_input_nano, image_input_nano, image_output_nano, text_output_nano,"
            " per_image_nano) <= 10000000000000",
            name="price_bounded",
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    effective_from: Mapped[datetime] = mapped_column(Timestamp)
    text_input_nano: Mapped[int] = mapped_column(BigInteger)
    image_input_nano: Mapped[int] = mapped_column(BigInteger)
    image_output_nano: Mapped[int] = mapped_column(BigInteger)
    text_output_nano: Mapped[int] = mapped_column(BigInteger)
    per_image_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class BudgetRow(Table):
    """A money limit for a tenant, one of its users or one of its keys, per window.

    A removed budget stays for its periods, in which calls may yet be settled; its limit is then the
    highest there is, so that it binds nobody.
    """

    __tablename__ = "budget"
    __table_args__ = (
        UniqueConstraint(
            "tenant_id",
            "api_key_id",
            "user_id",
            "livemode",
            "period",
            name="budget_owner",
            postgresql_nulls_not_distinct=True,
        ),
        _own_user("budget"),
        ForeignKeyConstraint(
            ["tenant_id", "api_key_id"],
            ["api_key.tenant_id", "api_key.id"],
            name="budget_own_key",
            ondelete="RESTRICT",
        ),
        CheckConstraint("period IN ('day', 'week', 'month', 'total')", name="budget_period_name"),
        CheckConstraint("limit_nano BETWEEN 0 AND 1000000000000000000", name="budget_limit"),
        CheckConstraint("api_key_id IS NULL OR user_id IS NULL", name="budget_one_owner"),
        CheckConstraint(
            "removed_at IS NULL OR limit_nano = 1000000000000000000", name="budget_removed"
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    livemode: Mapped[bool]
    period: Mapped[str] = mapped_column(Text)
    limit_nano: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    removed_at: Mapped[datetime | None] = mapped_column(Timestamp)


class RateLimitRow(Table):
    """So many requests or images a minute, or generations at once, for a tenant, user or key."""

    __tablename__ = "rate_limit"
    __table_args__ = (
        UniqueConstraint(
            "tenant_id",
            "api_key_id",
            "user_id",
            "livemode",
            "kind",
            name="rate_limit_owner",
            postgresql_nulls_not_distinct=True,
        ),
        _own_user("rate_limit"),
        ForeignKeyConstraint(
            ["tenant_id", "api_key_id"],
            ["api_key.tenant_id", "api_key.id"],
            name="rate_limit_own_key",
            ondelete="RESTRICT",
        ),
        CheckConstraint("kind IN ('requests', 'images', 'concurrent')", name="rate_limit_kind"),
        CheckConstraint("value BETWEEN 0 AND 1000000000", name="rate_limit_value"),
        CheckConstraint("api_key_id IS NULL OR user_id IS NULL", name="rate_limit_one_owner"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    livemode: Mapped[bool]
    kind: Mapped[str] = mapped_column(Text)
    value: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class BudgetPeriodRow(Table):
    """What one budget has spent and holds in one period.

    `ceiling_nano` is the highest limit in force during the period, `breach_nano` what real costs
    took beyond their holds: spent + held never exceeds their sum.
    """

    __tablename__ = "budget_period"
    __table_args__ = (
        UniqueConstraint("budget_id", "period_start", name="budget_period_start"),
        CheckConstraint("spent_nano >= 0 AND held_nano >= 0", name="budget_period_not_negative"),
        CheckConstraint("ceiling_nano >= 0 AND breach_nano >= 0", name="budget_period_bounds"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    budget_id: Mapped[int] = mapped_column(ForeignKey("budget.id", ondelete="RESTRICT"))
    tenant_id: Mapped[UUID]
    period_start: Mapped[datetime] = mapped_column(Timestamp)
    period_end: Mapped[datetime] = mapped_column(Timestamp)
    ceiling_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    spent_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    held_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    breach_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")


class ReservationRow(Table):
    """The held part of budgets for one paid provider call, and how that call ended."""

    __tablename__ = "reservation"
    __table_args__ = (
        CheckConstraint(
            "held_nano >= 0 AND held_nano <= 1000000000000000", name="reservation_held"
        ),
        CheckConstraint(
            "state IN ('held', 'unknown', 'posted', 'posted_est', 'void')",
            name="reservation_state",
        ),
        CheckConstraint(
            "(state IN ('held', 'unknown')) = (final_nano IS NULL)", name="reservation_final"
        ),
        CheckConstraint("final_nano >= 0", name="reservation_final_not_negative"),
        Index(
            "reservation_open",
            "deadline_at",
            postgresql_where=text("state IN ('held', 'unknown')"),
        ),
        Index("reservation_tenant", "tenant_id", "admitted_at"),
        Index("reservation_estimated", "id", postgresql_where=text("state = 'posted_est'")),
        CheckConstraint(
            "length(idempotency_key) BETWEEN 1 AND 255", name="reservation_idempotency_key"
        ),
        Index(
            "reservation_claim",
            *("tenant_id", "idempotency_key", "operation", "livemode", "user_id"),
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index(
            "reservation_claimed_at",
            "admitted_at",
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    livemode: Mapped[bool]
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    periods: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    operation: Mapped[str] = mapped_column(Text)
    requested_model: Mapped[str] = mapped_column(Text)
    served_model: Mapped[str] = mapped_column(Text)
    provider: Mapped[str] = mapped_column(Text)
    credential: Mapped[str] = mapped_column(Text)
    price_id: Mapped[int] = mapped_column(ForeignKey("price.id", ondelete="RESTRICT"))
    held_nano: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Text, server_default="held")
    final_nano: Mapped[int | None] = mapped_column(BigInteger)
    outcome: Mapped[str | None] = mapped_column(Text)
    instance: Mapped[UUID]
    admitted_at: Mapped[datetime] = mapped_column(Timestamp)
    deadline_at: Mapped[datetime] = mapped_column(Timestamp)
    resolved_at: Mapped[datetime | None] = mapped_column(Timestamp)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    request_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class LedgerRow(Table):
    """One immutable posting. Every line but `hold` adds to what was spent."""

    __tablename__ = "ledger"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('hold', 'post', 'post_est', 'void', 'adjust')", name="ledger_kind"
        ),
        CheckConstraint("amount_nano >= 0 OR kind = 'adjust'", name="ledger_amount"),
        Index(
            "ledger_report", "tenant_id", "livemode", "at", postgresql_where=text("kind <> 'hold'")
        ),
    )

    reservation_id: Mapped[UUID] = mapped_column(
        ForeignKey("reservation.id", ondelete="RESTRICT"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(Timestamp)
    tenant_id: Mapped[UUID]
    livemode: Mapped[bool]
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    requested_model: Mapped[str] = mapped_column(Text)
    served_model: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    amount_nano: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int]
    images: Mapped[int]
    text_input_tokens: Mapped[int] = mapped_column(BigInteger)
    image_input_tokens: Mapped[int] = mapped_column(BigInteger)
    text_output_tokens: Mapped[int] = mapped_column(BigInteger)
    image_output_tokens: Mapped[int] = mapped_column(BigInteger)


class ImageRow(Table):
    """One stored result. The row outlives its file; `deleted_at` says that the file is gone."""

    __tablename__ = "image"
    __table_args__ = (
        Index(
            "image_history",
            *("tenant_id", "livemode", "created_at", "id"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index(
            "image_user_history",
            *("tenant_id", "user_id", "livemode", "created_at", "id"),
            postgresql_where=text("deleted_at IS NULL AND user_id IS NOT NULL"),
        ),
        Index("image_reservation", "reservation_id"),
        Index("image_expiry", "expires_at", postgresql_where=text("deleted_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[UUID]
    livemode: Mapped[bool]
    user_id: Mapped[UUID | None]
    reservation_id: Mapped[UUID] = mapped_column(ForeignKey("reservation.id", ondelete="RESTRICT"))
    path: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int | None]
    height: Mapped[int | None]
    prompt: Mapped[str | None] = mapped_column(Text)
    prompt_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    deleted_at: Mapped[datetime | None] = mapped_column(Timestamp)


class SweepRow(Table):
    """Work that one worker does for all, and when it is next due.

    `store_mark` and `store_since` belong to the sweep of orphans: which store was seen last, and
    since when.
    """

    __tablename__ = "sweep"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    due_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    store_mark: Mapped[str | None] = mapped_column(Text)
    store_since: Mapped[datetime | None] = mapped_column(Timestamp)


class AuditRow(Table):
    """One change that somebody made: who, what, from what, to what. Never edited, never deleted.

    `tenant_id` is null for what belongs to no tenant: prices, admin keys, the master key.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_at", "at", "id"),
        Index("audit_tenant", "tenant_id", "at", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    # The moment of the change, not of its transaction: two of one transaction keep their order.
    at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.clock_timestamp())
    actor_type: Mapped[str] = mapped_column(Text)
    actor_id: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    tenant_id: Mapped[UUID | None]
    object_id: Mapped[str] = mapped_column(Text)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
