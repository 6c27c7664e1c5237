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

from gateway.db.tables import Table, Timestamp, own_reservation, own_user, tenant_key


class PriceRow(Table):
    """One version of a price: nano-USD per million tokens, image or second. Immutable."""

    __tablename__ = "price"
    __table_args__ = (
        UniqueConstraint("model", "effective_from", name="price_version"),
        CheckConstraint(
            "text_input_nano >= 0 AND image_input_nano >= 0"
            " AND image_output_nano >= 0 AND text_output_nano >= 0",
            name="price_not_negative",
        ),
        CheckConstraint("per_image_nano >= 0", name="price_per_image_not_negative"),
        CheckConstraint("per_second_nano >= 0", name="price_per_second_not_negative"),
        CheckConstraint(
            "greatest(text_input_nano, image_input_nano, image_output_nano, text_output_nano,"
            " per_image_nano, per_second_nano) <= 10000000000000",
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
    per_second_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class BudgetColumns:
    """The terms of a money limit.

    A removed budget stays for its periods, in which calls may still be settled; its limit is then
    the highest possible, so that it limits nothing.
    """

    period: Mapped[str] = mapped_column(Text)
    limit_nano: Mapped[int] = mapped_column(BigInteger)
    enforcement: Mapped[str] = mapped_column(Text, server_default="hard")
    alert_percents: Mapped[list[int]] = mapped_column(
        ARRAY(SmallInteger), server_default="{50,80,100}"
    )
    raised_to_nano: Mapped[int | None] = mapped_column(BigInteger)
    raised_until: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    removed_at: Mapped[datetime | None] = mapped_column(Timestamp)


def budget_checks(table: str) -> tuple[CheckConstraint, ...]:
    """Build the checks of `BudgetColumns`."""
    return (
        CheckConstraint("period IN ('day', 'week', 'month', 'total')", name=f"{table}_period_name"),
        CheckConstraint("limit_nano BETWEEN 0 AND 1000000000000000000", name=f"{table}_limit"),
        CheckConstraint(
            "removed_at IS NULL OR limit_nano = 1000000000000000000", name=f"{table}_removed"
        ),
        CheckConstraint("enforcement IN ('hard', 'soft')", name=f"{table}_enforcement"),
        CheckConstraint(
            "cardinality(alert_percents) <= 10"
            " AND 1 <= ALL (alert_percents) AND 100 >= ALL (alert_percents)",
            name=f"{table}_alert_percents",
        ),
        CheckConstraint(
            "(raised_to_nano IS NULL) = (raised_until IS NULL)"
            " AND raised_to_nano BETWEEN 0 AND 1000000000000000000",
            name=f"{table}_raise",
        ),
    )


class BudgetRow(BudgetColumns, Table):
    """A money limit of a tenant, one of its users or one of its keys, per window."""

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
        CheckConstraint("api_key_id IS NULL OR user_id IS NULL", name="budget_one_owner"),
        *budget_checks("budget"),
    )

    tenant_id: Mapped[UUID] = tenant_key()
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    livemode: Mapped[bool]


class HouseBudgetRow(BudgetColumns, Table):
    """A money limit of the operator over all live calls with a house credential, per window.

    `division` numbers the divisions of its limit among its shards.
    """

    __tablename__ = "house_budget"
    __table_args__ = (
        UniqueConstraint("period", name="house_budget_window"),
        *budget_checks("house_budget"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    time_zone: Mapped[str] = mapped_column(Text)
    division: Mapped[int] = mapped_column(server_default="0")


class PeriodColumns:
    """The spent and held amounts of one budget in one period.

    `ceiling_nano` is the highest limit in force during the period, `breach_nano` the excess of
    actual costs over their reservations, `soft_nano` the amount reserved while the budget was soft:
    spent + held never exceeds their sum.
    """

    period_start: Mapped[datetime] = mapped_column(Timestamp)
    period_end: Mapped[datetime] = mapped_column(Timestamp)
    ceiling_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    spent_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    held_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    breach_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    soft_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    alerted_percent: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    alerted_of_nano: Mapped[int] = mapped_column(BigInteger, server_default="0")
    exceeded_of_nano: Mapped[int | None] = mapped_column(BigInteger)


def period_checks(table: str) -> tuple[CheckConstraint, ...]:
    """Build the checks of `PeriodColumns`."""
    return (
        CheckConstraint("spent_nano >= 0 AND held_nano >= 0", name=f"{table}_not_negative"),
        CheckConstraint("ceiling_nano >= 0 AND breach_nano >= 0", name=f"{table}_bounds"),
        CheckConstraint("alerted_of_nano >= 0 AND exceeded_of_nano >= 0", name=f"{table}_told"),
    )


class BudgetPeriodRow(PeriodColumns, Table):
    """One period of a tenant's budget."""

    __tablename__ = "budget_period"
    __table_args__ = (
        UniqueConstraint("tenant_id", "budget_id", "period_start", name="budget_period_start"),
        ForeignKeyConstraint(
            ["tenant_id", "budget_id"],
            ["budget.tenant_id", "budget.id"],
            name="budget_period_own_budget",
            ondelete="RESTRICT",
        ),
        CheckConstraint("soft_nano >= 0", name="budget_period_soft"),
        *period_checks("budget_period"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    budget_id: Mapped[int] = mapped_column(BigInteger)


class HouseBudgetPeriodRow(PeriodColumns, Table):
    """One shard of a period of the operator's budget.

    It has a part (`allotted_nano`) of the limit that was in force at the division
    (`allotted_of_nano`), valid while the budget's `division` equals `allotted_division`.
    """

    __tablename__ = "house_budget_period"
    __table_args__ = (
        UniqueConstraint("shard", "budget_id", "period_start", name="house_budget_period_start"),
        CheckConstraint("shard BETWEEN 0 AND 7", name="house_budget_period_shard"),
        CheckConstraint(
            "allotted_nano >= 0 AND allotted_of_nano >= 0 AND soft_nano >= 0",
            name="house_budget_period_allotted",
        ),
        *period_checks("house_budget_period"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    shard: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    budget_id: Mapped[int] = mapped_column(ForeignKey("house_budget.id", ondelete="RESTRICT"))
    allotted_nano: Mapped[int | None] = mapped_column(BigInteger)
    allotted_of_nano: Mapped[int | None] = mapped_column(BigInteger)
    allotted_division: Mapped[int | None]


class CheckedPeriodRow(Table):
    """The amount spent in a budget period on the reservations that were checked already.

    The key is the period's id, negated for a period of the operator's budget.
    """

    __tablename__ = "checked_period"
    __table_args__ = (CheckConstraint("spent_nano >= 0", name="checked_period_not_negative"),)

    period_key: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    spent_nano: Mapped[int] = mapped_column(BigInteger)


class ReservationRow(Table):
    """The reserved part of budgets for one paid provider call, and the call's outcome.

    `periods`: the tenant's budget periods in which it counts; `house_periods` in `house_shard`: the
    operator's.
    `terms`: the terms of its cost, for the estimate (`gateway.billing.estimates.Terms`).
    `served_quality` and `served_size`: those of the images that the provider made.
    `calls`: the provider calls that were made (`gateway.db.listed_calls`); null if not listed.
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
        Index("reservation_admitted", "admitted_at", postgresql_using="brin"),
        Index(
            "reservation_open",
            "deadline_at",
            postgresql_where=text("state IN ('held', 'unknown')"),
        ),
        CheckConstraint(
            "(house_shard IS NULL) = (house_periods IS NULL)", name="reservation_house"
        ),
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
        {"postgresql_with": {"fillfactor": "80"}},
    )

    tenant_id: Mapped[UUID] = tenant_key()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    livemode: Mapped[bool]
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    periods: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    house_shard: Mapped[int | None] = mapped_column(SmallInteger)
    house_periods: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
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
    terms: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    served_quality: Mapped[str | None] = mapped_column(Text)
    served_size: Mapped[str | None] = mapped_column(Text)
    calls: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)


class IdempotencyClaimRow(Table):
    """An idempotency key of a call, and the answer to repeated requests. Deleted after its time."""

    __tablename__ = "idempotency_claim"
    __table_args__ = (
        UniqueConstraint(
            *("key", "tenant_id", "operation", "livemode", "user_id"),
            name="idempotency_claim_owner",
            postgresql_nulls_not_distinct=True,
        ),
        # Deferred, because the claim is made before its reservation.
        own_reservation("idempotency_claim", deferrable=True, initially="DEFERRED"),
        CheckConstraint("length(key) BETWEEN 1 AND 255", name="idempotency_claim_key"),
        Index("idempotency_claim_at", "claimed_at"),
        {"postgresql_with": {"fillfactor": "70"}},
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    reservation_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
    livemode: Mapped[bool]
    operation: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)
    request_hash: Mapped[bytes] = mapped_column(LargeBinary)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    claimed_at: Mapped[datetime] = mapped_column(Timestamp)


class LedgerRow(Table):
    """One immutable ledger entry. Every kind except `hold` adds to the spent amount.

    In partitions by the month of its reservation's id.

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
        own_reservation("ledger"),
        Index(
            "ledger_reservation",
            "reservation_id",
            postgresql_using="brin",
            postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
        ),
        Index(
            "ledger_admitted",
            "admitted_at",
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
        ),
        {"postgresql_partition_by": "RANGE (reservation_id)"},
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    reservation_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(Timestamp)
    admitted_at: Mapped[datetime] = mapped_column(Timestamp)
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
