"""A tenant's (or user's) own provider key: written, replaced and deleted, never read."""

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from gateway.domain import Caller, SecretText
from gateway.errors import Forbidden
from gateway.rest.admin.dependencies import NoQuery
from gateway.rest.dependencies import (
    ActorDep,
    CredentialWriter,
    GatewayDep,
    Provider,
    read_json_object,
)
from gateway.rest.openapi import SCHEMAS
from gateway.rest.refusals import refused_with
from gateway.rest.schemas import CredentialAnswer, CredentialBody, CredentialTestAnswer
from gateway.tenancy import credentials
from gateway.tenancy.credentials import CredentialInfo

router = APIRouter(tags=["credentials"])
PATH = "/v1/credentials/{provider}"
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": CredentialBody.model_json_schema(ref_template=SCHEMAS + "{model}")
            }
        },
    }
}


@router.put(PATH, summary="Store or replace the own provider key", openapi_extra=BODY)
async def put_credential(
    provider: Provider,
    request: Request,
    gateway: GatewayDep,
    caller: CredentialWriter,
    actor: ActorDep,
) -> CredentialAnswer:
    """A key bound to a user stores that user's credential, any other key the tenant's."""
    _require_live(caller)
    credentials.check_provider(provider)
    raw = await read_json_object(request, gateway.settings, refuses_repeated=True)
    try:
        body = CredentialBody.model_validate(raw)
    except ValidationError as error:
        # Inputs are left out: one of them may be the secret under a mistyped name.
        raise RequestValidationError(error.errors(include_input=False)) from None
    async with gateway.database.tenant(caller.tenant_id, by=actor) as session:
        stored = await credentials.store(
            session,
            caller.tenant_id,
            vault=gateway.core.vault,
            user_id=caller.user_id,
            provider=provider,
            secret=SecretText(body.secret.get_secret_value().strip()),
        )
    gateway.clear_caches(str(caller.tenant_id))
    return _render(stored)


@router.get(PATH, summary="What is stored, without the secret")
async def get_credential(
    provider: Provider, gateway: GatewayDep, caller: CredentialWriter
) -> CredentialAnswer:
    """The last four characters and when they were stored."""
    _require_live(caller)
    credentials.check_provider(provider)
    async with gateway.database.tenant(caller.tenant_id) as session:
        stored = await credentials.get(
            session, caller.tenant_id, user_id=caller.user_id, provider=provider
        )
    return _render(stored)


@router.delete(PATH, summary="Forget the own provider key", status_code=204)
async def delete_credential(
    provider: Provider, gateway: GatewayDep, caller: CredentialWriter, actor: ActorDep
) -> Response:
    """Calls use the tenant's or the house's key from then on."""
    _require_live(caller)
    credentials.check_provider(provider)
    async with gateway.database.tenant(caller.tenant_id, by=actor) as session:
        await credentials.delete(
            session, caller.tenant_id, user_id=caller.user_id, provider=provider
        )
    gateway.clear_caches(str(caller.tenant_id))
    return Response(status_code=204)


@router.post(
    PATH + "/test",
    summary="Ask the provider whether it accepts the own key",
    dependencies=[NoQuery],
    responses=refused_with(429),
)
async def test_credential(
    provider: Provider, gateway: GatewayDep, caller: CredentialWriter
) -> CredentialTestAnswer:
    """It costs nothing: the provider is asked for its list of models. `unreachable` says nothing of
    the key.
    """
    _require_live(caller)
    tested = await gateway.credential_tests.run(caller, provider)
    return CredentialTestAnswer(
        provider=provider,
        owner=tested.info.owner,
        last4=tested.info.last4,
        status=tested.state.value,
    )


def _require_live(caller: Caller) -> None:
    if not caller.livemode:
        raise Forbidden("Provider keys serve live calls only: use a live key (igw_live_…).")


def _render(info: CredentialInfo) -> CredentialAnswer:
    return CredentialAnswer(
        provider=info.provider,
        owner=info.owner,
        last4=info.last4,
        updated_at=info.updated_at.isoformat(),
    )
