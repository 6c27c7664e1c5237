"""Owners of budgets and limits: a tenant, one of its users, or one of its keys."""

from collections.abc import Mapping
from uuid import UUID

from gateway.billing.budgets import MAX_ID
from gateway.console.forms import one_of, typed
from gateway.db.engine import TenantSession
from gateway.errors import InvalidRequest, NotFound
from gateway.tenancy import lookups
from gateway.tenancy.lookups import KeyScope

OWNERS = (("tenant", "Whole tenant"), ("user", "One user"), ("key", "One API key"))


async def owner_ids(
    session: TenantSession, tenant_id: UUID, form: Mapping[str, str], *, livemode: bool
) -> tuple[UUID | None, UUID | None]:
    """Read whose budget or limit it is: the ids of a key and of a user, of which one is None."""
    owner = one_of(form, "owner", [value for value, _ in OWNERS])
    name = typed(form, "owner_name")
    if owner == "tenant":
        if name:
            raise InvalidRequest(
                "The whole tenant needs no name here. Empty this field, or choose the user or key.",
                param="owner_name",
            )
        return None, None
    if not name:
        raise InvalidRequest(
            f"Enter the {owner}: its name, its id, or its last four characters.",
            param="owner_name",
        )
    if owner == "user":
        found = await lookups.find_user(session, tenant_id, name, param="owner_name")
        return None, found.id
    key_id = await lookups.find_line(
        session, tenant_id, name, among=KeyScope(livemode=livemode), param="owner_name"
    )
    return key_id, None


def row_id_of(number: int) -> int:
    """Refuse an id that no row can have.

    Raises:
        NotFound: it is below 1 or above what the database can hold.
    """
    if not 1 <= number <= MAX_ID:
        raise NotFound(f"There is nothing with the id {str(number)[:20]}.")
    return number
