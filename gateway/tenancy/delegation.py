"""Delegation: a key issues keys with at most its own rights, and cannot evade its own limits.

Budgets and limits of a line of keys do not bind other lines, so a key that has any issues no key.
Those of a user bind every key of that user, so a user's key issues keys of that user only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import exists, select

from gateway.db.engine import TenantSession
from gateway.db.money_tables import BudgetRow
from gateway.db.tables import RateLimitRow
from gateway.domain import Caller
from gateway.errors import Forbidden


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """The rights of a key to be issued. `root_id`: the line of keys that it would belong to."""

    scopes: Sequence[str]
    models: Sequence[str] | None
    user_id: UUID | None
    expires_at: datetime | None
    root_id: UUID | None = None


async def refuse_more(session: TenantSession, caller: Caller, grant: KeyGrant) -> None:
    """Refuse a key with more rights or fewer limits than the caller's.

    Raises:
        Forbidden: scopes, models, an expiry or an owner beyond the caller's own, or a key of
            another line while the caller's has budgets or limits of its own.
    """
    _refuse_scopes(caller, grant.scopes)
    _refuse_models(caller, grant.models)
    # A token's expiry is that of one sign-in, and does not limit the rights of its user.
    if caller.api_key_id is not None:
        _refuse_longer(caller, grant.expires_at)
    if caller.user_id is not None and grant.user_id != caller.user_id:
        await _refuse_owner(session, caller)
    # A caller's key is identified by the first of its line, as in its budgets and limits.
    key_id = caller.api_key_id
    if key_id not in {None, grant.root_id} and await _is_bound(session, caller, api_key_id=key_id):
        raise Forbidden(
            "This key has a budget or limits of its own, which would not apply to another key, so "
            "it can neither issue nor roll one. Use a key without them, or ask the operator of "
            "this gateway."
        )


def _refuse_scopes(caller: Caller, scopes: Sequence[str]) -> None:
    if beyond := sorted(set(scopes) - caller.scopes):
        raise Forbidden(
            f"scopes: This key lacks the scope {beyond[0]}, so it cannot grant it; it has: "
            f"{', '.join(sorted(caller.scopes))}."
        )


def _refuse_models(caller: Caller, models: Sequence[str] | None) -> None:
    if caller.models is not None and (models is None or set(models) - caller.models):
        raise Forbidden(
            "models: This key is limited to some models and cannot grant others; it has: "
            f"{', '.join(sorted(caller.models))}.",
            code="model_not_allowed",
        )


def _refuse_longer(caller: Caller, expires_at: datetime | None) -> None:
    ends_at = caller.expires_at
    if ends_at is not None and (expires_at is None or expires_at > ends_at):
        given = "never" if expires_at is None else f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"
        raise Forbidden(
            f"expires_at: This key expires at {ends_at:%Y-%m-%dT%H:%M:%SZ}, so a key that it "
            f"issues or rolls must not expire later (got {given})."
        )


async def _refuse_owner(session: TenantSession, caller: Caller) -> None:
    if caller.api_key_id is not None:
        raise Forbidden(
            "user_id: This key belongs to a user, so it issues and rolls keys of that user only: "
            f"{caller.user_id}."
        )
    # A token always belongs to a user, and that user may be the tenant's administrator.
    if await _is_bound(session, caller, user_id=caller.user_id):
        raise Forbidden(
            "user_id: The user of this token has budgets or limits, so it issues and rolls keys of "
            f"that user only: {caller.user_id}."
        )


async def _is_bound(
    session: TenantSession,
    caller: Caller,
    *,
    api_key_id: UUID | None = None,
    user_id: UUID | None = None,
) -> bool:
    """Tell if this key or this user has a budget or a limit, in either mode."""
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
