"""Sign-in of people whom the identity provider vouches for: their role, tenant and user.

A person is (issuer, subject); names and e-mail addresses may change and be given anew. The role
comes from a claim, read again at each sign-in, or else from an invitation, and stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select

from gateway.db.audit import Action, record
from gateway.db.console_tables import PersonRow
from gateway.db.engine import OperatorSession, TenantSession, one_at_a_time
from gateway.domain import SecretText, new_id
from gateway.errors import Forbidden
from gateway.identity import invitations, people, sessions
from gateway.identity.sessions import SignedIn
from gateway.identity.viewers import Role
from gateway.tenancy import tenants
from gateway.tenancy.users import ensure_user

MAX_NAME_CHARACTERS = 100


class NoAccess(Forbidden):
    """The identity provider knows this person, and the gateway has no role for them."""

    code = "no_console_access"


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified identity. `email` is None unless the provider has verified it.

    `user`: the name of the tenant's user that this person is, as for the provider's tokens.
    """

    issuer: str
    subject: str
    name: str
    email: str | None
    groups: frozenset[str]
    tenant: str | None
    user: str
    token: SecretText


@dataclass(frozen=True, slots=True)
class _Grant:
    """A role, in a tenant or in the house, and where it came from."""

    role: Role
    tenant_id: UUID | None
    is_claimed: bool


async def sign_in_person(
    session: OperatorSession,
    identity: Identity,
    *,
    invitation: str,
    roles: Mapping[str, Role],
) -> SignedIn | NoAccess:
    """Sign in a person; a refusal is returned, so that what it ended is committed.

    `invitation`: the digest of the token that the person came with, in hexadecimal, or an empty
    string. `roles`: the role of each value of the claim, the most powerful first.

    Raises:
        InvitationRefused: the invitation cannot be accepted by this person.
        NotFound: the claims name a tenant that does not exist.
        Forbidden: the person, the tenant or the user is disabled.
    """
    await one_at_a_time(session, None)  # two first sign-ins of one person make one row
    row = await session.scalar(
        select(PersonRow)
        .where(PersonRow.issuer == identity.issuer, PersonRow.subject == identity.subject)
        .with_for_update()
    )
    if row is not None and row.status != "active":
        return await _refuse(session, identity, row, "Your access to this console is disabled.")
    grant = await _grant(session, identity, row, invitation, roles)
    if grant is None:
        return await _refuse(
            session,
            identity,
            row,
            "You are signed in at your identity provider, but have no role in this console. Ask an "
            "administrator for an invitation.",
        )
    row = await _keep(session, identity, row, grant)
    return SignedIn(
        row.name,
        grant.role,
        "oidc",
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        person_id=row.id,
        provider_token=identity.token,
    )


async def _grant(
    session: OperatorSession,
    identity: Identity,
    row: PersonRow | None,
    invitation: str,
    roles: Mapping[str, Role],
) -> _Grant | None:
    role = next((role for value, role in roles.items() if value in identity.groups), None)
    if role is not None and role.is_operator:
        return _Grant(role, None, is_claimed=True)
    if role is not None and identity.tenant is not None:
        tenant = await tenants.find(session, identity.tenant)
        return _Grant(role, tenant.id, is_claimed=True)
    if invitation:
        accepted = await invitations.accept(
            session, bytes.fromhex(invitation), email=identity.email
        )
        return _Grant(accepted.role, accepted.tenant_id, is_claimed=False)
    if row is not None and not row.has_claimed_role:
        return _Grant(Role(row.role), row.tenant_id, is_claimed=False)
    return None


async def _keep(
    session: OperatorSession, identity: Identity, row: PersonRow | None, grant: _Grant
) -> PersonRow:
    """Add the person, or update them, with the tenant's user that they are."""
    user_id = None
    if grant.tenant_id is not None:
        tenant = await tenants.get(session, grant.tenant_id)
        tenants.refuse_suspended(tenant.status)
        user_id = await ensure_user(TenantSession(session), grant.tenant_id, identity.user)
    before = None if row is None else people.shown(row)
    if row is None:
        row = PersonRow(
            id=new_id(), issuer=identity.issuer, subject=identity.subject, status="active"
        )
        session.add(row)
    row.name = identity.name[:MAX_NAME_CHARACTERS]
    row.email, row.role = identity.email, grant.role
    row.tenant_id, row.user_id = grant.tenant_id, user_id
    row.has_claimed_role, row.last_sign_in_at = grant.is_claimed, datetime.now(UTC)
    await session.flush()
    await record(
        session,
        Action.PERSON_ADDED if before is None else Action.PERSON_CHANGED,
        tenant_id=row.tenant_id,
        object_id=row.id,
        before=before,
        after=people.shown(row),
    )
    return row


async def _refuse(
    session: OperatorSession, identity: Identity, row: PersonRow | None, message: str
) -> NoAccess:
    """End what a person without a role still has, and say so in the audit trail."""
    if row is not None:
        await sessions.end_of_person(session, row.id)
    await record(
        session,
        Action.SIGN_IN_REFUSED,
        tenant_id=None if row is None else row.tenant_id,
        object_id=identity.subject[:MAX_NAME_CHARACTERS],
        after={"issuer": identity.issuer, "name": identity.name, "email": identity.email},
    )
    return NoAccess(message)
