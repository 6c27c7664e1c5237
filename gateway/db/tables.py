"""SQLAlchemy's tables. Functions and views are in SQL files."""

from datetime import datetime
from typing import Any, Literal
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
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, mapped_column

Timestamp = TIMESTAMP(timezone=True)


class Table(DeclarativeBase):
    """Base of every table."""


def tenant_key() -> MappedColumn[UUID]:
    """Build the tenant's column of a table, the first of its primary key."""
    return mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"), primary_key=True)


def own_reservation(table: str, **options: str | bool) -> ForeignKeyConstraint:
    """Build a foreign key to a reservation of the same tenant."""
    return ForeignKeyConstraint(
        ["tenant_id", "reservation_id"],
        ["reservation.tenant_id", "reservation.id"],
        name=f"{table}_own_reservation",
        ondelete="RESTRICT",
        **options,  # type: ignore[arg-type]  # passed through
    )


def own_user(table: str) -> ForeignKeyConstraint:
    """Build a foreign key to a user of the same tenant, which refuses other tenants' users."""
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
        CheckConstraint("status IN ('active', 'suspended', 'deleted')", name="tenant_status"),
        CheckConstraint("(status = 'deleted') = (deleted_at IS NOT NULL)", name="tenant_deleted"),
        CheckConstraint(
            "image_retention_seconds BETWEEN 60 AND 315360000", name="tenant_image_retention"
        ),
        CheckConstraint("max_image_bytes >= 0", name="tenant_max_image_bytes"),
        Index("tenant_erased", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    status: Mapped[str] = mapped_column(Text, server_default="active")
    time_zone: Mapped[str] = mapped_column(Text, server_default="UTC")
    continuity: Mapped[bool] = mapped_column(server_default=text("true"))
    fallback: Mapped[bool] = mapped_column(server_default=text("true"))
    stores_prompts: Mapped[bool] = mapped_column(server_default=text("false"))
    image_retention_seconds: Mapped[int | None]
    max_image_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    deleted_at: Mapped[datetime | None] = mapped_column(Timestamp)


class TenantUserRow(Table):
    """A person or application of a tenant."""

    __tablename__ = "tenant_user"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name", name="tenant_user_name"),
        CheckConstraint("status IN ('active', 'disabled', 'deleted')", name="tenant_user_status"),
        CheckConstraint(
            "(status = 'deleted') = (deleted_at IS NOT NULL)", name="tenant_user_deleted"
        ),
        Index("tenant_user_erased", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        Index("tenant_user_id", "id"),
    )

    tenant_id: Mapped[UUID] = tenant_key()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default="active")
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    deleted_at: Mapped[datetime | None] = mapped_column(Timestamp)


class ApiKeyRow(Table):
    """An issued API key; its HMAC is in `KeyDirectoryRow`.

    `root_id`: the first key of a line of rolled keys; it stands for all in budgets and reports.
    All keys of a line have the same name, if any.
    """

    __tablename__ = "api_key"
    __table_args__ = (
        own_user("api_key"),
        Index("api_key_tenant", "tenant_id", "created_at"),
        Index("api_key_id", "id"),
    )

    tenant_id: Mapped[UUID] = tenant_key()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
    root_id: Mapped[UUID]
    name: Mapped[str | None] = mapped_column(Text)
    last4: Mapped[str] = mapped_column(Text)
    livemode: Mapped[bool]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class DataKeyRow(Table):
    """A tenant's data key, wrapped by the master key."""

    __tablename__ = "data_key"

    tenant_id: Mapped[UUID] = tenant_key()
    version: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    master_key_id: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class CredentialRow(Table):
    """A tenant's or user's secret for a provider, sealed by the tenant's data key."""

    __tablename__ = "credential"
    __table_args__ = (
        UniqueConstraint(
            "tenant_id",
            "user_id",
            "provider",
            name="credential_owner",
            postgresql_nulls_not_distinct=True,
        ),
        own_user("credential"),
    )

    tenant_id: Mapped[UUID] = tenant_key()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
    provider: Mapped[str] = mapped_column(Text)
    version: Mapped[int]
    data_key_version: Mapped[int] = mapped_column(SmallInteger)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    last4: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    tested_at: Mapped[datetime | None] = mapped_column(Timestamp)


