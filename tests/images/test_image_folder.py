"""The folder of local images: the owner's alone, and never made again once it is gone."""

import itertools
import resource
import shutil
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

from gateway.config import Settings
from gateway.errors import NotFound, StorageFailed
from gateway.library.image_folder import (
    QUICK_BYTES,
    REST_SECONDS,
    SLOW_SECONDS,
    ImageFolder,
)
from gateway.library.storage import ImageStore, image_path, new_image_id, open_store
from tests.hosting_helpers import files_in, hosted_gateway
from tests.store_helpers import make_known, post, spooled
from tests.stub_openai import Stub

TENANT = UUID(int=7)


def modes_of(folder: Path) -> set[int]:
    """The modes of a folder and of those below it."""
    found = [folder, *(one for one in folder.rglob("*") if one.is_dir())]
    return {stat.S_IMODE(one.stat().st_mode) for one in found}


async def test_a_folder_that_goes_while_images_are_made_is_a_store_that_fails(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    hasty = settings.model_copy(update={"store_retry_seconds": 0.1})
    async with hosted_gateway(hasty, files_in(folder)) as hosted:
        key = await hosted.served.key()
        async with hosted.served.http(key) as http:
            stored = (await post(http, 1, response_format="url")).json()["data"][0]["url"]
            assert modes_of(folder) == {0o700}
            aside = folder.rename(tmp_path / "aside")
            assert (await post(http, 2)).status_code == 200
            assert (await post(http, 3, response_format="url")).status_code == 500
            await make_known(hosted, key)
            assert (await post(http, 4, response_format="url")).status_code == 503
            assert (await hosted.get(stored)).status_code == 500
            with pytest.raises(StorageFailed):
                await hosted.reconcile()
            assert not folder.exists()
            assert len(await spooled(hosted.served)) == 2
            aside.rename(folder)
            await hosted.served.sweep()
            assert (await http.get("/ready")).json()["status"] == "ready"
        assert (await spooled(hosted.served), len(await hosted.files())) == ([], 3)
        assert (await hosted.get(stored)).status_code == 200
        assert modes_of(folder) == {0o700}
    assert len(stub.bill) == 3


async def each_access(store: ImageStore, path: str) -> None:
    """Expect each way to read, write or list files to fail."""

    async def listed() -> None:
        async for _ in store.list(str(TENANT)):
            pass

    accesses: list[Callable[[], Awaitable[object]]] = [
        lambda: store.put(path, b"x"),
        lambda: store.get(path),
        lambda: store.find(path),
        lambda: store.read(path),
        lambda: store.delete(path),
        lambda: store.days(TENANT),
        listed,
    ]
    for access in accesses:
        with pytest.raises(StorageFailed):
            await access()


async def test_no_file_is_taken_for_deleted_while_the_folder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = open_store(folder.as_uri())
    path = image_path(TENANT, new_image_id(), "png")
    await store.put(path, b"x")
    shutil.rmtree(folder)
    await each_access(store, path)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(NotFound):
        await store.get(path)
    await store.delete(path)


async def test_a_small_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = open_store(folder.as_uri(), beside=tmp_path)
    path = image_path(TENANT, new_image_id(), "png")
    for content in (b"first", b"second" * 10_000):
        await store.put(path, content)
        assert await store.get(path) == content
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageFailed):
            await store.put(path, b"third" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await store.get(path) == b"second" * 10_000
    assert [one.name for one in folder.rglob("img_*")] == [path.rpartition("/")[2]]


def test_the_event_loop_writes_small_files_to_a_disk_that_is_quick(tmp_path: Path) -> None:
    now = itertools.count(0.0, SLOW_SECONDS / 2)
    folder = ImageFolder(tmp_path / "store", beside=tmp_path, clock=lambda: next(now))
    assert folder.write_quickly("one", b"x" * QUICK_BYTES)
    assert not folder.write_quickly("large", b"x" * (QUICK_BYTES + 1))
    now = itertools.count(100.0, SLOW_SECONDS * 2)
    assert folder.write_quickly("slow", b"x")
    assert not folder.write_quickly("later", b"x")
    now = itertools.count(101 + REST_SECONDS, SLOW_SECONDS / 2)
    assert folder.write_quickly("again", b"x")
    assert sorted(one.name for one in folder.path.iterdir()) == ["again", "one", "slow"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no second file system to name")
def test_the_event_loop_writes_to_no_disk_that_it_does_not_use_anyway(tmp_path: Path) -> None:
    for beside in (None, Path("/proc"), tmp_path / "missing"):
        folder = ImageFolder(tmp_path / "store", beside=beside)
        assert not folder.write_quickly("one", b"x")


async def test_nothing_is_written_into_a_mount_point_whose_mount_is_gone(tmp_path: Path) -> None:
    mounted = {tmp_path / "mnt"}
    folder = ImageFolder(tmp_path / "mnt" / "images", is_mount=mounted.__contains__)
    store = ImageStore(open_store(folder.path.as_uri()).objects, folder)
    path = image_path(TENANT, new_image_id(), "png")
    mounts = mounted.copy()
    mounted.clear()
    aside = folder.path.rename(tmp_path / "aside")
    folder.path.mkdir()
    await each_access(store, path)
    assert list(folder.path.iterdir()) == []
    folder.path.rmdir()
    aside.rename(folder.path)
    mounted |= mounts
    await store.put(path, b"x")
    assert await store.get(path) == b"x"
