"""Edits: every way to send images, and the part of each that is sent on to the provider."""

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

from tests.harness import GPT2, Served
from tests.image_helpers import (
    answer_images,
    changed_share,
    data_url,
    distance,
    expect_books_to_agree,
    expect_one_call_each,
    file_bytes,
    load,
    mask,
    photo,
    png,
)
from tests.stub_openai import Stub

PATH = "/v1/images/edits"
FIELDS = {"model": GPT2, "prompt": "a red fox", "size": "1024x1024", "quality": "low"}
SENT = {**FIELDS, "n": "1"}
SECRET = "48.8583 N, 2.2945 E, A. Person"
ORIENTATION, ARTIST, GPS = 0x0112, 0x013B, 0x8825

both_modes = pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])


def sizes_of(files: Sequence[bytes]) -> list[tuple[int, int]]:
    return [load(content).size for content in files]


@both_modes
@pytest.mark.parametrize("count", [1, 2, 16])
async def test_one_to_sixteen_images_go_on_in_their_order(
    served: Served, stub: Stub, count: int, *, livemode: bool
) -> None:
    stub.configure(keep_files=True)
    key = await served.key(livemode=livemode)
    sizes = [(32 + number, 32) for number in range(count)]
    async with served.openai(key) as client:
        answer = await client.images.edit(
            model=GPT2,
            image=[png(*size) for size in sizes],
            prompt="a red fox",
            size="1024x1024",
            quality="low",
        )
    assert [image.size for image in await answer_images(served, answer)] == [(1024, 1024)]
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens > 0
    if livemode:
        [call], [files] = stub.calls, stub.files
        assert (call.path, call.form) == (PATH, SENT)
        assert sizes_of(files) == sizes
        assert {(name.removesuffix("[]"), kind) for name, kind, _ in call.files} == {
            ("image", "image/png")
        }
    await expect_books_to_agree(served, stub, key, images=1)
    await expect_one_call_each(served, stub, requests=1)


@pytest.mark.parametrize(
    "names",
    [["image"], ["image[]"], ["image", "image"], ["image[]", "image[]"], ["image", "image[]"]],
    ids=str,
)
async def test_a_field_may_have_brackets_or_not(
    served: Served, stub: Stub, names: list[str]
) -> None:
    stub.configure(keep_files=True)
    files = [
        (name, (f"{number}.png", png(40 + number, 32), "image/png"))
        for number, name in enumerate(names)
    ]
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, data=FIELDS, files=files)
    assert response.status_code == 200, response.text
    assert [call.form for call in stub.calls] == [SENT]
    assert sizes_of(stub.files[0]) == [(40 + number, 32) for number in range(len(names))]


async def test_an_image_may_stand_before_or_after_its_mask(served: Served, stub: Stub) -> None:
    stub.configure(keep_files=True)
    image = ("image", ("i.png", png(64, 32), "image/png"))
    overlay = ("mask", ("m.png", file_bytes(mask(64, 32, (0, 0, 8, 8))), "image/png"))
    async with served.http(await served.key()) as http:
        for files in ([image, overlay], [overlay, image]):
            response = await http.post(PATH, data=FIELDS, files=files)
            assert response.status_code == 200, response.text
    named = [[(name, kind) for name, kind, _ in call.files] for call in stub.calls]
    assert named == [[("image", "image/png"), ("mask", "image/png")]] * 2
    assert load(stub.files[0][1]).getchannel("A").getextrema() == (0, 255)


@both_modes
async def test_the_json_form_takes_data_urls(served: Served, stub: Stub, *, livemode: bool) -> None:
    stub.configure(keep_files=True)
    key = await served.key(livemode=livemode)
    body = {
        **FIELDS,
        "n": 2,
        "images": [
            {"image_url": data_url(png(64, 48))},
            {"image_url": data_url(file_bytes(photo(32, 32), "JPEG"), "image/jpeg")},
        ],
        "mask": {"image_url": data_url(file_bytes(mask(64, 48, (0, 0, 8, 8))))},
    }
    async with served.http(key) as http:
        response = await http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 2
    if livemode:
        [call], [files] = stub.calls, stub.files
        assert call.form == {**FIELDS, "n": "2"}
        assert [kind for _, kind, _ in call.files] == ["image/png", "image/jpeg", "image/png"]
        assert sizes_of(files) == [(64, 48), (32, 32), (64, 48)]
    await expect_books_to_agree(served, stub, key, images=2)
    await expect_one_call_each(served, stub, requests=1)


