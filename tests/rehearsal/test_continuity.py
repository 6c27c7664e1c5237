"""Under load, the gateways are replaced, and the database is backed up and restored."""

import asyncio
import signal
import time

import httpx2
import pytest
from sqlalchemy import make_url

from tests.harness import run_sql
from tests.load_helpers import until_passed
from tests.money_helpers import eventually
from tests.rehearsal.books import expect_agreeing_books
from tests.rehearsal.installation import Installation, follow
from tests.rehearsal.loads import Load, loaded
from tests.rehearsal.pages import REHEARSED, commands_of
from tests.rehearsal.programs import ROOT, running_postgres
from tests.rehearsal.reports import Report

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
PAGE = "docs/backup.md"
PER_SECOND = 10
STOP_SECONDS = 60
BACKED_UP_PER_SECOND = 50
BACKED_UP_SECONDS = 10
SERVED = "gateway_images_total{"


async def until_it_serves(installation: Installation, line: int) -> None:
    """Wait until nginx has led requests to this gateway."""
    key = (installation.folder / "metrics.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    url = installation.replicas[line].url
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=30) as http:

        async def serves() -> bool:
            return SERVED in (await http.get("/metrics")).text

        await eventually(serves)


async def test_gateways_are_replaced_under_load_and_no_request_fails(
    installation: Installation, report: Report
) -> None:
    begun = time.monotonic()
    bought = len(installation.stub.bill())
    async with loaded(installation, PER_SECOND) as load:
        for line, old in enumerate(list(installation.replicas)):
            old.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(old.process.wait, STOP_SECONDS) == 0
            installation.replicas[line] = await asyncio.to_thread(installation.start, line)
            await until_it_serves(installation, line)
    assert dict(load.failed) == {}
    assert len(load.acknowledged) == load.started
    calls = await expect_agreeing_books(installation.database_url, installation.stub.bill())
    assert calls - bought == load.started
    seconds = time.monotonic() - begun
    report.add(
        "rolling restart of both gateways",
        f"{load.started} requests in {seconds:.0f} s, each sent once: none failed, each bought"
        " once; books agree",
    )


async def back_up_under_load(installation: Installation, load: Load) -> list[str]:
    """Dump the database as the page says; the generations that were acknowledged before."""
    [dump, _] = commands_of(ROOT / PAGE, REHEARSED[PAGE])
    await until_passed(BACKED_UP_SECONDS / 2)
    before = list(load.acknowledged)
    await asyncio.to_thread(follow, dump, installation.folder, installation.postgres)
    await until_passed(BACKED_UP_SECONDS / 2)
    assert len(load.acknowledged) > len(before) > 0
    return before


async def test_a_backup_under_load_is_restored_elsewhere_with_every_acknowledged_call(
    installation: Installation, report: Report
) -> None:
    async with loaded(installation, BACKED_UP_PER_SECOND) as load:
        before = await back_up_under_load(installation, load)
    [_, restore] = commands_of(ROOT / PAGE, REHEARSED[PAGE])
    address = make_url(installation.database_url)
    with running_postgres() as elsewhere:
        url = address.set(port=elsewhere.port).render_as_string(hide_password=False)
        own = installation.environment | {
            "GATEWAY_DATABASE_URL": url,
            "PASSWORD": str(address.password),
        }
        await asyncio.to_thread(follow, restore, installation.folder, elsewhere, **own)
        assert await run_sql(url, "SELECT * FROM invariant_break") == []
        rows = await run_sql(url, "SELECT DISTINCT reservation_id FROM ledger WHERE kind <> 'hold'")
    assert {f"{row.reservation_id}" for row in rows} >= set(before)
    report.add(
        f"backup at {BACKED_UP_PER_SECOND} requests/s",
        f"{load.started} requests, {sum(load.failed.values())} refused;"
        f" {len(before)} acknowledged before it, all in the restored ledger, whose books agree",
    )
