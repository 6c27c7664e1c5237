"""The official OpenAI and MCP clients, with live and test keys: images, errors, and the books."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import openai
import pytest
from mcp.types import CallToolResult
from openai.types import ImagesResponse
from PIL import Image

from gateway.config import Settings
from gateway.domain import Scope
from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from gateway.vault import key_format
from tests.harness import GPT2, Served, secret_of, served_gateway
from tests.image_helpers import answer_images, download, expect_books_to_agree
from tests.stub_openai import Fault, Stub

SIZES = {"png": "1024x1024", "jpeg": "1536x1024", "webp": "1024x1536"}
MODES = ["2026-07-28", "legacy"]


@pytest.mark.parametrize("livemode", [True, False])
async def test_the_async_client_gets_every_format_as_bytes_and_as_links(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    async with served.openai(key) as client:

        async def make(output_format: Any, response_format: Any) -> tuple[str | None, object]:
            answer = await client.images.generate(
                model=GPT2,
                prompt="a red circle",
                quality="low",
                size=SIZES[output_format],
                output_format=output_format,
                response_format=response_format,
            )
            assert (answer.size, answer.output_format) == (SIZES[output_format], output_format)
            [image] = await answer_images(served, answer)
            return image.format, image.size

        made = await asyncio.gather(
            *(make(fmt, answer) for fmt in SIZES for answer in ("url", "b64_json"))
        )
    assert made == [
        *[("PNG", (1024, 1024))] * 2,
        *[("JPEG", (1536, 1024))] * 2,
        *[("WEBP", (1024, 1536))] * 2,
    ]
    await expect_books_to_agree(served, stub, key, images=6)


@pytest.mark.parametrize("livemode", [True, False])
async def test_the_sync_client_gets_two_different_transparent_images(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)

    def make() -> ImagesResponse:
        with openai.OpenAI(api_key=secret_of(key), base_url=f"{served.base_url}/v1") as client:
            return client.images.generate(
                model="gpt-image-2.5-flare",
                prompt="a sticker of a fox",
                n=2,
                size="1024x1024",
                quality="low",
                background="transparent",
            )

    answer = await asyncio.to_thread(make)
    found = await answer_images(served, answer)
    assert [(image.format, image.size) for image in found] == [("PNG", (1024, 1024))] * 2
    assert all(image.getchannel("A").getextrema()[0] == 0 for image in found)
    assert found[0].tobytes() != found[1].tobytes()
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    await expect_books_to_agree(served, stub, key, images=2)


@pytest.mark.parametrize("livemode", [True, False])
@pytest.mark.parametrize("mode", MODES)
async def test_the_mcp_client_makes_an_image_in_both_eras(
    served: Served, stub: Stub, mode: str, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    async with served.mcp(key, mode) as client:
        result = await client.call_tool(
            "generate_image",
            {
                "prompt": "a lighthouse",
                "model": GPT2,
                "quality": "low",
                "size": "1536x1024",
                "output_format": "webp",
            },
        )
    assert isinstance(result, CallToolResult)
    assert not result.is_error
    made = result.structured_content
    assert made is not None
    image = Image.open(io.BytesIO(await download(served, made["url"])))
    assert (image.format, image.size) == ("WEBP", (1536, 1024))
    assert made["cost_usd"] == format_usd(await served.ledger_total())
    await expect_books_to_agree(served, stub, key, images=1)


async def test_live_and_test_usage_are_kept_apart(served: Served, stub: Stub) -> None:
    live, test = await served.key(), await served.key(livemode=False)
    for key, count in ((live, 1), (test, 2)):
        async with served.openai(key) as client:
            await client.images.generate(model=GPT2, prompt="a circle", n=count, quality="low")
    reports = []
    for key in (live, test):
        async with served.http(key) as http:
            reports.append((await http.get("/v1/usage", params={"group_by": "key"})).json())
    assert [[row["key"] for row in report["data"]] for report in reports] == [
        [str(live.id)],
        [str(test.id)],
    ]
    assert [report["total"]["images"] for report in reports] == [1, 2]
    assert reports[0]["total"]["cost_usd"] == format_usd(stub.totals.cost_nano_usd)


Refused = Callable[[openai.AsyncOpenAI], Any]


def generate(**changes: Any) -> Refused:
    """One call for an image, with what makes it fail."""
    arguments: dict[str, Any] = {"model": GPT2, "prompt": "a red circle", **changes}
    return lambda client: client.images.generate(**arguments)


async def refusal_of(served: Served, key: IssuedKey | str, call: Refused) -> openai.APIStatusError:
    """The exception that the client raises."""
    async with served.openai(key) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await call(client)
    return caught.value


def said(error: openai.APIStatusError) -> tuple[type, int, str | None, str | None]:
    """The fields of an error that an application reads."""
    return type(error), error.status_code, error.code, error.param


async def test_refused_keys_raise_the_clients_own_classes(served: Served) -> None:
    unknown = key_format.new_key("live").reveal()
    reader = await served.key(scopes=[Scope.IMAGES_READ])
    narrow = await served.key(models=["gpt-image-2.5-flare"])
    keys: list[IssuedKey | str] = ["sk-an-openai-key", unknown, reader, narrow]
    assert [said(await refusal_of(served, key, generate())) for key in keys] == [
        (openai.AuthenticationError, 401, "invalid_api_key", None),
        (openai.AuthenticationError, 401, "invalid_api_key", None),
        (openai.PermissionDeniedError, 403, "insufficient_scope", None),
        (openai.PermissionDeniedError, 403, "model_not_allowed", "model"),
    ]


async def test_refused_requests_raise_the_clients_own_classes(served: Served, stub: Stub) -> None:
    key = await served.key()
    calls = {
        "no such model": generate(model="gpt-image-99"),
        "retired model's size": generate(model="dall-e-3", size="1536x1024"),
        "size": generate(size="1000x1000"),
        "count": generate(n=11),
        "prompt": generate(prompt="x" * 32_001),
        "background": generate(background="transparent", output_format="jpeg"),
        "unknown": generate(extra_body={"sise": "1024x1024"}),
    }
    found = {name: said(await refusal_of(served, key, call)) for name, call in calls.items()}
    bad = openai.BadRequestError
    assert found == {
        "no such model": (openai.NotFoundError, 404, "model_not_found", "model"),
        "retired model's size": (bad, 400, "invalid_value", "size"),
        "size": (bad, 400, "invalid_value", "size"),
        "count": (bad, 400, "integer_above_max_value", "n"),
        "prompt": (bad, 400, "string_above_max_length", "prompt"),
        "background": (bad, 400, "invalid_value", "background"),
        "unknown": (bad, 400, "unknown_parameter", "sise"),
    }
    assert stub.calls == []
    assert await served.ledger_total() == 0


async def test_a_short_budget_is_a_402_that_the_client_does_not_retry(
    served: Served, stub: Stub
) -> None:
    await served.budget("0.0001")
    error = await refusal_of(served, await served.key(), generate())
    assert said(error) == (openai.APIStatusError, 402, "budget_exceeded", None)
    assert error.response.headers["x-should-retry"] == "false"
    assert stub.calls == []


async def test_the_providers_refusals_raise_the_clients_own_classes_and_cost_nothing(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    expected = {
        "moderation_blocked": (openai.BadRequestError, 400, "moderation_blocked", None),
        "bad_request": (openai.BadRequestError, 400, "invalid_value", "size"),
        "invalid_api_key": (openai.InternalServerError, 503, "provider_unavailable", None),
        "insufficient_quota": (openai.InternalServerError, 503, "provider_unavailable", None),
        # Must be the last one: the provider is not called until its retry time is over.
        "rate_limited": (openai.RateLimitError, 429, "rate_limit_exceeded", None),
    }
    errors = {}
    for preset in expected:
        stub.faults.add(Fault("status", preset=preset))
        errors[preset] = await refusal_of(served, key, generate())
    assert {preset: said(error) for preset, error in errors.items()} == expected
    assert errors["rate_limited"].response.headers["retry-after"] == "12"
    assert (await served.ledger_total(), stub.bill) == (0, [])


@pytest.mark.parametrize("kind", ["reset_after_billing", "truncated_body"])
async def test_the_clients_own_retries_never_buy_an_image_twice(
    served: Served, stub: Stub, kind: Any
) -> None:
    stub.faults.add(Fault(kind))
    key = secret_of(await served.key())
    async with openai.AsyncOpenAI(
        api_key=key, base_url=f"{served.base_url}/v1", max_retries=2
    ) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.images.generate(model=GPT2, prompt="a red circle")
    assert said(caught.value) == (openai.InternalServerError, 504, "outcome_unknown", None)
    assert len(stub.bill) == 1


async def test_without_any_provider_key_a_live_call_is_refused_and_a_test_call_works(
    settings: Settings, stub: Stub
) -> None:
    async with served_gateway(settings.model_copy(update={"openai_api_key": None})) as served:
        error = await refusal_of(served, await served.key(), generate())
        assert said(error) == (openai.InternalServerError, 503, "no_credential", None)
        async with served.openai(await served.key(livemode=False)) as client:
            answer = await client.images.generate(model=GPT2, prompt="a red circle", quality="low")
        assert len(await answer_images(served, answer)) == 1
        assert stub.calls == []
