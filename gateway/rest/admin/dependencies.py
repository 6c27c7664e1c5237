"""What the operators' routes share: audited sessions, checked bodies, and their documentation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from gateway.bootstrap import Gateway
from gateway.db.actors import Actor
from gateway.db.engine import TenantSession
from gateway.errors import InvalidRequest
from gateway.rest.dependencies import GatewayDep, read_json_object
from gateway.rest.schemas import ErrorAnswer
from gateway.tenancy import tenants

M = TypeVar("M", bound=BaseModel)
_REFUSALS = {
    400: ("invalid_value", "limit", "limit: Input should be less than or equal to 100."),
    401: ("invalid_api_key", None, "This API key is not known here, or it was revoked."),
    403: ("insufficient_scope", None, "This route needs an admin key (igw_admin_…)."),
    404: (
        "not_found",
        "tenant_id",
        "There is no tenant 019aa5f2-7c00-7000-8000-000000000000.",
    ),
    409: ("already_exists", "name", "There is a tenant 'acme' already."),
    413: ("payload_too_large", None, "The request body is larger than 1048576 bytes."),
    503: ("database_unavailable", None, "The gateway's database is not available right now."),
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": ErrorAnswer,
        "content": {
            "application/json": {
                "example": {
                    "error": {
                        "message": message,
                        "type": "server_error" if status == 503 else "invalid_request_error",  # noqa: PLR2004 - as above
                        "param": param,
                        "code": code,
                    }
                }
            }
        },
    }
    for status, (code, param, message) in _REFUSALS.items()
}


class JsonBody(Generic[M]):
    """A dependency that gives the body, checked by a model; unknown fields are refused."""

    def __init__(self, model: type[M]) -> None:
        self._model = model

    async def __call__(self, request: Request, gateway: GatewayDep) -> M:
        raw = await read_json_object(request, max_bytes=gateway.settings.max_body_bytes)
        try:
            return self._model.model_validate(raw)
        except ValidationError as error:
            # Inputs are left out: one of them may be a secret under a mistyped name.
            raise RequestValidationError(error.errors(include_input=False)) from None


def body_of(model: type[BaseModel]) -> dict[str, object]:
    """The documentation of a body that `JsonBody` reads."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": model.model_json_schema()}},
        }
    }


async def no_query(request: Request) -> None:
    """Refuse query parameters where none is known: a mistyped one must not seem to work."""
    for name in request.query_params:
        raise InvalidRequest(
            f"{name}: There is no such parameter here.", code="unknown_parameter", param=name
        )


NoQuery = Depends(no_query)


@asynccontextmanager
async def reading_tenant(
    gateway: Gateway, tenant_id: UUID, *, param: str = "tenant_id"
) -> AsyncIterator[TenantSession]:
    """A transaction that sees one tenant, which the request had in `param`.

    Raises:
        NotFound: there is no such tenant.
    """
    async with gateway.database.tenant(tenant_id) as session:
        await tenants.get(session, tenant_id, param=param)
        yield session


@asynccontextmanager
async def changing_tenant(
    gateway: Gateway, tenant_id: UUID, actor: Actor
) -> AsyncIterator[TenantSession]:
    """A transaction that changes what one tenant has; the very next request is served by it.

    Raises:
        NotFound: there is no such tenant.
    """
    async with gateway.database.tenant(tenant_id, by=actor) as session:
        await tenants.get(session, tenant_id)
        yield session
    gateway.clear_caches(str(tenant_id))
