"""Small previews: what a model needs to see of an image without filling its context."""

import binascii

import pybase64

from gateway.media.decoder import Decoder, DecoderBusy, DecoderFailed, UnusableImage
from gateway.media.temporary_files import new_spool

MAX_EDGE_PIXELS = 256


async def make_preview(decoder: Decoder, encoded: str) -> bytes | None:
    """A WebP of at most 256 pixels an edge (a few kilobytes), or None where it cannot be made.

    The picture was paid for and is stored; a preview that fails must not take it away.
    """
    try:
        with new_spool() as source, new_spool() as target:
            source.write(pybase64.b64decode(encoded, validate=True))
            source.flush()
            await decoder.thumbnail(source, target, max_edge=MAX_EDGE_PIXELS)
            return target.read()
    except (OSError, binascii.Error, UnusableImage, DecoderBusy, DecoderFailed):
        return None
