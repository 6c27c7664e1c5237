"""The public keys of the operator's identity provider: discovery, fetching and caching.

OpenID Connect Discovery 1.0, RFC 8414 (the same for plain OAuth) and RFC 7517 (key sets).
"""

import asyncio
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import httpx2
import orjson
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key, RSAKey

from gateway import __version__, telemetry
from gateway.config import OidcSettings, is_https_or_loopback
from gateway.errors import Unavailable
from gateway.oidc.tokens import ALGORITHMS, MAX_DEPTH, nests_deeper

MAX_KEYS = 100
MIN_RSA_BITS = 2048
OK = 200
KEY_ERRORS = (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError)
log = structlog.get_logger(__name__)

# The library warns at each token signed with EdDSA, a name that many providers still use.
warnings.filterwarnings("ignore", category=SecurityWarning, module="joserfc")


class KeysUnavailable(Unavailable):
    """An unknown key that cannot be fetched, so that its tokens cannot be verified."""

    code = "identity_provider_unreachable"

    def __init__(self) -> None:
        super().__init__(
            "Tokens cannot be verified right now: the identity provider does not answer "
            "correctly. Nothing was bought; try again.",
            retry_after_seconds=1,
        )


class KeysNotFetched(Exception):
    """A failure to fetch the provider's keys, with a reason for the operator, not for clients."""


