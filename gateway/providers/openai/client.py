"""OpenAI's client, which builds the unchanging part of a JSON request once.

The SDK copies options, merges headers and parses the address anew for each call, which took longer
than sending it. Forms, streams, errors and everything else are the SDK's own.
"""

from collections.abc import Mapping
from typing import cast

import httpx2

from gateway.providers.openai.sdk import AsyncOpenAI, FinalRequestOptions, omit
from gateway.providers.openai.transport import PooledClient

NO_KEY = "every-call-brings-its-own"
# Facts about this machine and this client, which OpenAI need not know. The SDK takes the first from
# the client alone, the second from each call alone.
_UNSENT = tuple(
    f"X-Stainless-{name}"
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
)
UNSENT_OF_A_CALL = {"X-Stainless-Retry-Count": omit, "X-Stainless-Read-Timeout": omit}
_LENGTH = "content-length"
# OpenAI's API takes no idempotency key. Without one, the SDK would draw a random key for each call.
_POST = FinalRequestOptions.construct(method="post", url="", idempotency_key="")


class ImagesClient(AsyncOpenAI):
    """An `AsyncOpenAI` without retries, environment and key of its own: each call brings a key."""

    def __init__(self, base_url: str, http_client: PooledClient) -> None:
        super().__init__(
            api_key=NO_KEY,
            base_url=base_url,
            max_retries=0,
            default_headers=cast("Mapping[str, str]", dict.fromkeys(_UNSENT, omit)),
            http_client=http_client,
        )
        # The SDK takes them from the environment. They would be sent with tenants' own keys.
        self.organization = self.project = None
        self._unchanging: dict[str, list[tuple[str, str]]] = {}

    async def post_json(
        self, url: str, content: bytes, headers: Mapping[str, object], limits: httpx2.Timeout
    ) -> httpx2.Response:
        """Make a call with a JSON body, as `post` does with the same options.

        Raises:
            openai.APIError: as `post`.
        """
        given = {"url": url, "content": content, "headers": headers, "timeout": limits}
        return await self.request(httpx2.Response, _POST.model_copy(update=given))

    def _build_request(
        self, options: FinalRequestOptions, *, retries_taken: int = 0
    ) -> httpx2.Request:
        """Build a request; the SDK's client for Azure overrides the same method."""
        if not isinstance(options.content, bytes):
            return super()._build_request(options, retries_taken=retries_taken)
        given = cast("Mapping[str, object]", options.headers)
        unchanging = self._unchanging.get(options.url)
        if unchanging is None:
            request = super()._build_request(options, retries_taken=retries_taken)
            changing = {name.lower() for name in given} | {_LENGTH}
            self._unchanging[options.url] = [
                (name, value) for name, value in request.headers.items() if name not in changing
            ]
            return request
        own = [(name, value) for name, value in given.items() if isinstance(value, str)]
        return self._client.build_request(
            options.method,
            options.url,
            content=options.content,
            headers=unchanging + own,
            timeout=cast("httpx2.Timeout", options.timeout),
        )
