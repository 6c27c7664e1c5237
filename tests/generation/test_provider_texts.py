"""The cost is posted and the key replays for every text and number that a provider can send."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import httpx2
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.config import Settings
from tests.harness import Served, served_gateway
from tests.money.test_money_odd_answers import ANSWER, IMAGE, OddProvider
from tests.money_helpers import books, image_body

many = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
COST_NANO = 6_050_000
GENERATIONS = "/v1/images/generations"

# Escaped as JSON allows it: NULs, halves of characters, numbers that no column holds.
CHARACTERS = st.characters(exclude_categories=())
TEXT = st.one_of(
    st.text(CHARACTERS, max_size=12),
    st.sampled_from(["\x00", "a\x00b", "\ud83d", "\udc00 \x00", "x" * 5000, "\u2028"]),
)
HUGE = "spelled with five thousand digits"
NUMBER = st.one_of(
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.sampled_from([HUGE, -(2**63), 2**63, 2**64, True]),
)
VALUE = st.one_of(TEXT, NUMBER, st.none(), st.lists(TEXT, max_size=2))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("created", "size", "quality", "background", "output_format"), VALUE),
        "note": VALUE,
    },
)
ITEM = st.fixed_dictionaries({"b64_json": st.just(IMAGE)}, optional={"revised_prompt": VALUE})


def spelled(answer: object) -> bytes:
    """JSON as Python writes it, with NaN and with numbers that Python itself cannot read back."""
    return json.dumps(answer).replace(json.dumps(HUGE), "9" * 5000).encode()


@dataclass(frozen=True)
class Odd:
    """A provider, a gateway that buys from it, and a client of that gateway."""

    provider: OddProvider
    served: Served
    http: httpx2.AsyncClient


@pytest.fixture
async def odd(settings: Settings) -> AsyncIterator[Odd]:
    """A provider whose answer each example sets, and a tenant whose prompts are stored."""
    provider = OddProvider(None, ensure_ascii=True)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with served_gateway(settings.model_copy(update={"openai_base_url": url})) as served:
        await served.owner_sql("UPDATE tenant SET stores_prompts = true")
        served.gateway.clear_caches(None)
        async with served.http(await served.key()) as http:
            yield Odd(provider, served, http)
        await served.check_invariants()
    server.close()


async def buy_twice(odd: Odd, **changes: object) -> tuple[httpx2.Response, httpx2.Response]:
    """Send the same request twice with one key."""
    headers = {"Idempotency-Key": str(uuid4())}
    body = image_body() | changes
    calls = odd.provider.calls
    first = await odd.http.post(GENERATIONS, json=body, headers=headers)
    second = await odd.http.post(GENERATIONS, json=body, headers=headers)
    assert odd.provider.calls == calls + 1
    return first, second


@hypothesis_settings(many)
@given(fields=FIELDS, item=ITEM)
@example(fields={"size": "1024\x00"}, item={"b64_json": IMAGE})
@example(fields={}, item={"b64_json": IMAGE, "revised_prompt": "a \x00 cat"})
@example(fields={"created": HUGE}, item={"b64_json": IMAGE, "revised_prompt": "\ud83d"})
async def test_an_answers_cost_is_posted_and_its_key_replays_for_any_content(
    odd: Odd, fields: dict[str, object], item: dict[str, object]
) -> None:
    odd.provider.body = spelled(ANSWER | {"data": [item]} | fields)
    first, second = await buy_twice(odd)
    assert (first.status_code, second.status_code) == (200, 200), (first.text, second.text)
    assert second.headers["idempotent-replayed"] == "true"
    assert first.json()["data"][0]["b64_json"] == IMAGE
    assert first.json() | {"created": 0} == second.json() | {"created": 0}
    newest = (await books(odd.served))[-1]
    assert (newest.state, newest.final_nano) == ("posted", COST_NANO)


@hypothesis_settings(many)
@given(fields=FIELDS)
async def test_a_streams_cost_is_posted_and_its_key_replays_for_any_content(
    odd: Odd, fields: dict[str, object]
) -> None:
    event = {
        "type": "image_generation.completed",
        "b64_json": IMAGE,
        "created_at": fields.get("created"),
        "usage": ANSWER["usage"],
    }
    partial = {"type": "image_generation.partial_image", "b64_json": IMAGE} | fields
    partial |= {"partial_image_index": fields.get("created")}
    events = [spelled(partial), spelled(fields | event)]
    odd.provider.body = b"".join(b"data: %b\n\n" % one for one in events)
    first, second = await buy_twice(odd, stream=True, partial_images=1)
    assert "image_generation.completed" in first.text
    assert "image_generation.completed" in second.text
    newest = (await books(odd.served))[-1]
    assert (newest.state, newest.final_nano) == ("posted", COST_NANO)


@hypothesis_settings(many)
@given(message=TEXT, code=VALUE, param=VALUE, item=VALUE)
async def test_a_refusal_with_any_text_costs_nothing(
    odd: Odd, message: str, code: object, param: object, item: object
) -> None:
    odd.provider.status = b"400 Bad Request"
    error = {"message": message, "code": code, "param": param, "type": item}
    odd.provider.body = spelled({"error": error})
    headers = {"Idempotency-Key": str(uuid4())}
    answer = await odd.http.post(GENERATIONS, json=image_body(), headers=headers)
    assert answer.status_code == 400
    assert (await books(odd.served))[-1].state == "void"


@hypothesis_settings(many)
@given(fields=FIELDS, item=VALUE)
async def test_an_answer_without_an_image_is_posted_by_its_usage_for_any_content(
    odd: Odd, fields: dict[str, object], item: object
) -> None:
    odd.provider.body = spelled(ANSWER | {"data": [{"revised_prompt": item}]} | fields)
    first, second = await buy_twice(odd)
    assert [one.json()["error"]["code"] for one in (first, second)] == ["image_unfinished"] * 2
    newest = (await books(odd.served))[-1]
    assert (newest.state, newest.final_nano) == ("posted", COST_NANO)
