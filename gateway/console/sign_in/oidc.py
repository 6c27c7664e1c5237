"""Sign-in through the identity provider: its beginning, its callback, and invitations."""

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from gateway.bootstrap import Gateway
from gateway.console.cookies import SIGN_IN, read_cookie, set_cookie
from gateway.console.paths import own_path
from gateway.console.render import NO_SHELL, page
from gateway.console.sign_in.limits import limited
from gateway.console.sign_in.pages import refused, signed_in
from gateway.console.sign_in.provider import (
    CALLBACK_PATH,
    ProviderRefused,
    SignInProvider,
    provider_of,
)
from gateway.db.actors import Actor
from gateway.errors import GatewayError, NotFound
from gateway.identity import failures, federated, invitations, pending
from gateway.identity.federated import Identity, NoAccess
from gateway.identity.pending import PENDING_SECONDS, PendingSignIn
from gateway.identity.tokens import digest_of
from gateway.identity.viewers import Role
from gateway.request_record import current
from gateway.rest.dependencies import GatewayDep

router = APIRouter()
START_AGAIN = "Your sign-in took too long, or began in another browser. Start again."


@router.get("/console/login/oidc")
@limited
async def begin(
    request: Request,
    gateway: GatewayDep,
    invitation: str = "",
) -> Response:
    """Lead the browser to the identity provider."""
    try:
        next_path = request.query_params.get("next", "")
        return await _begin(request, gateway, next_path=next_path, invitation=invitation)
    except GatewayError as error:
        return refused(request, gateway, error)


@router.get(CALLBACK_PATH)
@limited
async def finish(request: Request, gateway: GatewayDep) -> Response:
    """Sign in the person whom the identity provider has sent back."""
    query = request.query_params
    try:
        provider = _provider(request, gateway)
        token = read_cookie(request, gateway.settings, SIGN_IN)
        taken = await pending.take(
            gateway.database,
            token,
            query.get("state", ""),
            sealing_key=gateway.core.secrets.console_key,
        )
        if taken is None:
            raise ProviderRefused(START_AGAIN)
        if taken.entry is None:
            # Another tab, or the back button: what this one began with is gone.
            return await _begin(request, gateway, next_path="", invitation="")
        identity = await provider.finish(request, query, taken.entry)
        return await _sign_in(request, gateway, identity, taken.entry)
    except GatewayError as error:
        return refused(request, gateway, error)


@router.get(invitations.INVITATION_PATH)
@limited
async def show_invitation(request: Request, gateway: GatewayDep, token: str = "") -> Response:
    """Show an invitation; it is accepted by signing in at the identity provider."""
    try:
        _provider(request, gateway)
        async with gateway.operators_database.operator() as session:
            found = await invitations.find_open(session, token)
        if found is None:
            raise invitations.InvitationRefused(
                "This invitation was used or revoked, or is too old. Ask for a new one."
            )
    except GatewayError as error:
        return refused(request, gateway, error)
    return page(
        NO_SHELL,
        "sign_in/invitation.html",
        title="Invitation",
        headers={"Referrer-Policy": "no-referrer"},
        invitation=found,
        token=token,
    )


def roles_of(gateway: Gateway) -> dict[str, Role]:
    """The role of each value of the claim, in the order of the roles' power."""
    given = gateway.settings.oidc_role_map
    return {value: role for role in Role for value, name in given if name == role}


async def _begin(
    request: Request,
    gateway: Gateway,
    *,
    next_path: str,
    invitation: str,
) -> Response:
    provider = _provider(request, gateway)
    address, state, entry = await provider.begin(
        next_path=own_path(next_path),
        invitation=digest_of(invitation).hex() if invitation else "",
    )
    known = read_cookie(request, gateway.settings, SIGN_IN)
    key = gateway.core.secrets.console_key
    token = await pending.add(gateway.database, known, state, entry, sealing_key=key)
    response = RedirectResponse(address, status_code=303)
    set_cookie(response, gateway.settings, token, SIGN_IN, seconds=PENDING_SECONDS)
    return response


async def _sign_in(
    request: Request, gateway: Gateway, identity: Identity, entry: PendingSignIn
) -> Response:
    account = _account(identity, entry)
    await failures.begin_attempt(gateway.database, account, gateway.settings)
    actor = Actor("session", "oidc", current().request_id, identity.name)
    async with gateway.operators_database.operator(by=actor) as session:
        who = await federated.sign_in_person(
            session, identity, invitation=entry.invitation, roles=roles_of(gateway)
        )
    if isinstance(who, NoAccess):
        return refused(request, gateway, who)
    await failures.forget(gateway.database, account)
    return await signed_in(request, gateway, who, entry.next_path)


def _account(identity: Identity, entry: PendingSignIn) -> str:
    """The account whose failures count: the invitation that was tried, or the person."""
    if entry.invitation:
        return f"invitation {entry.invitation}"
    return f"person {digest_of(f'{identity.issuer} {identity.subject}').hex()}"


def _provider(request: Request, gateway: Gateway) -> SignInProvider:
    provider = provider_of(request, gateway.settings)
    if provider is None:
        raise NotFound(
            "Sign-in through an identity provider is not set up: GATEWAY_OIDC_ISSUER and "
            "GATEWAY_OIDC_CLIENT_ID are needed."
        )
    return provider
