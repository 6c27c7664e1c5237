"""Web addresses in settings: which forms are accepted, and which proxy leads there."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from gateway.errors import ConfigurationError


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


def proxy_for(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name for an address, if any.

    Raises:
        ConfigurationError: it is of a kind that is not spoken (SOCKS).
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"The environment names a proxy for {parts.scheme}:// that is not an http:// or "
            f"https:// address. Change it, or list {parts.hostname} in NO_PROXY."
        )
    return proxy


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False
