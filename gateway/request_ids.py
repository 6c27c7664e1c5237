"""The forms of the ids of requests: the gateway's own and the clients'."""

import re
from datetime import UTC, datetime

MAX_ID_CHARACTERS = 128
CLIENT_ID = re.compile(f"[0-9A-Za-z_.~:+=@,-]{{1,{MAX_ID_CHARACTERS}}}")
"""The accepted form of a client's own request id; any other value is ignored.

Spelled out: Pydantic's `\\w` is any letter of Unicode, and 128 of it take 7 MB in every worker.
"""
REQUEST_ID = re.compile(r"req_(0[0-9a-f]{11})[0-9a-f]{12}")


def began_at(request_id: str) -> datetime | None:
    """The arrival time that a request id contains; None if the id is not the gateway's."""
    found = REQUEST_ID.fullmatch(request_id)
    return None if found is None else moment_of(int(found[1], 16))


def moment_of(milliseconds: int) -> datetime:
    """Convert exactly, so that the time can be read back from the id."""
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)
