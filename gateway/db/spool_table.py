"""The table of spooled images, which the store has not taken yet."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from gateway.db.tables import Table, Timestamp, tenant_key


class SpooledImageRow(Table):
    """An image that the store has not taken yet, sealed by its tenant's data key.

    A worker that tries to store it postpones `next_attempt_at`, which is its lease. There is no
    reference to `image`: that row is written with the settlement, which may come later.
    """

    __tablename__ = "image_spool"
    __table_args__ = (
        CheckConstraint("size_bytes > 0", name="image_spool_size"),
        Index("image_spool_due", "next_attempt_at"),
    )

    tenant_id: Mapped[UUID] = tenant_key()
    image_id: Mapped[str] = mapped_column(Text, primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    data_key_version: Mapped[int] = mapped_column(SmallInteger)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
