"""Small bodies that are expensive to process take no memory, time or place from other requests."""

import asyncio
from typing import Any

import pytest

from tests.generation.test_uploads import (
    EDITS,
    FIELDS,
    nameless_files,
    until_nameless_files,
    upload_in_part,
)
from tests.harness import Served, error_of, make_settings, secret_of, served_gateway
from tests.image_helpers import file_bytes, mask, png
from tests.money_helpers import books
from tests.stub_openai import Stub

END = b"--b--\r\n"


def text(name: str, value: bytes) -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (
        name.encode(),
        value,
    )


def image_part(name: str, content: bytes) -> bytes:
    head = b'--b\r\ncontent-disposition: form-data; name="%b"; filename="a"\r\n\r\n' % name.encode()
    return head + content + b"\r\n"


FORM = b"".join(text(name, value.encode()) for name, value in FIELDS.items())


def typed(content: bytes, *, charset: str = "") -> dict[str, Any]:
    suffix = f"; charset={charset}" if charset else ""
    return {
        "content": content,
        "headers": {"content-type": f"multipart/form-data; boundary=b{suffix}"},
    }


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "utf-16", "x" * 1000])
async def test_a_form_in_another_charset_than_utf8_is_refused(
    served: Served, stub: Stub, charset: str
) -> None:
    """Python's punycode decoder takes half a minute for one long field and blocks all requests."""
    content = text("prompt", b"a-" + b"b" * 60_000) + image_part("image", png()) + END
    async with served.http(await served.key()) as http:
        answer = await http.post(EDITS, **typed(content, charset=charset))
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_form")
    assert stub.calls == []


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf8", '"utf-8"', "us-ascii"])
async def test_a_form_that_says_it_is_utf8_is_read(
    served: Served, stub: Stub, charset: str
) -> None:
    content = FORM + image_part("image", png()) + END
    async with served.http(await served.key(livemode=False)) as http:
        answer = await http.post(EDITS, **typed(content, charset=charset))
    assert answer.status_code == 200, answer.text


async def test_a_form_without_its_end_buys_nothing(served: Served, stub: Stub) -> None:
    """Its last part, such as a mask, could be missing without a sign of it."""
    whole = (
        FORM
        + image_part("image", png())
        + image_part("mask", file_bytes(mask(64, 64, (0, 0, 8, 8))))
    )
    async with served.http(await served.key()) as http:
        answers = [await http.post(EDITS, **typed(whole[: len(whole) - cut])) for cut in (0, 2, 90)]
    for answer in answers:
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_form")
    assert (stub.calls, await books(served)) == ([], [])


@pytest.mark.parametrize("part", [b"[],", b"{},", b"[[[]]],", b'{"a":1},'])
async def test_json_of_countless_parts_is_refused_before_it_is_taken_apart(
    served: Served, stub: Stub, part: bytes
) -> None:
    """Thirty megabytes of empty lists would take two gigabytes of memory."""
    content = b'{"prompt": "x", "images": [' + part * 100_001 + b"{}]}"
    async with served.http(await served.key()) as http:
        answer = await http.post(
            EDITS, content=content, headers={"content-type": "application/json"}
        )
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")
    assert stub.calls == []


async def test_uploads_of_one_tenant_that_never_end_leave_places_for_others(
    database: str, stub: Stub, tmp_path: Any
) -> None:
    settings = make_settings(
        database, tmp_path, OPENAI_BASE_URL=stub.base_url, max_concurrent_uploads=8
    )
    async with served_gateway(settings) as served:
        slow = await served.key(tenant_id=await served.tenant("slow"), livemode=False)
        before = nameless_files()
        writers = [
            await upload_in_part(served, secret_of(slow), announced=1_000_000) for _ in range(8)
        ]
        await until_nameless_files(lambda count: count >= before + 2)
        async with served.http(await served.key()) as http, served.http(slow) as same:
            answers = await asyncio.gather(
                http.post(EDITS, data=FIELDS, files={"image": png()}),
                same.post(EDITS, data=FIELDS, files={"image": png()}),
            )
        for writer in writers:
            writer.close()
        await until_nameless_files(lambda count: count <= before)
    assert [answer.status_code for answer in answers] == [200, 503]
