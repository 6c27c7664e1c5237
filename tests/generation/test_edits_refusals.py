"""Invalid edits are refused with OpenAI's codes before anything is held or bought."""

from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from gateway.config import Settings
from gateway.domain import Scope
from tests.harness import GPT2, Served, error_of, served_gateway
from tests.image_helpers import (
    data_url,
    expect_nothing_bought,
    file_bytes,
    mask,
    padded_png,
    photo,
    png,
)
from tests.stub_openai import Stub

PATH = "/v1/images/edits"
FIELDS = {"model": GPT2, "prompt": "a red fox"}
IMAGE = ("image", ("i.png", png(), "image/png"))
MEGABYTE = 1_048_576
Files = list[tuple[str, tuple[str, bytes, str]]]


def told(response: httpx2.Response) -> tuple[int, str, str | None]:
    error = error_of(response)
    return response.status_code, error["code"], error["param"]


async def test_seventeen_images_or_none_are_refused(served: Served, stub: Stub) -> None:
    too_many: Files = [("image[]", (f"{n}.png", png(16, 16), "image/png")) for n in range(17)]
    links = [{"image_url": data_url(png(16, 16))}] * 17
    async with served.http(await served.key()) as http:
        answers = [
            await http.post(PATH, data=FIELDS, files=too_many),
            await http.post(PATH, json={**FIELDS, "images": links}),
            await http.post(PATH, data=FIELDS, files=[("mask", ("m.png", png(), "image/png"))]),
            await http.post(PATH, json={**FIELDS, "images": []}),
            await http.post(PATH, json=FIELDS),
        ]
    assert [told(answer) for answer in answers] == [
        *[(400, "array_above_max_length", "image")] * 2,
        *[(400, "missing_required_parameter", "image")] * 3,
    ]
    await expect_nothing_bought(served, stub)


FORMS: dict[str, tuple[dict[str, str], Files, tuple[int, str, str]]] = {
    "n=abc": ({"n": "abc"}, [IMAGE], (400, "invalid_type", "n")),
    "n=1.5": ({"n": "1.5"}, [IMAGE], (400, "invalid_type", "n")),
    "n=-1": ({"n": "-1"}, [IMAGE], (400, "integer_below_min_value", "n")),
    "n=": ({"n": ""}, [IMAGE], (400, "invalid_type", "n")),
    "n=²": ({"n": "²"}, [IMAGE], (400, "invalid_type", "n")),
    "n=1e30": ({"n": "9" * 30}, [IMAGE], (400, "integer_above_max_value", "n")),
    "stream": ({"stream": "perhaps"}, [IMAGE], (400, "invalid_type", "stream")),
    "partial": ({"partial_images": "x"}, [IMAGE], (400, "invalid_type", "partial_images")),
    "compression": (
        {"output_format": "webp", "output_compression": "half"},
        [IMAGE],
        (400, "invalid_type", "output_compression"),
    ),
    "unknown field": ({"sise": "1x1"}, [IMAGE], (400, "unknown_parameter", "sise")),
    "unknown file": (
        {},
        [IMAGE, ("photo", ("p.png", png(), "image/png"))],
        (400, "unknown_parameter", "photo"),
    ),
    "prompt as file": (
        {},
        [IMAGE, ("prompt", ("p.txt", b"a red fox", "text/plain"))],
        (400, "unknown_parameter", "prompt"),
    ),
    "image as text": ({"image": "a red fox"}, [], (400, "invalid_type", "image")),
    "mask as text": ({"mask": "a red fox"}, [IMAGE], (400, "invalid_type", "mask")),
    "two masks": (
        {},
        [IMAGE, *[("mask", ("m.png", file_bytes(mask(64, 64, (0, 0, 9, 9))), "image/png"))] * 2],
        (400, "invalid_value", "mask"),
    ),
}


async def test_form_fields_of_a_wrong_name_or_type_are_refused(served: Served, stub: Stub) -> None:
    found = {}
    async with served.http(await served.key()) as http:
        for name, (fields, files, _) in FORMS.items():
            # An empty file list would make httpx send no multipart form.
            parts: Any = [*files, *((key, (None, value)) for key, value in fields.items())]
            parts += [(key, (None, value)) for key, value in FIELDS.items()]
            found[name] = told(await http.post(PATH, files=parts))
    assert found == {name: expected for name, (_, _, expected) in FORMS.items()}
    await expect_nothing_bought(served, stub)


