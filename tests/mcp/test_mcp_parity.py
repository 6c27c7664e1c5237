"""One table of calls through REST and MCP: both buy, bill, book and refuse alike."""

import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import date
from http import HTTPStatus
from typing import Any
from uuid import UUID

import httpx2
import pytest
from mcp.types import CallToolResult

from gateway.config import Settings
from gateway.domain import Scope
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, error_of, served_gateway
from tests.image_helpers import data_url, file_bytes, mask, photo, png, with_hole
from tests.mcp_helpers import MODES, call_by_http, content_of, tool_message
from tests.mcp_helpers import error_of as tool_error_of
from tests.stub_openai import Fault, Stub

TODAY = date(2026, 11, 20)
"""The stub's: gpt-image-1 and DALL·E are retired, gpt-image-1.5 is not."""
ROUTES = {
    "generate_image": "/v1/images/generations",
    "edit_image": "/v1/images/edits",
    "create_variation": "/v1/images/variations",
}
SUN, FLARE = "gpt-image-2.5-sunburst", "gpt-image-2.5-flare"


@dataclass(frozen=True)
class Case:
    """One call for both fronts: fields have the same names, images are sent in each front's way."""

    fields: Mapping[str, Any]
    images: tuple[bytes, ...] = ()
    mask: bytes | None = None
    key: str = "plain"
    fault: Fault | None = None
    tool: str = "generate_image"
    idempotency_key: str | None = None


def generation(**fields: Any) -> Case:
    return Case({"prompt": "a red fox", **fields})


def edit(*images: bytes, overlay: bytes | None = None, **fields: Any) -> Case:
    given = images or (png(64, 48),)
    return Case({"prompt": "a red fox", **fields}, given, overlay, tool="edit_image")


def variation(*images: bytes, **fields: Any) -> Case:
    return Case(fields, images or (png(64, 64),), tool="create_variation")


