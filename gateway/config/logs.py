"""Settings of the log and the request log."""

import sys
from typing import Literal

from pydantic import Field

from gateway.config.base import SettingsGroup


class LogSettings(SettingsGroup):
    """The log, and the request log: a row per request (docs/requests.md)."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="The least severe level that is logged."
    )
    log_format: Literal["console", "json"] | None = Field(
        default=None,
        description="Readable lines or JSON. Default: `console` on a terminal, else `json`.",
        examples=["json"],
    )
    request_log: bool = Field(
        default=True,
        description="Keep a row per request in Postgres. `false` leaves the lines of the log.",
    )
    request_log_retention_days: int = Field(
        default=30, ge=1, le=3650, description="The days that the rows are kept."
    )
    request_log_max_waiting: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Rows per process that may wait for Postgres. Further ones are dropped and "
        "counted.",
    )
    request_log_unauthenticated_per_minute: int = Field(
        default=60,
        ge=0,
        le=100_000,
        description="Rows per minute and process of requests without a valid key.",
    )

    @property
    def resolved_log_format(self) -> Literal["console", "json"]:
        """Readable lines for a person at a terminal, JSON for everything else."""
        return self.log_format or ("console" if sys.stderr.isatty() else "json")
