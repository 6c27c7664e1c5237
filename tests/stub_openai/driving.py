"""Helpers for the stub's own tests: a client, requests, and images to upload."""

import base64
import io
from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI
from openai.types import ImagesResponse
from PIL import Image

from tests.stub_openai.running import Stub, running_stub

KEY = "sk-test-0123456789wxyz"
MODEL = "gpt-image-2.5-flare"
SMALL = {"model": MODEL, "size": "1024x1024", "quality": "low"}


@pytest.fixture(name="stub")
async def stub_fixture() -> AsyncIterator[Stub]:
    async with running_stub() as running:
        yield running


@pytest.fixture(name="client")
async def client_fixture(stub: Stub) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=KEY, base_url=stub.base_url, max_retries=0) as made:
        yield made


async def generate(client: AsyncOpenAI, prompt: str = "a cat", **params: object) -> ImagesResponse:
    """Generate images with any parameters: `extra_body` passes by the client's own type checks."""
    body = {key: value for key, value in {**SMALL, **params}.items() if value is not None}
    return await client.images.generate(prompt=prompt, extra_body=body)


def image_bytes(width: int, height: int, mode: str = "RGB", fmt: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, format=fmt)
    return out.getvalue()


def png(width: int = 64, height: int = 64, mode: str = "RGB") -> tuple[str, bytes, str]:
    return ("image.png", image_bytes(width, height, mode), "image/png")


def opened(response: ImagesResponse, at: int = 0) -> Image.Image:
    assert response.data is not None
    text = response.data[at].b64_json
    assert text is not None
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image
