"""Provenance: a model's file stays untouched; a new file says what it is, and who made it."""

import base64
import io
import json
import struct
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from prometheus_client import REGISTRY
from pydantic import SecretStr

from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.media.manifests import SigningFailed, open_signer
from gateway.media.source_types import SourceType
from tests.harness import GPT2, Served, make_settings, served_gateway
from tests.image_helpers import file_bytes, mask, png
from tests.stub_gemini import running_gemini
from tests.stub_gemini.api import KEY
from tests.stub_openai import Stub

c2pa = pytest.importorskip("c2pa", reason="c2pa-python has no wheel for this machine")

NEWSCODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
MODEL = f"{NEWSCODES}trainedAlgorithmicMedia"
COMPOSITE = f"{NEWSCODES}compositeWithTrainedAlgorithmicMedia"


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate authority and a signer's certificate; return its chain and key."""
    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        for name in ("Example's authority", "Example's images")
    ]
    made = []
    for number, (name, key) in enumerate(zip(names, keys, strict=True)):
        is_authority = number == 0
        made.append(
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(number + 1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=is_authority,
                    crl_sign=is_authority,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(keys[0], hashes.SHA256())
        )
    chain, private = folder / "chain.pem", folder / "signer.key"
    chain.write_bytes(
        b"".join(one.public_bytes(serialization.Encoding.PEM) for one in reversed(made))
    )
    private.write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


def signing(settings: Settings, folder: Path) -> Settings:
    """The settings of a gateway with a certificate."""
    chain, private = certificate(folder)
    files = {"c2pa_certificate_file": chain, "c2pa_private_key_file": private}
    return settings.model_copy(update=files)


def signed_sample(folder: Path) -> bytes:
    """An image as a vendor signs it."""
    chain, private = certificate(folder)
    info = c2pa.C2paSignerInfo("es256", chain.read_bytes(), private.read_bytes(), None)
    created = {"action": "c2pa.created", "digitalSourceType": MODEL}
    manifest = {
        "claim_generator_info": [{"name": "vendor", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}],
    }
    target = io.BytesIO()
    with c2pa.Builder(manifest) as builder, c2pa.Signer.from_info(info) as signer:
        builder.sign(signer, "image/png", io.BytesIO(png(1024, 1024)), target)
    return target.getvalue()


def unsigned_alarms() -> float:
    """The alarms so far of images that could not be signed."""
    return REGISTRY.get_sample_value("gateway_alarms_total", {"kind": "image_not_signed"}) or 0


async def bought(served: Served, **asked: Any) -> tuple[bytes, dict[str, Any]]:
    """Buy one image; return its file and what the gateway says of it."""
    key = await served.key()
    async with served.http(key) as http:
        body = {"prompt": "a red circle", "response_format": "b64_json"} | asked
        answer = await http.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        [listed] = (await http.get("/v1/images")).json()["data"]
        return base64.b64decode(answer.json()["data"][0]["b64_json"]), listed


def local(link: str) -> str:
    """The path and query of a link, whose host is the public one."""
    return f"/images/{link.partition('/images/')[2]}"


def source_type(file: bytes) -> str:
    """The IPTC digital source type in a file's XMP, as Pillow reads it."""
    with Image.open(io.BytesIO(file)) as image:
        packet = ET.fromstring(image.info["xmp"])  # noqa: S314 - written by the gateway
    [found] = [one.get(SOURCE_TYPE) for one in packet.iter() if one.get(SOURCE_TYPE)]
    assert found is not None
    return found


def manifests(file: bytes, media_type: str = "image/png") -> tuple[dict[str, Any], int]:
    """The active manifest of a file, and the number of all, as C2PA's own reader finds them."""
    with c2pa.Reader(media_type, io.BytesIO(file)) as reader:
        assert reader.get_validation_state() == "Valid"
        found = json.loads(reader.json())
    return found["manifests"][found["active_manifest"]], len(found["manifests"])


async def test_a_signed_image_passes_byte_for_byte(
    served: Served, stub: Stub, tmp_path: Path
) -> None:
    sample = signed_sample(tmp_path)
    stub.configure(image_base64=base64.b64encode(sample).decode())
    file, listed = await bought(served, model=GPT2, size="1024x1024")
    assert file == sample
    assert listed["provenance"] == "original"
    async with served.http() as http:
        assert (await http.get(local(listed["url"]))).content == sample


async def test_an_image_that_is_encoded_anew_carries_its_source_type(served: Served) -> None:
    file, listed = await bought(served, model="dall-e-2", size="256x256")
    assert listed["provenance"] == "marked"
    assert source_type(file) == MODEL
    async with served.http() as http:
        preview = await http.get(local(listed["thumbnail_url"]))
    assert source_type(preview.content) == MODEL


async def test_an_edit_within_the_callers_image_is_a_composite(served: Served) -> None:
    key = await served.key()
    async with served.http(key) as http:
        answer = await http.post(
            "/v1/images/edits",
            data={"model": "dall-e-2", "prompt": "a hat", "size": "256x256"}
            | {"response_format": "b64_json"},
            files={"image": png(256, 256), "mask": file_bytes(mask(256, 256, (64, 64, 128, 128)))},
        )
    assert answer.status_code == 200, answer.text
    assert source_type(base64.b64decode(answer.json()["data"][0]["b64_json"])) == COMPOSITE


async def test_with_a_certificate_the_manifest_names_the_models_image(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    stub.configure(image_base64=base64.b64encode(signed_sample(tmp_path)).decode())
    async with served_gateway(signing(settings, tmp_path)) as served:
        file, listed = await bought(served, model="dall-e-2", size="256x256")
    assert listed["provenance"] == "signed"
    assert source_type(file) == MODEL
    active, count = manifests(file)
    assert count == 2  # the model's own is within
    assert active["claim_generator_info"][0]["name"] == "image-gateway"
    [ingredient] = active["ingredients"]
    assert (ingredient["relationship"], ingredient["format"]) == ("parentOf", "image/png")
    [actions] = [one for one in active["assertions"] if one["label"].startswith("c2pa.actions")]
    assert [one["action"] for one in actions["data"]["actions"]] == [
        "c2pa.opened",
        "c2pa.transcoded",
    ]
    assert actions["data"]["actions"][1]["digitalSourceType"] == MODEL


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
async def test_another_format_than_the_models_is_signed_too(
    database: str, tmp_path: Path, output_format: str
) -> None:
    async with running_gemini() as gemini:
        changed = make_settings(
            database, tmp_path, GEMINI_API_KEY=SecretStr(KEY), GEMINI_BASE_URL=gemini.base_url
        )
        async with served_gateway(signing(changed, tmp_path)) as served:
            file, listed = await bought(
                served, model="gemini-nano-banana-2.1", output_format=output_format
            )
    assert listed["provenance"] == "signed"
    assert source_type(file) == MODEL
    active, _ = manifests(file, f"image/{output_format}")
    assert active["ingredients"][0]["format"] != f"image/{output_format}"


async def test_an_image_that_cannot_be_signed_is_delivered_unsigned(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    image = png(1024, 1024)
    head, rest = image[:33], image[33:]
    no_manifest = b"caBXnot a manifest"
    chunk = struct.pack(">I", len(no_manifest) - 4) + no_manifest
    damaged = head + chunk + struct.pack(">I", zlib.crc32(no_manifest)) + rest
    stub.configure(image_base64=base64.b64encode(damaged).decode())
    before = unsigned_alarms()
    async with served_gateway(signing(settings, tmp_path)) as served:
        file, listed = await bought(served, model="dall-e-2", size="256x256")
    assert listed["provenance"] == "marked"
    assert source_type(file) == MODEL
    assert unsigned_alarms() == before + 1


async def test_a_file_that_cannot_be_signed_is_reported(tmp_path: Path) -> None:
    signer = open_signer(*certificate(tmp_path), "es256")
    assert signer is not None
    for file, made in ((b"no image", png(8, 8)), (png(8, 8)[:40], png(8, 8))):
        with pytest.raises(SigningFailed):
            await signer.sign(
                file,
                "image/png",
                made=made,
                made_type="image/png",
                source_type=SourceType.MODEL,
            )


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        make_settings("postgresql://x", tmp_path, c2pa_certificate_file=tmp_path / "chain.pem")


@pytest.mark.parametrize("damage", ["missing", "other key", "not a certificate"])
async def test_files_that_cannot_sign_are_refused_at_start(
    settings: Settings, tmp_path: Path, damage: str
) -> None:
    changed = signing(settings, tmp_path)
    assert changed.c2pa_certificate_file is not None
    assert changed.c2pa_private_key_file is not None
    if damage == "missing":
        changed.c2pa_private_key_file.unlink()
    elif damage == "other key":
        (other := tmp_path / "other").mkdir()
        changed.c2pa_private_key_file.write_bytes(certificate(other)[1].read_bytes())
    else:
        changed.c2pa_certificate_file.write_text("nothing")
    with pytest.raises(ConfigurationError):
        async with served_gateway(changed):
            pass
