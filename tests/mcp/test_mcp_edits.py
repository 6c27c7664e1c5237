"""Editing images over MCP: every way to send an image, and the part of it that is sent on."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gateway.config import Settings
from tests.download_hosts import (
    NAME,
    PUBLIC,
    Dialled,
    Host,
    Names,
    certificates,
    downloading,
    sends,
    web_host,
)
from tests.harness import GPT2, Served
from tests.image_helpers import (
    changed_outside,
    changed_share,
    data_url,
    download,
    expect_books_to_agree,
    expect_one_call_each,
    file_bytes,
    load,
    mask,
    photo,
    png,
)
from tests.mcp_helpers import (
    LEGACY,
    MODERN,
    MODES,
    call,
    content_of,
    images_of,
    links_of,
    made,
    served_with_downloads,
    shown_bytes,
    text_of,
)
from tests.stub_openai import Stub

EDIT = {"model": GPT2, "prompt": "a red fox", "size": "1024x640", "quality": "low"}
ARTIST, SECRET = 0x013B, "48.8583 N, 2.2945 E, A. Person"
LINK = f"https://{NAME}/a.png?signature=s3cr3t"
both_eras = pytest.mark.parametrize("mode", MODES)
both_keys = pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
eras_and_keys = pytest.mark.parametrize(
    ("mode", "livemode"), [(MODERN, False), (LEGACY, True), (MODERN, True)]
)


def signed_photo() -> bytes:
    """An image whose metadata state its author and place."""
    image = photo(96, 64)
    exif = image.getexif()
    exif[ARTIST] = SECRET
    return file_bytes(image, exif=exif)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[tuple[Host, Any]]:
    """A host on the public internet, as far as the gateway can tell, and the way to it."""
    made_certificates = certificates(tmp_path, NAME)
    async with web_host(sends(signed_photo()), made_certificates.server) as running:
        way = downloading(
            ssl_context=made_certificates.client,
            open_socket=Dialled(running.port),
            resolver=Names([[PUBLIC]]),
        )
        yield running, way


@pytest.fixture
async def linked(
    settings: Settings, stub: Stub, host: tuple[Host, Any]
) -> AsyncIterator[tuple[Served, Host]]:
    """A gateway that can reach that host, and a stub that keeps uploads."""
    running, way = host
    stub.configure(keep_files=True)
    async with way as downloads, served_with_downloads(settings, downloads) as served:
        yield served, running


async def linked_images(served: Served, content: dict[str, Any]) -> list[Image.Image]:
    """The images of a result, by their links."""
    return [load(await download(served, image["url"])) for image in content["images"]]


def expect_the_image(sent: bytes, original: bytes) -> None:
    """Expect all pixels to have been sent on, and nothing else of the file."""
    assert SECRET.encode() not in sent
    assert not load(sent).getexif()
    assert changed_share(load(original), load(sent)) == 0


@eras_and_keys
async def test_an_image_may_be_given_in_four_ways(
    linked: tuple[Served, Host], stub: Stub, mode: str, *, livemode: bool
) -> None:
    served, host = linked
    key = await served.key(livemode=livemode)
    async with served.mcp(key, mode) as client:
        first = content_of(await call(client, "generate_image", **EDIT))
        hosted = await download(served, first["url"])
        given = {
            data_url(signed_photo()): signed_photo(),
            first["images"][0]["uri"]: hosted,
            first["url"]: hosted,
            LINK: signed_photo(),
        }
        results = [await call(client, "edit_image", **EDIT, image=image) for image in given]
    for result in results:
        assert (len(images_of(result)), len(links_of(result))) == (1, 1)
        [edited] = await linked_images(served, content_of(result))
        assert edited.size == (1024, 640)
    assert len(host.requests) == 1
    if livemode:
        assert [call.path.rpartition("/")[2] for call in stub.calls] == ["generations"] + [
            "edits"
        ] * 4
        for [sent], original in zip(stub.files, given.values(), strict=True):
            expect_the_image(sent, original)
    await expect_books_to_agree(served, stub, key, images=5)
    await expect_one_call_each(served, stub, requests=5)


@both_keys
async def test_images_and_mask_go_on_in_their_order(
    linked: tuple[Served, Host], stub: Stub, *, livemode: bool
) -> None:
    served, _ = linked
    key = await served.key(livemode=livemode)
    first = await made(served, key, "generate_image", **EDIT)
    images = [data_url(png(64, 48)), first["images"][0]["uri"], LINK, first["url"]]
    overlay = data_url(file_bytes(mask(64, 48, (0, 0, 8, 8))))
    content = await made(served, key, "edit_image", **EDIT, image=images, mask=overlay, n=2)
    assert len(await linked_images(served, content)) == 2
    if livemode:
        [_, edit], [files] = stub.calls, stub.files
        assert [name.removesuffix("[]") for name, _, _ in edit.files] == ["image"] * 4 + ["mask"]
        sizes = [(64, 48), (1024, 640), (96, 64), (1024, 640), (64, 48)]
        assert [load(content).size for content in files] == sizes
        assert edit.form == {**EDIT, "n": "2"}
    await expect_books_to_agree(served, stub, key, images=3)
    await expect_one_call_each(served, stub, requests=2)


@both_keys
async def test_dall_e_2_changes_nothing_outside_its_mask(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    before, area = photo(256, 256), (64, 64, 128, 192)
    content = await made(
        served,
        key,
        "edit_image",
        prompt="a red fox",
        model="dall-e-2",
        size="256x256",
        n=2,
        image=data_url(file_bytes(before)),
        mask=data_url(file_bytes(mask(256, 256, area))),
    )
    after = await linked_images(served, content)
    assert [changed_outside(before, image, area) for image in after] == [0, 0]
    assert min(changed_share(before, image, area) for image in after) > 0.9
    assert (content["requested_model"], content["size"]) == ("dall-e-2", "256x256")
    assert content["model"] != "dall-e-2"
    await expect_books_to_agree(served, stub, key, images=2)
    await expect_one_call_each(served, stub, requests=1)


@eras_and_keys
async def test_a_variation_is_made_of_an_image_alone(
    served: Served, stub: Stub, mode: str, *, livemode: bool
) -> None:
    stub.configure(keep_files=True)
    key = await served.key(livemode=livemode)
    given = data_url(png(128, 128))
    content = await made(served, key, "create_variation", mode, image=given, n=3, size="512x512")
    assert [p.size for p in await linked_images(served, content)] == [(512, 512)] * 3
    assert content["requested_model"] == "dall-e-2"
    if livemode:
        [call], [files] = stub.calls, stub.files
        assert call.path == "/v1/images/edits"
        assert changed_share(load(files[0]), photo(128, 128)) == 0
    await expect_books_to_agree(served, stub, key, images=3)
    await expect_one_call_each(served, stub, requests=1)


async def test_an_image_can_be_changed_again_and_again(served: Served, stub: Stub) -> None:
    """As an assistant does: each turn takes the image of the one before."""
    stub.configure(keep_files=True)
    key = await served.key()
    async with served.mcp(key) as client:
        content = content_of(await call(client, "generate_image", **EDIT))
        for turn in range(3):
            before = await download(served, content["url"])
            result = await call(client, "edit_image", **EDIT, image=content["images"][0]["uri"])
            content = content_of(result)
            [sent] = stub.files[turn]
            assert changed_share(load(before), load(sent)) == 0
    await expect_books_to_agree(served, stub, key, images=4)
    await expect_one_call_each(served, stub, requests=4)


# The result


SHOWN_WHOLE = {(900_000, 1): True, (1_000_000, 1): False, (450_000, 2): True, (600_000, 2): False}


@both_eras
async def test_the_whole_image_is_shown_where_it_fits(
    served: Served, stub: Stub, mode: str
) -> None:
    """The limit counts the result, not each of its images."""
    arguments = {**EDIT, "image": data_url(png()), "full_image": True}
    async with served.mcp(await served.key(), mode) as client:
        for (encoded_bytes, n), is_whole in SHOWN_WHOLE.items():
            stub.configure(min_b64_bytes=encoded_bytes)
            result = await call(client, "edit_image", **arguments, n=n)
            made = content_of(result)["images"]
            stored = [await download(served, image["url"]) for image in made]
            shown = [shown_bytes(block) for block in images_of(result)]
            assert (shown == stored) == is_whole
            assert len(shown) == n
            assert ("Too large to show whole" in text_of(result)) != is_whole
            assert is_whole or max(map(len, shown)) < 40_000
