"""Circuits, without any provider: when they open, what they let through, when they close."""

from contextlib import ExitStack
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from gateway.config import LoadSettings
from gateway.load.circuits import Circuit, CircuitName, CircuitOpen, Circuits, State, Trouble
from tests.limits_helpers import FakeClock

LIMITS = LoadSettings(
    circuit_failures=3,
    circuit_window_calls=10,
    circuit_open_seconds=10,
    circuit_max_open_seconds=60,
    max_circuits=3,
)
ANN, BOB, EVE, DAN = UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=4)


def own(credential: str = "key.1", model: str = "m") -> CircuitName:
    return CircuitName("openai", model, "tenant", credential, ANN)


SHARED = CircuitName("openai", "m", "house", "house", None)


def refusal(circuit: Circuit, now: float, tenant_id: UUID = ANN) -> tuple[Trouble, float] | None:
    try:
        circuit.ask(now, tenant_id)
    except CircuitOpen as refused:
        return refused.trouble, refused.seconds
    return None


def fail(circuit: Circuit, times: int, *tenants: UUID, trouble: Trouble = Trouble.FAILING) -> None:
    for at in range(times):
        circuit.fail(0, trouble, tenants[at % len(tenants)])


def test_it_opens_after_failures_in_a_row_and_says_when_to_come_again() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    fail(circuit, 2, ANN)
    circuit.succeed(0, ANN)
    fail(circuit, 2, ANN)
    assert refusal(circuit, 0) is None
    fail(circuit, 1, ANN, trouble=Trouble.UNREACHABLE)
    assert (circuit.state, refusal(circuit, 4)) == (State.OPEN, (Trouble.UNREACHABLE, 6))


def test_it_opens_where_half_of_the_calls_fail_though_never_in_a_row() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    for _ in range(5):
        assert refusal(circuit, 0) is None
        fail(circuit, 1, ANN)
        circuit.succeed(0, ANN)
    assert refusal(circuit, 0) == (Trouble.FAILING, 10)


def test_fewer_failures_than_half_do_not_open_it() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    for _ in range(30):
        fail(circuit, 1, ANN)
        circuit.succeed(0, ANN)
        circuit.succeed(0, ANN)
    assert circuit.state is State.CLOSED


def test_one_probe_is_let_through_and_its_answer_closes_the_circuit() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    fail(circuit, 3, ANN)
    assert refusal(circuit, 10) is None
    assert (circuit.state, refusal(circuit, 10)) == (State.HALF_OPEN, (Trouble.FAILING, 10))
    circuit.succeed(11, ANN)
    assert [refusal(circuit, 11) for _ in range(3)] == [None] * 3
    fail(circuit, 2, ANN)
    assert circuit.state is State.CLOSED


def test_a_slow_probe_does_not_keep_the_others_waiting_for_ever() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    fail(circuit, 3, ANN)
    assert [refusal(circuit, now) is None for now in (10, 15, 20, 21)] == [True, False, True, False]


def test_each_failed_probe_doubles_the_time_up_to_the_maximum() -> None:
    circuit, now, waits = Circuit(LIMITS, is_shared=False), 0.0, []
    fail(circuit, 3, ANN)
    for _ in range(5):
        found = refusal(circuit, now)
        assert found is not None
        waits.append(found[1])
        now += found[1]
        assert refusal(circuit, now) is None
        circuit.fail(now, Trouble.FAILING, ANN)
    assert waits == [10, 20, 40, 60, 60]


def test_a_probe_that_told_nothing_leaves_its_turn_to_the_next_call() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    fail(circuit, 3, ANN)
    assert refusal(circuit, 10) is None
    circuit.give_back(11)
    assert refusal(circuit, 11) is None


def test_the_providers_retry_time_is_kept_up_to_the_maximum() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    circuit.put_off(0, 5, ANN)
    assert refusal(circuit, 0) is None  # it may have been for what that call asked for
    circuit.put_off(0, 12, ANN)
    circuit.put_off(0, 5, ANN)
    assert refusal(circuit, 2) == (Trouble.RATE_LIMITED, 10)
    assert [refusal(circuit, 12) for _ in range(2)] == [None, None]
    circuit.put_off(20, 3600, ANN)
    assert refusal(circuit, 20) == (Trouble.RATE_LIMITED, 60)
    circuit.succeed(90, ANN)
    circuit.put_off(90, 12, ANN)
    assert refusal(circuit, 90) is None


