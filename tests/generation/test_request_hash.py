"""The hash of a request with an idempotency key: it covers input images, and blocks no request."""

import asyncio

import pytest

from gateway.generation.claims import INLINE_CHARACTERS, claim_for
from tests.harness import Served, error_of
from tests.money_helpers import GENERATIONS, image_body, statuses
from tests.stub_openai import Stub

EDITS = "/v1/images/edits"
KEY = {"Idempotency-Key": "order-4711"}

SHORT = {"prompt": "a fox", "n": 2, "stream": False, "user": None, "ratio": 1.5}


@pytest.mark.parametrize(
    ("fields", "is_inline"),
    [
        (SHORT, True),
        ({"prompt": "x" * INLINE_CHARACTERS}, True),
        (SHORT | {"prompt": "x" * (INLINE_CHARACTERS + 1)}, False),
        (SHORT | {"images": ["x" * 100]}, False),
        (SHORT | {"mask": {"image_url": "x" * 100}}, False),
    ],
    ids=["short", "not yet long", "long text", "list", "object"],
)
async def test_only_short_requests_are_hashed_in_the_event_loop(
    fields: dict[str, object], *, is_inline: bool
) -> None:
    task = asyncio.create_task(claim_for("order-4711", "/images", fields))
    await asyncio.sleep(0)  # one turn, in which no answer of a thread can arrive
    assert task.done() == is_inline
    again = await claim_for("order-4711", "/images", dict(reversed(fields.items())))
    assert await task == again


async def test_an_edit_of_another_source_under_the_same_key_is_refused(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    async with served.http(key) as http:
        await http.post(GENERATIONS, json=image_body(n=2))
        sources = (await http.get("/v1/images")).json()["data"]
        body = {"model": "gpt-image-2", "prompt": "a hat", "quality": "low"}
        answers = [
            await http.post(
                EDITS,
                json={**body, "images": [{"image_url": f"generated-images://{source['id']}"}]},
                headers=KEY,
            )
            for source in sources
        ]
    assert statuses(answers) == {200: 1, 422: 1}
    assert error_of(answers[1])["code"] == "idempotency_conflict"
    assert len(stub.calls) == 2
