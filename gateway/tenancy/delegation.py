"""What one key may give to another: never more than it has, and never a way around its own bounds.

Budgets and limits of a line of keys hold no other line, so a key that has some makes no key. Those
of a user hold each key of that user, so a key of a user makes keys of that user alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import exists, select

from gateway.db.engine import TenantSession
from gateway.db.money_tables import BudgetRow
from gateway.db.owners import Owner
from gateway.db.tables import RateLimitRow
from gateway.domain import Caller
from gateway.errors import Forbidden


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key would be able to do. `root_id`: the line of keys that it would belong to."""

    scopes: Sequence[str]
    models: Sequence[str] | None
    user_id: UUID | None
    expires_at: datetime | None
    root_id: UUID | None = None


async def refuse_more(session: TenantSession, caller: Caller, grant: Grant) -> None:
    """Refuse a key that may do more than the caller's, or is held by less.

    Raises:
        Forbidden: scopes, models, a life or an owner beyond the caller's own, or a key of another
            line while the caller's has budgets or limits of its own.
    """
    _refuse_scopes(caller, grant.scopes)
    _refuse_models(caller, grant.models)
    # A token's short life is that of one sign-in, not of what its user may do.
    if caller.api_key_id is not None:
        _refuse_longer(caller, grant.expires_at)
    if caller.user_id is not None and grant.user_id != caller.user_id:
        await _refuse_owner(session, caller)
    # A caller's key is named by the first of its line, which its budgets and limits name too.
    key_id = caller.api_key_id
    if key_id not in {None, grant.root_id} and await _is_bound(session, caller, api_key_id=key_id):
        raise Forbidden(
            "This key has a budget or limits of its own, which would not hold another key, so it "
            "can neither make nor roll one. Use a key without them, or ask the operator of this "
            "gateway."
        )


def refuse_own_bound(caller: Caller, owner: Owner) -> None:
    """Refuse to loosen a limit that holds the caller.

    Raises:
        Forbidden: it is that of the caller's own line of keys or user.
    """
    own = {caller.api_key_id, caller.user_id} - {None}
    if own & {owner.api_key_id, owner.user_id}:
        raise Forbidden(
            "This limit holds the key in use, which can lower it but neither raise nor remove it. "
            "Let another administrator do it."
        )


def _refuse_scopes(caller: Caller, scopes: Sequence[str]) -> None:
    if beyond := sorted(set(scopes) - caller.scopes):
        raise Forbidden(
            f"scopes: This key lacks the scope {beyond[0]}, so it can give it to no other; it "
            f"has: {', '.join(sorted(caller.scopes))}."
        )


def _refuse_models(caller: Caller, models: Sequence[str] | None) -> None:
    if caller.models is not None and (models is None or set(models) - caller.models):
        raise Forbidden(
            "models: This key may use some models alone, so no other can get more: "
            f"{', '.join(sorted(caller.models))}.",
            code="model_not_allowed",
        )


def _refuse_longer(caller: Caller, expires_at: datetime | None) -> None:
    ends_at = caller.expires_at
    if ends_at is not None and (expires_at is None or expires_at > ends_at):
        given = "never" if expires_at is None else f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"
        raise Forbidden(
            f"expires_at: This key expires at {ends_at:%Y-%m-%dT%H:%M:%SZ}, so no key that it "
            f"makes or rolls may expire later (got {given})."
        )


async def _refuse_owner(session: TenantSession, caller: Caller) -> None:
    if caller.api_key_id is not None:
        raise Forbidden(
            "user_id: This key belongs to a user, so it makes and rolls keys of that user alone: "
            f"{caller.user_id}."
        )
    # A token is always of a user, who may be there to administer the tenant.
    if await _is_bound(session, caller, user_id=caller.user_id):
        raise Forbidden(
            "user_id: The user of this token has budgets or limits, so it makes and rolls keys of "
            f"that user alone: {caller.user_id}."
        )


async def _is_bound(
    session: TenantSession,
    caller: Caller,
    *,
    api_key_id: UUID | None = None,
    user_id: UUID | None = None,
) -> bool:
    """Whether this key or this user has a budget or a limit, in either mode."""
    budget = exists().where(
        BudgetRow.tenant_id == caller.tenant_id,
        BudgetRow.removed_at.is_(None),
        BudgetRow.api_key_id.is_not_distinct_from(api_key_id),
        BudgetRow.user_id.is_not_distinct_from(user_id),
    )
    limit = exists().where(
        RateLimitRow.tenant_id == caller.tenant_id,
        RateLimitRow.api_key_id.is_not_distinct_from(api_key_id),
        RateLimitRow.user_id.is_not_distinct_from(user_id),
    )
    return bool(await session.scalar(select(budget | limit)))
