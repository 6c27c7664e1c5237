"""Viewers: the people behind the console's requests, their roles and permissions."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from gateway.db.actors import Actor, ActorType
from gateway.domain import AdminScope, Scope
from gateway.errors import Forbidden

MARK_CHARACTERS = 16
Via = Literal["oidc", "link", "admin_key", "api_key"]


class Role(StrEnum):
    """A person's role in the console."""

    OPERATOR_ADMIN = "operator-admin"
    OPERATOR_VIEWER = "operator-viewer"
    TENANT_ADMIN = "tenant-admin"
    TENANT_MEMBER = "tenant-member"
    TENANT_BILLING_VIEWER = "tenant-billing-viewer"

    @property
    def is_operator(self) -> bool:
        """Return True for the roles of the gateway's operators."""
        return self in {Role.OPERATOR_ADMIN, Role.OPERATOR_VIEWER}


class Permission(StrEnum):
    """An action in the console. `operator`: of the operator or of several tenants."""

    OPERATOR_READ = "operator:read"
    OPERATOR_CHANGE = "operator:change"
    PORTAL_VISIT = "portal:visit"
    TENANT_READ = "tenant:read"
    TENANT_CHANGE = "tenant:change"
    MEMBERS_CHANGE = "members:change"
    USAGE_READ = "usage:read"
    IMAGES_READ = "images:read"
    IMAGES_MAKE = "images:make"
    OWN_CREDENTIALS = "own-credentials"


MEANINGS: Mapping[Permission, str] = {
    Permission.OPERATOR_READ: "See every operator's screen",
    Permission.OPERATOR_CHANGE: "Change tenants, limits, budgets, prices, people and sessions",
    Permission.PORTAL_VISIT: "Open the portal of a tenant (audited)",
    Permission.TENANT_READ: "See the tenant's keys, users, credentials, webhooks and audit trail",
    Permission.TENANT_CHANGE: (
        "Change the tenant's keys, users, credentials, budgets, limits and webhooks"
    ),
    Permission.MEMBERS_CHANGE: "Invite the tenant's people, change their roles, end their sessions",
    Permission.USAGE_READ: "See usage, costs, budgets and requests",
    Permission.IMAGES_READ: "See images and prompts",
    Permission.IMAGES_MAKE: "Make and edit images in the playground",
    Permission.OWN_CREDENTIALS: "Store provider credentials of one's own",
}
"""The meaning of each permission, for the table in docs/console.md."""

_MEMBER = frozenset(
    {
        Permission.USAGE_READ,
        Permission.IMAGES_READ,
        Permission.IMAGES_MAKE,
        Permission.OWN_CREDENTIALS,
    }
)
_ADMIN = _MEMBER | {
    Permission.TENANT_READ,
    Permission.TENANT_CHANGE,
    Permission.MEMBERS_CHANGE,
}
PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.OPERATOR_ADMIN: frozenset(
        {Permission.OPERATOR_READ, Permission.OPERATOR_CHANGE, Permission.PORTAL_VISIT}
    ),
    Role.OPERATOR_VIEWER: frozenset({Permission.OPERATOR_READ}),
    Role.TENANT_ADMIN: _ADMIN,
    Role.TENANT_MEMBER: _MEMBER,
    Role.TENANT_BILLING_VIEWER: frozenset({Permission.USAGE_READ}),
}
"""The permissions of each role. This table is the only place that grants them."""
VISITING = PERMISSIONS[Role.OPERATOR_ADMIN] | _ADMIN
"""The permissions of an operator in the portal of a tenant."""

_BY_SCOPE: Mapping[Scope, frozenset[Permission]] = {
    Scope.IMAGES_WRITE: frozenset({Permission.IMAGES_MAKE}),
    Scope.IMAGES_READ: frozenset({Permission.IMAGES_READ}),
    Scope.USAGE_READ: frozenset({Permission.USAGE_READ}),
    Scope.CREDENTIALS_WRITE: frozenset({Permission.OWN_CREDENTIALS}),
    # As over REST, a key changes no people: they are those of the console.
    Scope.TENANT_ADMIN: frozenset({Permission.TENANT_READ, Permission.TENANT_CHANGE}),
}
_NEEDED: Mapping[Scope, Permission] = {
    Scope.IMAGES_WRITE: Permission.IMAGES_MAKE,
    Scope.IMAGES_READ: Permission.IMAGES_READ,
    Scope.USAGE_READ: Permission.USAGE_READ,
    Scope.CREDENTIALS_WRITE: Permission.OWN_CREDENTIALS,
    Scope.TENANT_ADMIN: Permission.TENANT_CHANGE,
}


