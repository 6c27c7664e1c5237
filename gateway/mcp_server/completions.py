"""Completions: image ids, models, and values of prompt arguments."""

from collections.abc import Iterable, Mapping

from mcp.types import (
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ResourceTemplateReference,
)

from gateway.bootstrap import Gateway
from gateway.domain import Caller, Scope
from gateway.library import history
from gateway.mcp_server.calls import Context, opened_gateway
from gateway.mcp_server.prompt_files import PromptTemplate
from gateway.mcp_server.prompts import complete_argument
from gateway.mcp_server.resources import complete_query
from gateway.web.authentication import require_scope

MAX_VALUES = 100
"""The protocol's own limit."""


async def complete(
    templates: Mapping[str, PromptTemplate], context: Context, params: CompleteRequestParams
) -> CompleteResult:
    """Complete one argument; an empty list if there are no suggestions."""
    gateway, caller = opened_gateway(context)
    name, typed = params.argument.name, params.argument.value
    if isinstance(params.ref, ResourceTemplateReference):
        found = await _of_resource(gateway, caller, name, typed)
    else:
        template = templates.get(params.ref.name)
        found = [] if template is None else complete_argument(template, name, typed)
    return CompleteResult(
        completion=Completion(
            values=found[:MAX_VALUES], total=len(found), has_more=len(found) > MAX_VALUES
        )
    )


async def _of_resource(gateway: Gateway, caller: Caller, name: str, typed: str) -> list[str]:
    require_scope(caller, Scope.IMAGES_READ)
    if name == "model":
        models = gateway.core.catalog.available(caller)
        return _beginning_with(typed, (model.id for model in models))
    if name == "image_id":
        async with gateway.database.tenant(caller.tenant_id) as session:
            page = await history.list_images(session, caller, limit=MAX_VALUES)
        return _beginning_with(typed, (image.id for image in page.images))
    return _beginning_with(typed, complete_query(name))


def _beginning_with(typed: str, values: Iterable[str]) -> list[str]:
    return [value for value in values if value.startswith(typed)]