def test_a_retry_time_given_to_one_tenant_delays_no_other_tenant() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    for _ in range(9):
        circuit.put_off(0, 12, ANN)
    assert refusal(circuit, 0) is None
    circuit.put_off(0, 12, BOB)
    assert refusal(circuit, 0) == (Trouble.RATE_LIMITED, 12)


def test_retry_times_with_a_failure_between_them_are_not_in_a_row() -> None:
    circuit = Circuit(LIMITS, is_shared=False)
    circuit.put_off(0, 12, ANN)
    circuit.fail(1, Trouble.FAILING, ANN)
    circuit.put_off(2, 12, ANN)
    assert refusal(circuit, 3) is None
    circuit.put_off(4, 12, ANN)
    assert refusal(circuit, 4) == (Trouble.RATE_LIMITED, 12)


def put_off(circuit: Circuit, now: float, *tenants: UUID, seconds: float = 120) -> None:
    for tenant_id in tenants:
        circuit.put_off(now, seconds, tenant_id)


def test_rate_limits_of_two_tenants_delay_no_tenant_while_a_third_is_served() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    circuit.succeed(0, EVE)
    circuit.succeed(5, BOB)
    put_off(circuit, 10, ANN, BOB)
    assert [refusal(circuit, 11, one) for one in (EVE, DAN, ANN)] == [None] * 3
    circuit.succeed(59, EVE)
    put_off(circuit, 60, ANN, BOB)
    assert [refusal(circuit, 69, one) for one in (EVE, DAN)] == [None] * 2


def test_a_rate_limit_that_reaches_the_served_tenant_too_delays_every_tenant() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    circuit.succeed(0, EVE)
    put_off(circuit, 10, ANN, BOB, seconds=30)
    circuit.succeed(11, EVE)  # of a call that was sent before the limit was reached
    put_off(circuit, 12, EVE, seconds=30)
    waits = [refusal(circuit, 12, one) for one in (EVE, DAN, ANN)]
    assert waits == [(Trouble.RATE_LIMITED, 28)] * 3
    assert [refusal(circuit, 40, one) for one in (EVE, DAN)] == [None] * 2


@pytest.mark.parametrize("begin", [0, 86_400], ids=["of a new process", "of an old process"])
def test_a_tenant_served_minutes_ago_passes_a_rate_limit_once(begin: float) -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    circuit.succeed(begin, EVE)
    put_off(circuit, begin + 61, ANN, BOB)
    assert refusal(circuit, begin + 61, DAN) == (Trouble.RATE_LIMITED, 60)
    assert refusal(circuit, begin + 61, EVE) is None
    circuit.succeed(begin + 62, EVE)
    assert [refusal(circuit, begin + 63, one) for one in (EVE, DAN)] == [None] * 2
    put_off(circuit, begin + 64, EVE)
    assert refusal(circuit, begin + 64, EVE) == (Trouble.RATE_LIMITED, 57)


def test_a_tenant_served_long_ago_waits_for_a_rate_limit_as_a_new_one_does() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    circuit.succeed(0, EVE)
    put_off(circuit, 600, ANN, BOB)
    assert refusal(circuit, 600, EVE) is None
    assert refusal(circuit, 601, EVE) == (Trouble.RATE_LIMITED, 59)


def test_a_rate_limit_of_the_served_tenant_does_not_count_as_its_failure() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    circuit.succeed(0, EVE)
    put_off(circuit, 1, EVE)
    fail(circuit, 50, ANN, BOB)
    assert (circuit.state, refusal(circuit, 2, DAN)) == (State.CLOSED, None)


def test_a_single_failure_beside_a_busy_tenant_opens_no_circuit() -> None:
    settings = LIMITS.model_copy(update={"circuit_failures": 10, "circuit_window_calls": 20})
    circuit = Circuit(settings, is_shared=True)
    fail(circuit, 50, ANN)
    fail(circuit, 1, BOB)
    assert refusal(circuit, 0) is None
    fail(circuit, 1, BOB)
    assert refusal(circuit, 0) == (Trouble.FAILING, 10)


