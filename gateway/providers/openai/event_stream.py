"""The events of a stream, by the SDK's decoder and the parser of other answers."""

from collections.abc import AsyncIterator

from gateway.providers.openai.sdk import APIError, AsyncStream
from gateway.providers.values import parse_loosely

LAST = "[DONE]"


class EventStream(AsyncStream[object]):
    """The SDK's stream with tolerant parsing.

    The SDK's own parser refuses an event with a number of thousands of digits, and with it an
    image that was paid for.
    """

    async def __stream__(self) -> AsyncIterator[object]:
        """Yield the data of each event, up to OpenAI's final `[DONE]`.

        Raises:
            APIError: an event reports an error.
            ValueError: an event is not JSON.
        """
        try:
            async for event in self._iter_events():
                if event.data.startswith(LAST):
                    return
                data = parse_loosely(event.data.encode())
                if isinstance(data, dict) and data.get("error"):
                    raise APIError(
                        "The stream reports an error.", self.response.request, body=data["error"]
                    )
                yield data
        finally:
            await self.response.aclose()
