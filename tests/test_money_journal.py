"""What a killed worker knew of its calls is read from its journal, and settled at once."""

import asyncio
import resource
import shutil
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from sqlalchemy.engine import make_url

from gateway.billing.journal import SLOT_BYTES, SLOTS_AT_ONCE, Journal, taken
from gateway.billing.reservations import Settlement
from gateway.config import Settings
from gateway.db.engine import DatabaseUnavailable
from gateway.domain import Outcome, Usage, new_id
from gateway.image_models import Choice
from gateway.money import NanoUsd
from tests.harness import GatewayProcess, Served, run_sql, served_gateway
from tests.money_helpers import (
    GENERATIONS,
    Booked,
    books,
    budget_rows,
    client_of,
    eventually,
    gateway_processes,
    image_body,
    make_late,
    post_image,
    until_states,
)
from tests.stub_openai import Fault, Stub
from tests.test_money_crashes import locked, victim

KEY = {"Idempotency-Key": "order-4711"}


def journals(settings: Settings) -> set[Path]:
    """The journals of live and dead workers."""
    return set(settings.resolved_journal_dir.glob("*.journal"))


@asynccontextmanager
async def killed_before_the_call(
    settings: Settings, served: Served, folder: Path
) -> AsyncIterator[Path]:
    """A call that was held and never sent; the journal of its worker, which was killed."""
    key = await served.key()
    async with served.http(key) as http:
        await http.put("/v1/credentials/openai", json={"secret": "sk-tenant-own-1234"})
    await served.budget("10")
    before = journals(settings)
    with gateway_processes(settings, folder, 1) as [process]:
        await process.until_ready()
        async with (
            client_of(process.base_url, key) as http,
            locked(settings, "LOCK TABLE data_key IN ACCESS EXCLUSIVE MODE"),
        ):
            task = asyncio.create_task(http.post(GENERATIONS, json=image_body(), headers=KEY))
            await until_states(served, {"held": 1})
            process.kill()
            await asyncio.gather(task, return_exceptions=True)
        [journal] = journals(settings) - before
        yield journal
        async with served.http(key) as http:
            await http.delete("/v1/credentials/openai")
            again = await http.post(GENERATIONS, json=image_body(), headers=KEY)
        [booked, *_] = await books(served)
        # What is surely not charged frees its key, and nothing else does.
        assert again.status_code == (200 if booked.state == "void" else 504)