HOLE = (8, 8, 40, 40)
OVERLAY = file_bytes(mask(64, 48, HOLE))
SQUARE, SQUARE_OVERLAY = png(64, 64), file_bytes(mask(64, 64, HOLE))
ACCEPTED = [
    generation(),
    generation(size="1024x1024"),
    generation(size="256x256"),  # names no model, and can only mean one
    generation(prompt="Ein roter Fuchs — 赤い狐 🦊"),
    generation(prompt="x" * 32_000, model=GPT2, quality="low"),
    generation(model=GPT2),
    generation(model=GPT2, size="auto", quality="auto", background="auto"),
    generation(model=GPT2, size="1024x1024", quality="low", n=3),
    generation(model=GPT2, size="1536x864", quality="medium", output_format="png"),
    generation(model=GPT2, quality="high", background="opaque", output_format="jpeg"),
    generation(model=GPT2, quality="low", background="transparent", output_format="webp"),
    generation(model="gpt-image-2-2026-04-21", quality="low", background="transparent"),
    generation(model=FLARE, quality="low", n=2),
    generation(model=SUN, quality="xhigh", size="1024x1536"),
    generation(model=f"{SUN}-2026-09-08", quality="max"),
    generation(model="gpt-image-2.6-flare", quality="low"),
    generation(model="gpt-image-2.6-sunburst", quality="medium", size="1536x1024"),
    generation(model="gpt-image-1", quality="high", size="1536x1024", n=2),
    generation(model="gpt-image-1-mini", quality="low"),
    generation(model="gpt-image-1.5", quality="medium", output_format="webp"),
    generation(model="chatgpt-image-latest", size="auto"),
    generation(model="dall-e-2"),
    generation(model="dall-e-2", size="512x512", n=4),
    generation(model="dall-e-2", size="1024x1024", quality="standard"),
    generation(model="dall-e-3"),
    generation(model="dall-e-3", quality="hd", size="1792x1024"),
    generation(model="dall-e-3", quality="standard", size="1024x1792"),
    generation(model=GPT2, quality="low", partial_images=1),
    generation(model="gpt-image-1.5", quality="low", partial_images=3),
    replace(generation(model=GPT2, quality="low"), fault=Fault("usage_missing")),
    edit(),
    edit(model=GPT2, quality="low", size="1024x1024"),
    edit(png(32, 48), png(64, 48), png(96, 48), model=GPT2, quality="low", n=2),
    edit(overlay=OVERLAY, model=SUN, quality="low", output_format="webp"),
    edit(overlay=OVERLAY, model="gpt-image-2.6-flare", background="transparent"),
    edit(file_bytes(photo(48, 48), "JPEG"), model=FLARE, output_format="jpeg", quality="low"),
    edit(file_bytes(photo(48, 48), "WEBP"), model="gpt-image-1.5", input_fidelity="high"),
    edit(model="gpt-image-1", input_fidelity="low", size="1024x1536", quality="low"),
    edit(model=GPT2, quality="low", partial_images=2),
    edit(SQUARE, overlay=SQUARE_OVERLAY, model="dall-e-2", size="256x256", n=2),
    edit(file_bytes(with_hole(photo(64, 64), HOLE)), model="dall-e-2"),
    edit(SQUARE, overlay=SQUARE_OVERLAY, size="512x512"),
    variation(),
    variation(model="dall-e-2", n=3, size="512x512"),
    variation(png(256, 256), size="256x256"),
]
REFUSED = [
    generation(prompt=" "),
    generation(prompt=None),
    generation(prompt=3),
    generation(prompt="x" * 32_001, model=GPT2),
    generation(prompt="x" * 1_001, model="dall-e-2"),
    generation(model="gpt-image-99"),
    generation(model=3),
    generation(n=0),
    generation(n=11),
    generation(n="2"),
    generation(n=2, model="dall-e-3"),
    generation(size="1000x1000"),
    generation(size="512x512", model="dall-e-3"),
    generation(size=1024),
    generation(quality="best"),
    generation(quality="xhigh", model=GPT2),
    generation(background="green"),
    generation(background="transparent", output_format="jpeg"),
    generation(output_format="gif"),
    generation(output_format="png", model="dall-e-3"),
    generation(qualty="low"),
    generation(partial_images=4),
    generation(partial_images=2, n=2),
    generation(partial_images=2, model="dall-e-2"),
    edit(*[SQUARE] * 17),
    edit(SQUARE, SQUARE, model="dall-e-2"),
    edit(model="dall-e-3"),
    edit(model=GPT2, input_fidelity="high"),
    edit(png(64, 48), model="dall-e-2"),
    edit(SQUARE, model="dall-e-2"),
    edit(b"a red fox"),
    edit(png()[:-30]),
    edit(overlay=png(64, 48)),
    edit(overlay=SQUARE_OVERLAY),
    variation(model=GPT2),
    variation(png(64, 48)),
    variation(file_bytes(photo(64, 64), "JPEG")),
    variation(size="100x100"),
    replace(generation(), idempotency_key="x" * 256),
    replace(generation(), key="poor"),
    replace(edit(), key="poor"),
    replace(variation(), key="poor"),
    replace(generation(), key="reading"),
    replace(edit(), key="reading"),
    replace(generation(model=GPT2), key="narrow"),
    replace(edit(), key="narrow"),
    replace(variation(), key="narrow"),
]
FAILED = [
    replace(case, fault=fault)
    for case, fault in itertools.product(
        [generation(model=GPT2, quality="low"), edit(model=GPT2, quality="low"), variation()],
        [
            Fault("status", preset="moderation_blocked"),
            Fault("status", preset="rate_limited", retry_after="0"),
            Fault("status", preset="insufficient_quota"),
            Fault("status", preset="bad_request"),
            Fault("status", status=500),
            Fault("close_before_billing"),
            Fault("reset_after_billing"),
            Fault("unreadable_json"),
        ],
    )
]


