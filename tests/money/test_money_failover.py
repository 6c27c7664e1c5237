"""A database that lost its latest commits: settled calls are held there again."""

import asyncio
from pathlib import Path

import httpx2

from gateway.db.engine import DatabaseUnavailable
from tests.harness import Served, make_settings, served_gateway
from tests.money.test_money_crashes import victim
from tests.money.test_money_journal import killed_before_the_call
from tests.money_helpers import (
    books,
    eventually,
    make_late,
    post_image,
    until_states,
)
from tests.money_postgres import own_postgres
from tests.stub_openai import Fault, Stub


async def test_a_database_that_took_over_on_another_timeline_voids_nothing(
    stub: Stub, tmp_path: Path
) -> None:
    """A settlement may be missing there, and its journal slot may hold another call."""
    async with own_postgres() as server:
        settings = make_settings(server.url, tmp_path, OPENAI_BASE_URL=stub.base_url)
        async with (
            served_gateway(settings) as served,
            killed_before_the_call(settings, served, tmp_path) as journal,
        ):
            server.kill()
            await server.promote()
            await reconnected(served)
            await served.sweep()
            assert [booked.state for booked in await books(served)] == ["held"]
            assert journal.exists()
            await make_late(served)
            await served.sweep()
            assert [booked.state for booked in await books(served)] == ["unknown"]


async def test_a_settlement_that_a_failover_lost_is_posted_again_from_the_journal(
    stub: Stub, tmp_path: Path
) -> None:
    async with own_postgres() as server:
        settings = make_settings(server.url, tmp_path, OPENAI_BASE_URL=stub.base_url)
        async with served_gateway(settings) as served:
            async with victim(settings, served, tmp_path) as (process, http):
                stub.faults.add(Fault(hold=True))
                call = asyncio.create_task(post_image(http))
                await stub.until_held(1)
                server.kill()
                await asyncio.to_thread(server.copy_to, tmp_path / "standby")
                await server.start()
                await reconnected(served)
                stub.release()
                assert (await call).status_code == 200
                await until_states(served, {"posted": 1})
                # In the slot of the first one, where that does not rest.
                await until_posted(http)
                process.kill()
            cost = stub.bill[0].cost_nano_usd
            server.kill()
            await asyncio.to_thread(server.set_back_to, tmp_path / "standby")
            await server.promote()
            await reconnected(served)
            assert [booked.state for booked in await books(served)] == ["held"]
            await served.sweep()
            [booked] = await books(served)
            assert (booked.state, booked.lines) == ("posted", (("post", cost),))
            await served.check_invariants()


async def reconnected(served: Served) -> None:
    """Wait until the gateway's connections that ended are replaced."""

    async def is_answered() -> bool:
        try:
            await served.check_invariants()
        except DatabaseUnavailable:
            return False
        return True

    await eventually(is_answered)


async def until_posted(http: httpx2.AsyncClient) -> None:
    """Buy an image as soon as the gateway has its connections back."""

    async def is_bought() -> bool:
        return (await post_image(http)).status_code == 200

    await eventually(is_bought)