async def test_a_call_that_was_never_sent_is_void_and_frees_its_key(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    async with killed_before_the_call(settings, served, tmp_path):
        await served.sweep()
        [booked] = await books(served)
        assert (booked.state, booked.lines) == ("void", (("void", 0),))
        assert [row[2:] for row in await budget_rows(served)] == [(0, 0)]
        assert stub.calls == []


async def test_a_call_never_sent_is_void_also_when_its_deadline_came_first(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    async with killed_before_the_call(settings, served, tmp_path) as journal:
        hidden = journal.rename(journal.with_suffix(".elsewhere"))
        await make_late(served)
        await served.sweep()
        assert [booked.outcome for booked in await books(served)] == ["expired"]
        hidden.rename(journal)
        await served.sweep()
        [booked] = await books(served)
        assert (booked.state, booked.outcome) == ("void", "not_sent")


@pytest.mark.parametrize("loss", ["gone", "of another boot", "torn"])
async def test_a_journal_that_may_lack_something_proves_nothing(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path, loss: str
) -> None:
    async with killed_before_the_call(settings, served, tmp_path) as journal:
        content = bytearray(journal.read_bytes())
        if loss == "gone":
            journal.unlink()
        elif loss == "torn":
            content[128] = 1
            journal.write_bytes(content)
        else:
            boot = b"00000000-0000-0000-0000-000000000000"
            content[24:60] = boot
            content[88:92] = zlib.crc32(bytes(content[:24]) + boot).to_bytes(4, "little")
            journal.write_bytes(content)
        await served.sweep()
        assert [booked.state for booked in await books(served)] == ["held"]
        await make_late(served)
        await served.sweep()
        assert [booked.state for booked in await books(served)] == ["unknown"]


async def test_calls_in_flight_at_a_kill_are_unknown_at_once(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    async with victim(settings, served, tmp_path) as (process, http):
        calls = [asyncio.create_task(post_image(http)) for _ in range(3)]
        await stub.until_held(3)
        process.kill()
        await asyncio.gather(*calls, return_exceptions=True)
    await served.sweep()
    assert [(one.state, one.outcome) for one in await books(served)] == [
        ("unknown", "ambiguous")
    ] * 3
    stub.release()


@asynccontextmanager
async def answered_without_postgres(
    settings: Settings,
    served: Served,
    stub: Stub,
    process: GatewayProcess,
    http: httpx2.AsyncClient,
) -> AsyncIterator[None]:
    """A call that is answered while Postgres takes no connections, and its worker killed."""
    assert settings.database_url is not None
    url = make_url(settings.database_url.get_secret_value())
    maintenance = url.set(database="postgres").render_as_string(hide_password=False)
    stub.faults.add(Fault(hold=True))
    call = asyncio.create_task(post_image(http))
    await stub.until_held(1)
    await run_sql(maintenance, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
    await run_sql(
        maintenance,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name",
        name=url.database,
    )
    stub.release()
    answer = await call
    assert (answer.status_code, answer.headers["x-gateway-cost-status"]) == (200, "pending")
    process.kill()
    await run_sql(maintenance, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')
    yield


async def test_an_answer_that_postgres_never_heard_of_is_posted_exactly(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    async with (
        victim(settings, served, tmp_path) as (process, http),
        answered_without_postgres(settings, served, stub, process, http),
    ):
        cost = stub.bill[0].cost_nano_usd
        [held] = await books(served)
        assert held.state == "held"
        # The next start is enough: nothing is asked of an operator, and no deadline waited for.
        async with served_gateway(settings):
            await until_states(served, {"posted": 1})
    assert await books(served) == [
        Booked("posted", "success", held.held_nano, cost, (("post", cost),))
    ]
    [usage] = await served.owner_sql(
        "SELECT images, text_input_tokens + image_output_tokens AS tokens FROM ledger"
        " WHERE kind = 'post'"
    )
    assert usage.images == 1
    assert usage.tokens > 0
    [choice] = await served.owner_sql("SELECT served_quality, served_size FROM reservation")
    assert tuple(choice) == ("low", "1024x1024")
    with suppress(DatabaseUnavailable):  # the other gateway's connections were ended too
        await served.check_invariants()


async def test_a_live_workers_journal_is_never_judged(
    settings: Settings, served: Served, stub: Stub
) -> None:
    """Its call is held and, for all that others know, not sent yet."""
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http, served_gateway(settings) as sibling:
        call = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        await sibling.sweep()
        await served.sweep()
        assert [booked.state for booked in await books(served)] == ["held"]
        stub.release()
        assert (await call).headers["x-gateway-cost-status"] == "actual"


async def test_a_gateway_that_can_have_no_journal_serves_without(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    occupied = tmp_path / "occupied"
    occupied.touch()
    changed = settings.model_copy(update={"journal_dir": occupied})
    async with served_gateway(changed) as served, served.http(await served.key()) as http:
        assert (await post_image(http)).headers["x-gateway-cost-status"] == "actual"
        await served.sweep()
        await served.check_invariants()


async def test_a_gateway_that_ends_with_everything_settled_leaves_no_journal(
    settings: Settings, stub: Stub
) -> None:
    async with served_gateway(settings) as served, served.http(await served.key()) as http:
        for _ in range(3):
            await post_image(http)
        assert len(journals(settings)) == 1

        async def is_settled() -> bool:
            return [booked.state for booked in await books(served)] == ["posted"] * 3

        await eventually(is_settled)
    assert journals(settings) == set()


def test_a_journal_grows_with_the_calls_under_way_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id())
    [path] = tmp_path.iterdir()
    size = path.stat().st_size
    for _ in range(10 * SLOTS_AT_ONCE):
        call = new_id()
        journal.sent(call)
        journal.settled(call)
    assert path.stat().st_size == size
    for _ in range(SLOTS_AT_ONCE + 1):
        journal.sent(new_id())
    assert path.stat().st_size == size + SLOTS_AT_ONCE * SLOT_BYTES
    journal.close()


def test_a_journal_tells_what_was_written_down_and_only_once_its_worker_is_gone(
    tmp_path: Path,
) -> None:
    instance = new_id()
    journal = Journal(tmp_path, instance)
    [path] = tmp_path.iterdir()
    sent, lost, settled = new_id(), new_id(), new_id()
    told = Settlement(
        new_id(),
        Outcome.SUCCESS,
        NanoUsd(2**62),
        images=10,
        usage=Usage(1, 2, 3, 2**40),
        served=Choice("xhigh", "3840x2160"),
    )
    refused = Settlement(new_id(), Outcome.SUCCESS_NO_USAGE, NanoUsd(7))
    for call in (sent, lost, told.id, refused.id, settled):
        journal.sent(call)
    for settlement in (told, refused, Settlement(lost, Outcome.AMBIGUOUS, NanoUsd(0))):
        journal.told(settlement)
    journal.settled(settled)
    with taken(path, now=0) as found:
        assert found is None
    journal.close()
    with taken(path, now=0) as found:
        assert found is not None
        assert (found.instance, found.is_complete) == (instance, True)
        assert found.sent == {sent, lost, settled}
        assert found.told == (told, refused)
        # While one gateway has it in hand, no other takes it.
        with taken(path, now=0) as second:
            assert second is None
    assert UUID(path.stem) == instance


def test_a_journal_that_cannot_be_written_is_taken_away_and_calls_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SLOT_BYTES, hard))
    try:
        journal.sent(new_id())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    journal.sent(new_id())
    journal.told(Settlement(new_id(), Outcome.SUCCESS, NanoUsd(1)))
    journal.close()


def test_a_copy_of_a_journal_does_not_show_which_calls_were_never_sent(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id())
    [path] = tmp_path.iterdir()
    call = new_id()
    journal.sent(call)
    copy = shutil.copy(path, tmp_path / "copy.journal")
    with taken(Path(copy), now=0) as found:
        assert found is not None
        assert found.sent == {call}
        assert not found.is_complete
    journal.close()


def test_an_outcome_of_a_later_release_is_read_as_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id())
    [path] = tmp_path.iterdir()
    known, later = new_id(), new_id()
    for call in (known, later):
        journal.sent(call)
        journal.told(Settlement(call, Outcome.SUCCESS, NanoUsd(7)))
    journal.close()
    content = bytearray(path.read_bytes())
    start = content.index(later.bytes)
    content[start + 16 : start + 32] = b"refused_charged".ljust(16, b"\0")
    checked = bytes(content[start : start + SLOT_BYTES - 13])
    content[start + len(checked) : start + len(checked) + 4] = zlib.crc32(checked).to_bytes(
        4, "little"
    )
    path.write_bytes(content)
    with taken(path, now=0) as found:
        assert found is not None
        assert [settlement.id for settlement in found.told] == [known]
        assert not found.is_complete
