"""Bounds on concurrency, for all tenants together and for each."""

from contextlib import ExitStack
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from gateway.errors import Unavailable
from gateway.load.concurrency import Bulkhead

ANN, BOB, EVE = UUID(int=1), UUID(int=2), UUID(int=3)


def is_refused(limit: Bulkhead, tenant_id: UUID) -> bool:
    try:
        with limit.taken(tenant_id):
            return False
    except Unavailable:
        return True


def test_one_tenant_gets_its_share_and_all_together_no_more_than_the_bound() -> None:
    limit = Bulkhead(3, "uploads", most_of_one=2)
    for _ in range(3):  # what is given back can be taken again, each time
        with ExitStack() as running:
            running.enter_context(limit.taken(ANN))
            running.enter_context(limit.taken(ANN))
            assert is_refused(limit, ANN)
            with limit.taken(BOB):
                assert is_refused(limit, BOB)
                assert is_refused(limit, EVE)
            assert not is_refused(limit, EVE)
            assert is_refused(limit, ANN)
        assert not is_refused(limit, ANN)


def test_a_tenant_that_gives_one_place_back_keeps_its_others() -> None:
    limit = Bulkhead(5, "uploads", most_of_one=2)
    limit.take(ANN)
    limit.take(ANN)
    limit.give_back(ANN)
    limit.take(ANN)
    assert is_refused(limit, ANN)


@pytest.mark.parametrize(("most", "share"), [(1, 1), (2, 1), (4, 2), (5, 2)])
def test_by_default_one_tenant_takes_at_most_half(most: int, share: int) -> None:
    limit = Bulkhead(most, "uploads")
    with ExitStack() as running:
        for _ in range(share):
            running.enter_context(limit.taken(ANN))
        assert is_refused(limit, ANN)
        assert is_refused(limit, BOB) is (most == share)


def test_work_that_fails_gives_its_place_back() -> None:
    limit = Bulkhead(1, "uploads")
    with pytest.raises(RuntimeError), limit.taken(ANN):
        raise RuntimeError
    assert not is_refused(limit, ANN)


def test_a_refusal_is_counted_and_takes_no_place() -> None:
    limit = Bulkhead(1, "counted things")

    def counted() -> float:
        return REGISTRY.get_sample_value("gateway_shed_total", {"gate": "counted things"}) or 0

    with limit.taken(ANN):
        before = counted()
        with pytest.raises(Unavailable):
            limit.check(BOB)
        assert counted() == before + 1
    limit.check(BOB)
    assert not is_refused(limit, BOB)
