"""The ledger against each provider's own bill: generations and edits, by REST, streams and MCP.

One program buys everywhere, with OpenAI's SDK and an MCP client; only `model` changes.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.money import NanoUsd, format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.compatible_host import Host, running_host
from tests.harness import GPT2, Served, make_settings
from tests.image_helpers import png
from tests.mcp_helpers import call
from tests.models_files import MODELS as CLUSTER
from tests.models_files import SIX, write
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY
from tests.stub_kserve import StubKServe
from tests.stub_openai import Stub

BANANA = "gemini-nano-banana-2.1"
HOST_PRICE_NANO = 4_000_000
EDITS = """
[[models]]
id = "sd-edit-v1"
provider = "cluster"
upstream_name = "openshift"
endpoints = ["generations", "edits"]
input_fields = { image = "image" }
sizes = ["64x64"]
parameters = ["seed", "steps"]
defaults = { steps = 25 }
price = { per_image_usd = "0.002" }

[[models]]
id = "sd-edit-v2"
provider = "second"
upstream_name = "v2"
endpoints = ["generations", "edits"]
input_fields = { image = "image" }
sizes = ["64x64"]
price = { per_image_usd = "0.002" }

[[providers]]
name = "host"
kind = "openai-compatible"
base_url = "HOST"

[[models]]
id = "hosted"
provider = "host"
endpoints = ["generations", "edits"]
sizes = ["64x64"]
price = { per_image_usd = "0.004" }
"""
EDITING = (GPT2, BANANA, "sd-edit-v1", "sd-edit-v2", "hosted")
MODELS = (*EDITING, *CLUSTER)
PROMPT = "a red circle"


@dataclass(frozen=True)
class Bought:
    """One purchase: the cost that its client was told, the ledger's lines, and the bill (nano)."""

    told_usd: str
    lines: list[tuple[str, int]]
    billed_nano: int
    images: int


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with running_host() as running:
        yield running


@pytest.fixture
def settings(
    database: str, tmp_path: Path, vendors: tuple[Stub, StubGemini, StubKServe], host: Host
) -> Settings:
    """Settings of a gateway with a model at each provider."""
    openai, gemini, kserve = vendors
    return make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=openai.base_url,
        GEMINI_API_KEY=SecretStr(KEY),
        GEMINI_BASE_URL=gemini.base_url,
        models_file=write(tmp_path, (SIX + EDITS).replace("HOST", host.base_url), kserve.base_url),
    )


@pytest.fixture
def vendors(
    stub: Stub, gemini: StubGemini, kserve: StubKServe
) -> tuple[Stub, StubGemini, StubKServe]:
    return stub, gemini, kserve


async def by_rest(served: Served, key: IssuedKey, model: str, *, edit: bool) -> tuple[str, int]:
    async with served.openai(key) as client:
        images = client.images.with_raw_response
        raw = await (
            images.edit(model=model, prompt=PROMPT, image=png(), n=2)
            if edit
            else images.generate(model=model, prompt=PROMPT, n=2)
        )
    return raw.headers["x-gateway-cost-usd"], len(raw.parse().data or [])


async def by_stream(served: Served, key: IssuedKey, model: str, *, edit: bool) -> tuple[str, int]:
    async with served.openai(key) as client:
        stream = await (
            client.images.edit(model=model, prompt=PROMPT, image=png(), stream=True)
            if edit
            else client.images.generate(model=model, prompt=PROMPT, stream=True)
        )
        last: Any = [event async for event in stream][-1]
    assert last.type == f"image_{'edit' if edit else 'generation'}.completed"
    return last.gateway["cost_usd"], 1


async def by_mcp(served: Served, key: IssuedKey, model: str, *, edit: bool) -> tuple[str, int]:
    asked: dict[str, Any] = {"model": model, "prompt": PROMPT, "n": 2}
    async with served.mcp(key) as client:
        if not edit:
            result = await call(client, "generate_image", **asked)
        else:
            made = await call(client, "generate_image", **asked)
            uri = (made.structured_content or {})["images"][0]["uri"]
            result = await call(client, "edit_image", **asked, image=uri)
    assert result.meta is not None, result.content
    return result.meta["cost"]["usd"], 2


WAYS = {"REST": by_rest, "stream": by_stream, "MCP": by_mcp}


async def buy(
    served: Served, billed: Callable[[], int], way: str, model: str, *, edit: bool
) -> Bought:
    key, before = await served.key(), billed()
    told_usd, images = await WAYS[way](served, key, model, edit=edit)
    rows = await served.owner_sql(
        "SELECT kind, amount_nano FROM ledger WHERE api_key_id = :key AND kind <> 'hold'"
        " ORDER BY reservation_id, seq",
        key=key.id,
    )
    return Bought(
        told_usd, [(row.kind, row.amount_nano) for row in rows], billed() - before, images
    )


@pytest.mark.parametrize("way", WAYS)
async def test_the_ledger_has_every_providers_bill_to_the_nano_dollar(
    served: Served, vendors: tuple[Stub, StubGemini, StubKServe], host: Host, way: str
) -> None:
    def billed() -> int:
        cost = sum(line.cost_nano_usd for vendor in vendors for line in vendor.bill)
        return cost + host.images * HOST_PRICE_NANO

    bought = {
        (model, edit): await buy(served, billed, way, model, edit=edit)
        for model in MODELS
        for edit in (False, True)
        if not edit or model in EDITING
    }
    assert len(bought) == len(MODELS) + len(EDITING)
    for case, one in bought.items():
        # An edit by MCP is of an image that was made first, under a line of its own.
        lines = 2 if way == "MCP" and case[1] else 1
        assert [kind for kind, _ in one.lines] == ["post"] * lines, case
        assert sum(nano for _, nano in one.lines) == one.billed_nano > 0, case
        assert one.told_usd == format_usd(NanoUsd(one.lines[-1][1])), case
        assert one.images == (1 if way == "stream" else 2), case
    assert await served.ledger_total() == billed()
