"""Settings of the console's sign-in and sessions."""

from typing import Literal

from pydantic import Field

from gateway.config.base import SettingsGroup

HOUR_SECONDS = 3600


class ConsoleSettings(SettingsGroup):
    """Sign-in and sessions of the console (docs/console.md)."""

    console_operator_idle_seconds: int = Field(
        default=1800,
        ge=60,
        le=86_400,
        description="The seconds without a request after which an operator must sign in again.",
    )
    console_operator_session_seconds: int = Field(
        default=8 * HOUR_SECONDS,
        ge=300,
        le=7 * 86_400,
        description="The longest time of an operator's session, in seconds.",
    )
    console_tenant_idle_seconds: int = Field(
        default=12 * HOUR_SECONDS,
        ge=60,
        le=7 * 86_400,
        description="The seconds without a request after which a tenant's person must sign in "
        "again.",
    )
    console_tenant_session_seconds: int = Field(
        default=7 * 86_400,
        ge=300,
        le=30 * 86_400,
        description="The longest time of a session of a tenant's person, in seconds.",
    )
    console_break_glass: Literal["off", "loopback", "on"] = Field(
        default="loopback",
        description="Sign-in with an admin key: `off`, `loopback` (from this machine only) or "
        "`on`. It is meant for emergencies and marked in the audit trail.",
    )
    console_break_glass_seconds: int = Field(
        default=HOUR_SECONDS,
        ge=60,
        le=HOUR_SECONDS,
        description="The longest time of a session that an admin key opened, in seconds.",
    )
    console_link_seconds: int = Field(
        default=600,
        ge=60,
        le=HOUR_SECONDS,
        description="The seconds in which a one-time sign-in link can be used.",
    )
    console_invitation_seconds: int = Field(
        default=7 * 86_400,
        ge=HOUR_SECONDS,
        le=30 * 86_400,
        description="The seconds in which an invitation can be accepted.",
    )
    console_sign_ins_per_minute: int = Field(
        default=20,
        ge=1,
        le=10_000,
        description="The requests per minute, client address and process that each page of sign-in "
        "answers.",
    )
    console_max_delay_seconds: int = Field(
        default=300,
        ge=0,
        le=86_400,
        description="The longest time, in seconds, that sign-in waits after failures in a row. It "
        "doubles with each failure; 0 never waits.",
    )
    console_kept_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="The days that ended sessions and invitations are kept.",
    )