def test_one_tenants_failures_alone_never_open_a_shared_circuit() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    fail(circuit, 50, ANN)
    assert refusal(circuit, 0) is None
    fail(circuit, 1, BOB)
    assert refusal(circuit, 0) == (Trouble.FAILING, 10)


def test_one_tenants_failures_alone_never_keep_a_shared_circuit_open() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    fail(circuit, 3, ANN, BOB)
    assert refusal(circuit, 10) is None
    circuit.fail(10, Trouble.FAILING, ANN)
    assert refusal(circuit, 10) is None  # the next one is tried at once …
    circuit.fail(10, Trouble.FAILING, BOB)
    assert refusal(circuit, 10) == (Trouble.FAILING, 20)  # … and it is not Ann alone
    assert refusal(circuit, 30) is None
    circuit.fail(30, Trouble.FAILING, ANN)
    assert refusal(circuit, 30) is None
    circuit.succeed(30, ANN)
    assert circuit.state is State.CLOSED


def test_an_exhausted_house_key_opens_the_circuit_for_every_caller() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    fail(circuit, 3, ANN, trouble=Trouble.QUOTA)
    assert refusal(circuit, 0) == (Trouble.QUOTA, 10)


def test_two_tenants_that_fail_do_not_open_it_while_one_is_served() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    for minute in range(10):
        circuit.succeed(60 * minute, EVE)
        for _ in range(50):
            circuit.fail(60 * minute + 59, Trouble.FAILING, ANN)
            circuit.fail(60 * minute + 59, Trouble.FAILING, BOB)
        assert circuit.state is State.CLOSED
    circuit.fail(600, Trouble.FAILING, EVE)  # now no tenant is served any more
    circuit.fail(600, Trouble.FAILING, ANN)
    assert circuit.state is State.OPEN


def test_a_tenant_that_was_served_last_is_let_through_and_its_success_closes_it() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    circuit.succeed(0, EVE)
    for _ in range(3):
        circuit.fail(100, Trouble.FAILING, ANN)
        circuit.fail(100, Trouble.FAILING, BOB)
    for unserved in (ANN, DAN):
        assert refusal(circuit, 101, unserved) == (Trouble.FAILING, 9)
    assert refusal(circuit, 101, EVE) is None
    circuit.succeed(102, EVE)
    assert circuit.state is State.CLOSED


def test_in_an_outage_each_tenant_is_let_through_once() -> None:
    circuit = Circuit(LIMITS, is_shared=True)
    circuit.succeed(0, EVE)
    for _ in range(3):
        circuit.fail(100, Trouble.FAILING, ANN)
        circuit.fail(100, Trouble.FAILING, BOB)
    assert refusal(circuit, 101, EVE) is None
    circuit.fail(102, Trouble.FAILING, EVE)
    assert refusal(circuit, 102, EVE) == (Trouble.FAILING, 8)


# Many of them


def call(
    circuits: Circuits, *names: CircuitName, outcome: str = "failed", tenant_id: UUID = ANN
) -> bool:
    """Make a call with this outcome; False if an open circuit refused it."""
    with circuits.call(tenant_id) as made:
        try:
            for name in names:
                made.pass_through(name)
        except CircuitOpen:
            return False
        if outcome == "failed":
            made.failed(Trouble.FAILING)
        elif outcome == "succeeded":
            made.succeeded()
    return True


def test_a_replaced_credential_and_another_model_have_circuits_of_their_own() -> None:
    circuits = Circuits(LIMITS, clock=FakeClock())
    assert [call(circuits, own()) for _ in range(4)] == [True, True, True, False]
    assert call(circuits, own("key.2"))
    assert call(circuits, own(model="other"))


