"""An operator's values for the parameters that a call leaves open."""

from typing import Any

import pytest

from gateway.config import Settings
from gateway.errors import ConfigurationError
from tests.harness import GPT2, Served, served_gateway
from tests.mcp_helpers import call, content_of
from tests.stub_openai import Stub

PATH = "/v1/images/generations"
DEFAULTS = {
    "default_model": "gpt-image-2.5-flare",
    "default_quality": "low",
    "default_size": "1536x1024",
    "default_style": "natural",
    "default_output_format": "jpeg",
    "default_moderation": "low",
}
FILLED = {
    "model": "gpt-image-2.5-flare",
    "prompt": "a red fox\n\nStyle: natural and understated, less hyper-real.",
    "n": 1,
    "size": "1536x1024",
    "quality": "low",
    "output_format": "jpeg",
    "moderation": "low",
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=DEFAULTS)


async def bought(served: Served, stub: Stub, **fields: Any) -> dict[str, Any]:
    """The fields that a generation of these was bought with."""
    async with served.http(await served.key()) as http:
        answer = await http.post(PATH, json={"prompt": "a red fox", **fields})
    assert answer.status_code == 200, answer.text
    sent = stub.calls[-1].json
    assert sent is not None
    return sent


async def test_open_parameters_have_the_operators_values(served: Served, stub: Stub) -> None:
    assert await bought(served, stub) == FILLED
    async with served.mcp(await served.key()) as client:
        made = content_of(await call(client, "generate_image", prompt="a red fox"))
        listed = content_of(await call(client, "list_available_models"))
    assert stub.calls[-1].json == FILLED
    assert (made["size"], made["quality"]) == ("1536x1024", "low")
    assert listed["defaults"] == {
        "output_format": "jpeg",
        "size": "1536x1024",
        "quality": "low",
        "style": "natural",
        "moderation": "low",
    }


async def test_a_calls_own_values_come_first(served: Served, stub: Stub) -> None:
    own = {"model": GPT2, "size": "1024x1024", "quality": "high", "output_format": "webp"}
    own |= {"style": "vivid", "moderation": "auto"}
    found = await bought(served, stub, **own)
    assert found["prompt"] == "a red fox\n\nStyle: vivid, hyper-real and dramatic."
    assert {name: found.get(name) for name in own if name != "style"} == {
        name: value for name, value in own.items() if name != "style"
    }


async def test_a_value_that_does_not_suit_the_call_is_left_out(served: Served, stub: Stub) -> None:
    transparent = await bought(served, stub, background="transparent")
    assert "output_format" not in transparent
    assert transparent["size"] == "1536x1024"
    compressed = await bought(served, stub, output_compression=50)
    assert compressed["output_format"] == "jpeg"
    longest = await bought(served, stub, prompt="x" * 32_000)
    assert longest["prompt"] == "x" * 32_000
    retired = await bought(served, stub, model="dall-e-2", size="256x256")
    assert (retired["size"], retired["quality"]) == ("1024x1024", "medium")
    assert "moderation" not in retired


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"default_size": "1000x1000"}, "GATEWAY_DEFAULT_SIZE: Invalid size '1000x1000'."),
        ({"default_model": GPT2, "default_quality": "max"}, "GATEWAY_DEFAULT_QUALITY: Invalid"),
        ({"default_model": "dall-e-2"}, "GATEWAY_DEFAULT_OUTPUT_FORMAT: Unknown"),
    ],
)
async def test_a_value_that_the_default_model_does_not_have_refuses_to_start(
    settings: Settings, change: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        async with served_gateway(settings.model_copy(update=change)):
            raise AssertionError("it started")
