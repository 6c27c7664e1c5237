"""Bodies that carry images: bounded, parsed without a trace, and removed when interrupted."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image

from tests.harness import Served, error_of, make_settings, secret_of, served_gateway
from tests.money_helpers import eventually
from tests.stub_openai import Stub

EDITS = "/v1/images/edits"
FIELDS = {"model": "gpt-image-2", "prompt": "add a kite", "size": "1024x1024", "quality": "low"}


def png(width: int = 64) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, width), "teal").save(out, "PNG")
    return out.getvalue()


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def nameless_files() -> int:
    """Temporary files without a name that this process holds open."""
    held = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            held += str(entry.readlink()).endswith("(deleted)")
        except FileNotFoundError:
            continue
    return held


async def until_nameless_files(wanted: Callable[[int], bool]) -> None:
    async def reached() -> bool:
        return wanted(await asyncio.to_thread(nameless_files))

    await eventually(reached)


async def upload_in_part(served: Served, key: str, *, announced: int) -> asyncio.StreamWriter:
    """Begin a multipart upload and send less than was announced."""
    address = urlsplit(served.base_url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    await begin_upload(writer, key, announced=announced)
    return writer


async def begin_upload(writer: asyncio.StreamWriter, key: str, *, announced: int) -> None:
    head = (
        f"POST {EDITS} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {announced}\r\n\r\n"
        '--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    )
    writer.write(head.encode() + b"\x89PNG" + bytes(200_000))
    await writer.drain()


async def test_an_upload_that_breaks_off_leaves_no_file_no_hold_and_no_call(
    served: Served, stub: Stub
) -> None:
    key = secret_of(await served.key())
    before = nameless_files()
    writers = [await upload_in_part(served, key, announced=1_000_000) for _ in range(5)]
    await until_nameless_files(lambda count: count >= before + 5)
    for writer in writers:
        writer.close()
    await until_nameless_files(lambda count: count == before)
    assert stub.calls == []
    assert await served.owner_sql("SELECT 1 FROM reservation") == []


async def test_no_file_is_left_after_an_edit_or_a_refusal(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        await http.post(EDITS, data=FIELDS, files={"image": png()})
        before = nameless_files()
        made = await http.post(EDITS, data=FIELDS, files={"image": png(), "mask": png()})
        broken = await http.post(EDITS, data=FIELDS, files={"image": png()[:-20]})
        good = await http.post(EDITS, data=FIELDS, files=[("image[]", png()), ("image[]", png())])
    assert [made.status_code, broken.status_code, good.status_code] == [400, 400, 200]
    assert nameless_files() == before
    assert len(stub.calls) == 2


async def test_a_body_beyond_the_limit_is_refused_however_it_comes(
    database: str, stub: Stub, tmp_path: Path
) -> None:
    settings = make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        max_upload_bytes=100_000,
        max_json_upload_bytes=50_000,
    )
    big = bytes(120_000)

    async def chunks() -> Any:
        yield b"--b\r\ncontent-disposition: form-data; name=image; filename=a\r\n\r\n"
        for _ in range(12):
            yield bytes(10_000)

    async with (
        served_gateway(settings) as served,
        served.http(await served.key()) as http,
    ):
        form = {"content-type": "multipart/form-data; boundary=b"}
        as_json = {"content-type": "application/json"}
        answers = [
            await http.post(EDITS, data=FIELDS, files={"image": big}),
            await http.post(EDITS, content=chunks(), headers=form),
            await http.post(EDITS, content=chunks(), headers=as_json),
        ]
    for answer in answers:
        assert (answer.status_code, error_of(answer)["code"]) == (413, "payload_too_large")
    assert stub.calls == []


async def test_more_uploads_than_allowed_at_once_are_put_off(
    database: str, stub: Stub, tmp_path: Path
) -> None:
    settings = make_settings(
        database, tmp_path, OPENAI_BASE_URL=stub.base_url, max_concurrent_uploads=1
    )
    async with served_gateway(settings) as served, served.http(key := await served.key()) as http:
        before = nameless_files()
        writer = await upload_in_part(served, secret_of(key), announced=1_000_000)
        await until_nameless_files(lambda count: count > before)
        refused = await http.post(EDITS, data=FIELDS, files={"image": png()})
        writer.close()
        await until_nameless_files(lambda count: count == before)
        accepted = await http.post(EDITS, data=FIELDS, files={"image": png()})
    assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert accepted.status_code == 200


async def test_one_tenant_leaves_places_to_the_others(
    database: str, stub: Stub, tmp_path: Path
) -> None:
    settings = make_settings(
        database, tmp_path, OPENAI_BASE_URL=stub.base_url, max_concurrent_uploads=2
    )
    async with served_gateway(settings) as served:
        key = await served.key()
        other = await served.key(tenant_id=await served.tenant("other"))
        before = nameless_files()
        writer = await upload_in_part(served, secret_of(key), announced=1_000_000)
        await until_nameless_files(lambda count: count > before)
        async with served.http(key) as http, served.http(other) as others:
            refused = await http.post(EDITS, data=FIELDS, files={"image": png()})
            accepted = await others.post(EDITS, data=FIELDS, files={"image": png()})
        writer.close()
    assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
    assert accepted.status_code == 200


async def test_an_upload_that_takes_too_long_is_given_up(
    database: str, stub: Stub, tmp_path: Path
) -> None:
    settings = make_settings(database, tmp_path, OPENAI_BASE_URL=stub.base_url, upload_seconds=0.2)
    async with served_gateway(settings) as served:
        before = nameless_files()
        address = urlsplit(served.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        await begin_upload(writer, secret_of(await served.key()), announced=1_000_000)
        status = await reader.readline()
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
    assert b" 400 " in status
    assert json.loads(body)["error"]["code"] == "upload_too_slow"
    assert nameless_files() <= before


async def test_a_json_body_that_takes_too_long_is_given_up(
    database: str, stub: Stub, tmp_path: Path
) -> None:
    settings = make_settings(database, tmp_path, OPENAI_BASE_URL=stub.base_url, upload_seconds=0.2)
    async with served_gateway(settings) as served:
        address = urlsplit(served.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            "POST /v1/images/generations HTTP/1.1\r\nhost: gateway\r\n"
            f"authorization: Bearer {secret_of(await served.key())}\r\n"
            'content-type: application/json\r\ncontent-length: 100\r\n\r\n{"prompt":'.encode()
        )
        status = await reader.readline()
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
    assert b" 400 " in status
    assert json.loads(body)["error"]["code"] == "upload_too_slow"


async def test_nothing_is_fetched_for_a_request_that_is_wrong_in_itself(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for change in ({"model": "nope"}, {"prompt": ""}, {"sise": "1x1"}, {"n": 11}):
            link = {"image_url": "https://127.0.0.1/a.png"}
            response = await http.post(EDITS, json={**FIELDS, **change, "images": [link]})
            assert error_of(response)["code"] != "invalid_image_url", change


IMAGE = {"image_url": data_url(png())}
JSON_REFUSALS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "none": ({"images": []}, "missing_required_parameter", "image"),
    "no list": ({"images": {"image_url": "data:,"}}, "invalid_type", "images"),
    "no object": ({"images": ["data:,"]}, "invalid_type", "images[0]"),
    "two keys": ({"images": [{**IMAGE, "file_id": "f"}]}, "invalid_type", "images[0]"),
    "a file": ({"images": [{"file_id": "f"}]}, "unsupported_parameter", "images[0]"),
    "no text": ({"images": [{"image_url": 3}]}, "invalid_type", "images[0].image_url"),
    "no base64": (
        {"images": [IMAGE, {"image_url": "data:image/png;base64,***"}]},
        "invalid_base64",
        "images[1].image_url",
    ),
    "no image": (
        {"images": [{"image_url": data_url(b"<svg/>")}]},
        "unsupported_file_mimetype",
        "image",
    ),
    "too long": (
        {"images": [{"image_url": "data:image/png;base64," + "A" * 20_971_520}]},
        "string_above_max_length",
        "images[0].image_url",
    ),
    "seventeen": ({"images": [IMAGE] * 17}, "array_above_max_length", "image"),
    "thousand": ({"images": [IMAGE] * 1000}, "array_above_max_length", "images"),
    "plain http": (
        {"images": [{"image_url": "http://a.example/a.png"}]},
        "invalid_image_url",
        None,
    ),
    "inside": ({"images": [{"image_url": "https://127.0.0.1/a.png"}]}, "invalid_image_url", None),
    "metadata": (
        {"images": [{"image_url": "https://169.254.169.254/latest"}]},
        "invalid_image_url",
        None,
    ),
    "a mask that is none": ({"images": [IMAGE], "mask": "x"}, "invalid_type", "mask"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", JSON_REFUSALS)
async def test_wrong_images_in_json_are_refused_by_name(
    unchanged: Served, unused_stub: Stub, name: str
) -> None:
    body, code, param = JSON_REFUSALS[name]
    async with unchanged.http(await unchanged.key()) as http:
        response = await http.post(EDITS, json={**FIELDS, **body})
    assert (response.status_code, error_of(response)["code"]) == (400, code)
    assert param is None or error_of(response)["param"] == param
    assert unused_stub.calls == []
    assert await unchanged.owner_sql("SELECT 1 FROM reservation") == []


BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}
FORM_REFUSALS: dict[str, tuple[bytes, dict[str, str], str]] = {
    "no boundary": (b"x", {"content-type": "multipart/form-data"}, "invalid_form"),
    "garbage": (b"\x00garbage", BOUNDARY, "invalid_form"),
    "no name": (b"--b\r\ncontent-type: a/b\r\n\r\nx\r\n--b--\r\n", BOUNDARY, "invalid_form"),
    "text for a file": (
        b'--b\r\ncontent-disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n',
        BOUNDARY,
        "invalid_type",
    ),
    "empty": (b"", BOUNDARY, "missing_required_parameter"),
    "no type": (b"x", {"content-type": "text/plain"}, "unsupported_content_type"),
    "compressed": (b"x", {**BOUNDARY, "content-encoding": "gzip"}, "unsupported_content_encoding"),
    "no json": (b"{", {"content-type": "application/json"}, "invalid_json"),
    "a list": (b"[]", {"content-type": "application/json"}, "invalid_json"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", FORM_REFUSALS)
async def test_a_body_that_cannot_be_read_is_refused(
    unchanged: Served, unused_stub: Stub, name: str
) -> None:
    content, headers, code = FORM_REFUSALS[name]
    async with unchanged.http(await unchanged.key()) as http:
        response = await http.post(EDITS, content=content, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (400, code)
    assert unused_stub.calls == []


async def test_images_keep_their_order_and_json_edits_reach_the_provider(
    served: Served, stub: Stub
) -> None:
    stub.configure(keep_files=True)
    body = {**FIELDS, "images": [{"image_url": data_url(png(width))} for width in (64, 96, 128)]}
    async with served.http(await served.key()) as http:
        response = await http.post(EDITS, json=body)
    assert response.status_code == 200, response.text
    assert [Image.open(io.BytesIO(data)).width for data in stub.files[0]] == [64, 96, 128]


async def test_the_simple_form_answers_with_links_alone(served: Served, stub: Stub) -> None:
    params = {"size": "1024x1024", "quality": "low", "model": "gpt-image-2"}
    async with served.http(await served.key()) as http:
        made = await http.post(
            "/generate_image", json={"prompt": "x", "params": {**params, "n": 2}}
        )
        edited = await http.post(
            "/edit_image",
            data={"prompt": "x", "params": json.dumps(params)},
            files={"image_file": png(), "mask_file": mask()},
        )
        links = [*made.json()["image_urls"], *edited.json()["image_urls"]]
        public_url = served.gateway.settings.public_url
        images = [await http.get(link.removeprefix(public_url)) for link in links]
    assert [set(made.json()), set(edited.json())] == [{"image_urls"}, {"image_urls"}]
    assert [Image.open(io.BytesIO(p.content)).size for p in images] == [(1024, 1024)] * 3
    assert made.headers["x-gateway-cost-status"] == "actual"
    assert [call.path for call in stub.calls] == ["/v1/images/generations", EDITS]


def mask() -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(out, "PNG")
    return out.getvalue()


async def test_the_simple_form_refuses_what_it_does_not_know(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:

        async def refusal(path: str, **options: Any) -> tuple[str, str | None]:
            error = error_of(await http.post(path, **options))
            return error["code"], error["param"]

        found = [
            await refusal("/generate_image", json={"prompt": "x", "size": "1024x1024"}),
            await refusal("/generate_image", json={"prompt": "x", "params": [1]}),
            await refusal("/generate_image", json={"prompt": "x", "params": {"stream": True}}),
            await refusal("/generate_image", json={"params": {}}),
            await refusal("/edit_image", data={"prompt": "x"}, files={"image": png()}),
            await refusal("/edit_image", data={"prompt": "x"}, files={"mask_file": png()}),
            await refusal(
                "/edit_image", data={"prompt": "x", "params": "{"}, files={"image_file": png()}
            ),
        ]
    assert found == [
        ("unknown_parameter", "size"),
        ("invalid_type", "params"),
        ("unknown_parameter", "params.stream"),
        ("missing_required_parameter", "prompt"),
        ("unknown_parameter", "image"),
        ("missing_required_parameter", "image"),
        ("invalid_type", "params"),
    ]
    assert stub.calls == []


async def test_edits_need_the_scope_to_make_images(served: Served) -> None:
    reading = await served.key(scopes=["images:read"])
    async with served.http(reading) as http:
        answers = [
            await http.post(path, data=FIELDS, files={"image": png()})
            for path in (EDITS, "/v1/images/variations", "/edit_image")
        ]
        answers.append(await http.post("/generate_image", json={"prompt": "x"}))
    for answer in answers:
        assert isinstance(answer, httpx2.Response)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope")