def test_a_call_that_is_refused_by_its_second_circuit_is_no_probe_of_the_first() -> None:
    clock = FakeClock()
    circuits = Circuits(LIMITS, clock=clock)
    for _ in range(3):
        call(circuits, own("first"))
    clock.now += 9
    for _ in range(3):
        call(circuits, own("second"))
    clock.now += 1
    assert not call(circuits, own("first"), own("second"))
    assert call(circuits, own("first"), outcome="succeeded")
    assert call(circuits, own("first"), outcome="none")


def test_calls_sent_before_a_circuit_changed_do_not_count() -> None:
    clock = FakeClock()
    circuits = Circuits(LIMITS, clock=clock)
    with ExitStack() as running:
        late = [running.enter_context(circuits.call(ANN)) for _ in range(5)]
        for one in late:
            one.pass_through(own())
        for _ in range(3):
            call(circuits, own())
        late[0].succeeded()  # it had begun before the trouble
        assert not call(circuits, own())
        clock.now += 10
        assert call(circuits, own(), outcome="succeeded")
        for one in late[1:]:
            one.failed(Trouble.FAILING)
    assert call(circuits, own())


def test_no_more_circuits_are_remembered_than_may_be_and_old_ones_are_forgotten() -> None:
    clock = FakeClock()
    circuits = Circuits(LIMITS, clock=clock)
    for number in range(10):
        call(circuits, own(f"key.{number}"))
    assert len(circuits) == LIMITS.max_circuits
    clock.now += 3600
    call(circuits, own("key.0"), outcome="succeeded")
    assert len(circuits) == 0


def test_the_metrics_count_each_open_circuit_once_until_it_closes_or_is_forgotten() -> None:
    def counted() -> float | None:
        return REGISTRY.get_sample_value("gateway_circuits_open", {"provider": "counted"})

    clock = FakeClock()
    circuits = Circuits(LIMITS, clock=clock)
    first, second = (replace(own(key), provider="counted") for key in ("first", "second"))
    for name in (first, second):
        for _ in range(4):
            call(circuits, name)
    assert counted() == 2
    clock.now += 10
    call(circuits, first)  # a probe: half open, and open again
    assert counted() == 2
    clock.now += 20
    call(circuits, first, outcome="succeeded")
    assert counted() == 1
    clock.now += 3600
    call(circuits, first)  # forgets the second
    assert (counted(), len(circuits)) == (0, 1)


def test_a_tenant_whose_probes_always_fail_shuts_no_other_tenant_out() -> None:
    clock = FakeClock()
    circuits = Circuits(LIMITS, clock=clock)
    anns, bobs = (SHARED, replace(SHARED, tenant_id=ANN)), (SHARED, replace(SHARED, tenant_id=BOB))
    call(circuits, *bobs, tenant_id=BOB)
    for _ in range(2):
        call(circuits, *anns)
    was_served = []
    for _ in range(300):  # the provider has recovered: only Ann's requests still fail
        clock.now += 1
        call(circuits, *anns)
        was_served.append(call(circuits, *bobs, outcome="succeeded", tenant_id=BOB))
    assert all(was_served[2 * int(LIMITS.circuit_open_seconds) :])


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "fail", "succeed", "put_off", "give_back"]),
        st.integers(0, 100),
        st.sampled_from([ANN, BOB]),
    )
)


@settings(deadline=None)
@given(events=EVENTS, is_shared=st.booleans())
def test_no_sequence_of_calls_makes_a_wait_exceed_the_maximum(
    *, events: list[tuple[str, int, UUID]], is_shared: bool
) -> None:
    circuit, now = Circuit(LIMITS, is_shared=is_shared), 0.0
    for event, number, tenant_id in events:
        now += number
        match event:
            case "ask":
                found = refusal(circuit, now)
                assert found is None or 0 < found[1] <= LIMITS.circuit_max_open_seconds
            case "fail":
                circuit.fail(now, Trouble.FAILING, tenant_id)
            case "succeed":
                circuit.succeed(now, ANN)
            case "put_off":
                circuit.put_off(now, number, ANN)
            case _:
                circuit.give_back(now)
    now += LIMITS.circuit_max_open_seconds
    assert refusal(circuit, now) is None  # it is always tried again …
    if circuit.state is State.HALF_OPEN:
        circuit.succeed(now, ANN)
        assert refusal(circuit, now) is None  # … and a success is enough