async def rest(http: httpx2.AsyncClient, case: Case) -> httpx2.Response:
    """Make the call as an OpenAI client does."""
    fields = {**case.fields, "response_format": "url"}
    if "partial_images" in fields:
        fields["stream"] = True
    key = case.idempotency_key  # never shared by two fronts, which ask in different words
    headers = {} if key is None else {"Idempotency-Key": f"rest-{key}"}
    if case.tool == "generate_image":
        return await http.post(ROUTES[case.tool], json=fields, headers=headers)
    files = [("image[]", ("i", content)) for content in case.images]
    files += [] if case.mask is None else [("mask", ("m", case.mask))]
    texts = {name: str(value) for name, value in fields.items()}
    return await http.post(ROUTES[case.tool], data=texts, files=files, headers=headers)


async def mcp(http: httpx2.AsyncClient, case: Case, mode: str) -> CallToolResult:
    """Make the call as an assistant does."""
    arguments = dict(case.fields)
    if case.images:
        urls = [data_url(content) for content in case.images]
        arguments["image"] = urls[0] if len(urls) == 1 else urls
    if case.mask is not None:
        arguments["mask"] = data_url(case.mask)
    if case.idempotency_key is not None:
        arguments["idempotency_key"] = f"mcp-{case.idempotency_key}"
    return await call_by_http(http, tool_message(case.tool, mode, **arguments))


def made_by_rest(response: httpx2.Response) -> list[object]:
    """The models, the cost, its status and the number of images, from the REST answer."""
    names = ("served-model", "requested-model", "cost-usd", "cost-status")
    told = [response.headers[f"x-gateway-{name}"] for name in names]
    return [*told, len(response.json()["data"])]


def made_by_mcp(result: CallToolResult) -> list[object]:
    """The same, as the tool says it."""
    content = content_of(result)
    names = ("model", "requested_model", "cost_usd", "cost_status")
    return [*(content[name] for name in names), len(content["images"])]


def refusal(error: Mapping[str, Any]) -> list[object]:
    return [error["type"], error["code"], error["param"]]


