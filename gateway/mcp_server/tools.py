"""The tools: their descriptions, scopes, schemas and handlers.

A tool's description is the docstring of its handler.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel

from gateway.domain import Scope
from gateway.errors import GatewayError
from gateway.mcp_server import tool_inputs
from gateway.mcp_server.calls import (
    Context,
    ToolCall,
    arguments_of,
    opened_gateway,
    tool_error,
)
from gateway.mcp_server.image_tools import create_variation, edit_image, generate_image
from gateway.mcp_server.information_tools import (
    AvailableModels,
    CostEstimate,
    UsageSoFar,
    estimate_cost,
    get_usage,
    list_available_models,
)
from gateway.mcp_server.results import ImagesMade
from gateway.mcp_server.spellings import own_arguments
from gateway.request_record import current
from gateway.web.authentication import require_scope

# Each call makes and pays for a new image at an external vendor; nothing is overwritten.
BUYS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True
)
READS = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)


@dataclass(frozen=True, slots=True)
class GatewayTool:
    """A tool as announced to clients, and its handler."""

    announced: Tool
    scope: Scope
    run: Callable[[ToolCall], Awaitable[CallToolResult]]


def _tool(
    run: Callable[[ToolCall], Awaitable[CallToolResult]],
    scope: Scope,
    *,
    title: str,
    inputs: Mapping[str, Any],
    output: type[BaseModel],
) -> GatewayTool:
    return GatewayTool(
        Tool(
            name=run.__name__,
            title=title,
            description=" ".join((run.__doc__ or "").split()),
            input_schema=dict(inputs),
            output_schema=output.model_json_schema(),
            annotations=BUYS if scope is Scope.IMAGES_WRITE and output is ImagesMade else READS,
        ),
        scope,
        run,
    )


_ALL = (
    _tool(
        generate_image,
        Scope.IMAGES_WRITE,
        title="Generate an image",
        inputs=tool_inputs.GENERATE_IMAGE,
        output=ImagesMade,
    ),
    _tool(
        edit_image,
        Scope.IMAGES_WRITE,
        title="Edit an image",
        inputs=tool_inputs.EDIT_IMAGE,
        output=ImagesMade,
    ),
    _tool(
        create_variation,
        Scope.IMAGES_WRITE,
        title="Make variations of an image",
        inputs=tool_inputs.CREATE_VARIATION,
        output=ImagesMade,
    ),
    _tool(
        list_available_models,
        Scope.IMAGES_READ,
        title="List the models",
        inputs=tool_inputs.NOTHING,
        output=AvailableModels,
    ),
    _tool(
        estimate_cost,
        Scope.IMAGES_WRITE,
        title="Estimate what images cost",
        inputs=tool_inputs.ESTIMATE_COST,
        output=CostEstimate,
    ),
    _tool(
        get_usage,
        Scope.USAGE_READ,
        title="Show usage and budgets",
        inputs=tool_inputs.NOTHING,
        output=UsageSoFar,
    ),
)
TOOLS = {tool.announced.name: tool for tool in _ALL}
TOOL_SCOPES: Mapping[str, Scope] = {name: tool.scope for name, tool in TOOLS.items()}


async def list_tools(_context: Context, _params: PaginatedRequestParams | None) -> ListToolsResult:
    """List all tools; a missing scope is reported when a tool is called."""
    return ListToolsResult(tools=[tool.announced for tool in TOOLS.values()])


def input_schema(name: str) -> Mapping[str, Any] | None:
    """The schema that the headers of a call are checked against, if the tool exists."""
    tool = TOOLS.get(name)
    return None if tool is None else tool.announced.input_schema


async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
    """Run a tool; errors become tool errors that a model can act upon."""
    tool = TOOLS.get(params.name)
    if tool is None:
        raise MCPError(
            INVALID_PARAMS,
            f"There is no tool {params.name[:80]!r}. The tools are: {', '.join(TOOLS)}.",
        )
    current().tool = params.name
    try:
        gateway, caller = opened_gateway(context)
        require_scope(caller, tool.scope)
        # Unknown arguments are refused, so that a misspelt one cannot buy something unintended.
        # Values are checked later, by the code that checks REST's, with the same errors.
        arguments = own_arguments(
            params.name,
            arguments_of(context, params.arguments),
            tool.announced.input_schema["properties"],
        )
        return await tool.run(ToolCall(context, gateway, caller, arguments))
    except GatewayError as error:
        return tool_error(error)
