"""Shared parts of the operators' routes: audited sessions, bodies and their documentation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from gateway.bootstrap import Gateway
from gateway.db.actors import Actor
from gateway.db.engine import TenantSession
from gateway.db.pools import Beside
from gateway.errors import InvalidRequest
from gateway.rest.dependencies import GatewayDep, read_json_object
from gateway.rest.openapi import SCHEMAS
from gateway.tenancy import tenants

M = TypeVar("M", bound=BaseModel)


class JsonBody(Generic[M]):
    """A dependency that returns the body, checked by a model; unknown fields are refused."""

    def __init__(self, model: type[M]) -> None:
        self._model = model

    async def __call__(self, request: Request, gateway: GatewayDep) -> M:
        raw = await read_json_object(request, gateway.settings, refuses_repeated=True)
        try:
            return self._model.model_validate(raw)
        except ValidationError as error:
            # Error messages omit the input: it may contain a secret under a mistyped name.
            raise RequestValidationError(error.errors(include_input=False)) from None


def body_of(model: type[BaseModel]) -> dict[str, object]:
    """The documentation of a body that `JsonBody` reads."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": model.model_json_schema(ref_template=SCHEMAS + "{model}")
                }
            },
        }
    }


async def no_query(request: Request) -> None:
    """Refuse query parameters on routes without any: a mistyped one must not seem to work."""
    for name in request.query_params:
        raise InvalidRequest(
            f"{name}: This route takes no such query parameter.",
            code="unknown_parameter",
            param=name,
        )


NoQuery = Depends(no_query)


@asynccontextmanager
async def reading_tenant(
    gateway: Gateway,
    tenant_id: UUID,
    *,
    param: str = "tenant_id",
    work: Beside | None = Beside.OPERATORS,
) -> AsyncIterator[TenantSession]:
    """Open a transaction that sees one tenant, named in the request's `param`.

    `work`: the pool of connections; None, that of tenants' own requests.

    Raises:
        NotFound: there is no such tenant.
    """
    async with gateway.database.beside(work).tenant(tenant_id) as session:
        await tenants.get(session, tenant_id, param=param)
        yield session


@asynccontextmanager
async def changing_tenant(
    gateway: Gateway, tenant_id: UUID, actor: Actor, *, work: Beside | None = Beside.OPERATORS
) -> AsyncIterator[TenantSession]:
    """Open a transaction that changes one tenant; the very next request sees the change.

    `work`: as in `reading_tenant`.

    Raises:
        NotFound: there is no such tenant, or it was deleted.
    """
    async with gateway.database.beside(work).tenant(tenant_id, by=actor) as session:
        await tenants.keep_living(session, tenant_id)
        yield session
    gateway.clear_caches(str(tenant_id))
