"""Resources: the caller's own images and their history, storage totals, and model cards.

The four addresses are parsed by hand, so that an error can name the invalid part.
"""

import base64
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mcp.types import (
    Annotations,
    BlobResourceContents,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)
from pydantic import BaseModel, Field

from gateway.bootstrap import Gateway
from gateway.domain import Caller, Scope
from gateway.errors import GatewayError, InvalidRequest, ModelRetired, NotFound, PayloadTooLarge
from gateway.generation.image_references import HOSTED_SCHEME
from gateway.library import history
from gateway.library.history import HostedImage
from gateway.library.retention import link_expiry
from gateway.mcp_server.calls import Context, opened_gateway, protocol_error
from gateway.mcp_server.model_cards import model_card
from gateway.money import format_usd
from gateway.web.authentication import require_scope

JSON = "application/json"
HISTORY = "image-history://recent"
STORAGE = "storage-stats://overview"
MODEL_SCHEME = "model-info://"
LISTED_AT_ONCE = 50
DEFAULT_LIMIT, MAX_LIMIT = 10, 100
DEFAULT_DAYS, MAX_DAYS = 7, 3650
MAX_URI_CHARACTERS = 500
MAX_BLOB_BYTES = 16_777_216
"""A message is copied several times in memory; larger images are available by link."""
MAX_SHOWN_PROMPT = 200

FIXED = [
    Resource(
        uri=HISTORY,
        name="image-history",
        title="Recent images",
        description="The newest images, with links and cost. Takes ?limit= (1 to 100, default 10) "
        "and &days= (default 7).",
        mime_type=JSON,
    ),
    Resource(
        uri=STORAGE,
        name="storage-stats",
        title="Stored images",
        description="Number and size of the stored images, their retention, and when expired "
        "images were last deleted.",
        mime_type=JSON,
    ),
]
TEMPLATES = [
    ResourceTemplate(
        uri_template=HOSTED_SCHEME + "{image_id}",
        name="generated-image",
        title="An image",
        description="The bytes of an image made here, in its original format.",
        annotations=Annotations(audience=["user"]),
    ),
    ResourceTemplate(
        uri_template=HISTORY + "{?limit,days}",
        name="image-history",
        title="Recent images",
        description="The newest images, at most `limit` (1 to 100) of the last `days`.",
        mime_type=JSON,
    ),
    ResourceTemplate(
        uri_template=MODEL_SCHEME + "{model}",
        name="model-info",
        title="A model",
        description="A model's capabilities, its cost, and its shutdown date.",
        mime_type=JSON,
    ),
]


class RecentImage(BaseModel):
    """One image of the history. The cost is that of its whole generation."""

    id: str
    uri: str
    url: str = Field(description="Link for a person; it expires.")
    created_at: str
    expires_at: str
    operation: str
    model: str
    requested_model: str
    width: int | None
    height: int | None
    media_type: str
    size_bytes: int
    prompt: str | None = Field(description="Beginning of the prompt, if the tenant stores prompts.")
    cost_usd: str | None
    cost_status: str
    images_of_generation: int


class RecentImages(BaseModel):
    """The newest images, newest first; `has_more`: the period contains older ones."""

    days: int
    total: int = Field(description="Total images of these days, listed here or not.")
    images: list[RecentImage]
    has_more: bool


class StoredImages(BaseModel):
    """Totals of the caller's stored images."""

    images: int
    bytes: int
    oldest: str | None
    newest: str | None
    max_bytes: int | None = Field(
        description="The tenant's cap; the oldest images beyond it are deleted."
    )
    kept_seconds: int = Field(description="Retention of an image made now.")
    last_cleanup_at: str | None = Field(description="Time when expired images were last deleted.")
    last_cleanup_images: int = Field(description="Number of the caller's images among them.")


async def list_resources(
    context: Context, params: PaginatedRequestParams | None
) -> ListResourcesResult:
    """List the two overviews, then the caller's images, newest first."""
    gateway, caller = _reader(context)
    after = None if params is None else params.cursor
    try:
        async with gateway.database.tenant(caller.tenant_id) as session:
            page = await history.list_images(session, caller, limit=LISTED_AT_ONCE, after=after)
    except InvalidRequest:
        raise InvalidRequest(
            "The cursor is not valid for this key. Begin without a cursor.",
            param="cursor",
        ) from None
    images = [
        Resource(
            uri=HOSTED_SCHEME + image.id,
            name=image.id,
            title=f"{image.requested_model}, {image.created_at:%Y-%m-%d %H:%M} UTC",
            description=_shortened(image.prompt),
            mime_type=image.media_type,
            size=image.size_bytes,
        )
        for image in page.images
    ]
    return ListResourcesResult(
        resources=[*([] if after else FIXED), *images],
        next_cursor=images[-1].name if page.has_more else None,
    )


async def list_resource_templates(
    _context: Context, _params: PaginatedRequestParams | None
) -> ListResourceTemplatesResult:
    """List the three templates with parameters."""
    return ListResourceTemplatesResult(resource_templates=TEMPLATES)


