"""The retention of dead workers' journals, by a clock of the test's own."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from gateway.billing import prices
from gateway.billing.dead_journals import DeadJournals, RecoveredCalls
from gateway.billing.journal import Journal
from gateway.billing.reservations import Reservations
from gateway.billing.reserving import ReservationRequest
from gateway.billing.settlement import Settlement
from gateway.db.identity import DatabaseIdentity, read_identity
from gateway.domain import Caller, Quote, new_id
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome
from tests.harness import GPT2, Served
from tests.money_helpers import TERMS


class DeadWorker:
    """A worker that ended; statements that it had sent may still commit."""

    def __init__(self, served: Served, folder: Path, identity: DatabaseIdentity | None) -> None:
        self.served = served
        self.now = 1_000_000
        instance = new_id()
        self.journal = Journal(folder, instance, identity)
        self._sent_before = Reservations(
            served.gateway.database, instance=instance, max_batch=64, admission_timeout_ms=60_000
        )
        self._readers = DeadJournals(
            served.gateway.database, folder, clock=lambda: self.now * 1_000_000_000
        )

    async def commit_late(self) -> UUID:
        """Commit a reservation that the journal does not name."""
        request = await request_for(self.served)
        await self._sent_before.reserve(request)
        return request.id

    async def read_at(self, seconds: int) -> RecoveredCalls:
        """Settle by the journal so many seconds after it was found."""
        self.now = 1_000_000 + seconds
        return await self._readers.settle()

    async def close(self) -> None:
        await self._sent_before.close()


async def request_for(served: Served) -> ReservationRequest:
    """A reservation of a small amount, by a new key."""
    key = await served.key()
    async with served.gateway.database.operator() as session:
        price = next(p for p in await prices.list_prices(session) if p.model == GPT2)
    return ReservationRequest(
        id=new_id(),
        caller=Caller(
            tenant_id=served.tenant_id,
            user_id=None,
            api_key_id=key.id,
            livemode=True,
            scopes=frozenset(),
            models=None,
            expires_at=None,
            tenant_status="active",
        ),
        quote=Quote(price, NanoUsd(1_000), TERMS),
        operation="generation",
        requested_model=GPT2,
        served_model=GPT2,
        provider="openai",
        credential="house",
        ttl_seconds=600,
    )


@pytest.fixture
async def dead_worker(served: Served, tmp_path: Path) -> AsyncIterator[DeadWorker]:
    async with served.gateway.database.operator() as session:
        identity = await read_identity(session)
    worker = DeadWorker(served, tmp_path / "journals", identity)
    yield worker
    await worker.close()


async def test_a_reservation_that_commits_after_its_workers_end_is_voided_for_a_minute(
    dead_worker: DeadWorker, tmp_path: Path
) -> None:
    """The journal is read every ten seconds, and removed after the last such commit."""
    known = await dead_worker.commit_late()
    dead_worker.journal.sent(known)
    dead_worker.journal.told(Settlement(known, Outcome.SUCCESS, NanoUsd(700), images=1))
    dead_worker.journal.close()
    assert await dead_worker.read_at(0) == RecoveredCalls(settled=1)
    await dead_worker.commit_late()
    assert await dead_worker.read_at(9) == RecoveredCalls()
    assert await dead_worker.read_at(10) == RecoveredCalls(voided=1)
    assert await dead_worker.read_at(60) == RecoveredCalls()
    await dead_worker.commit_late()
    assert list((tmp_path / "journals").iterdir()) != []
    assert await dead_worker.read_at(70) == RecoveredCalls(voided=1)
    assert list((tmp_path / "journals").iterdir()) == []


@pytest.mark.parametrize("is_told", [False, True])
async def test_a_journal_of_calls_that_the_database_lacks_is_kept_for_a_week(
    dead_worker: DeadWorker, tmp_path: Path, *, is_told: bool
) -> None:
    """It may be of another database; it is read less often after a minute."""
    call = new_id()
    dead_worker.journal.sent(call)
    if is_told:
        dead_worker.journal.told(Settlement(call, Outcome.SUCCESS, NanoUsd(700), images=1))
    dead_worker.journal.close()
    for found_at, next_at in ((0, 10), (61, 121)):
        assert await dead_worker.read_at(found_at) == RecoveredCalls()
        await dead_worker.commit_late()
        assert await dead_worker.read_at(next_at - 1) == RecoveredCalls()
        assert await dead_worker.read_at(next_at) == RecoveredCalls(voided=1)
    [path] = (tmp_path / "journals").iterdir()
    week_ago = time.time() - 7 * 86_400
    os.utime(path, (week_ago + 3_600, week_ago + 3_600))
    assert await dead_worker.read_at(200) == RecoveredCalls()
    assert path.exists()
    os.utime(path, (week_ago - 3_600, week_ago - 3_600))
    with capture_logs() as lines:
        assert await dead_worker.read_at(300) == RecoveredCalls()
    assert not path.exists()
    [line] = lines
    assert (line["event"], line["calls"]) == ("journal_of_unknown_calls_removed", [str(call)])


def test_counts_of_several_journals_add_up() -> None:
    assert RecoveredCalls(1, 20, 300) + RecoveredCalls(4, 50, 600) == RecoveredCalls(5, 70, 900)
