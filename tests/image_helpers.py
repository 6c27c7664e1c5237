"""Images to upload, comparisons of images, and checks that every answer with images must pass."""

import base64
import io
import struct
import zlib
from urllib.parse import urlsplit

import openai
from openai.types import ImagesResponse
from PIL import Image, ImageChops, ImageStat

from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import Served, secret_of
from tests.money_helpers import books
from tests.stub_openai import Stub

Size = tuple[int, int]
Box = tuple[int, int, int, int]


def photo(width: int = 64, height: int = 64, *, mode: str = "RGB", turn: int = 0) -> Image.Image:
    """An image in which hardly two pixels are equal; `turn` (0 to 3) gives another one."""
    slope = Image.linear_gradient("L")
    bands = [slope, slope.rotate(90), Image.radial_gradient("L")]
    image = Image.merge("RGB", bands).rotate(90 * turn).resize((width, height))
    return image.convert(mode)


def plain(width: int = 64, height: int = 64, colour: str = "red") -> Image.Image:
    """An image of one colour."""
    return Image.new("RGB", (width, height), colour)


def mask(width: int, height: int, area: Box) -> Image.Image:
    """A mask: opaque black, and fully transparent in `area`, the part to change."""
    image = Image.new("RGBA", (width, height), "black")
    image.paste((0, 0, 0, 0), area)
    return image


def with_hole(image: Image.Image, area: Box) -> Image.Image:
    """The image, fully transparent in `area`."""
    holed = image.convert("RGBA")
    holed.paste((0, 0, 0, 0), area)
    return holed


def file_bytes(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """The image as a file."""
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def png(width: int = 64, height: int = 64, *, mode: str = "RGB", turn: int = 0) -> bytes:
    """A photo as a PNG file."""
    return file_bytes(photo(width, height, mode=mode, turn=turn))


def padded_png(content: bytes, size_bytes: int) -> bytes:
    """The same PNG, padded with a private chunk before its last one."""
    body = b"prIv" + bytes(size_bytes - len(content) - 12)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:-12] + chunk + content[-12:]


def data_url(content: bytes, media_type: str = "image/png") -> str:
    """A data URL of a file, as in JSON bodies."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def load(content: bytes) -> Image.Image:
    """Decode a whole file."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def load_base64(text: str | None) -> Image.Image:
    """Decode the `b64_json` of an answer."""
    assert text
    return load(base64.b64decode(text, validate=True))


def changed(one: Image.Image, other: Image.Image) -> Image.Image:
    """A mask of two RGB images: 255 where a pixel differs in any of its values."""
    assert one.size == other.size
    bands = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).split()
    most = ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2])
    return most.point([0] + [255] * 255)


def changed_share(one: Image.Image, other: Image.Image, area: Box | None = None) -> float:
    """The share of pixels in `area` (None: the whole image) that differ, 0 to 1."""
    found = changed(one, other)
    counts = (found if area is None else found.crop(area)).histogram()
    return counts[255] / (counts[0] + counts[255])


def changed_outside(one: Image.Image, other: Image.Image, area: Box) -> int:
    """The number of pixels outside `area` that differ."""
    found = changed(one, other)
    found.paste(0, area)
    return found.histogram()[255]


def mean_colour(image: Image.Image, area: Box) -> list[float]:
    """The mean red, green and blue of `area`."""
    return ImageStat.Stat(image.convert("RGB").crop(area)).mean


def on_white(image: Image.Image) -> Image.Image:
    """The image as it looks on white paper, RGB."""
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> int:
    """The sum of all differences between two images on white paper."""
    levels = ImageChops.difference(on_white(one), on_white(other)).histogram()
    return sum(count * (index % 256) for index, count in enumerate(levels))


async def answer_images(served: Served, answer: ImagesResponse) -> list[Image.Image]:
    """The decoded images of an answer, downloaded without a key where it has links."""
    found: list[Image.Image] = []
    for item in answer.data or []:
        if item.url is None:
            content = base64.b64decode(item.b64_json or "")
        else:
            assert item.b64_json is None
            content = await download(served, item.url)
        image = Image.open(io.BytesIO(content))
        image.load()
        found.append(image)
    return found


async def download(served: Served, url: str) -> bytes:
    """The bytes behind a link, requested at this test's port: links name the public address."""
    link = urlsplit(url)
    async with served.http() as http:
        response = await http.get(f"{link.path}?{link.query}")
    assert response.status_code == 200
    return response.content


async def expect_books_to_agree(served: Served, stub: Stub, key: IssuedKey, images: int) -> None:
    """Expect the usage report, the ledger and (for a live key) the provider's bill to agree."""
    async with served.http(key) as http:
        total = (await http.get("/v1/usage")).json()["total"]
    ledger_nano = await served.ledger_total()
    assert (total["images"], total["cost_usd"]) == (images, format_usd(ledger_nano))
    assert ledger_nano > 0
    if key.livemode:
        assert stub.totals.cost_nano_usd == ledger_nano
    else:
        assert stub.calls == []


async def expect_one_call_each(served: Served, stub: Stub, requests: int) -> None:
    """Expect one call and one posted reservation per request, whose hold bounded its cost."""
    booked = await books(served)
    assert [line for line in booked if (line.final_nano or 0) > line.held_nano] == []
    assert {line.state for line in booked} == {"posted"}
    assert len(booked) == requests
    assert stub.totals.calls == len(stub.bill)
    assert len(stub.bill) in {requests, 0}


async def expect_nothing_bought(served: Served, stub: Stub) -> None:
    """Expect no call, no reservation and an empty ledger."""
    assert (stub.calls, await books(served), await served.ledger_total()) == ([], [], 0)


def old_client(served: Served, key: IssuedKey) -> openai.OpenAI:
    """The synchronous client as most programs use it; only address and key are the gateway's."""
    return openai.OpenAI(api_key=secret_of(key), base_url=f"{served.base_url}/v1", max_retries=0)
