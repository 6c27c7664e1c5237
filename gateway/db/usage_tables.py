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
)
from sqlalchemy.orm import Mapped, mapped_column

from gateway.db.tables import Table, Timestamp


class UsageSumColumns:
    """The columns with sums: those of the ledger's lines, and the number of calls.

    `calls` counts failed calls too, `requests` only charged ones.
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


class UsageOwnerDayRow(UsageSumColumns, Table):
    """Calls of a key and user, admitted on a day of the tenant's time zone, `zone`."""

    __tablename__ = "usage_owner_day"
    __table_args__ = (
        UniqueConstraint(
            *("tenant_id", "livemode", "day", "api_key_id", "user_id"),
            *("requested_model", "served_model", "provider", "operation", "credential"),
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
