"""A circuit: what keeps failing is not called for a while, then tried with one call at a time.

Closed → open → half open → closed. No I/O; the time is passed in. What counts as a failure is for
the caller to say.
"""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

BACKOFF = 2
ENOUGH_TENANTS = 2
ENOUGH_PUT_OFF = 2
"""One refusal may have been for what that request alone asked for, ten images at once, say."""
FORGET_SECONDS = 600.0


class Trouble(StrEnum):
    """What a circuit is open for."""

    UNREACHABLE = "unreachable"
    FAILING = "failing"
    CREDENTIAL = "credential"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"


class State(StrEnum):
    """How a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitLimits:
    """When circuits open, for how long, and how many are remembered; see Settings."""

    failures_in_row: int
    window_calls: int
    open_seconds: float
    max_open_seconds: float
    max_circuits: int


class CircuitOpen(Exception):
    """A call that is not made, and in how many seconds it is worth trying."""

    def __init__(self, trouble: Trouble, seconds: float) -> None:
        super().__init__(trouble)
        self.trouble = trouble
        self.seconds = seconds


class Circuit:
    """One circuit. It opens after so many failures in a row, or when half of a window's calls fail.

    A circuit that several tenants share (`is_shared`) opens, and stays open, only where more than
    one of them sees failures, or where the credential's quota is used up. A refused credential
    (401, 403) may be one request's fault: a blocked end user, what the account may not use.
    """

    def __init__(self, limits: CircuitLimits, *, is_shared: bool) -> None:
        self._limits = limits
        self._is_shared = is_shared
        self.state = State.CLOSED
        self.trouble = Trouble.FAILING
        self._until = 0.0
        self._put_off_until = 0.0
        self._put_off_in_row = 0
        self._touched = 0.0
        self._open_seconds = limits.open_seconds
        self._in_row = self._failures = self._calls = 0
        self._tenants: set[UUID] = set()
        self._row_tenants: set[UUID] = set()

    def ask(self, now: float) -> None:
        """Let a call be made; in a half open circuit it is a probe.

        Raises:
            CircuitOpen: it may not.
        """
        if self.is_put_off(now):
            raise CircuitOpen(Trouble.RATE_LIMITED, self._put_off_until - now)
        if self.state is State.CLOSED:
            return
        if now < self._until:
            raise CircuitOpen(self.trouble, self._until - now)
        self.state = State.HALF_OPEN
        # A slow probe does not keep all others waiting for its answer.
        self._until = now + self._limits.open_seconds

    def give_back(self, now: float) -> None:
        """A call that was let through told nothing of the provider: the next one may be a probe."""
        if self.state is State.HALF_OPEN:
            self._until = now

    def put_off(self, now: float, seconds: float) -> None:
        """The provider has said when to come again; it counts once it was said twice in a row."""
        self._touched = now
        self._put_off_in_row += 1
        if self._put_off_in_row >= ENOUGH_PUT_OFF:
            until = now + min(seconds, self._limits.max_open_seconds)
            self._put_off_until = max(self._put_off_until, until)
        self.give_back(now)

    def is_put_off(self, now: float) -> bool:
        """Whether it is not yet the time that the provider has said."""
        return now < self._put_off_until

    def succeed(self, now: float) -> None:
        """A call was answered."""
        self._put_off_in_row = 0
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._open_seconds = self._limits.open_seconds
            self._start_anew()
            return
        self._in_row = 0
        self._row_tenants = set()
        self._count(now)

    def fail(self, now: float, trouble: Trouble, tenant_id: UUID) -> None:
        """A call failed."""
        self._put_off_in_row = 0
        self._touched = now
        self.trouble = trouble
        for tenants in (self._row_tenants, self._tenants):
            if len(tenants) < ENOUGH_TENANTS:
                tenants.add(tenant_id)
        if self.state is not State.CLOSED:
            if not self._concerns_all(self._row_tenants):
                # The fastest to ask must not keep it open for all: the next one's turn.
                self.give_back(now)
                return
            longer = self._open_seconds * BACKOFF
            self._open_seconds = min(longer, self._limits.max_open_seconds)
            self._open(now)
            return
        self._in_row += 1
        self._failures += 1
        if self._in_row >= self._limits.failures_in_row and self._concerns_all(self._row_tenants):
            self._open(now)
        else:
            self._count(now)

    def is_over(self, now: float) -> bool:
        """Whether nothing worth remembering has happened for long."""
        return now > max(self._touched, self._until, self._put_off_until) + FORGET_SECONDS

    def _count(self, now: float) -> None:
        """One more call of the window; at its end, whether half of them failed."""
        self._calls += 1
        if self._calls < self._limits.window_calls:
            return
        if self._failures * 2 >= self._calls and self._concerns_all(self._tenants):
            self._open(now)
        else:
            self._failures = self._calls = 0
            self._tenants = set()

    def _concerns_all(self, tenants: set[UUID]) -> bool:
        is_used_up = self.trouble is Trouble.QUOTA
        return not self._is_shared or is_used_up or len(tenants) >= ENOUGH_TENANTS

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self._until = now + self._open_seconds
        self._row_tenants = set()

    def _start_anew(self) -> None:
        self._in_row = self._failures = self._calls = 0
        self._tenants = set()
        self._row_tenants = set()
