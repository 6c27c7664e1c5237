"""The table of the request log; the SQL function `record_requests` creates its daily partitions."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, SmallInteger, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from gateway.db.tables import Table, Timestamp


class RequestRow(Table):
    """One request and its outcome, without its prompt. It outlives its objects: no foreign keys.

    `tenant_id` is null for operators and for requests without a valid key. `api_key_id` is the
    first of a line of rolled keys. `cost_nano` is the cost known when the request ended: the ledger
    has the final cost under `generation_id`.
    """

    __tablename__ = "request_log"
    __table_args__ = (
        CheckConstraint("cost_nano >= 0", name="request_log_cost_not_negative"),
        Index("request_log_tenant", "tenant_id", "livemode", "at", "id"),
        Index(
            "request_log_client_request_id",
            "client_request_id",
            postgresql_where=text("client_request_id IS NOT NULL"),
        ),
        Index(
            "request_log_generation",
            "generation_id",
            postgresql_where=text("generation_id IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (at)"},
    )

    at: Mapped[datetime] = mapped_column(Timestamp, primary_key=True)
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[UUID | None]
    livemode: Mapped[bool | None]
    api_key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    operator_key_id: Mapped[UUID | None]
    client_request_id: Mapped[str | None] = mapped_column(Text)
    trace_id: Mapped[str | None] = mapped_column(Text)
    method: Mapped[str] = mapped_column(Text)
    route: Mapped[str] = mapped_column(Text)
    tool: Mapped[str | None] = mapped_column(Text)
    status: Mapped[int] = mapped_column(SmallInteger)
    error_code: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    requested_model: Mapped[str | None] = mapped_column(Text)
    served_model: Mapped[str | None] = mapped_column(Text)
    generation_id: Mapped[UUID | None]
    replayed: Mapped[bool | None]
    provider: Mapped[str | None] = mapped_column(Text)
    credential: Mapped[str | None] = mapped_column(Text)
    provider_status: Mapped[int | None] = mapped_column(SmallInteger)
    provider_request_id: Mapped[str | None] = mapped_column(Text)
    provider_milliseconds: Mapped[int | None] = mapped_column(BigInteger)
    cost_nano: Mapped[int | None] = mapped_column(BigInteger)
    cost_status: Mapped[str | None] = mapped_column(Text)
    milliseconds: Mapped[int] = mapped_column(BigInteger)
    provider_calls: Mapped[int | None] = mapped_column(SmallInteger)
    model_version: Mapped[str | None] = mapped_column(Text)
    session_id: Mapped[UUID | None]
