"""The stub of OpenAI's Images API, driven with OpenAI's own client: answers, bill, sockets."""

import asyncio
import base64
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import ImagesResponse

from tests.stub_openai import (
    BillLine,
    Fault,
    Stub,
)
from tests.stub_openai.driving import (  # noqa: F401 - fixtures are used by name
    KEY,
    MODEL,
    SMALL,
    client_fixture,
    generate,
    image_bytes,
    opened,
    png,
    stub_fixture,
)
from tests.stub_openai.usage import image_output_tokens, prompt_tokens

# Answers


@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", ["1024x1024", "1536x1024", "816x816", "3840x2160"])
async def test_images_have_the_size_and_format_asked_for(
    client: AsyncOpenAI, fmt: str, size: str
) -> None:
    response = await generate(client, size=size, output_format=fmt)
    image = opened(response)
    assert (f"{image.width}x{image.height}", image.format) == (size, fmt.upper())
    assert (response.size, response.output_format, response.quality) == (size, fmt, "low")


async def test_several_images_are_several_images(client: AsyncOpenAI) -> None:
    response = await generate(client, n=3)
    assert response.data is not None
    assert len({image.b64_json for image in response.data}) == 3


async def test_a_transparent_background_is_transparent(client: AsyncOpenAI) -> None:
    response = await generate(client, background="transparent")
    assert response.background == "transparent"
    assert opened(response).getpixel((0, 0))[-1] == 0  # type: ignore[index]


async def test_the_answer_repeats_the_safety_identifier_and_falls_back_to_user(
    client: AsyncOpenAI,
) -> None:
    named = await generate(client, safety_identifier="abc", user="old")
    fallback = await generate(client, user="old")
    neither = await generate(client)
    found = [named.safety_identifier, fallback.safety_identifier, neither.safety_identifier]
    assert found == ["abc", "old", None]


async def test_the_usage_in_the_answer_is_the_usage_on_the_bill(
    stub: Stub, client: AsyncOpenAI
) -> None:
    usage = (await generate(client, n=2)).usage
    assert usage is not None
    assert usage.output_tokens_details is not None
    (line,) = stub.bill
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == line.input_text_tokens
    assert usage.output_tokens_details.image_tokens == usage.output_tokens == line.output_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_answers_carry_openais_headers_and_the_billed_request_id(
    stub: Stub, client: AsyncOpenAI
) -> None:
    raw = await client.images.with_raw_response.generate(prompt="a cat", extra_body=SMALL)
    assert raw.headers["openai-version"] == "2020-10-01"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["x-request-id"].startswith("req_")
    assert stub.bill[0].request_id == raw.request_id == raw.headers["x-request-id"]


@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp"])
async def test_images_can_be_padded_to_a_least_length_and_stay_valid(
    stub: Stub, client: AsyncOpenAI, fmt: str
) -> None:
    stub.configure(min_b64_bytes=2_000_000)
    response = await generate(client, output_format=fmt, background="opaque")
    assert response.data is not None
    text = response.data[0].b64_json
    assert text is not None
    assert 2_000_000 <= len(text) <= 2_100_000
    assert opened(response).size == (1024, 1024)


async def test_auto_is_decided_by_seed_and_prompt_and_never_above_high(
    stub: Stub, client: AsyncOpenAI
) -> None:
    prompts = [f"prompt {number}" for number in range(40)]

    async def decide() -> list[tuple[str, str]]:
        await stub.reset()
        for prompt in prompts:
            await generate(client, prompt, size="auto", quality=None)
        return [(line.size, line.quality) for line in stub.bill]

    first = await decide()
    assert first == await decide()
    assert {size for size, _ in first} == {"1024x1024", "1536x1024", "1024x1536"}
    assert {quality for _, quality in first} == {"low", "medium", "high"}
    stub.configure(seed=2)
    assert first != await decide()


# Money: figures below are published ones, or worked out by hand from them.

TABLE = {
    # model, quality: tokens at 1024x1024, 1536x1024, 2048x2048, 2560x1440, 3840x2160
    ("gpt-image-2", "low"): (196, 158, 397, 205, 371),
    ("gpt-image-2", "medium"): (1756, 1372, 3568, 1843, 3336),
    ("gpt-image-2", "high"): (7024, 5488, 14272, 7370, 13342),
    ("gpt-image-2.5", "low"): (196, 158, 397, 205, 371),
    ("gpt-image-2.5", "medium"): (439, 343, 892, 478, 865),
    ("gpt-image-2.5", "high"): (1756, 1372, 3568, 1843, 3336),
    ("gpt-image-2.5", "xhigh"): (3122, 2459, 6343, 3276, 5930),
    ("gpt-image-2.5", "max"): (7024, 5488, 14272, 7370, 13342),
    # ceil(4.2 x) and 4 x the tokens of 2.5; high as 2.5
    ("gpt-image-2.6", "low"): (824, 664, 1668, 861, 1559),
    ("gpt-image-2.6", "medium"): (1756, 1372, 3568, 1912, 3460),
    ("gpt-image-2.6", "high"): (1756, 1372, 3568, 1843, 3336),
}
SIZES = ((1024, 1024), (1536, 1024), (2048, 2048), (2560, 1440), (3840, 2160))


