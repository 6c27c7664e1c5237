"""A killed worker's journal says what it knew of its calls; they are settled at once."""

import asyncio
import signal
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from gateway.billing.dead_journals import DeadJournals, RecoveredCalls
from gateway.billing.journal import Journal, taken
from gateway.billing.settlement import Settlement
from gateway.config import Settings
from gateway.db.engine import DatabaseUnavailable
from gateway.domain import new_id
from gateway.file_systems import Mount
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome
from tests.harness import GatewayProcess, Served, run_sql, served_gateway
from tests.money.test_money_crashes import data_keys_locked, victim
from tests.money_helpers import (
    GENERATIONS,
    Booked,
    age_unknown,
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
from tests.money_postgres import relayed
from tests.stub_openai import Fault, Stub

KEY = {"Idempotency-Key": "order-4711"}


def journals(settings: Settings) -> set[Path]:
    """The journals of live and dead workers."""
    return set(settings.resolved_journal_dir.glob("*.journal"))


@asynccontextmanager
async def killed_before_the_call(
    settings: Settings, served: Served, folder: Path, *, end: signal.Signals = signal.SIGKILL
) -> AsyncIterator[Path]:
    """Hold a call and kill its worker before it is sent; return the worker's journal."""
    patient = {"GATEWAY_ADMISSION_TIMEOUT_MS": "60000", "GATEWAY_DRAIN_SECONDS": "0.1"}
    key = await served.key()
    async with served.http(key) as http:
        await http.put("/v1/credentials/openai", json={"secret": "sk-tenant-own-1234"})
    await served.budget("10")
    before = journals(settings)
    with gateway_processes(settings, folder, 1, **patient) as [process]:
        await process.until_ready()
        async with (
            client_of(process.base_url, key) as http,
            data_keys_locked(served, http),
        ):
            task = asyncio.create_task(http.post(GENERATIONS, json=image_body(), headers=KEY))
            await until_states(served, {"held": 1})
            process.process.send_signal(end)
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(process.process.wait, 60)
        [journal] = journals(settings) - before
        yield journal
        async with served.http(key) as http:
            await http.delete("/v1/credentials/openai")
            again = await http.post(GENERATIONS, json=image_body(), headers=KEY)
        [booked, *_] = await books(served)
        # Only a call that was certainly not charged frees its key.
        assert again.status_code == (200 if booked.state == "void" else 504)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_a_call_that_was_never_sent_is_void_and_frees_its_key(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path, end: signal.Signals
) -> None:
    async with killed_before_the_call(settings, served, tmp_path, end=end):
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


def _of_another_boot(content: bytearray) -> None:
    content[24:60] = b"00000000-0000-0000-0000-000000000000"


def _of_another_timeline(content: bytearray) -> None:
    content[112:116] = (4711).to_bytes(4, "little")


def _of_the_release_before(content: bytearray) -> None:
    """A header of the previous release, which did not record the database."""
    content[:8] = b"IGWJ0002"
    content[104:108] = zlib.crc32(bytes(content[:60]) + bytes(content[88:104])).to_bytes(
        4, "little"
    )


def _checked(content: bytearray) -> bytes:
    """Add the checksum of this header."""
    check = zlib.crc32(bytes(content[:60]) + bytes(content[88:124]))
    return bytes(content[:124]) + check.to_bytes(4, "little") + bytes(content[128:])


@pytest.mark.parametrize(
    "loss",
    [None, "torn", _of_another_boot, _of_another_timeline, _of_the_release_before],
    ids=["gone", "torn", "of another boot", "of another timeline", "of the release before"],
)
async def test_an_incomplete_journal_proves_nothing(
    settings: Settings,
    served: Served,
    stub: Stub,
    tmp_path: Path,
    loss: Callable[[bytearray], None] | str | None,
) -> None:
    async with killed_before_the_call(settings, served, tmp_path) as journal:
        content = bytearray(journal.read_bytes())
        assert _checked(content) == content
        if loss is None:
            journal.unlink()
        elif isinstance(loss, str):
            content[128] = 1
            journal.write_bytes(content)
        else:
            loss(content)
            old = loss is _of_the_release_before
            journal.write_bytes(content if old else _checked(content))
            with taken(journal, now=0) as found:
                assert found is not None  # read, and not taken for no journal at all
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
async def cut_off(settings: Settings) -> AsyncIterator[None]:
    """Postgres takes no connections to the gateway's database until the end of the block."""
    assert settings.database_url is not None
    url = make_url(settings.database_url.get_secret_value())
    maintenance = url.set(database="postgres").render_as_string(hide_password=False)
    await run_sql(maintenance, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
    await run_sql(
        maintenance,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name",
        name=url.database,
    )
    try:
        yield
    finally:
        await run_sql(maintenance, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')


async def test_a_stop_without_postgres_keeps_the_journal_of_unsent_calls(
    settings: Settings, stub: Stub
) -> None:
    """The call's provider key could not be opened, and Postgres could not record that."""
    async with AsyncExitStack() as stack:
        async with served_gateway(settings) as served, served.http(await served.key()) as http:
            await http.put("/v1/credentials/openai", json={"secret": "sk-tenant-own-1234"})
            # The connection of the lock is ended too, at any point of its rollback.
            with suppress(DBAPIError):
                async with data_keys_locked(served, http):
                    call = asyncio.create_task(post_image(http))
                    await until_states(served, {"held": 1})
                    await stack.enter_async_context(cut_off(settings))
            assert (await call).status_code == 503
        assert len(journals(settings)) == 1
    async with served_gateway(settings) as served:
        await until_states(served, {"void": 1})
        await served.check_invariants()
    assert stub.calls == []


@asynccontextmanager
async def doubtful_hold(
    settings: Settings,
) -> AsyncIterator[tuple[Served, asyncio.Task[httpx2.Response]]]:
    """A gateway, and a call of which Postgres has a hold whose answer never came."""
    assert settings.database_url is not None
    async with relayed(settings.database_url.get_secret_value()) as relay:
        through = settings.model_copy(update={"database_url": SecretStr(relay.url)})
        through = through.model_copy(update={"migration_database_url": settings.database_url})
        async with served_gateway(through) as served, served.http(await served.key()) as http:
            relay.mute_answers_to(b'"price_id"')  # which stands in nothing but a hold
            call = asyncio.create_task(post_image(http))
            await until_states(served, {"held": 1})
            yield served, call


async def test_a_stop_after_a_doubtful_hold_was_undone_leaves_no_journal(
    settings: Settings, stub: Stub
) -> None:
    async with doubtful_hold(settings) as (served, call):
        assert (await call).status_code == 503
        await until_states(served, {"void": 1})
        await served.check_invariants()
    assert journals(settings) == set()
    assert stub.calls == []


async def test_a_stop_before_a_doubtful_hold_is_undone_keeps_the_journal(
    settings: Settings, stub: Stub
) -> None:
    async with AsyncExitStack() as stack:
        async with doubtful_hold(settings) as (_, call):
            await stack.enter_async_context(cut_off(settings))
            assert (await call).status_code == 503
        assert len(journals(settings)) == 1
    async with served_gateway(settings) as served:
        await until_states(served, {"void": 1})
        await served.check_invariants()
    assert stub.calls == []


@asynccontextmanager
async def answered_without_postgres(
    settings: Settings,
    served: Served,
    stub: Stub,
    process: GatewayProcess,
    http: httpx2.AsyncClient,
) -> AsyncIterator[None]:
    """Kill the worker of a call that was answered while Postgres took no connections."""
    stub.faults.add(Fault(hold=True))
    call = asyncio.create_task(post_image(http))
    await stub.until_held(1)
    async with cut_off(settings):
        stub.release()
        answer = await call
        assert (answer.status_code, answer.headers["x-gateway-cost-status"]) == (200, "pending")
        process.kill()
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


@pytest.mark.parametrize(
    ("outcome", "states"),
    [
        (Outcome.SUCCESS, ("unknown", "posted")),
        (Outcome.REJECTED, ("unknown", "void")),
        (Outcome.NOT_SENT, ("unknown", "void")),
        (Outcome.SUCCESS, ("posted_est", "posted")),
        (Outcome.REJECTED, ("posted_est", "posted_est")),
        (Outcome.SUCCESS, ("posted", "posted")),
    ],
)
async def test_a_recorded_outcome_is_settled_unless_the_books_know_more(
    served: Served, stub: Stub, tmp_path: Path, outcome: Outcome, states: tuple[str, str]
) -> None:
    before, after = states
    if before != "posted":
        stub.faults.add(Fault("reset_after_headers"))
    async with served.http(await served.key()) as http:
        await post_image(http)
    if before == "posted_est":
        await age_unknown(served)
        await served.sweep()
    await until_states(served, {before: 1})
    [known] = await books(served)
    [row] = await served.owner_sql("SELECT id FROM reservation")
    cost = 4711 if outcome is Outcome.SUCCESS else 0
    journal = Journal(tmp_path, new_id(), None)
    journal.sent(row.id)
    journal.told(Settlement(row.id, outcome, NanoUsd(cost), images=1))
    journal.close()
    recovered = await DeadJournals(served.gateway.database, tmp_path).settle()
    [booked] = await books(served)
    if before == after:
        assert (recovered, booked) == (RecoveredCalls(), known)
    else:
        is_void = outcome is Outcome.NOT_SENT
        assert recovered == RecoveredCalls(settled=not is_void, voided=is_void)
        assert (booked.state, booked.final_nano) == (after, cost)


async def test_the_journal_of_a_live_worker_is_left_alone(
    settings: Settings, served: Served, stub: Stub
) -> None:
    """Its call is held; other workers cannot know if it was sent."""
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


async def test_journals_on_a_file_system_of_several_machines_are_left_alone(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    """Nothing shows there that their workers have ended."""
    folder = settings.resolved_journal_dir
    async with killed_before_the_call(settings, served, tmp_path) as journal:
        for kind, recovered in (("nfs4", RecoveredCalls()), ("ext4", RecoveredCalls(voided=1))):
            mounts = [Mount(Path("/"), kind)]
            dead = DeadJournals(served.gateway.database, folder, mounts=lambda: mounts)  # noqa: B023
            assert await dead.settle() == recovered
        assert journal.exists()
