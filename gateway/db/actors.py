"""Who makes changes, as every row of the audit trail says it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change, as the audit trail names him.

    `id`: of an operator key or of an API key (the first of a line of rolled ones); of the user who
    came with a token; the login of who runs a command; "gateway" for what that does by itself.
    `name`: the name of that key at the time, where it has one.
    """

    type: Literal["operator_key", "api_key", "user", "cli", "gateway"]
    id: str
    request_id: str | None = None
    name: str | None = None


THE_GATEWAY = Actor("gateway", "gateway")
