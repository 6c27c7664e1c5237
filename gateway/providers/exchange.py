"""One request and its whole, bounded answer, for vendors that are called without an SDK.

The reply has the call's id if a header names it; a vendor that names it in the body adds it.
"""

from collections.abc import Mapping

import aiohttp
from yarl import URL

from gateway.provider_answers import ProviderReply
from gateway.providers.base import interrupted, too_large
from gateway.providers.connections import (
    AnswerTooLong,
    ProviderConnections,
    Sending,
    note_interruption,
    read_limited,
)
from gateway.providers.values import REQUEST_ID_HEADER, call_id

MAX_ERROR_BYTES = 1_048_576
OK = 200


async def exchange(
    connections: ProviderConnections,
    method: str,
    url: URL,
    sending: Sending,
    *,
    headers: Mapping[str, str],
    content: bytes | None,
    read_seconds: float,
    max_answer_bytes: int,
) -> tuple[int, Mapping[str, str], bytes]:
    """Send a request; return the status, the headers and the body.

    Raises:
        ProviderFailure: no answer, or one that broke off or is too long.
    """
    try:
        response = await connections.send(
            method, url, headers=headers, content=content, read_seconds=read_seconds
        )
        try:
            named = call_id(response.headers.get(REQUEST_ID_HEADER))
            sending.reply = ProviderReply(response.status, named)
            limit = max_answer_bytes if response.status == OK else MAX_ERROR_BYTES
            body = b"".join([chunk async for chunk in read_limited(response, limit)])
        finally:
            response.release()
            await response.wait_for_close()
    except AnswerTooLong as error:
        raise too_large(error.max_bytes) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        note_interruption(error, sending)
        raise interrupted(sent=sending.had_connection) from None
    return response.status, response.headers, body
