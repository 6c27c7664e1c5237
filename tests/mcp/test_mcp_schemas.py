"""The schemas, examples and defaults that MCP announces are true, and results stay small."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from mcp import Client
from mcp.types import CallToolResult, ImageContent, Tool

from tests.harness import GPT2, Served
from tests.hosting_helpers import Hosted
from tests.image_helpers import data_url, png
from tests.mcp_helpers import MODES, Message, call, content_of, post
from tests.parameter_helpers import BESIDE, OF_HOSTS, model_for

MAX_TOKENS = 25_000
CHARACTERS_PER_TOKEN = 2
"""Fewer than any text has: the count is on the safe side."""
MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}
IMAGE = data_url(png())
WHOLE: dict[str, dict[str, Any]] = {
    "generate_image": MAKE,
    "edit_image": {**MAKE, "image": IMAGE},
    "create_variation": {"image": IMAGE},
    "list_available_models": {},
    "estimate_cost": MAKE,
    "get_usage": {},
}
BUYING = {"generate_image", "edit_image", "create_variation"}


async def announced(client: Client) -> dict[str, Tool]:
    """The tools as a client receives them."""
    return {tool.name: tool for tool in (await client.list_tools()).tools}


async def test_every_schema_is_one_and_says_what_a_model_needs(served: Served) -> None:
    for mode in MODES:
        async with served.mcp(await served.key(), mode) as client:
            tools = await announced(client)
        assert tools.keys() == WHOLE.keys()
        for name, tool in tools.items():
            assert tool.title
            assert len(tool.description or "") > 40
            assert tool.output_schema is not None
            for schema in (tool.input_schema, tool.output_schema):
                Draft202012Validator.check_schema(schema)
                assert schema["type"] == "object"
            properties = tool.input_schema["properties"]
            assert tool.input_schema["additionalProperties"] is False
            assert set(tool.input_schema["required"]) <= properties.keys()
            assert all(len(field["description"]) > 5 for field in properties.values()), name
            Draft202012Validator(tool.input_schema).validate(WHOLE[name])
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint == (name not in BUYING)
            assert tool.annotations.destructive_hint is False


async def test_every_result_fits_the_announced_schema(served: Served) -> None:
    await served.budget("9")
    for mode, livemode in zip(MODES, (True, False), strict=True):
        key = await served.key(livemode=livemode)
        async with served.mcp(key, mode) as client:
            tools = await announced(client)
            for name, arguments in WHOLE.items():
                result = await call(client, name, **arguments)
                schema = tools[name].output_schema
                assert schema is not None
                # Not only by what is said to be required: nothing is said that was not announced.
                Draft202012Validator(closed(schema)).validate(content_of(result))


def closed(schema: Any) -> Any:
    """The schema without additional properties."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    is_record = schema.get("type") == "object" and "properties" in schema
    return {**parts, "additionalProperties": False} if is_record else parts


def announced_values(schema: dict[str, Any]) -> list[Any]:
    """Every value that a schema names as a choice, default, example or bound."""
    bounds = [schema[name] for name in ("default", "minimum", "maximum") if name in schema]
    return [*schema.get("examples", ()), *schema.get("enum", ()), *bounds]


@pytest.mark.parametrize("place", ["files"], indirect=True)
async def test_every_announced_example_choice_default_and_bound_is_accepted(
    hosted: Hosted,
) -> None:
    key = await hosted.served.key()
    tried = []
    async with hosted.served.mcp(key) as client:
        for name, tool in (await announced(client)).items():
            for argument, schema in tool.input_schema["properties"].items():
                for value in () if argument in OF_HOSTS else announced_values(schema):
                    Draft202012Validator(schema).validate(value)
                    if argument == "image":
                        await keep(hosted, value.removeprefix("generated-images://"))
                    arguments = {**WHOLE[name], **BESIDE.get(argument, {})}
                    arguments |= model_for(argument) | {argument: value}
                    result = await call(client, name, **arguments)
                    tried.append((name, argument, value))
                    assert not result.is_error, (tried[-1], result.content)
    assert len(tried) > 40


async def keep(hosted: Hosted, image_id: str) -> None:
    """Store an image with this id."""
    stored = await hosted.put(await hosted.served.key(), png())
    await hosted.served.owner_sql("DELETE FROM image WHERE id = :id", id=image_id)
    await hosted.served.owner_sql(
        "UPDATE image SET id = :id WHERE id = :old", id=image_id, old=stored.id
    )


# The size of results


def characters(result: CallToolResult) -> int:
    """All of a result but its images, which a client does not count as text."""
    said = result.model_copy(
        update={"content": [b for b in result.content if not isinstance(b, ImageContent)]}
    )
    assert base64_runs(said.model_dump_json(by_alias=True)) == []
    return len(said.model_dump_json(by_alias=True, exclude_none=True))


def base64_runs(text: str) -> list[str]:
    """The runs of base64 long enough for a file; a link's signature has a hundred characters."""
    return re.findall(r"[A-Za-z0-9+/_-]{200,}", text)


LARGEST: dict[str, dict[str, Any]] = {
    "generate_image": {"prompt": "x" * 32_000, "size": "3840x2160", "n": 10},
    "edit_image": {"prompt": "x" * 32_000, "size": "3840x2160", "n": 10, "image": IMAGE},
    "create_variation": {"image": IMAGE, "n": 10, "full_image": True},
}


async def test_no_result_fills_a_context_window(served: Served) -> None:
    """The text and data of ten images of 4K, and of everything that can be asked."""
    for window in ("day", "week", "month", "total"):
        await served.budget("99", window=window)
    async with served.mcp(await served.key()) as client:
        results = {
            name: await call(client, name, **(WHOLE[name] | LARGEST.get(name, {})))
            for name in WHOLE
        }
        refused = await call(client, "generate_image", prompt="x", model="x " * 50_000)
        unknown = await call(client, "generate_image", **{"prompt": "x", "x " * 50_000: "x"})
    sizes = {name: characters(result) for name, result in results.items()}
    assert [len(content_of(results[name])["images"]) for name in BUYING] == [10, 10, 10]
    assert max(sizes.values()) < MAX_TOKENS * CHARACTERS_PER_TOKEN, sizes
    assert max(sizes[name] for name in BUYING) < 12_000, sizes
    assert max(characters(refused), characters(unknown)) < 4_000


async def test_the_announced_schemas_leave_room_in_the_context_window(served: Served) -> None:
    for mode in MODES:
        async with served.http(await served.key()) as http:
            answers = {
                method: await post(http, Message(method, {}, mode))
                for method in ("tools/list", "resources/list", "resources/templates/list")
            }
        sizes = {method: len(json.dumps(answer.result)) for method, answer in answers.items()}
        assert sizes["tools/list"] < 27_000, sizes
        assert sizes["resources/list"] + sizes["resources/templates/list"] < 4_000, sizes
