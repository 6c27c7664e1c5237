"""Provider keys of a tenant or its users: stored, replaced and deleted, never returned."""

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
    """A stored provider key, without the secret."""

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
    version: int = Field(
        description="Version number: 1 for the first key, plus 1 for each replacement."
    )
    updated_at: datetime


class OwnerQuery(Query):
    """The owner of the provider key."""

    user_id: UUID | None = Field(
        None, description="A user of the tenant; omitted: the tenant itself."
    )


@router.get("", summary="List the provider keys of a tenant and its users, without secrets")
async def list_credentials(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[PageQuery, InQuery()]
) -> Listed[CredentialObject]:
    """List provider keys, newest first. Calls without one use the house credential."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await credentials.list_page(session, tenant_id, limit=query.limit, after=query.after)
    data = [CredentialObject.model_validate(info) for info in page.items]
    return Listed[CredentialObject].of(data, has_more=page.has_more)


@router.put(
    "/{provider}",
    summary="Store or replace a provider key",
    openapi_extra=body_of(CredentialBody),
    responses={201: {"model": CredentialObject, "description": "Stored as the first key."}},
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
    """Store a provider key. It is encrypted at once and never returned; the next call uses it."""
    async with changing_tenant(gateway, tenant_id, actor) as session:
        stored = await credentials.store(
            session,
            tenant_id,
            vault=gateway.core.vault,
            user_id=query.user_id,
            provider=provider,
            secret=SecretText(body.secret.get_secret_value().strip()),
            vendors=gateway.core.catalog.vendors,
        )
    response.status_code = 201 if stored.is_new else 200
    return CredentialObject.model_validate(stored)


@router.delete("/{provider}", summary="Delete a provider key", status_code=204)
async def delete_credential(
    tenant_id: UUID,
    provider: Provider,
    gateway: GatewayDep,
    actor: ActorDep,
    query: Annotated[OwnerQuery, InQuery()],
) -> Response:
    """Delete a provider key. Later calls use the tenant's or the operator's key."""
    credentials.check_provider(provider, gateway.core.catalog.vendors)
    async with changing_tenant(gateway, tenant_id, actor) as session:
        await credentials.delete(session, tenant_id, user_id=query.user_id, provider=provider)
    return Response(status_code=204)
