"""Tenants: create, show, change, suspend, resume and delete."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi import Query as InQuery
from pydantic import Field, StrictBool, StrictInt

from gateway.rest.admin.dependencies import JsonBody, NoQuery, body_of
from gateway.rest.admin.schemas import (
    TENANT_ID,
    Body,
    Identified,
    Listed,
    PageQuery,
    left_as_it_is,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.refusals import refused_with
from gateway.tenancy import erasure, tenants
from gateway.tenancy.tenants import (
    MAX_IMAGE_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_RETENTION_SECONDS,
    MIN_RETENTION_SECONDS,
)

router = APIRouter(prefix="/tenants", tags=["admin: tenants"])


class TenantObject(Identified):
    """A tenant and its options."""

    model_config = with_example(
        id=TENANT_ID,
        object="tenant",
        name="acme",
        status="active",
        time_zone="Europe/Madrid",
        continuity=True,
        fallback=True,
        stores_prompts=False,
        image_retention_seconds=2_592_000,
        max_image_bytes=None,
        created_at="2026-11-21T09:30:00Z",
        deleted_at=None,
    )

    id: UUID
    object: Literal["tenant"] = "tenant"
    name: str
    status: Literal["active", "suspended", "deleted"]
    time_zone: str = Field(description="Time zone of its budgets' days and months.")
    continuity: bool = Field(description="Retired models are served by a successor.")
    fallback: bool = Field(description="Another model may serve where one does not.")
    stores_prompts: bool = Field(
        description="Prompts are stored in readable form with their images."
    )
    image_retention_seconds: int | None = Field(description="null: the gateway's default.")
    max_image_bytes: int | None = Field(
        description="The oldest images beyond it are deleted; null: no cap."
    )
    created_at: datetime
    deleted_at: datetime | None


class TenantBody(Body):
    """A tenant to create."""

    model_config = with_example(name="acme", time_zone="Europe/Madrid")

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)
    time_zone: str = Field(
        "UTC", min_length=1, max_length=100, description="An IANA name.", examples=["Europe/Madrid"]
    )


class TenantChange(Body):
    """Changes to a tenant; omitted fields keep their value."""

    model_config = with_example(
        status="suspended", image_retention_seconds=2_592_000, max_image_bytes=None
    )

    name: str = Field(
        "", min_length=1, max_length=MAX_NAME_CHARACTERS, json_schema_extra=left_as_it_is
    )
    status: Literal["active", "suspended"] = Field(
        "active",
        description="`suspended` refuses every key of the tenant from the next request on.",
        json_schema_extra=left_as_it_is,
    )
    time_zone: str = Field(
        "",
        min_length=1,
        max_length=100,
        json_schema_extra=left_as_it_is,
        examples=["Europe/Madrid"],
    )
    continuity: StrictBool = Field(default=True, json_schema_extra=left_as_it_is)
    fallback: StrictBool = Field(default=True, json_schema_extra=left_as_it_is)
    stores_prompts: StrictBool = Field(default=False, json_schema_extra=left_as_it_is)
    image_retention_seconds: StrictInt | None = Field(
        None,
        ge=MIN_RETENTION_SECONDS,
        le=MAX_RETENTION_SECONDS,
        description="For images made from now on; null: the gateway's default.",
        json_schema_extra=left_as_it_is,
    )
    max_image_bytes: StrictInt | None = Field(
        None,
        ge=0,
        le=MAX_IMAGE_BYTES,
        description="Applies to existing images too; null: no cap.",
        json_schema_extra=left_as_it_is,
    )


class TenantsQuery(PageQuery):
    """Filters of the tenant list."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="Only the tenant with this name.",
    )


@router.post(
    "",
    summary="Create a tenant",
    status_code=201,
    responses=refused_with(409),
    dependencies=[NoQuery],
    openapi_extra=body_of(TenantBody),
)
async def create_tenant(
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[TenantBody, Depends(JsonBody(TenantBody))],
) -> TenantObject:
    """Create a tenant, without users, keys or budgets; without a budget its spending is not
    limited.
    """
    async with gateway.operators_database.operator(by=actor) as session:
        made = await tenants.create(session, body.name, time_zone=body.time_zone)
    return TenantObject.model_validate(made)


@router.get("", summary="Tenants")
async def list_tenants(
    gateway: GatewayDep, query: Annotated[TenantsQuery, InQuery()]
) -> Listed[TenantObject]:
    """List tenants, newest first."""
    async with gateway.operators_database.operator() as session:
        page = await tenants.list_page(
            session, limit=query.limit, after=query.after, name=query.name
        )
    data = [TenantObject.model_validate(tenant) for tenant in page.items]
    return Listed[TenantObject].of(data, has_more=page.has_more)


@router.get("/{tenant_id}", summary="Show a tenant", dependencies=[NoQuery])
async def get_tenant(tenant_id: UUID, gateway: GatewayDep) -> TenantObject:
    """Return the tenant with this id."""
    async with gateway.operators_database.tenant(tenant_id) as session:
        return TenantObject.model_validate(await tenants.get(session, tenant_id))


@router.patch(
    "/{tenant_id}",
    summary="Change, suspend or resume a tenant",
    responses=refused_with(409),
    dependencies=[NoQuery],
    openapi_extra=body_of(TenantChange),
)
async def change_tenant(
    tenant_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[TenantChange, Depends(JsonBody(TenantChange))],
) -> TenantObject:
    """Change a tenant, from the next request on; a new time zone from the end of each budget's
    period.
    """
    async with gateway.operators_database.operator(by=actor) as session:
        changed = await tenants.set_settings(
            session, str(tenant_id), **body.model_dump(exclude_unset=True)
        )
    gateway.clear_caches(str(tenant_id))
    return TenantObject.model_validate(changed)


@router.delete("/{tenant_id}", summary="Delete a tenant permanently", dependencies=[NoQuery])
async def delete_tenant(tenant_id: UUID, gateway: GatewayDep, actor: ActorDep) -> TenantObject:
    """Delete a tenant. Its keys are revoked and its data key is destroyed; provider keys, webhooks,
    images, prompts and the names of tenant, users and keys are erased. Ledger and audit trail are
    kept. Repeating it changes nothing.
    """
    async with gateway.operators_database.operator(by=actor) as session:
        deleted = await erasure.delete_tenant(session, tenant_id)
    gateway.clear_caches(str(tenant_id))
    return TenantObject.model_validate(deleted)
