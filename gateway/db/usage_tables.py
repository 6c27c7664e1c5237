"""The tables of usage: sums of ledger lines, which reports read instead of the ledger."""

from datetime import date, datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    SmallInteger,
    Text,
    UniqueConstraint,
    false,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from gateway.db.tables import Table, Timestamp


class UsageSumColumns:
    """The columns with sums: those of the ledger's lines, and the number of calls.

    `calls` counts failed calls too, `requests` only charged ones. Tables with `is_archived` sum the
    lines of archived months in rows of their own, because these cannot be made anew.
    """

    calls: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int] = mapped_column(BigInteger)
    images: Mapped[int] = mapped_column(BigInteger)
    text_input_tokens: Mapped[int] = mapped_column(BigInteger)
    image_input_tokens: Mapped[int] = mapped_column(BigInteger)
    text_output_tokens: Mapped[int] = mapped_column(BigInteger)
    image_output_tokens: Mapped[int] = mapped_column(BigInteger)
    amount_nano: Mapped[int] = mapped_column(BigInteger)


class UsageSlotRow(UsageSumColumns, Table):
    """Calls admitted in a quarter of an hour: every time zone's days consist of whole ones."""

    __tablename__ = "usage_slot"
    __table_args__ = (Index("usage_slot_of_all", "slot", "livemode"),)

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenant.id", ondelete="RESTRICT"), primary_key=True
    )
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    slot: Mapped[datetime] = mapped_column(Timestamp, primary_key=True)
    requested_model: Mapped[str] = mapped_column(Text, primary_key=True)
    served_model: Mapped[str] = mapped_column(Text, primary_key=True)
    provider: Mapped[str] = mapped_column(Text, primary_key=True)
    operation: Mapped[str] = mapped_column(Text, primary_key=True)
    credential: Mapped[str] = mapped_column(Text, primary_key=True)
    is_archived: Mapped[bool] = mapped_column(primary_key=True, server_default=false())


class UsageDayRow(UsageSumColumns, Table):
    """Calls admitted on a day of the tenant's time zone.

    `zone`: that time zone, so that a report of all tenants need not look each up. Wrong only for
    tenants in `usage_stale`.
    """

    __tablename__ = "usage_day"
    __table_args__ = (Index("usage_day_of_all", "day", "livemode"),)

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenant.id", ondelete="RESTRICT"), primary_key=True
    )
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    zone: Mapped[str] = mapped_column(Text)
    requested_model: Mapped[str] = mapped_column(Text, primary_key=True)
    served_model: Mapped[str] = mapped_column(Text, primary_key=True)
    provider: Mapped[str] = mapped_column(Text, primary_key=True)
    operation: Mapped[str] = mapped_column(Text, primary_key=True)
    credential: Mapped[str] = mapped_column(Text, primary_key=True)
    is_archived: Mapped[bool] = mapped_column(primary_key=True, server_default=false())


class UsageOwnerDayRow(UsageSumColumns, Table):
    """Calls of a key and user, admitted on a day of the tenant's time zone, `zone`."""

    __tablename__ = "usage_owner_day"
    __table_args__ = (
        UniqueConstraint(
            *("tenant_id", "livemode", "day", "api_key_id", "user_id"),
            *("requested_model", "served_model", "provider", "operation", "credential"),
            "is_archived",
            name="usage_owner_day_group",
            postgresql_nulls_not_distinct=True,
        ),
        Index("usage_owner_day_of_all", "day", "livemode"),
    )
    __mapper_args__ = {  # noqa: RUF012 - as SQLAlchemy declares it
        "primary_key": ["tenant_id", "livemode", "day", "api_key_id", "user_id", "served_model"]
    }

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenant.id", ondelete="RESTRICT"))
    livemode: Mapped[bool]
    day: Mapped[date]
    zone: Mapped[str] = mapped_column(Text)
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    requested_model: Mapped[str] = mapped_column(Text)
    served_model: Mapped[str] = mapped_column(Text)
    provider: Mapped[str] = mapped_column(Text)
    operation: Mapped[str] = mapped_column(Text)
    credential: Mapped[str] = mapped_column(Text)
    is_archived: Mapped[bool] = mapped_column(server_default=false())


class UsagePendingRow(Table):
    """A ledger line that is not in the sums yet."""

    __tablename__ = "usage_pending"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    reservation_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(SmallInteger, primary_key=True)


class UsageStaleRow(Table):
    """A tenant whose days have moved with its time zone: its sums must be made anew."""

    __tablename__ = "usage_stale"

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True
    )


class ArchivedMonthRow(Table):
    """A month of the ledger whose lines were dropped: those of ids below `below_id`.

    `last_admitted_at`: the latest admission among them; null if the month had none.
    """

    __tablename__ = "archived_month"

    month: Mapped[date] = mapped_column(primary_key=True)
    below_id: Mapped[UUID]
    lines: Mapped[int] = mapped_column(BigInteger)
    last_admitted_at: Mapped[datetime | None] = mapped_column(Timestamp)
    archived_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class ArchivedUsageRow(UsageSumColumns, Table):
    """The sums of a tenant's ledger lines of one archived month and mode.

    `held_nano` is the sum of their holds, `lines` counts holds too.
    """

    __tablename__ = "archived_usage"

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenant.id", ondelete="RESTRICT"), primary_key=True
    )
    month: Mapped[date] = mapped_column(primary_key=True)
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    lines: Mapped[int] = mapped_column(BigInteger)
    held_nano: Mapped[int] = mapped_column(BigInteger)