async def read_resource(context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
    """Read the resource at an address; an error names the address in `data.uri`.

    Raises:
        MCPError: there is no such resource, the address is invalid, or the key lacks permission.
    """
    uri = str(params.uri)
    try:
        return await _read(context, uri)
    except GatewayError as error:
        raise protocol_error(error, uri=uri[:MAX_URI_CHARACTERS]) from None


async def _read(context: Context, uri: str) -> ReadResourceResult:
    gateway, caller = _reader(context)
    if len(uri) > MAX_URI_CHARACTERS:
        raise InvalidRequest(
            f"The address has {len(uri)} characters; at most {MAX_URI_CHARACTERS} are allowed.",
            param="uri",
        )
    if uri.startswith(HOSTED_SCHEME):
        contents = await _image(gateway, caller, uri)
        return ReadResourceResult(contents=[contents])
    if uri.startswith(MODEL_SCHEME):
        found = await _model(gateway, caller, unquote(uri.removeprefix(MODEL_SCHEME)))
    elif uri == STORAGE:
        found = await _stored(gateway, caller)
    elif uri.partition("?")[0] == HISTORY:
        found = await _recent(gateway, caller, _query(uri))
    else:
        raise NotFound(
            f"There is no resource {uri[:80]!r}. Resources: {HOSTED_SCHEME}{{image_id}}, "
            f"{HISTORY}, {STORAGE} and {MODEL_SCHEME}{{model}}.",
            param="uri",
        )
    return ReadResourceResult(
        contents=[TextResourceContents(uri=uri, mime_type=JSON, text=found.model_dump_json())]
    )


def _reader(context: Context) -> tuple[Gateway, Caller]:
    gateway, caller = opened_gateway(context)
    require_scope(caller, Scope.IMAGES_READ)
    return gateway, caller


async def _image(gateway: Gateway, caller: Caller, uri: str) -> BlobResourceContents:
    async with gateway.database.tenant(caller.tenant_id) as session:
        image = await history.find_image(session, caller, uri.removeprefix(HOSTED_SCHEME))
    if image.size_bytes > MAX_BLOB_BYTES:
        raise PayloadTooLarge(
            f"The image has {image.size_bytes} bytes, too many for a message. Use its link."
        )
    content = await gateway.store.get(image.path)
    return BlobResourceContents(
        uri=uri, mime_type=image.media_type, blob=base64.b64encode(content).decode()
    )


async def _recent(gateway: Gateway, caller: Caller, query: Mapping[str, int]) -> RecentImages:
    days = query.get("days", DEFAULT_DAYS)
    since = datetime.now(UTC) - timedelta(days=days)
    async with gateway.database.tenant(caller.tenant_id) as session:
        page = await history.list_images(
            session,
            caller,
            limit=query.get("limit", DEFAULT_LIMIT),
            since=since,
        )
        total = await history.count_images(session, caller, since=since)
    images = [_recent_image(gateway, image) for image in page.images]
    return RecentImages(days=days, total=total, images=images, has_more=page.has_more)


def _recent_image(gateway: Gateway, image: HostedImage) -> RecentImage:
    until = link_expiry(
        int(time.time()),
        link_seconds=gateway.settings.image_ttl_seconds,
        image_expires_at=int(image.expires_at.timestamp()),
    )
    return RecentImage(
        id=image.id,
        uri=HOSTED_SCHEME + image.id,
        url=gateway.links.sign(image.id, image.path, until),
        created_at=image.created_at.isoformat(),
        expires_at=image.expires_at.isoformat(),
        operation=image.operation,
        model=image.served_model,
        requested_model=image.requested_model,
        width=image.width,
        height=image.height,
        media_type=image.media_type,
        size_bytes=image.size_bytes,
        prompt=_shortened(image.prompt),
        cost_usd=None if image.cost_nano is None else format_usd(image.cost_nano),
        cost_status=image.cost_status.value,
        images_of_generation=image.generation_images,
    )


def _shortened(prompt: str | None) -> str | None:
    """Shorten a prompt: fifty prompts of thirty thousand characters exceed any context window."""
    if prompt is None or len(prompt) <= MAX_SHOWN_PROMPT:
        return prompt
    return f"{prompt[:MAX_SHOWN_PROMPT]}…"


def _query(uri: str) -> Mapping[str, int]:
    bounds = {"limit": MAX_LIMIT, "days": MAX_DAYS}
    found: dict[str, int] = {}
    for name, text in parse_qsl(urlsplit(uri).query, keep_blank_values=True):
        if name not in bounds:
            raise InvalidRequest(
                f"Unknown parameter: '{name[:80]}'. {HISTORY} takes limit and days.",
                code="unknown_parameter",
                param=name,
            )
        is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_DAYS))
        if not is_number or not 1 <= int(text) <= bounds[name]:
            raise InvalidRequest(
                f"Invalid '{name}': expected an integer from 1 to {bounds[name]}.", param=name
            )
        found[name] = int(text)
    return found


async def _stored(gateway: Gateway, caller: Caller) -> StoredImages:
    async with gateway.database.tenant(caller.tenant_id) as session:
        stats = await history.storage_stats(session, caller)
    settings = caller.tenant_settings
    kept = settings.image_retention_seconds or gateway.settings.resolved_image_retention_seconds
    return StoredImages(
        images=stats.images,
        bytes=stats.size_bytes,
        oldest=None if stats.oldest is None else stats.oldest.isoformat(),
        newest=None if stats.newest is None else stats.newest.isoformat(),
        max_bytes=stats.max_bytes,
        kept_seconds=kept,
        last_cleanup_at=None if stats.cleaned_at is None else stats.cleaned_at.isoformat(),
        last_cleanup_images=stats.cleaned_images,
    )


async def _model(gateway: Gateway, caller: Caller, name: str) -> BaseModel:
    try:
        model = gateway.core.catalog.find(caller, name)
    except ModelRetired as error:
        raise NotFound(error.message, code="model_not_found", param="model") from None
    return await model_card(gateway, caller, model)


def complete_query(name: str) -> list[str]:
    """Suggest values for a parameter of the history."""
    likely: Mapping[str, Any] = {"limit": (10, 25, 50, 100), "days": (1, 7, 30, 90)}
    return [str(value) for value in likely.get(name, ())]
