"""The HTTP part of `gateway mcp-stdio`: address, headers, and explanations of failures."""

import json
from dataclasses import dataclass

import httpx2
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
)
from mcp.types import (
    PROTOCOL_VERSION_META_KEY,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
)
from pydantic import SecretStr

from gateway import __version__
from gateway.config import is_https_or_loopback
from gateway.errors import ConfigurationError

CONNECT_SECONDS = 10.0
SEND_SECONDS = 60.0
SILENCE_SECONDS = 300.0  # the gateway sends progress every 15 s; a proxy may buffer it
KEEPALIVE_SECONDS = 3.0  # below the gateway's own five seconds
MAX_IN_FLIGHT = 64
NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason why a request gets no answer: a code for programs, a message for people."""

    code: str
    message: str


def endpoint_url(address: str) -> str:
    """The MCP endpoint of a gateway; `https://host` and `https://host/mcp` are equivalent.

    Raises:
        ConfigurationError: the address is invalid, or a key may not be sent to it.
    """
    try:
        url = httpx2.URL(address.strip())
    except httpx2.InvalidURL:
        raise ConfigurationError("The gateway's address is not a URL.") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError("The gateway's address must look like https://images.example.com.")
    if url.userinfo or url.query or url.fragment:
        raise ConfigurationError(
            "The gateway's address may contain a host, a port and a path, nothing else. "
            "The API key belongs in GATEWAY_API_KEY."
        )
    if not is_https_or_loopback(str(url)):
        raise ConfigurationError(
            f"http://{url.host} is not encrypted: the API key would be sent in clear text. "
            "Use https://; http:// is allowed for a gateway on this machine only."
        )
    path = url.path.rstrip("/")
    return str(url.copy_with(path=path if path.endswith("/mcp") else f"{path}/mcp"))


def open_http(url: str, key: SecretStr) -> httpx2.AsyncClient:
    """Open the client for one endpoint; redirects are not followed, so the key stays there.

    Raises:
        ConfigurationError: the environment's proxy or certificates cannot be used.
    """
    try:
        return httpx2.AsyncClient(
            headers={
                "Authorization": f"Bearer {key.get_secret_value()}",
                "Accept": "application/json, text/event-stream",
                "Content-Type": "application/json",
                "User-Agent": f"image-gateway-mcp-stdio/{__version__}",
            },
            timeout=httpx2.Timeout(
                connect=CONNECT_SECONDS, write=SEND_SECONDS, read=SILENCE_SECONDS, pool=None
            ),
            limits=httpx2.Limits(max_connections=MAX_IN_FLIGHT, keepalive_expiry=KEEPALIVE_SECONDS),
            # HTTPS_PROXY carries an encrypted tunnel. Plain http is for this machine only, where
            # a proxy would read the key.
            trust_env=url.startswith("https:"),
        )
    except (ValueError, ImportError, OSError, httpx2.InvalidURL):
        raise ConfigurationError(
            "The environment's proxy or certificates cannot be used; check HTTPS_PROXY, ALL_PROXY "
            "(SOCKS is not supported), SSL_CERT_FILE and SSL_CERT_DIR."
        ) from None


def http_headers(message: JSONRPCMessage, negotiated: str | None) -> dict[str, str]:
    """The headers in which streamable HTTP repeats parts of a message.

    A modern request names its protocol version in `_meta`; `negotiated` is the result of an earlier
    handshake. Arguments are not repeated (`x-mcp-header`): no tool here asks for it.

    https://modelcontextprotocol.io/specification/2026-07-28/basic/transports
    """
    if not isinstance(message, JSONRPCRequest | JSONRPCNotification):
        return {MCP_PROTOCOL_VERSION_HEADER: negotiated} if negotiated else {}
    params = message.params or {}
    meta = params.get("_meta")
    version = meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(meta, dict) else None
    if isinstance(version, str):
        headers = {MCP_PROTOCOL_VERSION_HEADER: version, MCP_METHOD_HEADER: message.method}
        name = params.get(NAME_BEARING_METHODS.get(message.method, ""))
        if isinstance(name, str):
            headers[MCP_NAME_HEADER] = name
    elif negotiated and message.method != "initialize":
        headers = {MCP_PROTOCOL_VERSION_HEADER: negotiated}
    else:
        headers = {}
    return {header: encode_header_value(value) for header, value in headers.items()}


async def read_body(response: httpx2.Response, limit: int) -> bytes | None:
    """Read the body; None if it is larger than `limit`."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def explain(response: httpx2.Response, body: bytes, url: str) -> Problem:
    """Explain an answer that is not an MCP message; the gateway's own errors have a message."""
    status = response.status_code
    code, message = _envelope(body)
    if status == httpx2.codes.UNAUTHORIZED:
        said = message or "The gateway refuses the API key."
        return Problem(code or "invalid_api_key", f"{said} It is read from GATEWAY_API_KEY.")
    if response.next_request is not None:
        target = response.next_request.url.copy_with(userinfo=b"", query=None, fragment=None)
        return Problem(
            "redirected", f"{url} redirects to {target}. If that is the gateway, set it with --url."
        )
    if status == httpx2.codes.NOT_FOUND or response.is_success:
        return Problem("no_mcp_endpoint", f"There is no MCP endpoint at {url}. Check the address.")
    if status == httpx2.codes.REQUEST_ENTITY_TOO_LARGE:
        return Problem("message_too_large", "The message is larger than the gateway accepts.")
    if message:
        return Problem(code or "refused", message)
    return Problem("refused", f"{url} answered {status} {response.reason_phrase}.")


def _envelope(body: bytes) -> tuple[str | None, str | None]:
    """Code and message of the gateway's error envelope, if the body is one."""
    try:
        error = json.loads(body)["error"]
        code, message = error["code"], error["message"]
    except (ValueError, LookupError, TypeError):
        return None, None
    return (code, message) if isinstance(code, str) and isinstance(message, str) else (None, None)


def failure(error: httpx2.HTTPError, method: str, url: str, max_bytes: int) -> Problem:
    """Explain a connection that could not be made, or broke."""
    reason = str(error) or type(error).__name__
    if isinstance(error, NOT_SENT):
        return Problem("gateway_unreachable", f"No gateway answers at {url}: {reason}.")
    if isinstance(error, httpx2.SSEError):
        return too_large("answer", max_bytes)
    if method == "tools/call":
        return Problem(
            "outcome_unknown",
            f"The connection to the gateway broke before its answer ({reason}). The call may "
            "have been carried out and paid for: check the history before repeating it.",
        )
    return Problem("connection_broken", f"The connection to {url} broke: {reason}.")


def too_large(what: str, max_bytes: int) -> Problem:
    """Explain that a message or an answer exceeds the limit."""
    return Problem(
        f"{what}_too_large",
        f"The {what} is larger than {max_bytes:,} bytes (GATEWAY_MAX_JSON_UPLOAD_BYTES), the most "
        "that is passed on.",
    )
