"""Stored images and their thumbnails, served by signed link, without a key or a query."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from gateway.errors import RangeNotSatisfiable
from gateway.library.links import LinkKind
from gateway.library.storage import MEDIA_TYPES, ImageStore, thumbnail_path
from gateway.rest.byte_ranges import is_fresh, parse_range
from gateway.rest.dependencies import GatewayDep
from gateway.rest.errors import error_response
from gateway.rest.openapi import shared_headers
from gateway.rest.refusals import refused_with

router = APIRouter(tags=["images"])
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
# Stored images are untrusted: a browser must neither sniff their type nor run their content. Other
# sites may embed them: the signed link alone grants access.
PROTECTION = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
Expiry = Annotated[str, Query(description="Expiry of the link, in Unix seconds.")]
Signature = Annotated[str, Query(description="Signature of the link.")]
Saved = Annotated[bool, Query(alias="download", description="Send the image as an attachment.")]
IMAGE_CONTENT = {
    media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in EXTENSIONS
}
ANSWERS: dict[int | str, dict[str, object]] = {
    200: {"content": IMAGE_CONTENT},
    206: {
        "description": "The requested byte range.",
        "headers": shared_headers("Content-Range"),
        "content": IMAGE_CONTENT,
    },
    304: {"description": "The client's copy is current (`If-None-Match`)."},
    **refused_with(403, 416, 500, 503),
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file to serve, which never changes under its name."""

    path: str
    media_type: str
    name: str
    etag: str

    def headers(self, *, seconds: int, is_download: bool) -> dict[str, str]:
        """The headers that do not depend on the requested bytes."""
        disposition = "attachment" if is_download else "inline"
        return PROTECTION | {
            "ETag": self.etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": f"private, max-age={max(0, seconds)}, immutable",
            "Content-Disposition": f'{disposition}; filename="{self.name}"',
        }


@router.head("/images/{image_id}", include_in_schema=False)
@router.get(
    "/images/{image_id}",
    summary="Download an image",
    response_class=Response,
    responses=ANSWERS,
)
async def get_image(
    image_id: str,
    request: Request,
    gateway: GatewayDep,
    *,
    exp: Expiry = "",
    sig: Signature = "",
    is_download: Saved = False,
) -> Response:
    """Return an image by signed, expiring link; no key is needed. Supports `If-None-Match` and
    `Range`.
    """
    now = int(time.time())
    path = gateway.links.verify(image_id, exp, sig, now=now)
    media_type = MEDIA_TYPES[path.rpartition(".")[2]]
    file = _File(path, media_type, f"{image_id}.{EXTENSIONS[media_type]}", f'"{image_id}"')
    headers = file.headers(seconds=int(exp) - now, is_download=is_download)
    return await _serve(request, gateway.store, file, headers)


@router.head("/images/{image_id}/thumbnail", include_in_schema=False)
@router.get(
    "/images/{image_id}/thumbnail",
    summary="Download a thumbnail (WebP)",
    response_class=Response,
    responses=ANSWERS,
)
async def get_thumbnail(
    image_id: str,
    request: Request,
    gateway: GatewayDep,
    *,
    exp: Expiry = "",
    sig: Signature = "",
    is_download: Saved = False,
) -> Response:
    """Return a thumbnail of at most 512 pixels per edge, by its own signed link; made on first
    request.
    """
    now = int(time.time())
    path = gateway.links.verify(image_id, exp, sig, now=now, kind=LinkKind.THUMBNAIL)
    await gateway.thumbnails.ensure(path)
    name = f"{image_id}-thumbnail"
    file = _File(thumbnail_path(path), "image/webp", f"{name}.webp", f'"{name}"')
    headers = file.headers(seconds=int(exp) - now, is_download=is_download)
    return await _serve(request, gateway.store, file, headers)


async def _serve(
    request: Request, store: ImageStore, file: _File, headers: Mapping[str, str]
) -> Response:
    """Answer with the file, the requested part of it, or 304 Not Modified."""
    wanted = request.headers.get("range") if request.method == "GET" else None
    if_none_match = request.headers.get("if-none-match")
    if request.method == "GET" and wanted is None and if_none_match is None:
        return await _stream(store, file, headers)
    # The store is asked first: a deleted file is answered with 404, never with 304.
    found = await store.find(file.path)
    if is_fresh(if_none_match, file.etag):
        kept = ("ETag", "Cache-Control", *PROTECTION)
        return Response(status_code=304, headers={name: headers[name] for name in kept})
    size = found.size_bytes
    if request.method == "HEAD":
        return Response(
            media_type=file.media_type, headers={**headers, "Content-Length": str(size)}
        )
    try:
        span = parse_range(wanted, request.headers.get("if-range"), etag=file.etag, size_bytes=size)
    except RangeNotSatisfiable as error:
        refused = error_response(error)
        refused.headers["Content-Range"] = f"bytes */{size}"
        return refused
    return await _stream(store, file, headers, span)


async def _stream(
    store: ImageStore,
    file: _File,
    headers: Mapping[str, str],
    span: tuple[int, int] | None = None,
) -> Response:
    download = await store.read(file.path, span)
    start, stop = span or (0, download.size_bytes)
    told = {**headers, "Content-Length": str(stop - start)}
    if span is not None:
        told["Content-Range"] = f"bytes {start}-{stop - 1}/{download.size_bytes}"
    return StreamingResponse(
        download.chunks,
        status_code=200 if span is None else 206,
        media_type=file.media_type,
        headers=told,
    )
