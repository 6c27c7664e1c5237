"""Provider keys of a tenant or of one of its users: written, replaced and deleted, never read."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from fastapi import Query as InQuery
from pydantic import Field

from gateway.domain import SecretText
from gateway.rest.admin.dependencies import JsonBody, body_of, changing_tenant, reading_tenant
from gateway.rest.admin.schemas import (
    USER_ID,
    Identified,
    Listed,
    PageQuery,
    Query,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep, Provider
from gateway.rest.schemas import CredentialBody
from gateway.tenancy import credentials

router = APIRouter(prefix="/tenants/{tenant_id}/credentials", tags=["admin: credentials"])


class CredentialObject(Identified):
    """What may be shown of a provider key."""

    model_config = with_example(
        id="019aa5f5-3c00-7000-8000-000000000000",
        object="credential",
        provider="openai",
        owner="user",
        user_id=USER_ID,
        last4="7d1f",
        version=1,
        updated_at="2026-11-21T09:33:00Z",
    )

    id: UUID
    object: Literal["credential"] = "credential"
    provider: str
    owner: Literal["tenant", "user"]
    user_id: UUID | None
    last4: str
    version: int = Field(description="How often it was replaced, counted from 1.")
    updated_at: datetime


class OwnerQuery(Query):
    """Whose key."""

    user_id: UUID | None = Field(None, description="A user of the tenant; none: the tenant's own.")


@router.get("", summary="Provider keys of a tenant and its users, without secrets")
async def list_credentials(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[PageQuery, InQuery()]
) -> Listed[CredentialObject]:
    """Newest first. Calls without one use the house key."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await credentials.list_page(session, tenant_id, limit=query.limit, after=query.after)
    data = [CredentialObject.model_validate(info) for info in page.items]
    return Listed[CredentialObject].of(data, has_more=page.has_more)


@router.put(
    "/{provider}",
    summary="Store or replace a provider key",
    openapi_extra=body_of(CredentialBody),
    responses={201: {"model": CredentialObject, "description": "It is the first one."}},
)
async def put_credential(  # noqa: PLR0917 - FastAPI passes them by name
    tenant_id: UUID,
    provider: Provider,
    gateway: GatewayDep,
    actor: ActorDep,
    response: Response,
    query: Annotated[OwnerQuery, InQuery()],
    body: Annotated[CredentialBody, Depends(JsonBody(CredentialBody))],
) -> CredentialObject:
    """It is sealed at once and shown to nobody; the next call uses it."""
    async with changing_tenant(gateway, tenant_id, actor) as session:
        stored = await credentials.store(
            session,
            tenant_id,
            vault=gateway.core.vault,
            user_id=query.user_id,
            provider=provider,
            secret=SecretText(body.secret.get_secret_value().strip()),
        )
    response.status_code = 201 if stored.is_new else 200
    return CredentialObject.model_validate(stored)


@router.delete("/{provider}", summary="Forget a provider key", status_code=204)
async def delete_credential(
    tenant_id: UUID,
    provider: Provider,
    gateway: GatewayDep,
    actor: ActorDep,
    query: Annotated[OwnerQuery, InQuery()],
) -> Response:
    """Calls use the tenant's or the house's key from then on."""
    credentials.check_provider(provider)
    async with changing_tenant(gateway, tenant_id, actor) as session:
        await credentials.delete(session, tenant_id, user_id=query.user_id, provider=provider)
    return Response(status_code=204)
