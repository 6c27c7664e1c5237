"""Actors: the authors of changes in the audit trail."""

from dataclasses import dataclass
from typing import Literal

ActorType = Literal[
    "operator_key",
    "api_key",
    "user",
    "cli",
    "session",
    "operator_session",
    "break_glass",
    "gateway",
]


@dataclass(frozen=True, slots=True)
class Actor:
    """The author of a change.

    `id`: that of an admin key, of an API key (the first of a line of rolled keys) or of a token's
    user; the login of a command's user; a session of the console; "gateway" for the gateway's own
    changes. `name`: the name of that key, or of the person in the console, at the time, if any.
    """

    type: ActorType
    id: str
    request_id: str | None = None
    name: str | None = None


THE_GATEWAY = Actor("gateway", "gateway")
