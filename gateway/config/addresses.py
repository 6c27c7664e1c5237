"""Web addresses in settings: which forms are accepted."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_https_or_loopback(url: str) -> bool:
    """True if what is fetched from this address cannot be changed on the way."""
    if not is_web_address(url):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" or _is_loopback(parts.hostname)


def is_web_address(url: str) -> bool:
    """True for an http:// or https:// address without a user."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    if not has_host or parts.username is not None or not url.isascii() or re.search(r"\s", url):
        return False
    return parts.scheme in {"https", "http"}


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False