def gif() -> bytes:
    return file_bytes(photo(), "GIF")


def animated(image_format: str) -> bytes:
    frames = [photo(turn=turn) for turn in range(3)]
    return file_bytes(frames[0], image_format, save_all=True, append_images=frames[1:])


IMAGES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "unsupported_file_mimetype"),
    "text": (b"a red fox", "unsupported_file_mimetype"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_file_mimetype"),
    "gif": (gif(), "unsupported_file_mimetype"),
    "bmp": (file_bytes(photo(), "BMP"), "unsupported_file_mimetype"),
    "tiff": (file_bytes(photo(), "TIFF"), "unsupported_file_mimetype"),
    "half a png": (png()[: len(png()) // 2], "invalid_image_file"),
    "half a jpeg": (file_bytes(photo(), "JPEG")[:400], "invalid_image_file"),
    "half a webp": (file_bytes(photo(), "WEBP", lossless=True)[:200], "invalid_image_file"),
    "a png's beginning": (b"\x89PNG\r\n\x1a\n" + bytes(200), "invalid_image_file"),
    "an animated png": (animated("PNG"), "invalid_image_file"),
    "an animated webp": (animated("WEBP"), "invalid_image_file"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", IMAGES)
async def test_a_file_that_is_no_supported_image_is_refused(
    unchanged: Served, unused_stub: Stub, name: str
) -> None:
    content, code = IMAGES[name]
    found = []
    async with unchanged.http(await unchanged.key()) as http:
        for declared in ("image/png", "application/octet-stream"):
            files: Files = [("image[]", ("i.png", content, declared)), ("image[]", IMAGE[1])]
            found.append(told(await http.post(PATH, data=FIELDS, files=files)))
        link = {"image_url": data_url(content or b"\n")}
        found.append(told(await http.post(PATH, json={**FIELDS, "images": [link]})))
    assert found == [(400, code, "image")] * 3
    await expect_nothing_bought(unchanged, unused_stub)


async def test_masks_that_do_not_fit_are_refused(served: Served, stub: Stub) -> None:
    area = (0, 0, 8, 8)
    masks = {
        "no alpha": png(),
        "jpeg": file_bytes(photo(), "JPEG"),
        "webp": file_bytes(mask(64, 64, area), "WEBP"),
        "text": b"a red fox",
        "four megabytes": padded_png(file_bytes(mask(64, 64, area)), 4 * MEGABYTE),
        "size": file_bytes(mask(64, 48, area)),
        "turned": file_bytes(mask(48, 64, area)),
    }
    found = {}
    async with served.openai(await served.key()) as client:
        for name, content in masks.items():
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.edit(
                    model=GPT2, image=[png(), png(64, 48)], mask=content, prompt="a red fox"
                )
            found[name] = caught.value.code
            assert caught.value.param == "mask"
    fits = {"size": "invalid_mask_image_size", "turned": "invalid_mask_image_size"}
    assert found == dict.fromkeys(masks, "invalid_mask_image_format") | fits
    await expect_nothing_bought(served, stub)


REFERENCES: dict[str, tuple[Any, str]] = {
    "a string": ("data:image/png;base64,", "images[0]"),
    "empty": ({}, "images[0]"),
    "two keys": ({"image_url": data_url(png()), "file_id": "file-1"}, "images[0]"),
    "a file id": ({"file_id": "file-1"}, "images[0]"),
    "unknown key": ({"url": data_url(png())}, "images[0].image_url"),
    "no data": ({"image_url": "data:image/png;base64,"}, "images[0].image_url"),
    "number": ({"image_url": 1}, "images[0].image_url"),
    "no base64": ({"image_url": "data:image/png;base64,@@@@"}, "images[0].image_url"),
    "not encoded": ({"image_url": "data:image/png,abc"}, "images[0].image_url"),
}


async def test_references_that_lead_to_no_image_are_refused(served: Served, stub: Stub) -> None:
    found = {}
    async with served.http(await served.key()) as http:
        for name, (reference, _) in REFERENCES.items():
            response = await http.post(PATH, json={**FIELDS, "images": [reference]})
            status, _, param = told(response)
            found[name] = status, param
        odd = await http.post(PATH, json={**FIELDS, "images": {"image_url": data_url(png())}})
        assert told(odd) == (400, "invalid_type", "images")
        wrong_mask = {**FIELDS, "images": [{"image_url": data_url(png())}], "mask": "x"}
        assert told(await http.post(PATH, json=wrong_mask))[2] == "mask"
    assert found == {name: (400, param) for name, (_, param) in REFERENCES.items()}
    await expect_nothing_bought(served, stub)


@pytest.mark.parametrize("declares_length", [True, False])
async def test_a_body_that_is_too_large_is_not_read(
    settings: Settings, stub: Stub, *, declares_length: bool
) -> None:
    small = settings.model_copy(update={"max_upload_bytes": MEGABYTE})
    async with served_gateway(small) as served:
        request = httpx2.Request(
            "POST",
            "http://127.0.0.1",
            data=FIELDS,
            files=[("image", ("i.png", padded_png(png(), MEGABYTE), "image/png"))],
        )
        body = request.read()

        async def pieces() -> Any:
            for start in range(0, len(body), 65_536):
                yield body[start : start + 65_536]

        content: Any = body if declares_length else pieces()
        headers = {"Content-Type": request.headers["content-type"]}
        async with served.http(await served.key()) as http:
            response = await http.post(PATH, content=content, headers=headers)
        assert told(response) == (413, "payload_too_large", None)
        await expect_nothing_bought(served, stub)
        await served.check_invariants()


async def test_an_image_of_fifty_megabytes_is_too_large(served: Served, stub: Stub) -> None:
    async with served.openai(await served.key()) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.images.edit(
                model=GPT2, image=padded_png(png(), 50 * MEGABYTE), prompt="a red fox"
            )
    assert (caught.value.status_code, caught.value.code) == (413, "payload_too_large")
    await expect_nothing_bought(served, stub)


async def test_an_image_of_too_many_pixels_is_refused_however_small_its_file(
    served: Served, stub: Stub
) -> None:
    bomb = file_bytes(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    async with served.openai(await served.key()) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.edit(model=GPT2, image=bomb, prompt="a red fox")
    assert (caught.value.code, caught.value.param) == ("invalid_image_file", "image")
    await expect_nothing_bought(served, stub)


async def test_other_kinds_of_bodies_are_refused(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        answers = [
            await http.post(PATH, content=png(), headers={"Content-Type": "image/png"}),
            await http.post(PATH, data=FIELDS),
            await http.post(PATH, content=b"{", headers={"Content-Type": "application/json"}),
            await http.post(PATH, content=b"[]", headers={"Content-Type": "application/json"}),
            await http.post(
                PATH, content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=y"}
            ),
            await http.post(PATH, content=b"--x", headers={"Content-Type": "multipart/form-data"}),
            await http.post(PATH, files=[IMAGE], headers={"Content-Encoding": "gzip"}, data=FIELDS),
        ]
    assert {answer.status_code for answer in answers} == {400}
    assert all(error_of(answer)["type"] == "invalid_request_error" for answer in answers)
    await expect_nothing_bought(served, stub)


async def test_a_key_that_may_not_make_images_may_not_edit_them(served: Served, stub: Stub) -> None:
    reader = await served.key(scopes=[Scope.IMAGES_READ])
    async with served.openai(reader) as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.images.edit(model=GPT2, image=png(), prompt="a red fox")
    assert caught.value.code == "insufficient_scope"
    await expect_nothing_bought(served, stub)


async def test_an_edit_beyond_its_budget_is_a_402(served: Served, stub: Stub) -> None:
    await served.budget("0.0001")
    async with served.openai(await served.key()) as client:
        for call in (
            client.images.edit(model=GPT2, image=png(), prompt="a red fox"),
            client.images.create_variation(image=png()),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                await call
            assert (caught.value.status_code, caught.value.code) == (402, "budget_exceeded")
    await expect_nothing_bought(served, stub)