class Pair:
    """Two keys of every kind, one for each front of a gateway."""

    def __init__(
        self,
        served: Served,
        stub: Stub,
        keys: Mapping[str, Sequence[IssuedKey]],
        clients: Mapping[str, Sequence[httpx2.AsyncClient]],
    ) -> None:
        self._served = served
        self._stub = stub
        self._keys = keys
        self._clients = clients

    async def compare(self, case: Case, mode: str) -> None:
        """Make a call through both fronts and compare the results."""
        through_rest, through_mcp = self._clients[case.key]
        self._arm(case)
        response = await rest(through_rest, case)
        sent = self._sent()
        self._arm(case)
        result = await mcp(through_mcp, case, mode)
        assert self._sent() == sent, case
        if result.is_error or response.status_code != HTTPStatus.OK:
            assert refusal(tool_error_of(result)) == refusal(error_of(response)), case
        elif "partial_images" in case.fields:
            assert b'"error"' not in response.content
        else:
            assert made_by_mcp(result) == made_by_rest(response), case

    async def booked(self) -> dict[str, list[list[list[object]]]]:
        """The ledger lines and stored images of every call, by front."""
        rows = await self._served.owner_sql(LINES)
        found: dict[UUID, dict[UUID, list[list[object]]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            found[row.api_key_id][row.reservation_id].append(list(row)[2:])
        return {
            front: [
                lines
                for pair in self._keys.values()
                for lines in found.get(pair[at].id, {}).values()
            ]
            for at, front in enumerate(("rest", "mcp"))
        }

    def _arm(self, case: Case) -> None:
        self._calls, self._files = len(self._stub.calls), len(self._stub.files)
        self._stub.faults.clear()
        if case.fault is not None:
            self._stub.faults.add(case.fault)

    def _sent(self) -> list[object]:
        """The complete requests that the provider got since the last comparison."""
        calls = self._stub.calls[self._calls :]
        told = [(call.path, call.key, call.json, call.form, call.files) for call in calls]
        return [told, self._stub.files[self._files :]]


LINES = """
SELECT l.api_key_id, l.reservation_id, l.kind, l.amount_nano, l.requested_model, l.served_model,
  l.requests, l.images, l.text_input_tokens, l.image_input_tokens, l.text_output_tokens,
  l.image_output_tokens, l.livemode, l.user_id, r.operation, r.provider, r.credential, r.state,
  r.outcome, r.price_id, (SELECT array_agg((i.media_type, i.width, i.height, i.size_bytes)::text
    ORDER BY i.size_bytes) FROM image i WHERE i.reservation_id = r.id) AS images_stored
FROM ledger l JOIN reservation r ON r.id = l.reservation_id ORDER BY r.admitted_at, l.seq
"""


@pytest.fixture
async def pair(settings: Settings, stub: Stub) -> AsyncIterator[Pair]:
    stub.configure(keep_files=True)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "sandbox": {"livemode": False},
        "user": {"user": "alice"},
        "poor": {},
        "reading": {"scopes": [Scope.IMAGES_READ]},
        "narrow": {"models": ["gpt-image-2.6-flare"]},
    }
    # Many failures one after the other: the result of each is compared, not their number.
    patient = settings.model_copy(update={"circuit_failures": 1000, "circuit_window_calls": 1000})
    async with served_gateway(patient, today=lambda: TODAY) as served:
        keys = {
            kind: [await served.key(**options) for _ in range(2)] for kind, options in kinds.items()
        }
        for key in keys["poor"]:
            await served.budget("0.0001", api_key_id=key.id)
        async with AsyncExitStack() as stack:
            clients = {
                kind: [await stack.enter_async_context(served.http(key)) for key in pair]
                for kind, pair in keys.items()
            }
            yield Pair(served, stub, keys, clients)
        await served.check_invariants()


async def expect_parity(pair: Pair, cases: Sequence[Case]) -> int:
    """Compare every case, the eras in turn; return the number of calls booked per front."""
    for case, mode in zip(cases, itertools.cycle(MODES)):
        await pair.compare(case, mode)
    booked = await pair.booked()
    assert booked["mcp"] == booked["rest"]
    return len(booked["mcp"])


async def test_an_accepted_call_is_bought_billed_and_booked_alike(pair: Pair, stub: Stub) -> None:
    assert await expect_parity(pair, ACCEPTED) == len(ACCEPTED)
    assert len(stub.bill) == 2 * len(ACCEPTED)


async def test_the_same_holds_for_users_and_for_test_keys(pair: Pair, stub: Stub) -> None:
    few = [
        generation(model=GPT2, quality="low", size="1024x640", n=2),
        generation(prompt="[sandbox:no_usage]", model=GPT2, quality="low", size="1024x640"),
        edit(SQUARE, overlay=SQUARE_OVERLAY, model="dall-e-2", size="256x256"),
        variation(size="256x256"),
    ]
    cases = [replace(case, key=key) for case in few for key in ("user", "sandbox")]
    assert await expect_parity(pair, cases) == len(cases)
    assert len(stub.bill) == len(cases)


async def test_a_refused_call_is_refused_alike_and_costs_nothing(pair: Pair, stub: Stub) -> None:
    assert await expect_parity(pair, REFUSED) == 0
    assert stub.calls == []


async def test_a_call_that_fails_at_the_provider_is_booked_alike(pair: Pair) -> None:
    assert await expect_parity(pair, FAILED) == len(FAILED)


async def test_calls_with_a_key_are_answered_again_and_never_bought_again_alike(
    pair: Pair, stub: Stub
) -> None:
    fault = Fault("reset_after_billing")
    bought = [
        replace(case, idempotency_key=f"key-{number}")
        for number, case in enumerate([generation(model=GPT2, quality="low", n=2), edit()])
    ]
    unknown = replace(variation(), idempotency_key="key-3", fault=fault)
    others = [replace(case, fields={**case.fields, "quality": "high"}) for case in bought]
    cases = [*bought, *bought, *others, unknown, replace(unknown, fault=None)]
    assert await expect_parity(pair, cases) == len(bought) + 1
    assert len(stub.bill) == 2 * (len(bought) + 1)