class RateLimitRow(Table):
    """A limit of a tenant, user or key: requests or images per minute, or generations at once."""

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
        own_user("rate_limit"),
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

    tenant_id: Mapped[UUID] = tenant_key()
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    livemode: Mapped[bool]
    kind: Mapped[str] = mapped_column(Text)
    value: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class ImageRow(Table):
    """One stored result. The row outlives its file; `deleted_at` is set once the file is gone."""

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
        Index(
            "image_model_history",
            *("tenant_id", "livemode", "requested_model", "created_at", "id"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        own_reservation("image"),
        CheckConstraint("provenance IN ('original', 'marked', 'signed')", name="image_provenance"),
        Index("image_reservation", "tenant_id", "reservation_id"),
        Index("image_expiry", "expires_at", postgresql_where=text("deleted_at IS NULL")),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    livemode: Mapped[bool]
    user_id: Mapped[UUID | None]
    reservation_id: Mapped[UUID]
    requested_model: Mapped[str] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int | None]
    height: Mapped[int | None]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    prompt: Mapped[str | None] = mapped_column(Text)
    prompt_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    provenance: Mapped[str] = mapped_column(Text, server_default="original")
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    deleted_at: Mapped[datetime | None] = mapped_column(Timestamp)


class ImageCleanupRow(Table):
    """The last deletion of expired images of an owner, and their number."""

    __tablename__ = "image_cleanup"
    __table_args__ = (
        UniqueConstraint(
            *("tenant_id", "livemode", "user_id"),
            name="image_cleanup_owner",
            postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint("images > 0", name="image_cleanup_images"),
    )

    tenant_id: Mapped[UUID] = tenant_key()
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    livemode: Mapped[bool]
    user_id: Mapped[UUID | None]
    cleaned_at: Mapped[datetime] = mapped_column(Timestamp)
    images: Mapped[int]


class StoredBytesRow(Table):
    """The bytes of a tenant's stored images that were made until `counted_to`: its counter.

    Only tenants that have, or had, a storage cap have one.
    """

    __tablename__ = "stored_bytes"
    __table_args__ = (
        CheckConstraint("size_bytes >= 0", name="stored_bytes_not_negative"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    tenant_id: Mapped[UUID] = tenant_key()
    counted_to: Mapped[datetime] = mapped_column(Timestamp)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class AppliedSqlRow(Table):
    """The SHA-256 in hex of an SQL file's text when it was last applied."""

    __tablename__ = "applied_sql"

    file: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(Text)
    applied_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.clock_timestamp())


class BackfillProgressRow(Table):
    """The place that an unfinished backfill of a migration has reached (`gateway.db.backfill`)."""

    __tablename__ = "backfill_progress"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    after: Mapped[list[str]] = mapped_column(ARRAY(Text))
    seen: Mapped[int] = mapped_column(BigInteger)
    changed: Mapped[int] = mapped_column(BigInteger)


class SweepRow(Table):
    """Periodic work and the time at which it is next due.

    `compared_to` and `whole_at`: the time up to which everything was compared, and the last time at
    which all of it was. The sweep of orphans also keeps the store seen last, and since when.
    """

    __tablename__ = "sweep"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    due_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    store_mark: Mapped[str | None] = mapped_column(Text)
    store_since: Mapped[datetime | None] = mapped_column(Timestamp)
    compared_to: Mapped[datetime | None] = mapped_column(Timestamp)
    whole_at: Mapped[datetime | None] = mapped_column(Timestamp)


class AuditRow(Table):
    """One change with its author and both states. Append-only, in partitions by month.

    `tenant_id` is null for objects without a tenant: prices, admin keys, the master key.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_at", "at", "id"),
        Index("audit_tenant", "tenant_id", "at", "id"),
        {"postgresql_partition_by": "RANGE (at)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    # The time of the change, not of its transaction, so that two in one transaction keep order.
    at: Mapped[datetime] = mapped_column(
        Timestamp, primary_key=True, server_default=func.clock_timestamp()
    )
    actor_type: Mapped[str] = mapped_column(Text)
    actor_id: Mapped[str] = mapped_column(Text)
    actor_name: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    tenant_id: Mapped[UUID | None]
    object_id: Mapped[str] = mapped_column(Text)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))


class EventRow(Table):
    """An event for webhooks, such as a nearly exhausted budget.

    `tenant_id` is null if it concerns only the operator. `announced_at` is null until the event is
    logged and has a delivery for each subscribed endpoint.
    """

    __tablename__ = "event"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id", name="event_of_tenant"),
        CheckConstraint("type <> ''", name="event_type"),
        Index("event_waiting", "created_at", postgresql_where=text("announced_at IS NULL")),
        Index("event_announced", "announced_at", postgresql_where=text("announced_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID | None] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    livemode: Mapped[bool]
    type: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.clock_timestamp())
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    announced_at: Mapped[datetime | None] = mapped_column(Timestamp)


class WebhookEndpointRow(Table):
    """A receiver of a tenant's events, or of all tenants' if `tenant_id` is null.

    `event_types` and `livemode` are null if they filter nothing.
    """

    __tablename__ = "webhook_endpoint"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id", name="webhook_endpoint_of_tenant"),
        CheckConstraint("url ~* '^https?://' AND length(url) <= 8192", name="webhook_endpoint_url"),
        CheckConstraint("cardinality(event_types) > 0", name="webhook_endpoint_event_types"),
        CheckConstraint(
            "(disabled_at IS NULL) = (disabled_reason IS NULL)", name="webhook_endpoint_disabled"
        ),
        CheckConstraint(
            "disabled_reason IN ('operator', 'gone')", name="webhook_endpoint_disabled_reason"
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    livemode: Mapped[bool | None]
    description: Mapped[str] = mapped_column(Text, server_default="")
    disabled_at: Mapped[datetime | None] = mapped_column(Timestamp)
    disabled_reason: Mapped[Literal["operator", "gone"] | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


def own_endpoint(table: str) -> ForeignKeyConstraint:
    """Build a foreign key to an endpoint of the same tenant, with cascading deletion."""
    return ForeignKeyConstraint(
        ["tenant_id", "endpoint_id"],
        ["webhook_endpoint.tenant_id", "webhook_endpoint.id"],
        name=f"{table}_own_endpoint",
        ondelete="CASCADE",
    )


class WebhookSecretRow(Table):
    """A signing secret of an endpoint, sealed by the tenant's data key or by the operator's key."""

    __tablename__ = "webhook_secret"
    __table_args__ = (
        own_endpoint("webhook_secret"),
        CheckConstraint(
            "(tenant_id IS NULL) = (data_key_version IS NULL)", name="webhook_secret_key"
        ),
        Index("webhook_secret_endpoint", "endpoint_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None]
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_endpoint.id", ondelete="CASCADE"))
    data_key_version: Mapped[int | None] = mapped_column(SmallInteger)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    valid_until: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class WebhookDeliveryRow(Table):
    """One event for one endpoint. A worker that sends it postpones `next_attempt_at`: its lease.

    `tenant_id` is the endpoint's, so null for a tenant's event at the operator's endpoint.
    """

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        UniqueConstraint("event_id", "endpoint_id", name="webhook_delivery_once"),
        own_endpoint("webhook_delivery"),
        ForeignKeyConstraint(
            ["tenant_id", "event_id"],
            ["event.tenant_id", "event.id"],
            name="webhook_delivery_own_event",
            ondelete="RESTRICT",
        ),
        CheckConstraint(
            "status IN ('pending', 'delivered', 'dead')", name="webhook_delivery_status"
        ),
        CheckConstraint(
            "(status = 'pending') = (next_attempt_at IS NOT NULL)", name="webhook_delivery_pending"
        ),
        CheckConstraint(
            "(status = 'pending') = (finished_at IS NULL)", name="webhook_delivery_finished"
        ),
        Index(
            "webhook_delivery_due",
            *("endpoint_id", "next_attempt_at"),
            postgresql_where=text("status = 'pending'"),
        ),
        Index("webhook_delivery_history", "endpoint_id", "id"),
        Index("webhook_delivery_old", "finished_at", postgresql_where=text("status <> 'pending'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None]
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_endpoint.id", ondelete="CASCADE"))
    event_id: Mapped[UUID] = mapped_column(ForeignKey("event.id", ondelete="RESTRICT"))
    status: Mapped[str] = mapped_column(Text, server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.now())
    last_status: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
