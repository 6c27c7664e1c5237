"""The record of one request: caller, outcome and cost. Never a prompt or a secret.

Instrumentation creates it, and each layer adds the fields that it knows. It travels in a context
variable, like the log's request id, so that no layer has to pass it on.
"""

import random
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Self
from uuid import UUID

from gateway import telemetry
from gateway.domain import Caller, CostStatus, Operator
from gateway.errors import GatewayError
from gateway.money import NanoUsd
from gateway.provider_answers import ProviderReply
from gateway.redaction import redact
from gateway.request_ids import CLIENT_ID, moment_of
from gateway.tracing import Trace

# https://www.w3.org/TR/trace-context/#traceparent-header-field-values; later versions may append.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
# The name of an API field; any other value is the client's own text.
_PARAM = re.compile(r"[a-z][a-z_]{0,40}(?:\[[0-9]{1,3}\])?")


@dataclass(slots=True)
class RequestRecord:
    """One request. Fields that were not reached, or are not known, are None."""

    request_id: str = ""
    at: datetime | None = None
    tenant_id: UUID | None = None
    livemode: bool | None = None
    api_key_id: UUID | None = None
    user_id: UUID | None = None
    operator_key_id: UUID | None = None
    session_id: UUID | None = None
    client_request_id: str | None = None
    trace_id: str | None = None
    method: str | None = None
    route: str | None = None
    tool: str | None = None
    status: int | None = None
    error_code: str | None = None
    error_param: str | None = None
    reason: str | None = None
    requested_model: str | None = None
    served_model: str | None = None
    generation_id: UUID | None = None
    replayed: bool | None = None
    provider: str | None = None
    credential: str | None = None
    provider_status: int | None = None
    provider_request_id: str | None = None
    provider_milliseconds: int | None = None
    provider_calls: int | None = None
    model_version: str | None = None
    cost_nano: NanoUsd | None = None
    cost_status: CostStatus | None = None
    milliseconds: int | None = None
    trace: Trace | None = None
    sink: "Callable[[RequestRecord], None] | None" = None
    """Receives the complete record; None for requests that are not recorded."""
    holders: int = 1

    @classmethod
    def begin(cls) -> Self:
        """Create a record with a new id, which contains the request's time of arrival."""
        milliseconds = time.time_ns() // 1_000_000
        return cls(f"req_{milliseconds:012x}{random.getrandbits(48):012x}", moment_of(milliseconds))

    def hold(self) -> None:
        """Keep the record open for a part of the request that outlives the answer."""
        self.holders += 1

    def release(self) -> None:
        """Pass the record to its sink when no holder is left."""
        self.holders -= 1
        if self.holders == 0 and self.sink is not None:
            self.sink(self)

    def identify(self, caller: Caller | Operator) -> None:
        """Note the caller."""
        if isinstance(caller, Operator):
            self.operator_key_id = caller.operator_key_id
            return
        self.tenant_id, self.livemode = caller.tenant_id, caller.livemode
        self.api_key_id, self.user_id = caller.api_key_id, caller.user_id

    def fail(self, error: GatewayError) -> None:
        """Note the code of the request's error; not its text, which may quote the client."""
        self.error_code, self.reason = error.code, error.reason or self.reason
        if error.param is not None and _PARAM.fullmatch(error.param):
            self.error_param = error.param

    def buy(self, model: str, provider: str, credential: str) -> None:
        """Note the purchased model, its provider, and the owner of the credential."""
        self.served_model, self.provider, self.credential = model, provider, credential

    def replied(
        self, reply: ProviderReply | None, seconds: float, *, calls: int, version: str | None
    ) -> None:
        """Note the provider's response, if there was one, its latency and the number of calls.

        `version`: the model that the vendor says it used. The calls of a fallback add up.
        """
        self.provider_milliseconds = round(seconds * 1000)
        self.provider_calls = (self.provider_calls or 0) + calls
        self.model_version = version
        if reply is not None:
            self.provider_status, self.provider_request_id = reply.status, reply.request_id

    def cost(self, nano: NanoUsd | None, status: CostStatus) -> None:
        """Note the cost as known at this point; None if unknown."""
        self.cost_nano, self.cost_status = nano, status


SHOWN = tuple(
    field.name for field in fields(RequestRecord) if field.name not in {"trace", "sink", "holders"}
)
"""The fields of the log line, and of the row."""
_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current() -> RequestRecord:
    """The record of the request being served; outside a request, one without a sink."""
    return _current.get() or RequestRecord()


def set_current(record: RequestRecord | None) -> None:
    """Set the current record for this task and the tasks that it starts."""
    _current.set(record)


def note_error(error: GatewayError) -> None:
    """Count an error that is being answered, and note it in the request's record."""
    telemetry.errors_total.labels(error.code, str(error.status)).inc()
    current().fail(error)


def read_client_id(values: list[bytes]) -> str | None:
    """The client's own id for its request; None if there is no acceptable one."""
    text = values[0].decode("latin-1") if len(values) == 1 else ""
    return redact(text) if CLIENT_ID.fullmatch(text) else None


def read_trace(values: list[bytes]) -> Trace | None:
    """Parse a `traceparent`; None if it is not valid."""
    text = values[0].decode("latin-1") if len(values) == 1 else ""
    found = _TRACEPARENT.fullmatch(text)
    if found is None or (found["version"] == "00" and found["more"] is not None):
        return None
    return Trace(found["trace"], found["span"], found["flags"])
