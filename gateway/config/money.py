"""Settings of reservations, settlement and idempotency."""

from pathlib import Path

from pydantic import Field

from gateway.config.base import SettingsGroup


class MoneySettings(SettingsGroup):
    """Reservations, settlement, the call journal and idempotency (docs/money.md)."""

    admission_timeout_ms: int = Field(
        default=800,
        gt=0,
        description="The milliseconds that a call may wait for its reservation before it is "
        "refused with 503.",
    )
    settle_wait_seconds: float = Field(
        default=2.0,
        gt=0,
        description="The seconds that an answer waits for its settlement before it is sent with "
        "the cost status `pending`.",
    )
    group_commit_max_batch: int = Field(
        default=64,
        ge=1,
        le=1000,
        description="The most reservations or settlements that one transaction commits.",
    )
    hold_margin_seconds: int = Field(
        default=60,
        ge=1,
        description="The seconds that a reservation outlives the provider's read timeout. After "
        "that, the outcome of its call counts as unknown.",
    )
    estimate_after_seconds: int = Field(
        default=3600,
        ge=1,
        description="The seconds after which the estimated cost of an unknown outcome is posted, "
        "and flagged as an estimate.",
    )
    journal_dir: Path | None = Field(
        default=None,
        description="The directory in which workers record the calls that they send. It must be on "
        "a local disk (NFS, SMB and FUSE are refused) that outlives the container. Default: "
        "`journal` in the data directory.",
        examples=["/var/lib/image-gateway/journal"],
    )
    sweep_interval_seconds: float = Field(
        default=5.0,
        gt=0,
        description="The seconds between two runs of the sweeper, which expires reservations and "
        "retries the image store.",
    )
    idempotency_seconds: int = Field(
        default=86_400,
        ge=60,
        le=2_592_000,
        description="The seconds that an `Idempotency-Key` is kept. A repeated request within them "
        "gets the first answer and is not paid for again.",
    )
    ledger_months: int | None = Field(
        default=None,
        ge=3,
        le=1200,
        description="The months that ledger entries are kept after the end of their own. Then a "
        "month is archived: its sums are kept, its entries are dropped (docs/scaling.md). Export "
        "them before, with `gateway ledger export`. Default: they are kept for ever.",
        examples=[18],
    )
    audit_months: int | None = Field(
        default=None,
        ge=1,
        le=1200,
        description="The months that the audit trail's entries are kept after the end of their own "
        "(UTC). Default: they are kept for ever.",
        examples=[36],
    )

    @property
    def admission_seconds(self) -> float:
        """The seconds that a call may wait for what it needs of the database before it is made."""
        return self.admission_timeout_ms / 1000
