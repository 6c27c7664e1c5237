"""Signed, expiring links. They contain the store path, so serving them needs no database query."""

import base64
import binascii
import hmac
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from urllib.parse import parse_qsl

from gateway.errors import Forbidden
from gateway.macs import mac

MAC_BYTES = 16
_EXPIRY_FORM = re.compile(r"0|[1-9][0-9]{0,11}", re.ASCII)
_PATH_FORM = re.compile(
    r"[0-9a-f-]{36}/[0-9]{4}/[0-9]{2}/[0-9]{2}/(img_[0-9a-z_]+)\.(png|jpeg|webp)"
)


class LinkKind(StrEnum):
    """Kind of file that a link serves; a link of one kind is not valid for the other."""

    IMAGE = ""
    THUMBNAIL = "thumbnail"


class LinkKeys(Protocol):
    """The signing keys of links; `now` is in Unix seconds."""

    def signing_link_key(self, now: float) -> bytes:
        """Return the key that signs new links."""

    def link_keys(self, now: float) -> Sequence[bytes]:
        """Return the keys whose links are accepted, the newest first."""


@dataclass(frozen=True, slots=True)
class LinkSigner:
    """Signs and verifies links under the gateway's public URL."""

    keys: LinkKeys = field(repr=False)
    public_url: str

    def sign(
        self, image_id: str, path: str, expires_at: int, kind: LinkKind = LinkKind.IMAGE
    ) -> str:
        """Return a link to the image stored at `path`, valid until `expires_at` (Unix seconds)."""
        key = self.keys.signing_link_key(time.time())
        signature = _signature(key, image_id, path, expires_at, kind)
        below = f"/{kind}" if kind else ""
        # A number and unpadded URL-safe base64: neither needs quoting.
        return f"{self.public_url}/images/{image_id}{below}?exp={expires_at}&sig={signature}"

    def verify(
        self,
        image_id: str,
        expires_at: str,
        signature: str,
        *,
        now: int,
        kind: LinkKind = LinkKind.IMAGE,
    ) -> str:
        """Verify a link of this kind and return the path of its image.

        Raises:
            Forbidden: the link was not signed here, was changed, or has expired.
        """
        if not _EXPIRY_FORM.fullmatch(expires_at):
            raise _bad_link()
        expires = int(expires_at)
        try:
            raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
            folder, _, extension = raw[MAC_BYTES:].decode().rpartition(".")
        except (ValueError, binascii.Error):
            raise _bad_link() from None
        path = f"{folder}/{image_id}.{extension}"
        # Compared as text: base64 decoding is lenient, and each link must have one spelling only.
        if not any(
            hmac.compare_digest(
                signature.encode(), _signature(key, image_id, path, expires, kind).encode()
            )
            for key in self.keys.link_keys(now)
        ):
            raise _bad_link()
        form = _PATH_FORM.fullmatch(path)
        if form is None or form[1] != image_id:
            raise _bad_link()
        if expires < now:
            raise expired_link()
        return path

    def own_path(self, url: str, *, now: int) -> str | None:
        """Return the image path of one of this gateway's links, or None for any other address.

        Raises:
            Forbidden: a link of this gateway that was changed or has expired.
        """
        own = f"{self.public_url}/images/"
        if not url.startswith(own):
            return None
        image_id, _, query = url.removeprefix(own).partition("?")
        values = dict(parse_qsl(query))
        return self.verify(image_id, values.get("exp", ""), values.get("sig", ""), now=now)


def _signature(key: bytes, image_id: str, path: str, expires_at: int, kind: LinkKind) -> str:
    """Return the MAC over path and expiry, followed by the folder and format of the path."""
    extension = path.rpartition(".")[2]
    place = f"{path.removesuffix(f'/{image_id}.{extension}')}.{extension}"
    # A path contains no \x1f, so signatures of different kinds never coincide.
    message = f"{kind}\x1f{path}\x1f{expires_at}" if kind else f"{path}\x1f{expires_at}"
    code = mac(key, message.encode())[:MAC_BYTES]
    return base64.urlsafe_b64encode(code + place.encode()).rstrip(b"=").decode()


def expired_link() -> Forbidden:
    """Build the refusal of a link that was signed here, and is too old."""
    return Forbidden(
        "This image link has expired. The application that made the image can make a new link.",
        code="link_expired",
    )


def _bad_link() -> Forbidden:
    return Forbidden("This image link is not valid. Copy the complete link.", code="link_invalid")
