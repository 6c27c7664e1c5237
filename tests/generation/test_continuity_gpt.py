"""Retired GPT image models keep working, for tenants that choose continuity."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import date
from typing import Any

import openai
import pytest

from gateway.config import Settings
from gateway.tenancy import tenants
from tests.harness import Served, served_gateway
from tests.image_helpers import (
    answer_images,
    expect_books_to_agree,
    expect_nothing_bought,
    expect_one_call_each,
    png,
)
from tests.stub_openai import Stub

SUNBURST = "gpt-image-2.5-sunburst"
SUCCESSORS = {
    "gpt-image-1-mini": "gpt-image-2.6-flare",
    "gpt-image-1.5": "gpt-image-2.6-sunburst",
    "gpt-image-1.5-2025-12-16": "gpt-image-2.6-sunburst",
    "chatgpt-image-latest": "gpt-image-2.6-sunburst",
}
CLOSING = list(SUCCESSORS)
PROMPT = "a red fox in the forest"
LAST_DAY, SHUTDOWN = date(2026, 11, 30), date(2026, 12, 1)
WORDS: dict[str, Any] = {
    "size": "1536x1024",
    "quality": "high",
    "background": "opaque",
    "output_format": "webp",
    "output_compression": 80,
    "moderation": "low",
    "safety_identifier": "user-1",
}

OnDay = Callable[[date], AbstractAsyncContextManager[Served]]


@pytest.fixture
def on_day(settings: Settings) -> OnDay:
    """A gateway whose clock shows this day."""
    return lambda day: served_gateway(settings, today=lambda: day)


@pytest.fixture
async def winter(on_day: OnDay, stub: Stub) -> AsyncIterator[Served]:
    """A gateway and a provider on the day on which the closing models are shut down."""
    stub.configure(retired_models=["dall-e-2", "dall-e-3", "gpt-image-1", *CLOSING])
    async with on_day(SHUTDOWN) as served:
        yield served
        await served.check_invariants()


def models_of(raw: Any) -> tuple[str, str]:
    return raw.headers["x-gateway-requested-model"], raw.headers["x-gateway-served-model"]


@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
async def test_gpt_image_1_is_served_in_its_own_words(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    async with served.openai(key) as client:
        raw = await client.images.with_raw_response.generate(
            model="gpt-image-1", prompt=PROMPT, n=2, **WORDS
        )
    assert models_of(raw) == ("gpt-image-1", SUNBURST)
    assert raw.headers["sunset"] == "Fri, 23 Oct 2026 00:00:00 GMT"
    answer = raw.parse()
    assert [(p.format, p.size) for p in await answer_images(served, answer)] == [
        ("WEBP", (1536, 1024))
    ] * 2
    assert (answer.size, answer.quality, answer.output_format) == ("1536x1024", "high", "webp")
    assert answer.usage is not None
    sent = {"model": SUNBURST, "prompt": PROMPT, "n": 2, **WORDS}
    assert [call.json for call in stub.calls] == ([sent] if livemode else [])
    await expect_books_to_agree(served, stub, key, images=2)
    await expect_one_call_each(served, stub, requests=1)


@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
@pytest.mark.parametrize("fidelity", ["high", "low"])
async def test_an_edit_with_input_fidelity_is_taken_and_the_successor_not_asked_for_it(
    served: Served, stub: Stub, fidelity: Any, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    async with served.openai(key) as client:
        raw = await client.images.with_raw_response.edit(
            model="gpt-image-1",
            image=[png(64, 48), png(32, 32)],
            prompt=PROMPT,
            input_fidelity=fidelity,
            size="1024x1536",
            quality="low",
        )
    assert models_of(raw) == ("gpt-image-1", SUNBURST)
    assert [p.size for p in await answer_images(served, raw.parse())] == [(1024, 1536)]
    sent = {"model": SUNBURST, "prompt": PROMPT, "n": "1", "size": "1024x1536", "quality": "low"}
    assert [call.form for call in stub.calls] == ([sent] if livemode else [])
    await expect_books_to_agree(served, stub, key, images=1)
    await expect_one_call_each(served, stub, requests=1)


@pytest.mark.parametrize("model", CLOSING)
async def test_a_closing_model_serves_itself_on_its_last_day(
    on_day: OnDay, stub: Stub, model: str
) -> None:
    async with on_day(LAST_DAY) as served:
        async with served.openai(await served.key()) as client:
            raw = await client.images.with_raw_response.generate(
                model=model, prompt=PROMPT, size="1024x1024", quality="low"
            )
            edited = await client.images.with_raw_response.edit(
                model=model, image=png(), prompt=PROMPT, quality="low", input_fidelity="low"
            )
        await expect_one_call_each(served, stub, requests=2)
    assert (models_of(raw), models_of(edited)) == ((model, model), (model, model))
    assert raw.headers["sunset"] == "Tue, 01 Dec 2026 00:00:00 GMT"
    assert raw.headers["link"] == f'</v1/models/{SUCCESSORS[model]}>; rel="successor-version"'
    assert [call.json and call.json["model"] for call in stub.calls] == [model, None]
    assert [call.form and call.form["input_fidelity"] for call in stub.calls] == [None, "low"]


@pytest.mark.parametrize("model", CLOSING)
async def test_a_closed_model_is_served_by_its_successor_from_the_day_it_is_shut_down(
    winter: Served, stub: Stub, model: str
) -> None:
    key = await winter.key()
    async with winter.openai(key) as client:
        raw = await client.images.with_raw_response.generate(model=model, prompt=PROMPT, **WORDS)
        edited = await client.images.with_raw_response.edit(
            model=model, image=png(), prompt=PROMPT, size="1024x1024", input_fidelity="low"
        )
    successor = SUCCESSORS[model]
    assert (models_of(raw), models_of(edited)) == ((model, successor), (model, successor))
    assert [call.json or call.form for call in stub.calls] == [
        {"model": successor, "prompt": PROMPT, "n": 1, **WORDS},
        {"model": successor, "prompt": PROMPT, "n": "1", "size": "1024x1024"},
    ]
    await expect_books_to_agree(winter, stub, key, images=2)
    await expect_one_call_each(winter, stub, requests=2)


async def test_requests_that_a_closed_model_refused_are_refused(winter: Served, stub: Stub) -> None:
    found = {}
    async with winter.openai(await winter.key()) as client:
        calls: dict[str, dict[str, Any]] = {
            "quality": {"quality": "xhigh"},
            "size": {"size": "1920x1088"},
            "fidelity": {"input_fidelity": "high", "image": png()},
            "markup": {"extra_body": {"markup": "x"}, "image": png()},
            "complexity": {"extra_body": {"complexity": "low"}},
        }
        for name, arguments in calls.items():
            method = client.images.edit if "image" in arguments else client.images.generate
            with pytest.raises(openai.BadRequestError) as caught:
                await method(**{"model": "gpt-image-1-mini", "prompt": PROMPT, **arguments})
            found[name] = caught.value.param
    assert found == {
        "quality": "quality",
        "size": "size",
        "fidelity": "input_fidelity",
        "markup": "markup",
        "complexity": "complexity",
    }
    await expect_nothing_bought(winter, stub)


RETIRED = ["dall-e-2", "dall-e-3", "gpt-image-1"]


async def switch_off(served: Served, name: str) -> None:
    async with served.gateway.database.operator() as session:
        await tenants.set_settings(session, name, continuity=False)


@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
async def test_a_tenant_without_continuity_gets_openais_own_answer(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    await switch_off(served, "acme")
    errors = []
    async with served.openai(await served.key(livemode=livemode)) as client:
        for model in RETIRED:
            with pytest.raises(openai.BadRequestError) as caught:
                # The retirement is reported before any other error.
                await client.images.generate(model=model, prompt=PROMPT, size="1x1", n=99)
            errors.append(caught.value)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.edit(model="dall-e-2", image=png(mode="RGBA"), prompt=PROMPT)
        errors.append(caught.value)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.create_variation(image=png())
        errors.append(caught.value)
        await client.images.generate(model=SUNBURST, prompt=PROMPT, quality="low")
    assert [error.body for error in errors] == [
        {
            "message": f"The model '{model}' does not exist.",
            "type": "image_generation_user_error",
            "param": None,
            "code": "invalid_value",
        }
        for model in [*RETIRED, "dall-e-2", "dall-e-2"]
    ]
    await expect_one_call_each(served, stub, requests=1)


async def test_continuity_is_each_tenants_own_choice(served: Served, stub: Stub) -> None:
    other = await served.tenant("globex")
    await switch_off(served, "globex")
    async with served.openai(await served.key()) as client:
        await client.images.generate(model="dall-e-2", prompt=PROMPT)
    async with served.openai(await served.key(tenant_id=other)) as client:
        with pytest.raises(openai.BadRequestError):
            await client.images.generate(model="dall-e-2", prompt=PROMPT)
        listed = {model.id async for model in client.models.list()}
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("dall-e-2")
    assert caught.value.code == "model_not_found"
    assert listed.isdisjoint(RETIRED)
    await expect_one_call_each(served, stub, requests=1)


async def test_a_key_for_a_retired_model_may_use_it_and_not_its_successor(
    served: Served, stub: Stub
) -> None:
    key = await served.key(models=["dall-e-2"])
    async with served.openai(key) as client:
        raw = await client.images.with_raw_response.generate(model="dall-e-2", prompt=PROMPT)
        await client.images.create_variation(image=png(), size="256x256")
        listed = [model.id async for model in client.models.list()]
        for model in (SUNBURST, "dall-e-3"):
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await client.images.generate(model=model, prompt=PROMPT)
            assert caught.value.code == "model_not_allowed"
    assert models_of(raw) == ("dall-e-2", SUNBURST)
    assert listed == ["dall-e-2"]
    await expect_one_call_each(served, stub, requests=2)


async def test_the_list_shows_retired_models_with_their_dates_and_successors(
    winter: Served, stub: Stub
) -> None:
    shown = {}
    async with winter.http(await winter.key()) as http:
        for model in (*RETIRED, *CLOSING, SUNBURST):
            found = (await http.get(f"/v1/models/{model}")).json()
            shown[model] = found["shutdown_date"], found["successor"]
    assert shown == {
        "dall-e-2": ("2026-05-12", SUNBURST),
        "dall-e-3": ("2026-05-12", SUNBURST),
        "gpt-image-1": ("2026-10-23", SUNBURST),
        **{name: ("2026-12-01", successor) for name, successor in SUCCESSORS.items()},
        SUNBURST: (None, None),
    }
    assert stub.calls == []
