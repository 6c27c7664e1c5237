"""Server-sent events as they arrive: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

import re
from collections.abc import AsyncIterable, AsyncIterator

_LINE_END = re.compile(rb"\r\n|\n|\r")
_DATA = b"data:"
_LAST = b"[DONE]"


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of each event, up to OpenAI's final `[DONE]`.

    An incomplete last event is dropped. Names, ids and comments are ignored: OpenAI's data
    contains its own type.
    """
    data: list[bytes] = []
    async for line in _lines(chunks):
        if line.startswith(_DATA):
            data.append(line.removeprefix(_DATA).removeprefix(b" "))
        elif not line and data:
            event = b"\n".join(data)
            if event.startswith(_LAST):
                return
            yield event
            data.clear()


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield complete lines without their ends; each byte is scanned once, even in long lines."""
    parts: list[bytes] = []
    ends_with_return = False
    async for chunk in chunks:
        # A CRLF may be split between two chunks.
        start = 1 if ends_with_return and chunk.startswith(b"\n") else 0
        for end in _LINE_END.finditer(chunk, start):
            yield b"".join((*parts, chunk[start : end.start()]))
            parts.clear()
            start = end.end()
        parts.append(chunk[start:])
        ends_with_return = chunk.endswith(b"\r")