@pytest.mark.parametrize(("family", "quality"), list(TABLE))
async def test_output_tokens_are_those_of_the_published_table(family: str, quality: str) -> None:
    found = tuple(image_output_tokens(family, quality, *size) for size in SIZES)
    assert found == TABLE[family, quality]


@pytest.mark.parametrize(
    ("case", "output_tokens", "cost_nano_usd"),
    [
        # "a cat" is 5 bytes: ceil(5 / 4) + 7 = 9 text tokens, at $5 per million 45,000 nano-USD.
        (("gpt-image-2", "1024x1024", "high", 1), 7024, 210_720_000 + 45_000),
        (("gpt-image-2.5-sunburst", "1536x1024", "medium", 1), 343, 10_290_000 + 45_000),
        (("gpt-image-2.5-flare", "3840x2160", "max", 2), 26_684, 800_520_000 + 45_000),
        (("gpt-image-2.6-flare", "1536x1024", "low", 1), 664, 19_920_000 + 45_000),
        (("gpt-image-2-2026-04-21", "2048x2048", "low", 10), 3970, 119_100_000 + 45_000),
        (("gpt-image-1.5", "1024x1536", "high", 1), 6240, 199_680_000 + 45_000),
        (("gpt-image-1-mini", "1536x1024", "medium", 1), 1568, 12_544_000 + 18_000),
    ],
)
async def test_a_bill_line_equals_the_hand_worked_one(
    stub: Stub,
    client: AsyncOpenAI,
    case: tuple[str, str, str, int],
    output_tokens: int,
    cost_nano_usd: int,
) -> None:
    model, size, quality, n = case
    await generate(client, model=model, size=size, quality=quality, n=n)
    (line,) = stub.bill
    assert line == BillLine(
        seq=1,
        time=line.time,
        key=KEY,
        model=model,
        endpoint="generations",
        n=n,
        size=size,
        quality=quality,
        input_text_tokens=9,
        input_image_tokens=0,
        output_tokens=output_tokens,
        output_text_tokens=0,
        cost_nano_usd=cost_nano_usd,
        request_id=line.request_id,
        prompt="a cat",
        delivered=True,
    )


async def test_text_tokens_never_exceed_the_bytes_of_the_prompt_plus_ten() -> None:
    prompts = ["x", "ab", "кіт", "猫" * 1000, "a" * 32_000]
    assert all(0 < prompt_tokens(text) <= len(text.encode()) + 10 for text in prompts)