class SigningKeys:
    """The provider's keys, fetched when the first token needs one.

    Fetched again once they are old, or when a token names an unknown key, but at least
    `refetch_seconds` after the last attempt, so that clients cannot cause load at the provider.
    While the provider is away, the known keys stay in use.
    """

    def __init__(
        self,
        issuer: str,
        settings: OidcSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._settings = settings
        self._clock = clock
        self._http = httpx2.AsyncClient(
            timeout=settings.oidc_timeout_seconds,
            follow_redirects=False,
            headers={"User-Agent": f"image-gateway/{__version__}", "Accept-Encoding": "identity"},
        )
        self._keys: Sequence[Key] = ()
        self._fetched_at = self._attempted_at = -math.inf
        self._has_failed = False
        self._task: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> Key | None:
        """Find the key with this id and algorithm; without an id, the only one of the algorithm.

        Raises:
            KeysUnavailable: it is unknown, and the provider is away.
        """
        key = self._match(key_id, algorithm)
        if key is None or self._clock() - self._fetched_at >= self._settings.oidc_keys_seconds:
            task = self._fetching()
            # While the provider is known to be away, tokens with a known key need not wait.
            if task is not None and (key is None or not self._has_failed):
                await asyncio.shield(task)
                key = self._match(key_id, algorithm)
        if key is None and (self._has_failed or not self._keys):
            raise KeysUnavailable
        return key

    async def fetch(self) -> int:
        """Fetch the keys now, and return their number.

        Raises:
            KeysNotFetched: they cannot be fetched.
        """
        self._keys = await _fetch_keys(self._http, self._issuer, self._settings)
        self._fetched_at = self._clock()
        return len(self._keys)

    async def close(self) -> None:
        """Close connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._http.aclose()

    def _match(self, key_id: str | None, algorithm: str) -> Key | None:
        matching = [
            key
            for key in self._keys
            if (key_id is None or key.kid == key_id)
            and key.key_type == ALGORITHMS[algorithm]
            and key.alg in {None, algorithm}
        ]
        return matching[0] if len(matching) == 1 or (matching and key_id is not None) else None

    def _fetching(self) -> asyncio.Task[None] | None:
        """Return the running fetch, or start one if it is due."""
        if self._task is None:
            now = self._clock()
            if now - self._attempted_at < self._settings.oidc_refetch_seconds:
                return None
            self._attempted_at = now
            self._task = asyncio.create_task(self._try_to_fetch(), name="signing-keys")
        return self._task

    async def _try_to_fetch(self) -> None:
        try:
            await self.fetch()
            self._has_failed = False
        except KeysNotFetched as error:
            self._has_failed = True
            telemetry.alarm("identity_provider", reason=str(error))
        finally:
            self._task = None


# Fetching


async def _fetch_keys(
    http: httpx2.AsyncClient, issuer: str, settings: OidcSettings
) -> Sequence[Key]:
    address = await _discover(http, issuer, settings)
    keys = read_key_set(await _read(http, address, settings))
    if not keys:
        raise KeysNotFetched(f"{address} holds no key for an accepted signature algorithm")
    return keys


def read_key_set(document: Mapping[str, object]) -> Sequence[Key]:
    """Parse the usable keys of a set; others are ignored, as RFC 7517, section 5 asks."""
    entries = document.get("keys")
    known = entries[:MAX_KEYS] if isinstance(entries, list) else []
    return [key for entry in known if (key := _import(entry)) is not None]


async def _discover(http: httpx2.AsyncClient, issuer: str, settings: OidcSettings) -> str:
    """Return the address of the key set from the first discovery document found."""
    for url in discovery_urls(issuer):
        try:
            document = await _read(http, url, settings)
        except _NotThereError:
            continue
        if document.get("issuer") != issuer:
            raise KeysNotFetched(
                f"{url} names the issuer {str(document.get('issuer'))[:200]!r}; the setting must "
                f"be exactly the same, and is {issuer!r}"
            )
        address = document.get("jwks_uri")
        if not isinstance(address, str) or not is_https_or_loopback(address):
            raise KeysNotFetched(f"{url} names no jwks_uri that begins with https://")
        return address
    raise KeysNotFetched(f"there is no discovery document at {' or '.join(discovery_urls(issuer))}")


def discovery_urls(issuer: str) -> tuple[str, str]:
    """List the addresses of discovery documents: OpenID Connect Discovery, 4; RFC 8414, 3.1."""
    parts = urlsplit(issuer.rstrip("/"))
    path = "/.well-known/oauth-authorization-server"
    return (
        f"{issuer.rstrip('/')}/.well-known/openid-configuration",
        parts._replace(path=path + parts.path).geturl(),
    )


class _NotThereError(Exception):
    """A document that the provider does not have."""


async def _read(http: httpx2.AsyncClient, url: str, settings: OidcSettings) -> Mapping[str, object]:
    """Fetch a JSON object, bounded in time and size; redirects are not followed."""
    content = bytearray()
    try:
        async with (
            asyncio.timeout(settings.oidc_timeout_seconds),
            http.stream("GET", url) as answer,
        ):
            if answer.status_code in {404, 405, 410}:
                raise _NotThereError
            if answer.status_code != OK:
                raise KeysNotFetched(f"{url} answers with status {answer.status_code}")
            async for chunk in answer.aiter_raw():
                content += chunk
                if len(content) > settings.oidc_max_document_bytes:
                    raise KeysNotFetched(
                        f"{url} is larger than {settings.oidc_max_document_bytes} bytes"
                    )
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
        raise KeysNotFetched(f"{url} cannot be fetched ({type(error).__name__})") from error
    if nests_deeper(bytes(content), MAX_DEPTH):
        raise KeysNotFetched(f"{url} nests deeper than {MAX_DEPTH} levels")
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise KeysNotFetched(f"{url} holds no JSON object")
    return document


def _import(entry: object) -> Key | None:
    """Import a key; None if it is not for signatures, or not for an accepted algorithm."""
    if not isinstance(entry, dict) or entry.get("kty") not in ALGORITHMS.values():
        return None
    if entry.get("use", "sig") != "sig" or str(entry.get("alg", "RS256")) not in ALGORITHMS:
        return None
    try:
        key = JWKRegistry.import_key(entry)
    except KEY_ERRORS as error:
        log.warning("signing_key_unreadable", reason=type(error).__name__)
        return None
    is_short = isinstance(key, RSAKey) and key.raw_value.key_size < MIN_RSA_BITS
    return None if is_short else key
