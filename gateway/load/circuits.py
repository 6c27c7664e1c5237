"""The circuit breakers of this process, by provider, model and credential."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import structlog

from gateway import telemetry
from gateway.config import LoadSettings
from gateway.load.circuit_breaker import Circuit, CircuitOpen, State, Trouble

log = structlog.get_logger(__name__)


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

    def succeeded(self) -> None:
        """Report that the provider answered."""
        self._is_told = True
        for name in self._passed:
            self._circuits.tell(
                name,
                self._number,
                lambda circuit, now: circuit.succeed(now, self._tenant_id),
                # Kept for shared circuits, which must know who is served before failures begin.
                is_kept=name.tenant_id is None,
            )

    def failed(self, trouble: Trouble) -> None:
        """Report a failure and its cause."""
        self._is_told = True
        for name in self._passed:
            self._circuits.tell(
                name,
                self._number,
                lambda circuit, now: circuit.fail(now, trouble, self._tenant_id),
                is_kept=True,
            )

    def put_off(self, seconds: float) -> None:
        """Report that the provider asked to retry after `seconds`."""
        self._is_told = True
        for name in self._passed:
            self._circuits.tell(
                name,
                self._number,
                lambda circuit, now: circuit.put_off(now, seconds, self._tenant_id),
                is_kept=True,
            )

    def ended(self) -> None:
        """End the call; if its outcome was not reported, another call may be the probe instead."""
        if not self._is_told:
            for name in self._passed:
                self._circuits.tell(name, self._number, lambda circuit, now: circuit.give_back(now))

    def pass_through(self, name: CircuitName) -> None:
        """Pass one more circuit.

        Raises:
            CircuitOpen: the circuit is open.
        """
        self._circuits.ask(name, self._tenant_id)
        self._passed += (name,)


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

    @contextmanager
    def call(self, tenant_id: UUID) -> Iterator[ProviderCall]:
        """Guard a call of a tenant, which must `pass_through` its circuits first."""
        call = ProviderCall(self, tenant_id, self._number)
        try:
            yield call
        finally:
            call.ended()

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
        outcome: Callable[[Circuit, float], None],
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
        write = log.warning if state == State.OPEN else log.info
        write(
            f"circuit_{state}",
            provider=name.provider,
            model=name.model,
            credential=name.owner,
            tenant=None if name.tenant_id is None else str(name.tenant_id),
            trouble=trouble,
        )
