"""Images and thumbnails by link: whole, in part, or unchanged; and the methods that are allowed."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

import httpx2
import pytest
from PIL import Image
from pydantic import SecretStr

from gateway.billing.settlement import StoredFile
from gateway.config import Settings
from gateway.errors import NotFound, Unavailable
from gateway.library.links import LinkKind
from gateway.library.storage import thumbnail_path
from gateway.library.thumbnails import Thumbnails
from gateway.media.decoder import Decoder, DecoderLimits, ImageFacts
from tests.harness import error_of, served_gateway
from tests.hosting_helpers import Hosted, Place, S3Server, bucket_of, hosted_gateway, image_bytes
from tests.rest.test_rest_database_away import Cable

CONTENT = bytes(range(256)) * 4
SIZE = len(CONTENT)
PROTECTED = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
}


def told(response: httpx2.Response, *names: str) -> dict[str, str | None]:
    return {name: response.headers.get(name) for name in names}


async def test_an_image_is_served_with_all_that_a_browser_must_know(hosted: Hosted) -> None:
    key = await hosted.served.key()
    image = await hosted.put(key, CONTENT)
    whole, head = [await hosted.get(hosted.link(image), method) for method in ("GET", "HEAD")]
    assert (whole.status_code, head.status_code) == (200, 200)
    assert (whole.content, head.content) == (CONTENT, b"")
    expected = PROTECTED | {
        "content-type": "image/png",
        "content-length": str(SIZE),
        "etag": f'"{image.id}"',
        "accept-ranges": "bytes",
        "content-disposition": f'inline; filename="{image.id}.png"',
    }
    for answer in (whole, head):
        assert told(answer, *expected) == expected
        assert answer.headers["cache-control"].startswith("private, max-age=")
        assert answer.headers["cache-control"].endswith(", immutable")


async def test_a_links_address_has_the_made_image(hosted: Hosted) -> None:
    image_id = await hosted.make(await hosted.served.key())
    assert await hosted.files() == await hosted.living()
    async with hosted.served.http(await hosted.served.key()) as http:
        shown = (await http.get(f"/v1/images/{image_id}")).json()
    served = await hosted.get(shown["url"])
    assert Image.open(io.BytesIO(served.content)).size == (1024, 1024)


async def test_a_large_image_arrives_whole(hosted: Hosted) -> None:
    content = CONTENT * 9001
    image = await hosted.put(await hosted.served.key(), content)
    assert (await hosted.get(hosted.link(image))).content == content


async def test_a_download_is_saved_under_the_name_of_the_image(hosted: Hosted) -> None:
    image = await hosted.put(await hosted.served.key(), CONTENT)
    saved = await hosted.get(hosted.link(image) + "&download=1")
    assert saved.headers["content-disposition"] == f'attachment; filename="{image.id}.png"'
    assert saved.content == CONTENT
    refused = await hosted.get(hosted.link(image) + "&download=perhaps")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "download")


async def test_an_image_that_the_client_has_is_not_sent_again(hosted: Hosted) -> None:
    image = await hosted.put(await hosted.served.key(), CONTENT)
    etag, link = f'"{image.id}"', hosted.link(image)
    for method in ("GET", "HEAD"):
        for known in (etag, f"W/{etag}", "*", f'"other", {etag}'):
            answer = await hosted.get(link, method, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content) == (304, b""), known
            assert answer.headers["etag"] == etag
            assert "content-length" not in answer.headers
        for known in ('"other"', image.id, ""):
            answer = await hosted.get(link, method, headers={"If-None-Match": known})
            assert answer.status_code == 200, known


PARTS = {
    "bytes=0-0": (0, 1),
    "bytes=0-": (0, SIZE),
    "bytes=5-9": (5, 10),
    "bytes= 5-9": (5, 10),
    f"bytes={SIZE - 1}-": (SIZE - 1, SIZE),
    f"bytes=10-{SIZE * 5}": (10, SIZE),
    "bytes=-1": (SIZE - 1, SIZE),
    "bytes=-100": (SIZE - 100, SIZE),
    f"bytes=-{SIZE * 5}": (0, SIZE),
}
IGNORED = ("bytes=", "bytes=-", "bytes=9-5", "bytes=a-b", "bytes=0-1,5-6", "lines=1-2", "0-5", "")
BEHIND = (f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=999999999999999999-")


async def test_a_requested_range_is_sent(hosted: Hosted) -> None:
    image = await hosted.put(await hosted.served.key(), CONTENT)
    link = hosted.link(image)
    for wanted, (start, stop) in PARTS.items():
        answer = await hosted.get(link, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (206, CONTENT[start:stop]), wanted
        expected = {
            "content-range": f"bytes {start}-{stop - 1}/{SIZE}",
            "content-length": str(stop - start),
            "etag": f'"{image.id}"',
        }
        assert told(answer, *expected) == expected
    for wanted in IGNORED:
        answer = await hosted.get(link, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (200, CONTENT), wanted
    for wanted in BEHIND:
        answer = await hosted.get(link, headers={"Range": wanted})
        assert error_of(answer)["code"] == "range_not_satisfiable", wanted
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")
    head = await hosted.get(link, "HEAD", headers={"Range": "bytes=0-0"})
    assert (head.status_code, head.headers["content-length"]) == (200, str(SIZE))


async def test_a_range_of_another_version_is_not_mixed_in(hosted: Hosted) -> None:
    image = await hosted.put(await hosted.served.key(), CONTENT)
    etag = f'"{image.id}"'
    statuses = {}
    for known in (etag, f"W/{etag}", '"other"', "Sat, 21 Nov 2026 08:00:00 GMT"):
        headers = {"Range": "bytes=0-0", "If-Range": known}
        statuses[known] = (await hosted.get(hosted.link(image), headers=headers)).status_code
    assert list(statuses.values()) == [206, 200, 200, 200]


async def test_an_image_whose_file_is_gone_is_not_found(hosted: Hosted) -> None:
    image = await hosted.put(await hosted.served.key(), CONTENT)
    await hosted.store.delete(image.path)
    for headers in ({}, {"If-None-Match": "*"}, {"Range": "bytes=0-0"}):
        for kind in LinkKind:
            answer = await hosted.get(hosted.link(image, kind), headers=headers)
            assert (answer.status_code, error_of(answer)["code"]) == (404, "image_not_found")


async def test_a_link_works_while_postgres_is_away(
    settings: Settings, place: Place, database: str
) -> None:
    cable = Cable(database)
    await cable.plug_in()
    far = place.applied(settings).model_copy(
        update={"database_url": SecretStr(cable.url), "migration_database_url": SecretStr(database)}
    )
    async with served_gateway(far) as served:
        hosted = Hosted(served, place, place.applied(settings))
        image = await hosted.put(await served.key(), image_bytes())
        links = [hosted.link(image, kind) for kind in LinkKind]
        await cable.cut()
        assert [(await hosted.get(link)).status_code for link in links] == [200, 200]
        await cable.plug_in()
    await cable.cut()


# Thumbnails


async def test_a_thumbnail_is_a_small_webp_stored_beside_its_image(hosted: Hosted) -> None:
    key = await hosted.served.key()
    image = await hosted.put(key, image_bytes(1536, 1024))
    link = hosted.link(image, LinkKind.THUMBNAIL)
    first, again = [await hosted.get(link) for _ in range(2)]
    assert first.status_code == 200
    shown = Image.open(io.BytesIO(first.content))
    assert (shown.format, shown.size) == ("WEBP", (512, 341))
    assert again.content == first.content == await hosted.store.get(thumbnail_path(image.path))
    expected = PROTECTED | {
        "content-type": "image/webp",
        "content-length": str(len(first.content)),
        "etag": f'"{image.id}-thumbnail"',
        "content-disposition": f'inline; filename="{image.id}-thumbnail.webp"',
    }
    assert told(first, *expected) == expected
    part = await hosted.get(link, headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"RIFF")
    known = await hosted.get(link, headers={"If-None-Match": expected["etag"]})
    assert known.status_code == 304


async def test_a_link_opens_the_image_or_its_thumbnail_never_the_other(hosted: Hosted) -> None:
    image = await hosted.put(await hosted.served.key())
    for kind, other in ((LinkKind.IMAGE, "/thumbnail?"), (LinkKind.THUMBNAIL, "?")):
        link = hosted.link(image, kind)
        turned = f"/images/{image.id}{other}{httpx2.URL(link).query.decode()}"
        answer = await hosted.get(f"http://x{turned}")
        assert (answer.status_code, error_of(answer)["code"]) == (403, "link_invalid")
    assert (await hosted.get(hosted.link(image, LinkKind.THUMBNAIL))).status_code == 200


async def test_no_thumbnail_is_made_of_a_file_that_is_no_image(hosted: Hosted) -> None:
    for content in (b"<svg/>", image_bytes()[:200]):
        image = await hosted.put(await hosted.served.key(), content)
        answer = await hosted.get(hosted.link(image, LinkKind.THUMBNAIL))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "image_not_found")
        assert thumbnail_path(image.path) not in await hosted.files()


LIMITS = DecoderLimits(
    processes=1, job_seconds=20, queue_seconds=20, max_pixels=10_000_000, memory_bytes=2**29
)


class GatedMaker(Decoder):
    """Makes thumbnails when the test opens its gate, and counts them."""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.count = 0

    async def thumbnail(self, source: BinaryIO, target: BinaryIO, *, max_edge: int) -> ImageFacts:
        self.count += 1
        self.begun.set()
        await self.gate.wait()
        return await super().thumbnail(source, target, max_edge=max_edge)


@asynccontextmanager
async def gated(hosted: Hosted) -> AsyncIterator[tuple[Thumbnails, GatedMaker, StoredFile]]:
    maker = GatedMaker()
    thumbnails = Thumbnails(hosted.store, maker)
    yield thumbnails, maker, await hosted.put(await hosted.served.key())
    await thumbnails.close()
    await maker.close()


async def test_a_thumbnail_is_made_once_for_all_who_ask_at_the_same_time(hosted: Hosted) -> None:
    async with gated(hosted) as (thumbnails, maker, image):
        asking = [asyncio.create_task(thumbnails.ensure(image.path)) for _ in range(20)]
        await maker.begun.wait()
        asking[0].cancel()  # the first one to ask may leave
        maker.gate.set()
        await asyncio.gather(*asking[1:])
        assert thumbnail_path(image.path) in await hosted.files()
        await thumbnails.ensure(image.path)
        assert maker.count == 1


async def test_tenants_take_turns_at_thumbnails(hosted: Hosted) -> None:
    other = await hosted.served.key(tenant_id=await hosted.served.tenant("other"))
    async with gated(hosted) as (thumbnails, maker, image):
        many = [await hosted.put(await hosted.served.key()) for _ in range(80)]
        few = await hosted.put(other)
        asking = [asyncio.create_task(thumbnails.ensure(one.path)) for one in (image, *many)]
        await maker.begun.wait()
        later = asyncio.create_task(thumbnails.ensure(few.path))
        # No tenant fills the queue, also by asking and leaving.
        done, _ = await asyncio.wait(asking, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert {type(task.exception()) for task in done} == {Unavailable}
        for task in asking:
            task.cancel()
        maker.gate.set()
        await later
        assert maker.count < len(asking) / 2


async def test_a_thumbnail_does_not_outlive_an_image_deleted_meanwhile(hosted: Hosted) -> None:
    async with gated(hosted) as (thumbnails, maker, image):
        asking = asyncio.create_task(thumbnails.ensure(image.path))
        await maker.begun.wait()
        await hosted.store.delete(image.path)
        maker.gate.set()
        with pytest.raises(NotFound):
            await asking
        assert await hosted.files() == []


async def test_a_store_that_is_away_is_reported_as_away(settings: Settings) -> None:
    server = S3Server()
    async with hosted_gateway(settings, await bucket_of(server)) as hosted:
        image = await hosted.put(await hosted.served.key())
        links = [hosted.link(image, kind) for kind in LinkKind]
        server.stop()
        away = [await hosted.get(link) for link in links]
        server.start()
        back = [(await hosted.get(link)).status_code for link in links]
        server.stop()
    assert [(answer.status_code, error_of(answer)["code"]) for answer in away] == [
        (500, "storage_failed")
    ] * 2
    assert back == [200, 200]
