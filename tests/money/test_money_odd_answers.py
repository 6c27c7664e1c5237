"""Invalid answers of a provider: each was paid for, so none may be lost or bought again."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import openai
import pytest

from gateway.config import Settings
from tests.harness import GPT2, served_gateway
from tests.money_helpers import age_unknown, books, terse_log

IMAGE = base64.b64encode(b"not really an image").decode()
DETAILS = {"text_tokens": 10, "image_tokens": 0}
USAGE = {
    "input_tokens": 10,
    "output_tokens": 200,
    "input_tokens_details": DETAILS,
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 200},
}
ANSWER = {"created": 1, "data": [{"b64_json": IMAGE}], "output_format": "png", "usage": USAGE}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with terse_log():
        yield


class OddProvider:
    """Answers every POST with the same JSON, and counts them."""

    def __init__(self, answer: object, *, ensure_ascii: bool) -> None:
        self.body = json.dumps(answer, ensure_ascii=ensure_ascii).encode()
        self.status = b"200 OK"
        self.calls = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client closes it."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                self.calls += 1
                writer.write(
                    b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%b" % (self.status, len(self.body), self.body)
                )
                await writer.drain()
        writer.close()


@asynccontextmanager
async def odd_provider(
    answer: object, *, ensure_ascii: bool = False
) -> AsyncIterator[tuple[OddProvider, str]]:
    """The provider and its address."""
    provider = OddProvider(answer, ensure_ascii=ensure_ascii)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    yield provider, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    server.close()


def with_usage(**changes: object) -> dict[str, object]:
    """The usual answer with another usage."""
    return ANSWER | {"usage": USAGE | changes}


ODD = {
    "format gif": ANSWER | {"output_format": "gif"},
    "format with a path": ANSWER | {"output_format": "../../png"},
    "empty format": ANSWER | {"output_format": ""},
    "base64 that is not ASCII": ANSWER | {"data": [{"b64_json": "éé=="}]},
    "base64 that is none": ANSWER | {"data": [{"b64_json": "%%%"}]},
    "base64 too short": ANSWER | {"data": [{"b64_json": "A"}]},
    "fewer images than asked": ANSWER,
    "a created date without bounds": ANSWER | {"created": 10**40},
    "texts that are numbers": ANSWER | {"size": 1, "quality": 2, "background": 3},
    "usage beyond a bigint": with_usage(output_tokens=10**30, output_tokens_details=None),
    "cost beyond a bigint": with_usage(output_tokens=10**18, output_tokens_details=None),
    "usage just within a bigint": with_usage(input_tokens=2**63 - 1, input_tokens_details=None),
    "negative usage": with_usage(output_tokens=-5, output_tokens_details=None),
    "usage in fractions": with_usage(output_tokens=1.5, output_tokens_details=None),
    "usage as text": with_usage(output_tokens="200", output_tokens_details=None),
    "details beyond their total": with_usage(
        output_tokens=5, output_tokens_details={"text_tokens": 10, "image_tokens": 200}
    ),
    "usage that is a list": ANSWER | {"usage": [1]},
    "no usage and no format": {"data": [{"b64_json": IMAGE}]},
    "null images": ANSWER | {"data": [None]},
    "no images": ANSWER | {"data": []},
    "a list": [1, 2],
    "null": None,
}


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_answer_is_booked_and_bought_once(name: str, settings: Settings) -> None:
    async with odd_provider(ODD[name]) as (provider, url):
        changed = settings.model_copy(update={"openai_base_url": url})
        async with served_gateway(changed) as served:
            await served.budget("1")
            retried = ["false"]
            client = served.openai(await served.key()).with_options(max_retries=2)
            async with client:
                try:
                    await client.images.generate(
                        model=GPT2, prompt="a red circle", size="1024x1024", quality="low"
                    )
                except openai.APIStatusError as error:
                    retried.append(error.response.headers.get("x-should-retry", "open"))
            assert (provider.calls, set(retried)) == (1, {"false"})
            [booked] = await books(served)
            assert booked.state in {"posted", "posted_est", "unknown"}
            await age_unknown(served)
            await served.sweep()
            await served.check_invariants()


@pytest.mark.parametrize("item", [{}, {"b64_json": ""}, {"url": "http://127.0.0.1:1/a"}])
async def test_an_answer_with_usage_and_without_an_image_is_posted(
    item: dict[str, object], settings: Settings
) -> None:
    async with odd_provider(ANSWER | {"data": [item]}) as (provider, url):
        changed = settings.model_copy(update={"openai_base_url": url})
        async with served_gateway(changed) as served:
            async with served.openai(await served.key()) as client:
                with pytest.raises(openai.InternalServerError) as caught:
                    await client.images.generate(model=GPT2, prompt="a red circle")
            assert (caught.value.code, provider.calls) == ("image_unfinished", 1)
            assert caught.value.response.headers["x-should-retry"] == "false"
            [booked] = await books(served)
            assert (booked.state, booked.final_nano) == ("posted", 6_050_000)
            await served.check_invariants()


async def test_a_lone_surrogate_in_an_answer_does_not_lose_the_image(settings: Settings) -> None:
    """JSON may escape what no UTF-8 can say, as where a vendor cuts a text."""
    odd = {"data": [{"b64_json": IMAGE, "revised_prompt": "a cat \ud83d"}]}
    async with odd_provider(ANSWER | odd, ensure_ascii=True) as (_, url):
        changed = settings.model_copy(update={"openai_base_url": url})
        async with served_gateway(changed) as served:
            async with served.openai(await served.key()) as client:
                answer = await client.images.generate(model=GPT2, prompt="a cat", quality="low")
            assert answer.data is not None
            [image] = answer.data
            assert image.b64_json == IMAGE
            [booked] = await books(served)
            assert (booked.state, booked.final_nano) == ("posted", 6_050_000)
            await served.check_invariants()


async def test_an_answer_without_end_is_given_up_and_may_have_cost_its_price(
    settings: Settings,
) -> None:
    endless = ANSWER | {"data": [{"b64_json": "A" * 2_000_000}]}
    async with odd_provider(endless) as (provider, url):
        changed = settings.model_copy(
            update={"openai_base_url": url, "provider_max_answer_bytes": 1_048_576}
        )
        async with served_gateway(changed) as served:
            async with served.openai(await served.key()) as client:
                with pytest.raises(openai.InternalServerError) as caught:
                    await client.images.generate(model=GPT2, prompt="a cat", quality="low")
            assert (caught.value.code, provider.calls) == ("outcome_unknown", 1)
            [booked] = await books(served)
            assert booked.state == "unknown"
            await age_unknown(served)
            await served.sweep()
            await served.check_invariants()
