"""Signs images that the gateway encoded anew, by C2PA manifests that name the model's image.

https://spec.c2pa.org: the model's own manifest, if it has one, remains within the new one.
"""

import asyncio
import base64
import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.errors import ConfigurationError
from gateway.media.source_types import SourceType

PARALLEL = 2
"""Signing takes a tenth of a second of a core."""
MADE = "xmp:iid:made-by-the-model"
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A PNG of one pixel, to try a certificate with."""
_SETTINGS = {
    # A preview of the model's image would be larger than many images.
    "builder": {"thumbnail": {"enabled": False}},
    # Manifests of vendors may name addresses. The gateway fetches none of them.
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


class SigningFailed(Exception):
    """The image could not be signed."""


class ManifestSigner:
    """Signs with an operator's certificate."""

    def __init__(self, certificates: bytes, private_key: bytes, algorithm: str) -> None:
        self._c2pa = _library()
        self._running = asyncio.Semaphore(PARALLEL)
        try:
            self._settings = self._c2pa.Settings.from_dict(_SETTINGS)
            info = self._c2pa.C2paSignerInfo(algorithm, certificates, private_key, None)
            self._signer = self._c2pa.Signer.from_info(info)
            self._sign_now(_PIXEL, "image/png", _PIXEL, "image/png", SourceType.MODEL)
        except (self._c2pa.C2paError, ValueError) as error:
            raise ConfigurationError(
                "GATEWAY_C2PA_CERTIFICATE_FILE and GATEWAY_C2PA_PRIVATE_KEY_FILE cannot sign "
                f"an image as {algorithm}: {error}"
            ) from None

    async def sign(
        self,
        file: bytes,
        media_type: str,
        *,
        made: bytes,
        made_type: str,
        source_type: SourceType,
    ) -> bytes:
        """Return `file` with a manifest that names `made`, the model's own file, as its source.

        Raises:
            SigningFailed: the certificate has expired, or one of the files cannot be read.
        """
        async with self._running:
            try:
                return await asyncio.to_thread(
                    self._sign_now, file, media_type, made, made_type, source_type
                )
            except (self._c2pa.C2paError, ValueError) as error:
                raise SigningFailed(str(error)) from error

    def _sign_now(
        self, file: bytes, media_type: str, made: bytes, made_type: str, source_type: SourceType
    ) -> bytes:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [MADE]}}
        is_composite = source_type is SourceType.COMPOSITE
        encoded = {
            "action": "c2pa.edited" if is_composite else "c2pa.transcoded",
            "digitalSourceType": source_type,
        }
        actions = {"label": "c2pa.actions", "data": {"actions": [opened, encoded]}}
        manifest = {
            "claim_generator_info": [{"name": "image-gateway", "version": __version__}],
            "format": media_type,
            "assertions": [actions],
        }
        ingredient = {"title": "model's image", "relationship": "parentOf", "instance_id": MADE}
        target = io.BytesIO()
        with (
            self._c2pa.Context(self._settings) as context,
            self._c2pa.Builder(manifest, context=context) as builder,
        ):
            builder.add_ingredient(json.dumps(ingredient), made_type, io.BytesIO(made))
            builder.sign(self._signer, media_type, io.BytesIO(file), target)
        return target.getvalue()


def open_signer(
    certificate_file: Path | None, private_key_file: Path | None, algorithm: str
) -> ManifestSigner | None:
    """Open the signer, or None where no certificate is configured.

    Raises:
        ConfigurationError: a file, or the library, is missing, or the two files do not match.
    """
    if certificate_file is None or private_key_file is None:
        return None
    try:
        certificates, private_key = certificate_file.read_bytes(), private_key_file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return ManifestSigner(certificates, private_key, algorithm)


def _library() -> Any:  # noqa: ANN401 - the library is an extra, and untyped
    try:
        return import_module("c2pa")
    except ImportError:
        raise ConfigurationError(
            "GATEWAY_C2PA_CERTIFICATE_FILE needs the package c2pa-python: install "
            "'image-gateway[c2pa]'."
        ) from None
