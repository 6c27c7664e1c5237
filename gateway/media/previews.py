"""Small previews, so that an MCP client's model can see an image without filling its context."""

import binascii

import pybase64

from gateway.media.decoder import Decoder, DecoderBusy, DecoderFailed, UnusableImage
from gateway.media.temporary_files import new_spool

MAX_EDGE_PIXELS = 256


async def make_preview(decoder: Decoder, encoded: str) -> bytes | None:
    """Make a WebP of at most 256 pixels per edge (a few kilobytes), or return None on failure.

    The image is paid for and stored, so a failed preview must not fail the request.
    """
    try:
        with new_spool() as source, new_spool() as target:
            source.write(pybase64.b64decode(encoded, validate=True))
            source.flush()
            await decoder.thumbnail(source, target, max_edge=MAX_EDGE_PIXELS)
            return target.read()
    except (OSError, binascii.Error, UnusableImage, DecoderBusy, DecoderFailed):
        return None
