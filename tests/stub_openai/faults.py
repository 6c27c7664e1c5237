"""Faults: the misbehaviours that a test can order, each charged or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Final, Literal, get_args

from tests.stub_openai.errors import PRESET_BY_STATUS, PRESETS, ApiError

Kind = Literal[
    "answer",
    "close_unread",
    "close_before_billing",
    "close_after_billing",
    "reset_before_billing",
    "reset_after_billing",
    "reset_after_headers",
    "truncated_body",
    "hang_before_billing",
    "hang_after_billing",
    "hang_in_body",
    "status",
    "stream_error",
    "stream_hold",
    "usage_missing",
    "usage_without_details",
    "unreadable_json",
]

BILLED_BY_DEFAULT: Final[dict[Kind, bool]] = {
    "answer": True,
    "close_unread": False,
    "close_before_billing": False,
    "close_after_billing": True,
    "reset_before_billing": False,
    "reset_after_billing": True,
    "reset_after_headers": True,
    "truncated_body": True,
    "hang_before_billing": False,
    "hang_after_billing": True,
    "hang_in_body": True,
    "status": False,
    "stream_error": False,
    "stream_hold": True,
    "usage_missing": True,
    "usage_without_details": True,
    "unreadable_json": True,
}
"""The default of `Fault.billed`: True if a call with this fault is charged."""

IMAGE_PATHS = "/v1/images/"


@dataclass(frozen=True, slots=True)
class Fault:
    """One misbehaviour, for the next `times` matching requests (None: for all of them).

    A fault applies only to requests that OpenAI would have accepted: an invalid one never uses it
    up. First come the waits, `delay_seconds` and then `hold` until released; then `kind` happens.

    Kinds:
      answer                 the normal answer, to be delayed or held
      close_unread           the connection is closed at a request's first bytes, unparsed; it
                             matches any request and is recorded as a call without a method
      close_*_billing        the request is read, the connection is closed without an answer
      reset_*_billing        the same with a TCP reset
      reset_after_headers    status and headers, then a TCP reset
      truncated_body         the headers of the whole answer, half of its body, then closed
      hang_*_billing         no answer until the client disconnects
      hang_in_body           half of the answer, then nothing until the client disconnects
      status                 an error: `status`, or one of `errors.PRESETS` named in `preset`;
                             `html` answers with a proxy's HTML page instead of JSON
      stream_error           a stream that sends its partial images, then an `error` event
      stream_hold            a stream that sends its partial images, waits until released, and
                             then sends the rest
      usage_missing          200 without `usage`
      usage_without_details  200 whose `usage` has totals only
      unreadable_json        200 whose body is not JSON
    """

    kind: Kind = "answer"
    billed: bool | None = None
    times: int | None = 1
    prompt_contains: str = ""
    path_contains: str = IMAGE_PATHS
    key: str | None = None
    """The API key of matching requests; None for every key."""
    delay_seconds: float = 0.0
    hold: bool = False
    bill_at_arrival: bool = False
    """Charge before `delay_seconds` and `hold` instead of after; such a line is not `delivered`."""
    status: int = 500
    preset: str | None = None
    html: bool = False
    retry_after: str | None = None
    """Value of the Retry-After header of a `status` fault, instead of the preset's own."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown fault kind: {self.kind!r}")
        if self.kind.endswith("_before_billing") and self.is_billed:
            raise ValueError(f"{self.kind} cannot be billed")
        if self.kind.endswith("_after_billing") and not self.is_billed:
            raise ValueError(f"{self.kind} is always billed")
        if self.kind == "close_unread" and (self.is_billed or self.prompt_contains or self.hold):
            raise ValueError("close_unread reads nothing: it cannot bill, match a prompt, or hold")
        if self.bill_at_arrival and not self.is_billed:
            raise ValueError("bill_at_arrival needs a fault that is billed")
        if self.times is not None and self.times < 1:
            raise ValueError("times must be positive, or None for ever")
        if self.kind == "status":
            self.error()

    @property
    def is_billed(self) -> bool:
        return BILLED_BY_DEFAULT[self.kind] if self.billed is None else self.billed

    def error(self) -> ApiError:
        """The error that a `status` fault answers with; ValueError if there is no such error."""
        name = self.preset or PRESET_BY_STATUS.get(self.status)
        if name is not None and name in PRESETS:
            return PRESETS[name]
        if self.preset is None and 400 <= self.status <= 599:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
            return ApiError(self.status, f"Status {self.status}.", kind=kind)
        raise ValueError(f"no such error: status={self.status} preset={self.preset!r}")

    def matches(self, *, path: str, prompt: str, key: str) -> bool:
        return (
            self.path_contains in path
            and self.prompt_contains in prompt
            and self.key in (None, key)
        )


_FIELDS = tuple(field.name for field in dataclass_fields(Fault))


def fault_to_json(fault: Fault) -> dict[str, object]:
    return {name: getattr(fault, name) for name in _FIELDS}


def fault_from_json(row: Mapping[str, object]) -> Fault:
    """Read a fault from JSON; ValueError or TypeError if it is invalid."""
    return Fault(**row)  # type: ignore[arg-type]  # wrong types fail where they are used


class FaultQueue:
    """Armed faults, oldest first; each request takes the first that matches it."""

    def __init__(self) -> None:
        self._armed: list[tuple[Fault, int | None]] = []

    def add(self, *faults: Fault) -> None:
        self._armed.extend((fault, fault.times) for fault in faults)

    def clear(self) -> None:
        self._armed.clear()

    @property
    def armed(self) -> list[Fault]:
        """The faults that can still apply."""
        return [fault for fault, _ in self._armed]

    def take(self, *, path: str, prompt: str, key: str) -> Fault | None:
        for at, (fault, _) in enumerate(self._armed):
            if fault.kind != "close_unread" and fault.matches(path=path, prompt=prompt, key=key):
                return self._use(at)
        return None

    def take_unread(self) -> bool:
        for at, (fault, _) in enumerate(self._armed):
            if fault.kind == "close_unread":
                self._use(at)
                return True
        return False

    def _use(self, at: int) -> Fault:
        fault, left = self._armed[at]
        if left is not None and left <= 1:
            del self._armed[at]
        elif left is not None:
            self._armed[at] = (fault, left - 1)
        return fault
