"""Provenance as another tool reads it: ExifTool, which shares no code with the gateway."""

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.config import Settings
from tests.harness import GPT2, Served, make_settings, served_gateway
from tests.images.test_provenance import MODEL, bought, signed_sample, signing
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY
from tests.stub_openai import Stub

BANANA = "gemini-nano-banana-2.1"
EXIFTOOL = shutil.which("exiftool")
pytestmark = pytest.mark.skipif(
    EXIFTOOL is None, reason="exiftool is not installed: apt-get install libimage-exiftool-perl"
)


async def tags(file: bytes) -> dict[str, Any]:
    """Every tag that ExifTool finds, with the group of each."""
    assert EXIFTOOL is not None
    process = await asyncio.create_subprocess_exec(
        *(EXIFTOOL, "-json", "-G1", "-a", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(file)
    [found] = json.loads(out)
    return dict(found)


REENCODED: list[dict[str, Any]] = [
    {"model": "dall-e-2", "size": "256x256", "response_format": "b64_json"},
    {"model": BANANA, "output_format": "jpeg"},
    {"model": BANANA, "output_format": "webp"},
]
"""Images that the gateway encodes: of another size, and of other formats than the models'."""


@pytest.fixture
def settings(database: str, stub: Stub, gemini: StubGemini, tmp_path: Path) -> Settings:
    return make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        GEMINI_API_KEY=SecretStr(KEY),
        GEMINI_BASE_URL=gemini.base_url,
    )


async def files(served: Served) -> list[bytes]:
    """One image of each way of encoding anew."""
    found = []
    async with served.http(await served.key()) as http:
        for asked in REENCODED:
            answer = await http.post(
                "/v1/images/generations", json={"prompt": "a red circle"} | asked
            )
            assert answer.status_code == 200, answer.text
            found.append(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    return found


async def test_an_image_that_is_encoded_anew_names_its_source(served: Served) -> None:
    for file in await files(served):
        found = await tags(file)
        assert found["XMP-iptcExt:DigitalSourceType"] == MODEL
        assert not any(name.startswith("JUMBF") for name in found)


async def test_with_a_certificate_its_manifest_names_the_models_image(
    settings: Settings, tmp_path: Path
) -> None:
    async with served_gateway(signing(settings, tmp_path)) as served:
        made = await files(served)
    for file in made:
        found = await tags(file)
        assert found["XMP-iptcExt:DigitalSourceType"] == MODEL
        if found["File:FileType"] == "Extended WEBP":
            continue  # Debian's ExifTool reads no manifests there; C2PA's own reader does
        assert found["JUMBF:JUMDLabel"] == "c2pa"
        assert found["CBOR:Relationship"] == "parentOf"
        assert found["CBOR:Claim_Generator_InfoName"] == "image-gateway"
        assert "c2pa.transcoded" in found["CBOR:ActionsAction"]


async def test_a_signed_image_that_is_passed_on_has_its_vendors_manifest(
    served: Served, stub: Stub, tmp_path: Path
) -> None:
    sample = signed_sample(tmp_path)
    stub.configure(image_base64=base64.b64encode(sample).decode())
    file, _ = await bought(served, model=GPT2, size="1024x1024")
    assert file == sample
    found = await tags(file)
    assert found["CBOR:Claim_Generator_InfoName"] == "vendor"
    assert found["CBOR:ActionsDigitalSourceType"] == MODEL
