"""Signed, expiring links: they carry all that is needed to serve the bytes, so no lookup is."""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import urlencode

from gateway.errors import Forbidden

MAC_BYTES = 16
_PATH_FORM = re.compile(
    r"[0-9a-f-]{36}/[0-9]{4}/[0-9]{2}/[0-9]{2}/(img_[0-9a-z_]+)\.(png|jpeg|webp)"
)


@dataclass(frozen=True, slots=True)
class LinkSigner:
    """Makes and checks links under the gateway's public address."""

    key: bytes
    public_url: str

    def sign(self, image_id: str, path: str, expires_at: int) -> str:
        """The public link to the stored file at `path`, valid until `expires_at` (Unix seconds)."""
        folder = path.removesuffix(f"/{image_id}.{path.rpartition('.')[2]}")
        place = f"{folder}.{path.rpartition('.')[2]}".encode()
        signature = base64.urlsafe_b64encode(self._mac(path, expires_at) + place).rstrip(b"=")
        query = urlencode({"exp": expires_at, "sig": signature.decode()})
        return f"{self.public_url}/images/{image_id}?{query}"

    def verify(self, image_id: str, expires_at: str, signature: str, *, now: int) -> str:
        """The path of the file that a link leads to.

        Raises:
            Forbidden: the link is not ours, was changed, or has expired.
        """
        try:
            raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
            folder, _, extension = raw[MAC_BYTES:].decode().rpartition(".")
            expires = int(expires_at)
        except (ValueError, binascii.Error):
            raise _bad_link() from None
        path = f"{folder}/{image_id}.{extension}"
        if not hmac.compare_digest(raw[:MAC_BYTES], self._mac(path, expires)):
            raise _bad_link()
        form = _PATH_FORM.fullmatch(path)
        if form is None or form[1] != image_id:
            raise _bad_link()
        if expires < now:
            raise Forbidden(
                "This image link has expired. The application that made the image can make a "
                "new link.",
                code="link_expired",
            )
        return path

    def _mac(self, path: str, expires_at: int) -> bytes:
        message = f"{path}\x1f{expires_at}".encode()
        return hmac.digest(self.key, message, hashlib.sha256)[:MAC_BYTES]


def _bad_link() -> Forbidden:
    return Forbidden("This image link is not valid. Copy it whole.", code="link_invalid")
