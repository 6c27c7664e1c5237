"""Stored images as pages show them: with links to this host, valid from now on."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.bootstrap import Gateway
from gateway.console.portal import Portal
from gateway.errors import NotFound
from gateway.identity.viewers import Permission
from gateway.library import history
from gateway.library.history import HostedImage
from gateway.library.links import LinkKind
from gateway.library.retention import link_expiry

STEP_SECONDS = 900
"""Links begin at whole steps, so that browsers find thumbnails of the last minutes in their cache.
"""


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image with its links: paths on this host, and the whole address to pass on.

    `alt`: the text for those who do not see it.
    """

    image: HostedImage
    thumbnail: str
    source: str
    download: str
    address: str
    alt: str


async def find_in_any_mode(portal: Portal, image_id: str) -> tuple[Portal, HostedImage]:
    """Find an image, and return the portal in the image's mode.

    An address that a colleague has passed on does not depend on the mode that one has chosen.

    Raises:
        NotFound: there is none that the viewer may see.
    """
    try:
        return portal, await _find(portal, image_id)
    except NotFound:
        if portal.viewer.modes == (portal.livemode,):
            raise
        other = portal.in_mode(livemode=not portal.livemode)
        return other, await _find(other, image_id)


async def _find(portal: Portal, image_id: str) -> HostedImage:
    caller = await portal.caller(whole_tenant=True)
    async with portal.reading(Permission.IMAGES_READ) as session:
        return await history.find_image(session, caller, image_id)


def show_images(gateway: Gateway, images: Iterable[HostedImage]) -> tuple[ShownImage, ...]:
    """Sign links for the images."""
    return tuple(show_image(gateway, image) for image in images)


def show_image(gateway: Gateway, image: HostedImage) -> ShownImage:
    """Sign the links of one image."""
    now = int(time.time())
    until = link_expiry(
        now - now % STEP_SECONDS,
        link_seconds=max(gateway.settings.image_ttl_seconds, 2 * STEP_SECONDS),
        image_expires_at=int(image.expires_at.timestamp()),
    )
    address = gateway.links.sign(image.id, image.path, until)
    small = gateway.links.sign(image.id, image.path, until, LinkKind.THUMBNAIL)
    # The page's policy allows images of its own host alone, by whatever name it was opened.
    host = gateway.links.public_url
    source = address.removeprefix(host)
    return ShownImage(
        image=image,
        thumbnail=small.removeprefix(host),
        source=source,
        download=f"{source}&download=true",
        address=address,
        alt=image.prompt[:200] if image.prompt else f"Image made by {image.served_model}",
    )
