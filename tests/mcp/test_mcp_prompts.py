"""Prompts and completion through the official client, in both protocol eras."""

from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import (
    INVALID_PARAMS,
    CompletionArgument,
    PromptReference,
    ResourceTemplateReference,
    TextContent,
)

from gateway.config import Settings
from gateway.domain import Scope
from gateway.errors import ConfigurationError
from gateway.mcp_server.prompts import RECOMMENDED_KEY
from tests.harness import Served, served_gateway
from tests.money_helpers import post_image

MODES = ["2026-07-28", "legacy"]
OWN = """
name = "sticker"
title = "Sticker"
description = "A sticker."
size = "1024x1024"
text = "A sticker of {{ subject }}."

[[arguments]]
name = "subject"
title = "Subject"
description = "What it shows."
required = true
"""


async def complete(client: Client, ref: Any, name: str, value: str) -> list[str]:
    found = await client.complete(ref, CompletionArgument(name=name, value=value).model_dump())
    return found.completion.values


def template(uri: str) -> ResourceTemplateReference:
    return ResourceTemplateReference(type="ref/resource", uri=uri)


@pytest.mark.parametrize("mode", MODES)
async def test_every_prompt_is_listed_and_makes_an_image_as_it_recommends(
    served: Served, mode: str
) -> None:
    async with served.mcp(await served.key(livemode=False), mode) as client:
        listed = (await client.list_prompts()).prompts
        for prompt in listed:
            assert prompt.title
            assert prompt.description
            wanted = [argument for argument in prompt.arguments or [] if argument.required]
            finished = await client.get_prompt(
                prompt.name,
                {
                    argument.name: await value(client, prompt.name, argument.name)
                    for argument in wanted
                },
            )
            [message] = finished.messages
            assert isinstance(message.content, TextContent)
            assert finished.meta is not None
            recommended = finished.meta[RECOMMENDED_KEY]
            assert recommended["size"] in message.content.text
            made = await client.call_tool(
                "estimate_cost", {**recommended["arguments"], "quality": "low"}
            )
            assert not made.is_error, made
    assert len(listed) == 10


async def value(client: Client, prompt: str, argument: str) -> str:
    """The first value that completion offers, or an arbitrary one."""
    ref = PromptReference(type="ref/prompt", name=prompt)
    return next(iter(await complete(client, ref, argument, "")), "a fox")


@pytest.mark.parametrize("mode", MODES)
async def test_a_wrong_name_or_argument_is_refused_by_name(served: Served, mode: str) -> None:
    cases: list[tuple[str, dict[str, str], str, str]] = [
        ("nope", {}, "prompt_not_found", "name"),
        ("og-image-prompt", {}, "missing_required_parameter", "title"),
        ("og-image-prompt", {"title": "x", "colour": "red"}, "unknown_parameter", "colour"),
        ("og-image-prompt", {"title": "x", "text_layout": "round"}, "invalid_value", "text_layout"),
    ]
    async with served.mcp(await served.key(), mode) as client:
        for name, arguments, code, param in cases:
            with pytest.raises(MCPError) as raised:
                await client.get_prompt(name, arguments)
            assert raised.value.error.code == INVALID_PARAMS
            data = raised.value.error.data
            assert (data["code"], data["param"]) == (code, param)


async def test_an_operators_template_is_served_beside_the_others_or_in_their_place(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "sticker.toml").write_text(OWN)
    (folder / "own.toml").write_text(OWN.replace('"sticker"', '"og-image-prompt"'))
    async with (
        served_gateway(settings.model_copy(update={"prompts_dir": folder})) as served,
        served.mcp(await served.key()) as client,
    ):
        names = [prompt.name for prompt in (await client.list_prompts()).prompts]
        finished = await client.get_prompt("og-image-prompt", {"subject": "a fox"})
    assert len(names) == 11
    assert isinstance(finished.messages[0].content, TextContent)
    assert finished.messages[0].content.text.startswith("A sticker of a fox.")


async def test_a_mistake_in_a_template_refuses_to_start(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "sticker.toml").write_text(OWN.replace("{{ subject }}", "{{ object }}"))
    broken = settings.model_copy(update={"prompts_dir": tmp_path})
    with pytest.raises(ConfigurationError, match=r"sticker\.toml: text: line 1: "):
        async with served_gateway(broken):
            pytest.fail("It has started.")


@pytest.mark.parametrize("mode", MODES)
async def test_models_images_and_likely_values_are_completed(served: Served, mode: str) -> None:
    key, other = await served.key(user="alice"), await served.key(user="bob")
    async with served.http(key) as http:
        assert (await post_image(http)).status_code == 200
        [image] = (await http.get("/v1/images")).json()["data"]
    async with served.mcp(key, mode) as client:
        models = await complete(client, template("model-info://{model}"), "model", "gpt-image-2.6")
        ids = await complete(client, template("generated-images://{image_id}"), "image_id", "img_")
        history = template("image-history://recent{?limit,days}")
        limits = await complete(client, history, "limit", "1")
        nothing = await complete(client, history, "other", "")
    async with served.mcp(other, mode) as client:
        foreign = await complete(client, template("generated-images://{image_id}"), "image_id", "")
    assert models == ["gpt-image-2.6-sunburst", "gpt-image-2.6-flare"]
    assert (ids, foreign) == ([image["id"]], [])
    assert (limits, nothing) == (["10", "100"], [])


async def test_ids_and_models_are_completed_for_those_who_may_read_them(served: Served) -> None:
    key = await served.key(scopes=[Scope.USAGE_READ])
    async with served.mcp(key) as client:
        with pytest.raises(MCPError) as raised:
            await complete(client, template("model-info://{model}"), "model", "")
    assert raised.value.error.data["code"] == "insufficient_scope"
