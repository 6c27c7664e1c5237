"""Static files of the console: served from the package, under a hash of their content, for ever.

All files share one hash, so that modules and style sheets can name each other by relative paths.
"""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from gateway.errors import NotFound

STATIC = Path(__file__).parent / "static"
PREFIX = "/console/static/"
HASH_CHARACTERS = 12
SECONDS_OF_A_YEAR = 31_536_000
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""The kinds of files that are served; no other file of the folder is."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
    # An SVG may be opened as a page of its own.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; sandbox",
}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, plain and compressed."""

    content: bytes
    compressed: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """All files by their paths, and the hash in their addresses."""

    files: dict[str, Asset]
    hash: str

    def url(self, path: str) -> str:
        """Return the address of a file.

        Raises:
            KeyError: there is no such file, which is a mistake in a template.
        """
        if path not in self.files:
            raise KeyError(f"gateway/console/static has no file {path}")
        return f"{PREFIX}{self.hash}/{path}"


@cache
def assets() -> Assets:
    """Read all files, once in a process."""
    whole = hashlib.sha256()
    files = {}
    for path in sorted(STATIC.rglob("*")):
        media_type = MEDIA_TYPES.get(path.suffix)
        if media_type is None or not path.is_file():
            continue
        name, content = path.relative_to(STATIC).as_posix(), path.read_bytes()
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
        files[name] = Asset(content, gzip.compress(content, mtime=0), media_type)
    return Assets(files, whole.hexdigest()[:HASH_CHARACTERS])


@router.head(PREFIX + "{hash}/{path:path}", include_in_schema=False)
@router.get(PREFIX + "{hash}/{path:path}", include_in_schema=False)
async def get_asset(hash: str, path: str, request: Request) -> Response:  # noqa: A002 - in the path
    """Return a file of the package.

    While replicas of two releases serve side by side, a page of one may ask the other: it then gets
    that release's file, which is not kept.

    Raises:
        NotFound: there is no such file.
    """
    known = assets()
    asset = known.files.get(path)
    if asset is None:
        raise NotFound(f"The console has no file {path}.")
    is_current = hash == known.hash
    keep = f"public, max-age={SECONDS_OF_A_YEAR}, immutable" if is_current else "no-store"
    headers = HEADERS | {"Cache-Control": keep}
    content = asset.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = asset.compressed, headers | {"Content-Encoding": "gzip"}
    return Response(content, media_type=asset.media_type, headers=headers)
