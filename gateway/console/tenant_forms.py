"""The parts that a tenant's self-service pages share: who acts, and forms that are refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path

from gateway.console.forms import FormState, refused, uuid_or_none
from gateway.console.portal import Portal
from gateway.console.render import Flash
from gateway.db.engine import TenantSession
from gateway.domain import Caller
from gateway.errors import (
    Conflict,
    CredentialUnreadable,
    Forbidden,
    GatewayError,
    InvalidRequest,
    NotFound,
    RateLimited,
)
from gateway.tenancy import api_keys, lookups

PAGE_SIZE = 50
SECONDS_OF_A_DAY = 86_400
REFUSALS = (InvalidRequest, NotFound, Conflict, Forbidden, RateLimited, CredentialUnreadable)
"""The errors that a form of self-service is shown again with."""


def object_id(object_id: Annotated[str, Path()]) -> UUID:
    """Read the id in the address of a page.

    Raises:
        NotFound: it is none.
    """
    found = uuid_or_none(object_id)
    if found is None:
        raise NotFound("There is no such object.", param="object_id")
    return found


ObjectId = Annotated[UUID, Depends(object_id)]


async def administrator(portal: Portal) -> Caller:
    """Build the caller as which the viewer administers the tenant.

    As over REST, a test key administers test mode alone. A person has no mode, and administers both
    like a live key.
    """
    return await portal.in_mode(livemode=portal.viewer.modes[0]).caller()


async def with_own_expiry(session: TenantSession, portal: Portal, caller: Caller) -> Caller:
    """Give the caller of a key's session the expiry of the key, rather than that of the session."""
    key_id = portal.viewer.api_key_id
    if key_id is None:
        return caller
    key = await api_keys.get(session, caller.tenant_id, key_id)
    return replace(caller, expires_at=key.expires_at)


async def find_user(session: TenantSession, tenant_id: UUID, text: str) -> UUID | None:
    """Find the user that a form names by id, name or last four characters; None: no user.

    Raises:
        NotFound: none matches.
        InvalidRequest: several match.
    """
    if not text:
        return None
    return (await lookups.find_user(session, tenant_id, text)).id


def state_of(
    name: str,
    form: Mapping[str, str],
    error: GatewayError,
    *,
    fields: Mapping[str, str] | None = None,
) -> FormState:
    """Build the state of a refused form; `fields`: fields of other names than the core's."""
    state = refused(name, form, error)
    return replace(state, at=(fields or {}).get(state.at, state.at))


def flash_of(messages: Mapping[str, str], done: str) -> Flash | None:
    """Return the message about what was done, as the address names it."""
    return Flash(messages[done]) if done in messages else None
