"""The spool: encrypted, bounded, drained once, and cleared of deleted and expired images."""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from gateway.config import Settings
from gateway.db.addresses import create_engine, database_url
from gateway.library.spool import GIVE_UP_ATTEMPTS
from tests.harness import Served, error_of, process_environment, served_gateway
from tests.hosting_helpers import Hosted, hosted_gateway, listed, store_of
from tests.money_helpers import eventually
from tests.store_helpers import Away, hasty_gateway, make_known, post, spool_one, spooled
from tests.stub_openai import Stub

CALLS = 20
files_only = pytest.mark.parametrize("away", ["files"], indirect=True)


@pytest.fixture
async def hosted(settings: Settings, away: Away) -> AsyncIterator[Hosted]:
    """A gateway that gives up a failing store after a moment."""
    async with hasty_gateway(settings, away) as running:
        yield running


@files_only
async def test_a_changed_spool_is_never_delivered_and_is_reported(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        await post(http, 1)
        await post(http, 2)
        [changed, swapped] = await spooled(served)
        flip = "UPDATE image_spool SET sealed = set_byte(sealed, 99, get_byte(sealed, 99) # 1)"
        await served.owner_sql(f"{flip} WHERE image_id = :id", id=changed.image_id)
        await served.owner_sql(
            "UPDATE image_spool SET sealed = :sealed WHERE image_id = :id",
            sealed=changed.sealed,
            id=swapped.image_id,
        )
        away_answers = [await post(http, number) for number in (1, 2)]
        away.mend()
        await served.sweep()
        back_answers = [await post(http, number) for number in (1, 2)]
    for answer in (*away_answers, *back_answers):
        assert (answer.status_code, error_of(answer)["code"]) == (503, "overloaded")
    assert await hosted.files() == []
    assert len(await spooled(served)) == 2
    assert len(stub.bill) == 2


@files_only
async def test_a_full_spool_refuses_every_purchase_before_it_is_made(
    settings: Settings, away: Away, stub: Stub
) -> None:
    small = settings.model_copy(update={"store_retry_seconds": 0.3, "spool_max_bytes": 1})
    async with hosted_gateway(small, away.place) as hosted:
        served, key = hosted.served, await hosted.served.key()
        away.fail()
        await make_known(hosted, key)
        async with served.http(key) as http:
            found_out = await post(http, 1)
            refused = await post(http, 2)
            degraded = (await http.get("/ready")).json()
            away.mend()
            await served.sweep()
            again = await post(http, 2)
        assert found_out.status_code == 200
        assert (refused.status_code, error_of(refused)["code"]) == (503, "storage_unavailable")
        assert degraded["storage"] == "failing, spool full"
        assert (again.status_code, len(stub.bill)) == (200, 2)
        assert await spooled(served) == []


@files_only
async def test_an_image_deleted_while_it_waits_is_gone_at_once_and_never_stored(
    hosted: Hosted, away: Away
) -> None:
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        await post(http, 1)
        [row] = await spooled(served)
        url = (await http.get(f"/v1/images/{row.image_id}")).json()["url"]
        deleted = await http.delete(f"/v1/images/{row.image_id}")
        assert await spooled(served) == []
        away.mend()
        await served.sweep()
        repeated = await post(http, 1)
    assert deleted.status_code == 200
    assert (await hosted.get(url)).status_code == 404
    assert (repeated.status_code, error_of(repeated)["code"]) == (404, "image_not_found")
    assert (await hosted.files(), await hosted.living()) == ([], [])


@asynccontextmanager
async def unchangeable(hosted: Hosted, table: str) -> AsyncIterator[None]:
    """Block every change to a table; it can still be read."""
    assert hosted.settings.database_url is not None
    engine = create_engine(database_url(hosted.settings.database_url.get_secret_value()), role=None)
    async with engine.begin() as connection:
        await connection.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
        yield
    await engine.dispose()


@files_only
async def test_an_image_that_expires_while_it_is_drained_does_not_stay_in_the_store(
    hosted: Hosted, away: Away
) -> None:
    served, row = hosted.served, await spool_one(hosted, away)
    away.mend()
    [leased] = await served.gateway.keeper.spool.lease(limit=1)
    assert leased.image_id == row.image_id

    async def is_stored() -> bool:
        return await hosted.files() == [row.path]

    async with unchangeable(hosted, "image_spool"):
        draining = asyncio.create_task(served.gateway.keeper.store_spooled(leased))
        await eventually(is_stored)
        await served.owner_sql(
            "UPDATE image SET expires_at = now() WHERE id = :id", id=row.image_id
        )
    assert await draining
    assert (await spooled(served), await hosted.files()) == ([], [])
    await served.sweep()
    assert await hosted.living() == []


@files_only
async def test_images_that_expire_or_wait_too_long_leave_the_spool(
    hosted: Hosted, away: Away
) -> None:
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        for number in range(3):
            await post(http, number)
        expired, old, kept = await spooled(served)
        await served.owner_sql(
            "UPDATE image SET expires_at = now() WHERE id = :id", id=expired.image_id
        )
        await served.owner_sql(
            "UPDATE image_spool SET created_at = now() - interval '8 days' WHERE image_id = :id",
            id=old.image_id,
        )
        await served.sweep()
        listed = (await http.get("/v1/images")).json()["data"]
    assert [row.image_id for row in await spooled(served)] == [kept.image_id]
    assert [image["id"] for image in listed] == [kept.image_id]
    away.mend()


async def age(served: Served, image_id: str) -> None:
    """Move an image's times into the past: it is overdue and due for another attempt."""
    await served.owner_sql(
        "UPDATE image_spool SET created_at = now() - interval '8 days', next_attempt_at = now()"
        " WHERE image_id = :id",
        id=image_id,
    )


@files_only
async def test_an_overdue_image_is_stored_if_the_store_takes_it(hosted: Hosted, away: Away) -> None:
    """The gateway may have been stopped for longer than an image may wait."""
    served, row = hosted.served, await spool_one(hosted, away)
    await age(served, row.image_id)
    away.mend()
    await served.sweep()
    assert await spooled(served) == []
    assert await hosted.files() == await hosted.living() == [row.path]


@files_only
async def test_an_overdue_image_is_not_given_up_while_a_worker_stores_it(
    hosted: Hosted, away: Away
) -> None:
    served, row = hosted.served, await spool_one(hosted, away)
    await age(served, row.image_id)
    [leased] = await served.gateway.keeper.spool.lease(limit=1)
    await served.sweep()
    assert [one.image_id for one in await spooled(served)] == [row.image_id]
    away.mend()
    assert await served.gateway.keeper.store_spooled(leased)
    assert await hosted.files() == await hosted.living() == [row.path]


@files_only
async def test_an_overdue_unreadable_image_is_given_up_after_some_attempts(
    hosted: Hosted, away: Away
) -> None:
    served, row = hosted.served, await spool_one(hosted, away)
    await served.owner_sql("UPDATE image_spool SET sealed = set_byte(sealed, 99, 0)")
    away.mend()
    before = events("lost")
    for _ in range(GIVE_UP_ATTEMPTS):
        assert [one.image_id for one in await spooled(served)] == [row.image_id]
        await age(served, row.image_id)
        await served.sweep()
    assert (await spooled(served), events("lost") - before) == ([], 1)
    assert await hosted.living() == []


def events(name: str) -> float:
    return REGISTRY.get_sample_value("gateway_image_spool_events_total", {"event": name}) or 0.0


@files_only
@pytest.mark.parametrize("is_mended", [True, False])
async def test_a_stop_tries_once_more_to_store_waiting_images_and_reports_lost_ones(
    settings: Settings, away: Away, *, is_mended: bool
) -> None:
    """Neither store nor spool took the image; it waits for them in memory."""
    small = settings.model_copy(update={"store_retry_seconds": 0.3, "spool_max_bytes": 1})
    before = events("lost")
    async with hosted_gateway(small, away.place) as hosted:
        key = await hosted.served.key()
        away.fail()
        async with hosted.served.http(key) as http:
            assert (await post(http, 1)).status_code == 200
        if is_mended:
            away.mend()
    if not is_mended:
        away.mend()
    stored = await listed(store_of(away.place, settings), str(hosted.tenant_id))
    assert (len(stored), events("lost") - before) == ((1, 0) if is_mended else (0, 1))


async def test_two_workers_drain_a_spool_without_getting_in_each_others_way(
    hosted: Hosted, away: Away
) -> None:
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        answers = await asyncio.gather(*(post(http, number) for number in range(CALLS)))
    contents = sorted(base64.b64decode(a.json()["data"][0]["b64_json"]) for a in answers)
    rows = await spooled(served)
    away.mend()
    async with served_gateway(hosted.settings) as other:
        first, second = served.gateway.keeper, other.gateway.keeper
        halves = [await keeper.spool.lease(limit=CALLS // 2) for keeper in (first, second)]
        leased = [one.image_id for half in halves for one in half]
        assert sorted(leased) == [row.image_id for row in rows]
        assert await first.spool.lease(limit=CALLS) == []
        # The leases end unheard, and both drain everything at the same time.
        await served.owner_sql("UPDATE image_spool SET next_attempt_at = now()")
        await asyncio.gather(
            first.drain(),
            second.drain(),
            *(first.store_spooled(one) for one in halves[1]),
            *(second.store_spooled(one) for one in halves[0]),
        )
    assert await spooled(served) == []
    stored = [await hosted.store.get(path) for path in await hosted.files()]
    assert sorted(stored) == contents
    assert len(await hosted.living()) == CALLS


@files_only
async def test_images_that_wait_are_neither_orphans_nor_missing(hosted: Hosted, away: Away) -> None:
    served, key = hosted.served, await hosted.served.key()
    await hosted.put(key)
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        await post(http, 1)
    away.mend()
    assert len(await hosted.living()) == 2
    assert await hosted.reconcile() == (0, 0)
    assert len(await hosted.living()) == 2
    await served.sweep()
    assert await hosted.files() == await hosted.living()


@files_only
async def test_a_tenant_sees_nothing_of_anothers_spool(hosted: Hosted, away: Away) -> None:
    served, key = hosted.served, await hosted.served.key()
    other = await served.tenant("other")
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        await post(http, 1)
    async with served.gateway.database.tenant(other) as session:
        assert (await session.execute(text("SELECT count(*) FROM image_spool"))).scalar() == 0
    [row] = await spooled(served)
    async with served.http(await served.key(tenant_id=other)) as http:
        answer = await http.get(f"/v1/images/{row.image_id}")
    assert answer.status_code == 404
    away.mend()


@files_only
async def test_doctor_says_how_many_images_wait(hosted: Hosted, away: Away) -> None:
    row = await spool_one(hosted, away)
    away.mend()
    environment = process_environment(hosted.settings) | hosted.place.environment
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "doctor", "--json"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    checks = {check["check"]: check for check in json.loads(out)}
    assert checks["image spool"]["state"] == "waiting"
    assert f"1 images of {row.size_bytes} bytes" in checks["image spool"]["detail"]
    assert (checks["storage"]["state"], process.returncode) == ("ok", 0)