async def test_text_output_is_billed_where_the_model_has_a_price_for_it(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stub.configure(output_text_tokens=50)
    await generate(client, model="gpt-image-1.5")
    await generate(client, model="gpt-image-2")
    with_text, without = stub.bill
    assert (with_text.output_tokens, with_text.output_text_tokens) == (322, 50)
    assert with_text.cost_nano_usd == 45_000 + 272 * 32_000 + 50 * 10_000
    assert (without.output_tokens, without.output_text_tokens) == (196, 0)


# Edits


async def test_an_edit_bills_its_input_images(stub: Stub, client: AsyncOpenAI) -> None:
    response = await client.images.edit(
        image=png(1024, 1024), prompt="a cat", model=MODEL, size="1024x1024", quality="low"
    )
    (line,) = stub.bill
    assert (line.endpoint, line.input_image_tokens) == ("edits", 1033)
    assert line.cost_nano_usd == 45_000 + 1033 * 8_000 + 196 * 30_000
    assert response.usage is not None
    assert response.usage.input_tokens_details.image_tokens == 1033


async def test_several_images_and_a_mask_are_taken_and_recorded(
    stub: Stub, client: AsyncOpenAI
) -> None:
    await client.images.edit(
        image=[png(), png(32, 32)],
        mask=png(64, 64, "RGBA"),
        prompt="a cat",
        model=MODEL,
        size="1024x1024",
        quality="low",
        n=2,
    )
    assert stub.bill[0].input_image_tokens == (2 * 2 + 9) + (1 + 9)
    (call,) = stub.calls
    assert [name for name, _, _ in call.files] == ["image[]", "image[]", "mask"]
    assert call.form is not None
    assert call.form["n"] == "2"


async def test_an_edit_may_come_as_json_with_data_urls_and_file_ids(
    stub: Stub, client: AsyncOpenAI
) -> None:
    url = "data:image/png;base64," + base64.b64encode(image_bytes(64, 64)).decode()
    images = [{"image_url": url}, {"file_id": "file-1"}, {"image_url": "https://host.test/a.png"}]
    body = {**SMALL, "prompt": "a cat", "images": images}
    response = await client.post("/images/edits", body=body, cast_to=ImagesResponse)
    assert opened(response).size == (1024, 1024)
    assert stub.bill[0].input_image_tokens == 13 + 1033 + 1033


@pytest.mark.parametrize(
    "images",
    [
        None,
        [],
        [{"file_id": "f"}] * 17,
        ["text"],
        [{"file_id": "f", "image_url": "data:,"}],
        [{"image_url": "data:image/png;base64,AAAA"}],
    ],
)
async def test_a_json_edit_with_wrong_images_is_refused(
    stub: Stub, client: AsyncOpenAI, images: object
) -> None:
    body = {**SMALL, "prompt": "a cat", "images": images}
    with pytest.raises(openai.BadRequestError):
        await client.post("/images/edits", body=body, cast_to=ImagesResponse)
    assert stub.bill == []


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([("mask", png(64, 64, "RGBA"))], "missing_required_parameter"),
        ([("image[]", png())] * 17, "array_above_max_length"),
        ([("image", ("a.png", b"no image", "image/png"))], "invalid_image_file"),
        (
            [("image", ("upload", image_bytes(8, 8), "application/octet-stream"))],
            "unsupported_file_mimetype",
        ),
        ([("image", (None, b"text", "text/plain"))], "invalid_type"),
        ([("image", png()), ("mask", png())], "invalid_mask_image_format"),
        ([("image", png()), ("mask", png(32, 32, "RGBA"))], "invalid_mask_image_size"),
        (
            [("image", png()), ("mask", png(64, 64, "RGBA")), ("markup", png(64, 64, "RGBA"))],
            "invalid_value",
        ),
        ([("image", png()), ("other", png())], "unknown_parameter"),
    ],
)
async def test_an_edit_with_wrong_files_is_refused(
    stub: Stub, files: list[tuple[str, tuple[str | None, bytes, str]]], code: str
) -> None:
    fields = {**SMALL, "prompt": "a cat"}
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(headers=headers) as plain:
        answer = await plain.post(f"{stub.base_url}/images/edits", data=fields, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert stub.bill == []


async def test_a_bare_octet_stream_upload_is_refused_as_openai_does(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.edit(image=image_bytes(8, 8), prompt="a cat", model=MODEL)
    assert caught.value.code == "unsupported_file_mimetype"


# Streams


async def test_a_stream_sends_partial_images_then_the_whole_and_bills_them(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stream = await client.images.generate(
        prompt="a cat",
        model="gpt-image-2",
        size="1024x1024",
        quality="low",
        stream=True,
        partial_images=2,
    )
    events = [event async for event in stream]
    partial = "image_generation.partial_image"
    assert [event.type for event in events] == [partial, partial, "image_generation.completed"]
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, None]
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens == stub.bill[0].output_tokens == 196 + 2 * 100


async def test_a_streamed_edit_uses_the_names_of_edits(client: AsyncOpenAI) -> None:
    stream = await client.images.edit(
        image=png(), prompt="a cat", model=MODEL, stream=True, partial_images=1
    )
    names = [event.type async for event in stream]
    assert names == ["image_edit.partial_image", "image_edit.completed"]


async def test_partial_images_without_a_stream_cost_nothing(
    stub: Stub, client: AsyncOpenAI
) -> None:
    await generate(client, partial_images=3)
    assert stub.bill[0].output_tokens == 196


async def test_a_stream_can_fail_in_the_middle(stub: Stub, client: AsyncOpenAI) -> None:
    stub.faults.add(Fault("stream_error"))
    stream = await client.images.generate(
        prompt="a cat", model=MODEL, stream=True, partial_images=1
    )
    events = aiter(stream)
    assert (await anext(events)).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError):
        await anext(events)
    assert stub.bill == []


# The socket


async def test_a_chunked_body_and_a_reused_connection_work(stub: Stub) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in b'{"prompt":"a cat","model":"gpt-image-2","size":"1024x1024","quality":"low"}':
            yield bytes([byte])

    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    async with httpx2.AsyncClient(headers=headers, base_url=stub.base_url) as plain:
        for _ in range(3):
            answer = await plain.post("/images/generations", content=chunks())
            assert answer.status_code == 200
    assert [line.output_tokens for line in stub.bill] == [196, 196, 196]


async def test_pipelined_requests_are_answered_in_order(stub: Stub) -> None:
    stub.faults.add(Fault(path_contains="/v1/models/gpt-image-2", hold=True))
    reader, writer = await asyncio.open_connection(stub.host, stub.port)
    for name in ("gpt-image-2", "gpt-image-1.5"):
        head = f"GET /v1/models/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n"
        writer.write(head.encode())
    await stub.until_held(1)
    stub.release()
    first = await reader.readuntil(b"}")
    second = await reader.readuntil(b"}")
    assert b'"gpt-image-2"' in first
    assert b'"gpt-image-1.5"' in second
    writer.close()
