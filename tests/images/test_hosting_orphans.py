"""No crash leaves a file without a row or a row without a file, and other files stay."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.billing import usage_sums
from gateway.config import Settings
from gateway.errors import StorageFailed
from gateway.library import orphans
from gateway.library.links import LinkKind
from gateway.library.orphans import RemovedOrphans
from gateway.library.storage import (
    ImageStore,
    StoredObject,
    image_path,
    new_image_id,
    tenant_of,
    thumbnail_path,
)
from gateway.tenancy import tenants
from tests.harness import error_of
from tests.hosting_helpers import (
    HOURS_LATER,
    Hosted,
    S3Server,
    bucket_of,
    hosted_gateway,
    silent_address,
)
from tests.money.test_money_crashes import locked
from tests.money_helpers import age_unknown, client_of, eventually, gateway_processes, post_image
from tests.stub_openai import Fault, Stub

files_only = pytest.mark.parametrize("place", ["files"], indirect=True)
NOW = timedelta(0)
WAITING = "datname = current_database() AND wait_event_type = 'Lock'"


def new_path(hosted: Hosted) -> str:
    return image_path(hosted.tenant_id, new_image_id(), "png")


async def lose(hosted: Hosted) -> str:
    """Store an image and remove its file; return its id."""
    image = await hosted.put(await hosted.served.key())
    await hosted.store.delete(image.path)
    return image.id


# Killed between the two


async def test_a_kill_between_file_and_row_leaves_nothing_behind(
    hosted: Hosted, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    served, key = hosted.served, await hosted.served.key()
    kept = await hosted.put(key)
    stub.faults.add(Fault(hold=True))

    async def has_stored() -> bool:
        return len(await hosted.files()) == 2

    with gateway_processes(hosted.settings, tmp_path, 1, **hosted.place.environment) as [process]:
        await process.until_ready()
        async with client_of(process.base_url, key) as http:
            calling = asyncio.create_task(post_image(http))
            await stub.until_held(1)
            async with locked(settings, "SELECT 1 FROM reservation FOR UPDATE"):
                stub.release()
                await eventually(has_stored)
                # The settlement waits: hours may pass so, and the file must be there afterwards.
                assert await hosted.reconcile() == (0, 0)
                process.kill()
                await asyncio.gather(calling, return_exceptions=True)
                await served.owner_sql(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {WAITING}"  # noqa: S608 - its own words
                )
    assert len(await hosted.files()) == 2
    assert await hosted.living() == [kept.path]
    assert await hosted.reconcile() == (0, 0)
    await age_unknown(served)
    await served.sweep()
    assert await hosted.reconcile(later=NOW) == (0, 0)
    assert await hosted.reconcile() == (1, 0)
    assert await hosted.files() == await hosted.living() == [kept.path]


async def test_a_kill_between_row_and_file_leaves_nothing_behind(
    settings: Settings, stub: Stub, tmp_path: Path, s3_server: S3Server
) -> None:
    """The store of the one that is killed takes bytes and never answers.

    Nor has it a spool: a probe may find the store failing, and the image would wait there.
    """
    place = await bucket_of(s3_server)
    async with hosted_gateway(settings, place) as hosted, silent_address() as address:
        key = await hosted.served.key()

        async def has_settled() -> bool:
            return len(await hosted.living()) == 1

        environment = place.at(address).environment | {"GATEWAY_SPOOL_MAX_BYTES": "0"}
        with gateway_processes(hosted.settings, tmp_path, 1, **environment) as [process]:
            await process.until_ready()
            async with client_of(process.base_url, key) as http:
                calling = asyncio.create_task(post_image(http))
                await eventually(has_settled)
                process.kill()
                await asyncio.gather(calling, return_exceptions=True)
        assert await hosted.files() == []
        assert await hosted.reconcile(later=NOW) == (0, 0)
        assert await hosted.reconcile() == (0, 1)
        assert await hosted.living() == []
        async with hosted.served.http(key) as http:
            assert (await http.get("/v1/images")).json()["data"] == []
        assert await hosted.served.ledger_total() == stub.bill[0].cost_nano_usd


async def test_paid_images_are_in_the_store_once_it_is_back(settings: Settings, stub: Stub) -> None:
    server = S3Server()
    hasty = settings.model_copy(update={"store_retry_seconds": 0.0})
    async with hosted_gateway(hasty, await bucket_of(server)) as hosted:
        key = await hosted.served.key()
        server.stop()
        async with hosted.served.http(key) as http:
            bytes_asked = await post_image(http)
            link_asked = await post_image(http, response_format="url")
            assert len((await http.get("/v1/images")).json()["data"]) == 2
        with pytest.raises(StorageFailed):
            await hosted.reconcile()
        server.start()
        assert await hosted.reconcile() == (0, 0)
        await hosted.served.sweep()
        assert await hosted.files() == await hosted.living()
        assert len(await hosted.files()) == 2
    server.stop()
    assert bytes_asked.status_code == 200
    assert bytes_asked.json()["data"][0]["b64_json"]
    assert (link_asked.status_code, error_of(link_asked)["code"]) == (500, "storage_failed")
    assert len(stub.bill) == 2


# Orphans


async def test_files_without_a_row_and_rows_without_a_file_go_when_they_are_old(
    hosted: Hosted,
) -> None:
    key = await hosted.served.key()
    kept = await hosted.put(key)
    await hosted.get(hosted.link(kept, LinkKind.THUMBNAIL))
    added = [new_path(hosted), thumbnail_path(new_path(hosted))]
    for path in added:
        await hosted.store.put(path, b"x")
    lost = await lose(hosted)
    whole = sorted([kept.path, thumbnail_path(kept.path)])
    assert await hosted.reconcile(later=NOW) == (0, 0)
    assert await hosted.files() == sorted([*whole, *added])
    assert await hosted.reconcile() == (2, 1)
    assert (await hosted.files(), await hosted.living()) == (whole, [kept.path])
    assert (await hosted.row(lost)).deleted_at is not None
    assert await hosted.reconcile() == (0, 0)


async def test_remains_of_a_deleted_image_are_removed(hosted: Hosted) -> None:
    image = await hosted.put(await hosted.served.key())
    await hosted.get(hosted.link(image, LinkKind.THUMBNAIL))
    await hosted.served.owner_sql("UPDATE image SET deleted_at = now()")
    assert await hosted.reconcile() == (2, 0)
    assert await hosted.files() == []


async def test_files_that_are_no_images_or_of_no_tenant_stay(hosted: Hosted) -> None:
    mine, unknown = hosted.tenant_id, uuid4()
    path = new_path(hosted)
    foreign = {
        f"{mine}/README.md",
        f"{mine}/2026/11/notes.png",
        f"{mine}/2026/11/20/photo.png",
        f"{mine}/2026/11/20/img_1_2.gif",
        f"{mine}/2026/11/20/img_1_2.png.bak",
        f"{mine}/2026/11/20/deeper/img_1_2.png",
        f"{mine}/backup/2026/11/20/img_1_2.png",
        path.replace(str(mine), str(unknown)),
        path.replace(str(mine), f"backup/{mine}"),
        "README.md",
    }
    for name in foreign:
        await hosted.store.put(name, b"x")
    assert await hosted.reconcile() == (0, 0)
    for name in foreign:
        assert await hosted.store.get(name) == b"x", name


@files_only
async def test_files_of_a_call_that_may_still_settle_stay(hosted: Hosted, tmp_path: Path) -> None:
    """A call of five hours ago, that Postgres could not hear of, estimated when it was back."""
    served = hosted.served
    await hosted.put(await served.key())
    path = new_path(hosted)
    await hosted.store.put(path, b"x")
    past = time.time() - 5 * 3600
    os.utime(tmp_path / "store" / path, (past, past))
    await served.owner_sql(
        "UPDATE reservation SET state = 'unknown', final_nano = NULL, resolved_at = NULL,"
        " admitted_at = now() - interval '5 hours 1 minute'"
    )
    assert await hosted.reconcile(later=NOW) == (0, 0)
    await served.owner_sql(
        "UPDATE reservation SET state = 'posted_est', outcome = 'estimated', final_nano = 5000000,"
        " resolved_at = now()"
    )
    assert await hosted.reconcile(later=NOW) == (0, 0)
    await served.owner_sql("UPDATE reservation SET resolved_at = now() - interval '4 hours'")
    assert await hosted.reconcile(later=NOW) == (1, 0)


@files_only
async def test_half_written_files_are_removed(hosted: Hosted, tmp_path: Path) -> None:
    image = await hosted.put(await hosted.served.key())
    folder = (tmp_path / "store" / image.path).parent
    (folder / "img_19a_0.png#1").write_bytes(b"half")
    (folder / "img_19a_0.png.thumb.webp#12").write_bytes(b"half")
    (folder / "notes#1").write_bytes(b"whole")
    assert await hosted.reconcile(later=NOW) == (0, 0)
    assert await hosted.reconcile() == (2, 0)
    assert {file.name for file in folder.iterdir()} == {Path(image.path).name, "notes#1"}


@files_only
async def test_a_store_that_was_replaced_loses_no_row_and_no_file(
    hosted: Hosted, tmp_path: Path
) -> None:
    """A disk that was not mounted, and is again; or an address that was wrong for a day."""
    store, away = tmp_path / "store", tmp_path / "away"
    image = await hosted.put(await hosted.served.key())
    store.rename(away)
    store.mkdir()
    assert await hosted.reconcile() == (0, 0)
    assert await hosted.reconcile() == (0, 0)
    assert await hosted.living() == [image.path]
    store.rename(tmp_path / "empty")
    away.rename(store)
    assert await hosted.reconcile() == (0, 0)
    assert (await hosted.living(), await hosted.files()) == ([image.path], [image.path])
    # From now on the store is known, and a file missing from it counts as lost.
    lost = await lose(hosted)
    assert await hosted.reconcile() == (0, 1)
    assert (await hosted.row(lost)).deleted_at is not None


@files_only
async def test_files_beyond_one_batch_are_compared_too(hosted: Hosted) -> None:
    served = hosted.served
    async with served.gateway.database.operator() as session:
        for number in range(205):
            await tenants.create(session, f"tenant {number}")
    last = await served.tenant("last")
    key = await served.key(tenant_id=last)
    stored = await hosted.put_all(key, [(b"x", {})] * 1100)
    [row] = await served.owner_sql("SELECT * FROM api_key WHERE id = :id", id=key.id)
    for image in stored[:1050]:
        await hosted.store.delete(image.path)
    for _ in range(1050):
        await hosted.store.put(image_path(last, new_image_id(), "webp"), b"x")
    assert row.tenant_id == last
    assert await hosted.reconcile(later=HOURS_LATER) == (1050, 1050)
    assert await hosted.files(last) == await hosted.living()
    assert len(await hosted.living()) == 50


class CountingStore(ImageStore):
    """A store that counts the listings of each folder and the look-ups of single files."""

    def __init__(self, store: ImageStore) -> None:
        super().__init__(store.objects, store.folder)
        self.listed: Counter[str] = Counter()
        self.looked_up = 0

    async def list(self, folder: str) -> AsyncIterator[Sequence[StoredObject]]:
        self.listed[folder] += 1
        async for files in super().list(folder):
            yield files

    async def find(self, path: str) -> StoredObject:
        self.looked_up += 1
        return await super().find(path)


async def compare(store: CountingStore, hosted: Hosted, *, whole: bool) -> RemovedOrphans:
    async def progress() -> None:
        pass

    before = datetime.now(UTC) + HOURS_LATER
    database = hosted.served.gateway.database
    return await orphans.reconcile(database, store, before=before, progress=progress, whole=whole)


@files_only
async def test_each_folder_is_listed_once_however_many_images_it_holds(hosted: Hosted) -> None:
    key = await hosted.served.key()
    stored = await hosted.put_all(key, [(b"x", {})] * (2 * orphans.ROWS_AT_ONCE + 100))
    await hosted.store.delete(stored[0].path)
    store = CountingStore(hosted.store)
    assert await compare(store, hosted, whole=True) == RemovedOrphans(rows=1)
    assert store.listed == {stored[0].path.rpartition("/")[0]: 1}
    assert store.looked_up == 1


@files_only
async def test_only_tenants_with_new_calls_are_compared_until_the_next_whole_comparison(
    hosted: Hosted,
) -> None:
    served = hosted.served
    quiet = await served.tenant("quiet")
    quiet_key, busy_key = await served.key(tenant_id=quiet), await served.key()
    old, lost = await hosted.put(quiet_key), await hosted.put(quiet_key)
    await usage_sums.roll_up(served.gateway.database)
    assert await hosted.reconcile() == (0, 0)
    # As if all this were of yesterday.
    await served.owner_sql("UPDATE usage_slot SET slot = slot - interval '1 day'")
    await hosted.store.delete(lost.path)
    await hosted.put(busy_key)
    store = CountingStore(hosted.store)
    assert await compare(store, hosted, whole=False) == RemovedOrphans()
    assert {tenant_of(folder) for folder in store.listed} == {served.tenant_id}
    assert {old.path, lost.path} <= set(await hosted.living())
    await served.owner_sql("UPDATE sweep SET whole_at = now() - interval '8 days'")
    assert await compare(store, hosted, whole=False) == RemovedOrphans(rows=1)
    assert (await hosted.row(lost.id)).deleted_at is not None


@files_only
async def test_a_file_that_had_to_stay_is_compared_again(hosted: Hosted, tmp_path: Path) -> None:
    served = hosted.served
    await hosted.put(await served.key())
    assert await hosted.reconcile() == (0, 0)
    await served.owner_sql(
        "UPDATE reservation SET state = 'unknown', final_nano = NULL, resolved_at = NULL,"
        " admitted_at = now() - interval '2 days 1 minute'"
    )
    path = new_path(hosted)
    past = datetime.now(UTC) - timedelta(days=2)
    path = f"{hosted.tenant_id}/{past:%Y/%m/%d}/{path.rpartition('/')[2]}"
    await hosted.store.put(path, b"x")
    os.utime(tmp_path / "store" / path, (past.timestamp(), past.timestamp()))
    await served.owner_sql("UPDATE sweep SET compared_to = now() - interval '2 days 3 hours'")
    assert await hosted.reconcile(whole=False) == (0, 0)
    await served.owner_sql(
        "UPDATE reservation SET state = 'posted_est', outcome = 'estimated', final_nano = 5000000,"
        " resolved_at = now() - interval '1 day', admitted_at = now() - interval '2 days 1 minute'"
    )
    assert await hosted.reconcile(whole=False) == (1, 0)
