"""Uploads that the stub keeps, and the pauses of a stream."""

from openai import AsyncOpenAI

from tests.stub_openai import Fault, Stub
from tests.stub_openai.driving import (  # noqa: F401 - fixtures are used by name
    MODEL,
    client_fixture,
    png,
    stub_fixture,
)


async def test_uploads_are_kept_in_their_order_when_told_to(
    stub: Stub, client: AsyncOpenAI
) -> None:
    images = [png(64, 64), png(32, 32)]
    await client.images.edit(model=MODEL, prompt="a cat", image=images)
    stub.configure(keep_files=True)
    await client.images.edit(model=MODEL, prompt="a cat", image=images, mask=png(64, 64, "RGBA"))
    assert stub.files == [(images[0][1], images[1][1], png(64, 64, "RGBA")[1])]
    assert [name for name, _, _ in stub.calls[1].files] == ["image[]", "image[]", "mask"]
    await stub.reset()
    assert stub.files == []


async def test_a_held_stream_sends_its_partial_images_before_it_is_released(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stub.faults.add(Fault("stream_hold"))
    events = await client.images.generate(
        model=MODEL, prompt="a cat", stream=True, partial_images=2
    )
    kinds = [(await anext(events)).type for _ in range(2)]
    assert kinds == ["image_generation.partial_image"] * 2
    await stub.until_held(1)
    assert len(stub.bill) == 1
    stub.release()
    assert [event.type async for event in events] == ["image_generation.completed"]
