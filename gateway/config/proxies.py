"""The proxy that leads to an address.

Imported by the server alone: Python's HTTP client would slow down every command.
"""

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from gateway.errors import ConfigurationError


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
