"""The hash of a request with an idempotency key does not hold up other requests."""

import asyncio

import pytest

from gateway.generation.claims import INLINE_CHARACTERS, claim_for

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