@pytest.mark.parametrize("declared", ["application/octet-stream", "image/gif", "text/plain", None])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
async def test_the_format_of_an_image_is_read_from_its_bytes(
    served: Served, stub: Stub, image_format: str, declared: str | None
) -> None:
    content = file_bytes(photo(64, 64), image_format)
    upload: Any = content if declared is None else ("upload", content, declared)
    async with served.openai(await served.key()) as client:
        await client.images.edit(model=GPT2, image=upload, prompt="a red fox", quality="low")
        await client.images.edit(model=GPT2, image=[upload], prompt="a red fox", quality="low")
    kinds = [kind for call in stub.calls for _, kind, _ in call.files]
    assert kinds == [f"image/{image_format.lower()}"] * 2


def located(image: Image.Image, image_format: str) -> bytes:
    """A file whose metadata state the place and author of a photo and a rotation for viewing."""
    exif = image.getexif()
    exif[ORIENTATION] = 6
    exif[ARTIST] = SECRET
    exif.get_ifd(GPS).update({1: "N", 2: (IFDRational(48), IFDRational(51), IFDRational(30))})
    options: dict[str, Any] = {"exif": exif}
    if image_format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Author", SECRET)
    else:
        options["xmp"] = SECRET.encode()
    return file_bytes(image, image_format, **options)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
async def test_the_location_of_a_photo_is_not_sent_on(
    served: Served, stub: Stub, image_format: str
) -> None:
    stub.configure(keep_files=True)
    content = located(photo(64, 32), image_format)
    assert SECRET.encode() in content
    assert load(content).getexif().get_ifd(GPS)
    async with served.openai(await served.key()) as client:
        await client.images.edit(model=GPT2, image=content, prompt="a red fox", quality="low")
    [[sent]] = stub.files
    assert SECRET.encode() not in sent
    assert b"Exif" not in sent
    assert b"EXIF" not in sent
    assert b"eXIf" not in sent
    received = load(sent)
    assert not received.getexif()
    assert received.info.keys().isdisjoint({"exif", "xmp", "comment"})
    # Turned as its viewers turned it, since nothing says so any more.
    upright = photo(64, 32).rotate(-90, expand=True)
    assert received.size == (32, 64)
    assert distance(received, upright) < 32 * 64 * 3 * 12


async def test_a_png_goes_on_with_the_pixels_that_it_came_with(served: Served, stub: Stub) -> None:
    stub.configure(keep_files=True)
    before = {mode: photo(64, 48, mode=mode) for mode in ("RGB", "RGBA", "L", "P")}
    async with served.openai(await served.key()) as client:
        for image in before.values():
            await client.images.edit(
                model=GPT2, image=file_bytes(image), prompt="a red fox", quality="low"
            )
    for image, [sent] in zip(before.values(), stub.files, strict=True):
        assert changed_share(image, load(sent)) == 0


async def test_trailing_bytes_behind_an_image_do_not_go_on(served: Served, stub: Stub) -> None:
    stub.configure(keep_files=True)
    async with served.openai(await served.key()) as client:
        await client.images.edit(
            model=GPT2, image=png() + SECRET.encode(), prompt="a red fox", quality="low"
        )
    [[sent]] = stub.files
    assert SECRET.encode() not in sent


@both_modes
async def test_an_edit_can_be_answered_with_links(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    async with served.openai(await served.key(livemode=livemode)) as client:
        answer = await client.images.edit(
            model=GPT2,
            image=png(),
            prompt="a red fox",
            n=2,
            size="1536x1024",
            quality="low",
            output_format="jpeg",
            response_format="url",
        )
    assert all(item.url and item.b64_json is None for item in answer.data or [])
    found = await answer_images(served, answer)
    assert [(p.format, p.size) for p in found] == [("JPEG", (1536, 1024))] * 2
    await expect_one_call_each(served, stub, requests=1)


async def test_reports_count_an_edits_inputs(served: Served, stub: Stub) -> None:
    key = await served.key()
    async with served.openai(key) as client:
        await client.images.edit(model=GPT2, image=png(1024, 1024), prompt="a", quality="low")
    async with served.http(key) as http:
        total = (await http.get("/v1/usage")).json()["total"]
    [line] = stub.bill
    assert line.input_image_tokens == 1033
    assert total["input_tokens"] == line.input_text_tokens + line.input_image_tokens


async def test_a_boundary_in_quotes_and_names_with_umlauts_are_read(
    served: Served, stub: Stub
) -> None:
    parts = [
        b'Content-Disposition: form-data; name="%b"\r\n\r\n%b' % (name.encode(), text.encode())
        for name, text in FIELDS.items()
    ]
    parts.append(
        'Content-Disposition: form-data; name="image"; filename="füchse.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + png()
    )
    body = b"".join(b"--a b\r\n" + part + b"\r\n" for part in parts) + b"--a b--\r\n"
    headers = {"Content-Type": 'multipart/form-data; boundary="a b"'}
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert [call.form for call in stub.calls] == [SENT]