@dataclass(frozen=True, slots=True)
class KeyRights:
    """The rights of the API key that a session was signed in with.

    `root_id`: the first key of its line, which stands for it in budgets and reports.
    """

    root_id: UUID
    scopes: frozenset[str]
    models: frozenset[str] | None
    livemode: bool


@dataclass(frozen=True, slots=True)
class Viewer:
    """The person behind one request of the console.

    `tenant_id`: the person's tenant, or the one whose portal an operator visits. `expires_at`: the
    absolute end of the session.
    """

    session_id: UUID
    name: str
    role: Role
    via: Via
    tenant_id: UUID | None
    tenant_name: str | None
    time_zone: str
    user_id: UUID | None
    person_id: UUID | None
    api_key_id: UUID | None
    operator_key_id: UUID | None
    is_visiting: bool
    key: KeyRights | None
    created_at: datetime
    idle_until: datetime
    expires_at: datetime

    @property
    def is_break_glass(self) -> bool:
        """Return True for a session that an admin key opened; every page says so."""
        return self.via == "admin_key"

    @property
    def mark(self) -> str:
        """A mark of the person and of the tenant that is open, which forms carry.

        A form of a page that was opened before either changed carries another one.
        """
        key_id = self.api_key_id if self.key is None else self.key.root_id
        who = self.person_id or key_id or self.operator_key_id or self.session_id
        return hashlib.sha256(f"{self.tenant_id} {who}".encode()).hexdigest()[:MARK_CHARACTERS]

    @property
    def is_operator(self) -> bool:
        """Return True for an operator, in the portal of a tenant too."""
        return self.role.is_operator

    @property
    def permissions(self) -> frozenset[Permission]:
        """The permissions of the role; of an API key's session, those of its scopes."""
        if self.key is not None:
            granted = (_BY_SCOPE[scope] for scope in Scope if scope in self.key.scopes)
            return frozenset[Permission]().union(*granted)
        return VISITING if self.is_visiting else PERMISSIONS[self.role]

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes of the caller as which this viewer acts in a tenant."""
        if self.key is not None:
            return self.key.scopes
        held = self.permissions
        return frozenset(scope.value for scope, needed in _NEEDED.items() if needed in held)

    @property
    def modes(self) -> tuple[bool, ...]:
        """The modes that this viewer may choose: live (True), test (False), or both."""
        return (True, False) if self.key is None else (self.key.livemode,)

    @property
    def own_user_id(self) -> UUID | None:
        """The user to whose own images, usage and requests this viewer is limited; None: to none.

        A tenant's member sees their own alone. Others of the tenant, and keys, as over REST, see
        the tenant's.
        """
        is_member = self.key is None and self.role is Role.TENANT_MEMBER
        return self.user_id if is_member else None

    def may(self, permission: Permission) -> bool:
        """Return True if this viewer has the permission."""
        return permission in self.permissions

    def require(self, permission: Permission) -> None:
        """Raise `Forbidden` unless this viewer has the permission.

        Raises:
            Forbidden: it is not one of the role, or of the API key's scopes.
        """
        if permission not in self.permissions:
            held = "This API key" if self.key is not None else f"The role {self.role}"
            raise Forbidden(
                f"{held} does not allow this: {MEANINGS[permission]}. Ask an administrator.",
                code="role_not_allowed",
                reason=permission,
            )

    def actor(self, request_id: str | None) -> Actor:
        """The author that the audit trail names for this viewer's changes."""
        kind: ActorType = "operator_session" if self.is_operator else "session"
        if self.is_break_glass:
            kind = "break_glass"
        return Actor(kind, str(self.session_id), request_id, self.name)


def role_of_admin_key(scopes: frozenset[str]) -> Role:
    """The role of a session that an admin key with these scopes opens.

    Raises:
        Forbidden: the key reads metrics alone.
    """
    if AdminScope.ADMIN in scopes:
        return Role.OPERATOR_ADMIN
    if AdminScope.ADMIN_READ in scopes:
        return Role.OPERATOR_VIEWER
    raise Forbidden(
        "This admin key has the scope metrics alone, which opens no console. Use one with the "
        "scope admin or admin:read."
    )


def role_of_api_key(scopes: frozenset[str]) -> Role:
    """The role that is shown for a session of an API key; its scopes decide what it may do."""
    if Scope.TENANT_ADMIN in scopes:
        return Role.TENANT_ADMIN
    if scopes & {Scope.IMAGES_READ, Scope.IMAGES_WRITE}:
        return Role.TENANT_MEMBER
    return Role.TENANT_BILLING_VIEWER
