"""The tables of money: prices, budgets and their periods, reservations, the ledger."""

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
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from gateway.db.tables import Table, Timestamp, own_user


class PriceRow(Table):
    """One version of a price: nano-USD per million tokens, and per image. Immutable."""

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
    """A money limit of a tenant, one of its users or one of its keys, per window.

    Without a tenant it is the operator's: it applies to all calls with a house credential, and has
    its own time zone.

    A removed budget stays for its periods, in which calls may still be settled; its limit is then
    the highest possible, so that it limits nothing.
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
        own_user("budget"),
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
        CheckConstraint("enforcement IN ('hard', 'soft')", name="budget_enforcement"),
        CheckConstraint(
            "cardinality(alert_percents) <= 10"
            " AND 1 <= ALL (alert_percents) AND 100 >= ALL (alert_percents)",
            name="budget_alert_percents",
        ),
        CheckConstraint(
            "(raised_to_nano IS NULL) = (raised_until IS NULL)"
            " AND raised_to_nano BETWEEN 0 AND 1000000000000000000",
            name="budget_raise",
        ),
        CheckConstraint(
            "(tenant_id IS NULL) = (time_zone IS NOT NULL) AND (tenant_id IS NOT NULL"
            " OR (api_key_id IS NULL AND user_id IS NULL AND livemode))",
            name="budget_house",
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID | None] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    livemode: Mapped[bool]
    period: Mapped[str] = mapped_column(Text)
    limit_nano: Mapped[int] = mapped_column(BigInteger)
    enforcement: Mapped[str] = mapped_column(Text, server_default="hard")
    alert_percents: Mapped[list[int]] = mapped_column(
        ARRAY(SmallInteger), server_default="{50,80,100}"
    )
    raised_to_nano: Mapped[int | None] = mapped_column(BigInteger)
    raised_until: Mapped[datetime | None] = mapped_column(Timestamp)
    time_zone: Mapped[str | None] = mapped_column(Text)
    division: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    removed_at: Mapped[datetime | None] = mapped_column(Timestamp)


class BudgetPeriodRow(Table):
    """The spent and held amounts of one budget in one period.

    `ceiling_nano` is the highest limit in force during the period, `breach_nano` the excess of
    actual costs over their reservations, `soft_nano` the amount reserved while the budget was soft:
    spent + held never exceeds their sum. Budgets of the operator have several shards per period.
    Each has a part (`allotted_nano`) of the limit that was in force at the division
    (`allotted_of_nano`), valid while the budget's `division` equals `allotted_division`.
    """

    __tablename__ = "budget_period"
    __table_args__ = (
        UniqueConstraint("budget_id", "period_start", "shard", name="budget_period_start"),
        CheckConstraint("spent_nano >= 0 AND held_nano >= 0", name="budget_period_not_negative"),
        CheckConstraint("ceiling_nano >= 0 AND breach_nano >= 0", name="budget_period_bounds"),
        CheckConstraint("shard = 0 OR tenant_id IS NULL", name="budget_period_shard"),
        CheckConstraint(
            "allotted_nano >= 0 AND allotted_of_nano >= 0 AND soft_nano >= 0",
            name="budget_period_allotted",
        ),
        CheckConstraint(
            "alerted_of_nano >= 0 AND exceeded_of_nano >= 0", name="budget_period_told"
        ),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    budget_id: Mapped[int] = mapped_column(ForeignKey("budget.id", ondelete="RESTRICT"))
    tenant_id: Mapped[UUID | None]
    shard: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    period_start: Mapped[datetime] = mapped_column(Timestamp)
    period_end: Mapped[datetime] = mapped_column(Timestamp)
    ceiling_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    spent_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    held_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    breach_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    soft_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    allotted_nano: Mapped[int | None] = mapped_column(BigInteger)
    allotted_of_nano: Mapped[int | None] = mapped_column(BigInteger)
    allotted_division: Mapped[int | None]
    alerted_percent: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    alerted_of_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    exceeded_of_nano: Mapped[int | None] = mapped_column(BigInteger)


class ReservationRow(Table):
    """The reserved part of budgets for one paid provider call, and the call's outcome.

    `terms`: the terms of its cost, for the estimate (`gateway.billing.estimates.Terms`).
    `served_quality` and `served_size`: those of the images that the provider made.
    """

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
            "length(served_quality) <= 20 AND length(served_size) <= 20", name="reservation_served"
        ),
        Index(
            "reservation_served",
            *("served_model", "operation", "livemode", "id"),
            postgresql_include=["served_quality", "served_size"],
            postgresql_where=text(
                "state = 'posted' AND served_quality IS NOT NULL AND served_size IS NOT NULL"
            ),
        ),
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
    terms: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    served_quality: Mapped[str | None] = mapped_column(Text)
    served_size: Mapped[str | None] = mapped_column(Text)


class LedgerRow(Table):
    """One immutable ledger entry. Every kind except `hold` adds to the spent amount.

    `admitted_at`: the time of the call's admission, by which reports and budgets count it.
    """

    __tablename__ = "ledger"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('hold', 'post', 'post_est', 'void', 'adjust')", name="ledger_kind"
        ),
        CheckConstraint("amount_nano >= 0 OR kind = 'adjust'", name="ledger_amount"),
        Index(
            "ledger_report",
            *("tenant_id", "livemode", "admitted_at"),
            postgresql_where=text("kind <> 'hold'"),
        ),
    )

    reservation_id: Mapped[UUID] = mapped_column(
        ForeignKey("reservation.id", ondelete="RESTRICT"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(Timestamp)
    admitted_at: Mapped[datetime] = mapped_column(Timestamp)
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
