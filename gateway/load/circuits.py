"""Circuit breakers: stop calls to a failing target for a while, then probe it one call at a time.

A circuit is closed → open → half open → closed. The caller decides which outcomes are failures.
`Circuit` is one circuit, without I/O and with the time passed in; `Circuits` are those of this
process, by provider, model and credential, with their log lines and metrics.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from uuid import UUID

import structlog

from gateway import telemetry
from gateway.config import LoadSettings
from gateway.load.tenant_outcomes import FORGET_SECONDS, TenantOutcomes

BACKOFF = 2
ENOUGH_TENANTS = 2
ENOUGH_PUT_OFF = 2
"""A single 429 may concern that request alone, for example one for ten images."""
log = structlog.get_logger(__name__)


class Trouble(StrEnum):
    """Cause of an open circuit."""

    UNREACHABLE = "unreachable"
    FAILING = "failing"
    CREDENTIAL = "credential"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"


class State(StrEnum):
    """State of a circuit."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitOpen(Exception):
    """A call that an open circuit refuses; retry it in `seconds`."""

    def __init__(self, trouble: Trouble, seconds: float) -> None:
        super().__init__(trouble)
        self.trouble = trouble
        self.seconds = seconds


class Circuit:
    """One circuit. It opens after a number of failures in a row, or when half of a window fails.

    A circuit that tenants share (`is_shared`) opens, and stays open, only if more than one of them
    sees failures and none has succeeded in the last minute, or if the credential's quota is used
    up. While it is open, tenants whose latest call succeeded are let through: an outage costs one
    call for each of them, and any success closes the circuit. A Retry-After binds the tenants of a
    shared circuit in the same way: it applies while none of them is served without having received
    one since. So failing tenants never shut out tenants that are served. A refused credential
    (401, 403) may be the fault of one request: a blocked end user, or a feature that the account
    may not use.
    """

    def __init__(self, settings: LoadSettings, *, is_shared: bool) -> None:
        self._settings = settings
        self._is_shared = is_shared
        self.state = State.CLOSED
        self.trouble = Trouble.FAILING
        self._until = 0.0
        self._put_off_until = 0.0
        self._put_off_by: Counter[UUID] = Counter()
        self._touched = 0.0
        self._open_seconds = settings.circuit_open_seconds
        self._row: Counter[UUID] = Counter()
        self._window: Counter[UUID] = Counter()
        self._tenants = TenantOutcomes()
        self._calls = 0

    def ask(self, now: float, tenant_id: UUID) -> None:
        """Admit a call; in a half-open circuit it is a probe.

        Raises:
            CircuitOpen: the call must not be made now.
        """
        if self.is_put_off(now) and not self._tenants.was_served(
            now, tenant_id, within_limits=True
        ):
            raise CircuitOpen(Trouble.RATE_LIMITED, self._put_off_until - now)
        if self.state is State.CLOSED or self._tenants.was_served(now, tenant_id):
            return
        if now < self._until:
            raise CircuitOpen(self.trouble, self._until - now)
        self.state = State.HALF_OPEN
        # If the probe is slow, another one follows: its answer must not delay recovery.
        self._until = now + self._settings.circuit_open_seconds

    def give_back(self, now: float) -> None:
        """Return an unused probe: its outcome says nothing, so the next call may be one."""
        if self.state is State.HALF_OPEN:
            self._until = now

    def put_off(self, now: float, seconds: float, tenant_id: UUID) -> None:
        """Record a Retry-After of the provider; it applies from the second in a row on."""
        self._touched = now
        self._tenants.limit(tenant_id)
        self._put_off_by[tenant_id] += 1
        is_of_one = self._is_shared and len(self._put_off_by) < ENOUGH_TENANTS
        if self._put_off_by.total() >= ENOUGH_PUT_OFF and not is_of_one:
            until = now + min(seconds, self._settings.circuit_max_open_seconds)
            self._put_off_until = max(self._put_off_until, until)
        self.give_back(now)

    def is_put_off(self, now: float) -> bool:
        """Tell whether the provider's Retry-After applies now.

        While a tenant is served, those that are not wait by their own circuits alone.
        """
        return now < self._put_off_until and not self._tenants.serves_some(now, within_limits=True)

    def succeed(self, now: float, tenant_id: UUID) -> None:
        """Record a successful call."""
        self._remember(now, tenant_id, is_success=True)
        self._put_off_by.clear()
        self._row.clear()
        if self.state is State.CLOSED:
            self._count(now)
            return
        self.state = State.CLOSED
        self._open_seconds = self._settings.circuit_open_seconds
        self._start_window()

    def fail(self, now: float, trouble: Trouble, tenant_id: UUID) -> None:
        """Record a failed call."""
        self._put_off_by.clear()
        self._touched = now
        self._remember(now, tenant_id, is_success=False)
        if self.state is State.OPEN:
            return  # admitted despite the open circuit, by the tenant's last success; now outdated
        self.trouble = trouble
        if self.state is State.HALF_OPEN:
            self._row[tenant_id] += 1
            if not self._concerns_all(self._row, now):
                # One tenant's probes must not keep it open for all: let another tenant probe.
                self.give_back(now)
                return
            longer = self._open_seconds * BACKOFF
            self._open_seconds = min(longer, self._settings.circuit_max_open_seconds)
            self._open(now)
            return
        self._add(self._row, tenant_id)
        is_counted = self._add(self._window, tenant_id)
        most = self._settings.circuit_failures
        if self._row.total() >= most and self._concerns_all(self._row, now):
            self._open(now)
        elif is_counted:
            self._count(now)

    def described(self, name: "CircuitName", now: float) -> "TroubledCircuit":
        """Describe the circuit, for operators."""
        if self.state is State.CLOSED:
            waits = self._put_off_until - now
            return TroubledCircuit(name, State.OPEN, Trouble.RATE_LIMITED, max(0.0, waits))
        return TroubledCircuit(name, self.state, self.trouble, max(0.0, self._until - now))

    def is_over(self, now: float) -> bool:
        """Tell whether the circuit is idle for so long that it can be forgotten."""
        return now > max(self._touched, self._until, self._put_off_until) + FORGET_SECONDS

    def _add(self, failures: Counter[UUID], tenant_id: UUID) -> bool:
        """Count a failure, up to one tenant's share of the threshold in a shared circuit.

        Without the cap, one tenant's many concurrent calls could reach the threshold alone.
        """
        enough = self._settings.circuit_failures
        # At least half, so that two failing tenants reach the threshold together; with a high
        # threshold, two failures of a second tenant are enough.
        most_of_one = max((enough + 1) // 2, enough - ENOUGH_TENANTS)
        is_the_tenants = self._is_shared and self.trouble is not Trouble.QUOTA
        if is_the_tenants and failures[tenant_id] >= most_of_one:
            return False
        failures[tenant_id] += 1
        return True

    def _count(self, now: float) -> None:
        """Count a call of the window; at its end, open the circuit if half of them failed."""
        self._calls += 1
        if self._calls < self._settings.circuit_window_calls:
            return
        if self._window.total() * 2 >= self._calls and self._concerns_all(self._window, now):
            self._open(now)
        else:
            self._start_window()

    def _concerns_all(self, failures: Counter[UUID], now: float) -> bool:
        if not self._is_shared or self.trouble is Trouble.QUOTA:
            return True
        return len(failures) >= ENOUGH_TENANTS and not self._tenants.serves_some(now)

    def _remember(self, now: float, tenant_id: UUID, *, is_success: bool) -> None:
        if not self._is_shared:
            return
        if is_success:
            self._touched = now
        self._tenants.remember(now, tenant_id, is_success=is_success)

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self._until = now + self._open_seconds
        self._row.clear()

    def _start_window(self) -> None:
        self._calls = 0
        self._window.clear()


Outcome = Callable[[Circuit, float], None]


@dataclass(frozen=True, slots=True)
class CircuitName:
    """Key of a circuit: provider, model and credential; with a tenant, its calls alone.

    `owner` is the credential's owner in log lines, `credential` identifies it uniquely.
    """

    provider: str
    model: str
    owner: str
    credential: str
    tenant_id: UUID | None


class ProviderCall:
    """An admitted call. Report its outcome at most once; an unreported call changes no circuit.

    The outcome is ignored by a circuit that opened or closed after the call was admitted: it says
    nothing about the present.
    """

    __slots__ = ("_circuits", "_is_told", "_number", "_passed", "_tenant_id")

    def __init__(self, circuits: "Circuits", tenant_id: UUID, number: int) -> None:
        self._circuits = circuits
        self._tenant_id = tenant_id
        self._number = number
        self._passed: tuple[CircuitName, ...] = ()
        self._is_told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended()

    def pass_through(self, name: CircuitName) -> None:
        """Pass one more circuit.

        Raises:
            CircuitOpen: the circuit is open.
        """
        self._circuits.ask(name, self._tenant_id)
        self._passed += (name,)

    def succeeded(self) -> None:
        """Report that the provider answered."""
        # Shared circuits must know who is served before failures begin.
        shared = tuple(name for name in self._passed if name.tenant_id is None)
        self._tell(lambda circuit, now: circuit.succeed(now, self._tenant_id), shared)

    def failed(self, trouble: Trouble) -> None:
        """Report a failure and its cause."""
        self._tell(lambda circuit, now: circuit.fail(now, trouble, self._tenant_id), self._passed)

    def put_off(self, seconds: float) -> None:
        """Report that the provider asked to retry after `seconds`."""
        tenant_id = self._tenant_id
        self._tell(lambda circuit, now: circuit.put_off(now, seconds, tenant_id), self._passed)

    def ended(self) -> None:
        """End the call; if its outcome was not reported, another call may be the probe instead."""
        if not self._is_told:
            self._tell(Circuit.give_back, kept=())

    def _tell(self, outcome: Outcome, kept: tuple[CircuitName, ...]) -> None:
        self._is_told = True
        for name in self._passed:
            self._circuits.tell(name, self._number, outcome, is_kept=name in kept)


@dataclass(frozen=True, slots=True)
class TroubledCircuit:
    """A circuit that does not let every call through now. `seconds`: until its next probe."""

    name: CircuitName
    state: State
    trouble: Trouble
    seconds: float


class Circuits:
    """The circuits of this process; the least recently used ones beyond a limit are forgotten."""

    def __init__(
        self, settings: LoadSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._circuits: OrderedDict[CircuitName, Circuit] = OrderedDict()
        self._changed: dict[CircuitName, int] = {}
        self._number = 0

    def __len__(self) -> int:
        """Return the number of circuits."""
        return len(self._circuits)

    def troubled(self) -> list[TroubledCircuit]:
        """List the circuits that are not closed, or put off by the provider's Retry-After."""
        now = self._clock()
        return [
            circuit.described(name, now)
            for name, circuit in self._circuits.items()
            if circuit.state is not State.CLOSED or circuit.is_put_off(now)
        ]

    def call(self, tenant_id: UUID) -> ProviderCall:
        """Guard a call of a tenant, which must `pass_through` its circuits first."""
        return ProviderCall(self, tenant_id, self._number)

    def ask(self, name: CircuitName, tenant_id: UUID) -> None:
        """Admit a tenant's call to one circuit.

        Raises:
            CircuitOpen: the circuit is open.
        """
        now = self._clock()
        self._forget_old(now)
        circuit = self._circuits.get(name)
        if circuit is None:
            return
        before = circuit.state
        try:
            circuit.ask(now, tenant_id)
        except CircuitOpen as refusal:
            telemetry.circuit_refused_total.labels(name.provider, refusal.trouble).inc()
            raise
        if circuit.state is not before:
            self._note(name, circuit, before)

    def tell(
        self,
        name: CircuitName,
        number: int,
        outcome: Outcome,
        *,
        is_kept: bool = False,
    ) -> None:
        """Apply a call's outcome to a circuit; with `is_kept` the circuit is created if needed."""
        circuit = self._circuits.get(name)
        if circuit is None:
            if not is_kept:
                return
            circuit = Circuit(self._settings, is_shared=name.tenant_id is None)
            self._circuits[name] = circuit
            while len(self._circuits) > self._settings.max_circuits:
                self._forget(next(iter(self._circuits)))
        if number < self._changed.get(name, 0):
            return
        now = self._clock()
        before, was_put_off = circuit.state, circuit.is_put_off(now)
        outcome(circuit, now)
        if circuit.is_put_off(now) and not was_put_off:
            self._report(name, "put_off", Trouble.RATE_LIMITED)
        if is_kept:
            self._circuits.move_to_end(name)
        if circuit.state is not before:
            self._number += 1
            self._changed[name] = self._number
            self._note(name, circuit, before)

    def _forget_old(self, now: float) -> None:
        while self._circuits:
            name, circuit = next(iter(self._circuits.items()))
            if not circuit.is_over(now):
                return
            self._forget(name)

    def _forget(self, name: CircuitName) -> None:
        circuit = self._circuits.pop(name)
        self._changed.pop(name, None)
        if circuit.state is not State.CLOSED:
            telemetry.circuits_open.labels(name.provider).dec()

    def _note(self, name: CircuitName, circuit: Circuit, before: State) -> None:
        if circuit.state is State.OPEN and before is State.CLOSED:
            telemetry.circuits_open.labels(name.provider).inc()
        elif circuit.state is State.CLOSED:
            telemetry.circuits_open.labels(name.provider).dec()
        self._report(name, circuit.state, circuit.trouble)

    def _report(self, name: CircuitName, state: str, trouble: Trouble) -> None:
        """Log and count a change of state."""
        telemetry.circuit_changes_total.labels(name.provider, name.model, state).inc()
        (log.warning if state == State.OPEN else log.info)(
            f"circuit_{state}",
            provider=name.provider,
            model=name.model,
            credential=name.owner,
            tenant=None if name.tenant_id is None else str(name.tenant_id),
            trouble=trouble,
        )
