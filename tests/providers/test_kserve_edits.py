"""Edits on KServe: an operator declares the names under which a server takes images."""

import base64
from pathlib import Path

import pytest

from gateway.config import Settings
from tests.harness import Served, make_settings
from tests.image_helpers import png
from tests.models_files import write
from tests.stub_kserve import StubKServe

TEXT = """
[[providers]]
name = "cluster"
kind = "kserve"
base_url = "BASE"
bearer_env = "CLUSTER_TOKEN"
host_header = "sd.example.com"

[[models]]
id = "inpaint"
provider = "cluster"
upstream_name = "raw"
endpoints = ["edits"]
sizes = ["64x64"]
input_fields = { image = "init_image", mask = "mask_image" }
price = { per_image_usd = "0.002" }
[models.template]
prompt = "$prompt"
[models.template.parameters]
seed = "$seed"
width = "$width"
height = "$height"
init = "$image"
mask = "$mask"
"""
PROMPT = "a red circle"


@pytest.fixture
def settings(database: str, kserve: StubKServe, tmp_path: Path) -> Settings:
    return make_settings(database, tmp_path, models_file=write(tmp_path, TEXT, kserve.base_url))


async def test_an_input_image_is_sent_under_the_servers_name(
    served: Served, kserve: StubKServe
) -> None:
    async with served.openai(await served.key()) as client:
        await client.images.edit(model="inpaint", prompt=PROMPT, image=png(64, 64))
    [call] = kserve.calls
    assert base64.b64decode(call.json["parameters"]["init"]).startswith(b"\x89PNG")
    assert "mask" not in call.json["parameters"]
    assert call.headers["host"] == "sd.example.com"


async def test_each_of_several_calls_has_the_whole_image(
    served: Served, kserve: StubKServe
) -> None:
    file = png(1024, 1024)
    async with served.openai(await served.key()) as client:
        for _ in range(3):
            await client.images.edit(model="inpaint", prompt=PROMPT, image=file, n=4)
    sent = {call.json["parameters"]["init"] for call in kserve.calls}
    assert len(kserve.calls) == 12
    assert len(sent) == 1
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in kserve.bill)
