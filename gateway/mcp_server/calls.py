"""The context of a call: gateway, caller and arguments; and errors in MCP's terms."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, CallToolResult, TextContent
from starlette.requests import Request

from gateway.bootstrap import Gateway
from gateway.domain import Caller
from gateway.errors import BudgetExceeded, GatewayError, InvalidRequest, envelope
from gateway.money import format_usd
from gateway.request_record import current, note_error

Context = ServerRequestContext[Any, Request]
ARGUMENTS_STATE = "mcp_arguments"
"""The key in a request's state for the arguments of a large call, removed from its message."""
ERROR_META = "error"
"""The key in a tool error's `_meta` for REST's error envelope."""
COST_META = "cost"
"""The key in a result's `_meta` for its cost."""

ADVICE = {
    "model_not_found": "Call list_available_models for the available models.",
    "model_not_allowed": "Call list_available_models for the available models.",
    "budget_exceeded": "Call get_usage to see every budget, or estimate_cost for the cost of a "
    "smaller size, a lower quality or fewer images.",
    "moderation_blocked": "Change the prompt or the input image; both will be refused again.",
    "content_policy_violation": "Change the prompt; the same one will be refused again.",
    "image_not_found": "Read image-history://recent for the existing images.",
    "outcome_unknown": "Do not call again before reading image-history://recent: the image may "
    "have been made and paid for.",
    "idempotency_in_flight": "Wait, then call again with the same arguments and the same key.",
    "storage_failed": "Do not call again: it would be paid twice. Tell the user.",
    "storage_unavailable": "With full_image the result contains the image, which needs no store.",
    "image_unfinished": "Do not call again: it would be paid twice. Read image-history://recent.",
    "credential_rejected": "Tell the user that their provider key does not work.",
    "no_credential": "Tell the user: a provider key must be stored first.",
    "overloaded": "Nothing was bought.",
    "provider_unavailable": "Another model may be available: see list_available_models.",
    "rate_limit_exceeded": "Do not call again at once.",
    "insufficient_scope": "Tell the user: another key, or consent to more scopes, is needed.",
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool: its caller, and its arguments, all of known names."""

    context: Context
    gateway: Gateway
    caller: Caller
    arguments: Mapping[str, object] = field(repr=False)


def opened_gateway(context: Context) -> tuple[Gateway, Caller]:
    """Return the gateway and the caller from the request's state."""
    request = request_of(context)
    gateway: Gateway = request.state.gateway
    caller: Caller = request.state.caller
    return gateway, caller


def arguments_of(context: Context, announced: Mapping[str, object] | None) -> Mapping[str, object]:
    """Return the arguments of a call, from its message or from the request's state."""
    kept: Mapping[str, object] | None = getattr(request_of(context).state, ARGUMENTS_STATE)
    return (announced or {}) if kept is None else kept


def request_of(context: Context) -> Request:
    """Return the HTTP request that carried the message."""
    if context.request is None:
        raise MCPError(INTERNAL_ERROR, "This server is reached over HTTP only.")
    return context.request


def error_data(error: GatewayError) -> dict[str, str | None]:
    """The fields of REST's error envelope."""
    return dict(envelope(error)["error"])


def tool_error(error: GatewayError) -> CallToolResult:
    """Build a tool error with REST's error code, and advice to the model on what to do next.

    The envelope is in `_meta`: several clients validate the structured content of errors too
    against the tool's output schema, and would report a schema error in place of this one. Beside
    it is the cost of a call that was paid for all the same.
    """
    note_error(error)
    said = [f"{error.code}: {error.message}", ADVICE.get(error.code, "")]
    # The message of a budget error contains the reset time already.
    if error.retry_after_seconds is not None and not isinstance(error, BudgetExceeded):
        said.append(f"Try again in {error.retry_after_seconds} s.")
    meta: dict[str, object] = {ERROR_META: error_data(error)}
    record = current()
    if record.generation_id is not None:
        said.append(f"Generation {record.generation_id}.")
        meta["generation_id"] = str(record.generation_id)
    if record.cost_nano:
        usd = format_usd(record.cost_nano)
        meta[COST_META] = cost_meta(usd, record.served_model, record.provider)
    return CallToolResult(
        content=[TextContent(type="text", text=" ".join(part for part in said if part))],
        is_error=True,
        _meta=meta,
    )


def cost_meta(usd: str, model: str | None, provider: str | None) -> dict[str, str | None]:
    """Build the cost in a result's `_meta`: a decimal string, and who was paid for what."""
    return {"usd": usd, "model": model, "provider": provider}


def protocol_error(error: GatewayError, **data: object) -> MCPError:
    """Build the error of a resource, a prompt or a completion, with REST's code in its data."""
    note_error(error)
    is_theirs = error.status < GatewayError.status
    return MCPError(
        INVALID_PARAMS if is_theirs else INTERNAL_ERROR,
        f"{error.code}: {error.message}",
        data={**error_data(error), **data},
    )


def flag(arguments: Mapping[str, object], name: str) -> bool:
    """Read a boolean argument; false if omitted.

    Raises:
        InvalidRequest: the value is not a boolean.
    """
    value = arguments.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidRequest(
        f"Invalid type for '{name}': expected true or false.", code="invalid_type", param=name
    )
