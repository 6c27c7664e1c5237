"""Images through the official OpenAI client, live and test, checked against the stub's bill."""

import base64
import io

from PIL import Image

from tests.harness import GPT2, Served
from tests.stub_openai import Stub


async def test_a_live_key_makes_an_image_and_its_cost_is_the_providers_bill(
    served: Served, stub: Stub
) -> None:
    async with served.openai(await served.key()) as client:
        raw = await client.images.with_raw_response.generate(
            model=GPT2, prompt="a red circle", size="1024x1024", quality="low"
        )
    answer = raw.parse()
    assert answer.data is not None
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    assert image.size == (1024, 1024)
    assert len(stub.bill) == 1
    assert await served.ledger_total() == stub.bill[0].cost_nano_usd
    assert raw.headers["x-gateway-cost-status"] == "actual"


async def test_a_test_key_makes_a_real_image_and_buys_nothing(served: Served, stub: Stub) -> None:
    async with served.openai(await served.key(livemode=False)) as client:
        answer = await client.images.generate(
            model=GPT2, prompt="a red circle", size="1536x1024", quality="low"
        )
    assert answer.data is not None
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    assert image.size == (1536, 1024)
    assert stub.calls == []
