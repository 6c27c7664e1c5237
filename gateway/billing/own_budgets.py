"""Budgets that a tenant sets for its users and keys, below its own, which the operator sets."""

from uuid import UUID

from gateway.billing import budgets
from gateway.billing.budgets import WINDOWS, Budget, Window
from gateway.db.engine import TenantSession
from gateway.db.owners import OwnerIds, find_owner, refuse_own_bound
from gateway.domain import Caller
from gateway.errors import Forbidden, InvalidRequest, NotFound
from gateway.money import NanoUsd, format_usd_short

OPERATORS_OWN = (
    "The budgets of a whole tenant are set by the operator of this gateway. Choose one of your "
    "users or keys."
)


async def set_own_budget(
    session: TenantSession,
    caller: Caller,
    *,
    window: str,
    limit_nano: NanoUsd,
    livemode: bool,
    api_key_id: UUID | None,
    user_id: UUID | None,
) -> Budget:
    """Set the budget of a user or a key of the tenant, at most to the tenant's own.

    A new one is hard. Its enforcement and alerts, once set by the operator, stay.

    Raises:
        Forbidden: the tenant's own budget, live mode for a test key, or a higher limit for the
            caller itself.
        InvalidRequest: above a budget of the tenant, two owners at once, or an unknown window.
        NotFound: the key or the user does not belong to this tenant or mode.
    """
    if api_key_id is None and user_id is None:
        raise Forbidden(OPERATORS_OWN)
    if livemode and not caller.livemode:
        raise Forbidden("A test key can see and change test mode only.")
    owner = await find_owner(
        session, caller.tenant_id, livemode=livemode, api_key_id=api_key_id, user_id=user_id
    )
    if owner.livemode != livemode:
        raise NotFound("There is no such key in this mode.", param="api_key_id")
    present = await budgets.for_owner(session, caller.tenant_id, owner)
    found = _of_owner(present, owner, window)
    # Above the usual limit: a raise for some days must not become the usual one.
    if found is not None and limit_nano > found.limit_nano:
        refuse_own_bound(caller, owner)
    _refuse_above(present, owner, window, limit_nano)
    return await budgets.set_limit(
        session,
        caller.tenant_id,
        window=window,
        limit_nano=limit_nano,
        livemode=livemode,
        api_key_id=owner.api_key_id,
        user_id=owner.user_id,
    )


async def remove_own_budget(session: TenantSession, caller: Caller, budget_id: int) -> None:
    """Remove the budget of a user or a key.

    Raises:
        Forbidden: it is the tenant's own, or applies to the caller.
        NotFound: the tenant has no such budget in a mode that the caller may see.
    """
    found = await budgets.find(session, caller.tenant_id, budget_id)
    if found is None or (found.livemode and not caller.livemode):
        raise NotFound(f"This tenant has no budget {budget_id}.", param="budget_id")
    if found.owner == "tenant":
        raise Forbidden(OPERATORS_OWN)
    refuse_own_bound(caller, OwnerIds(found.api_key_id, found.user_id, found.livemode))
    await budgets.remove(session, caller.tenant_id, budget_id)


def _of_owner(every: list[Budget], owner: OwnerIds, window: str) -> Budget | None:
    return next(
        (
            budget
            for budget in every
            if budget.window == window
            and budget.livemode == owner.livemode
            and (budget.api_key_id, budget.user_id) == (owner.api_key_id, owner.user_id)
        ),
        None,
    )


def _refuse_above(every: list[Budget], owner: OwnerIds, window: str, limit_nano: NanoUsd) -> None:
    """Refuse a limit above the tenant's own for the same window, or for a longer one.

    Raises:
        InvalidRequest: it is above.
    """
    for budget in every:
        binds = (
            budget.owner == "tenant"
            and budget.enforcement == "hard"
            and budget.livemode == owner.livemode
            and _is_as_long(budget.window, window)
        )
        if binds and limit_nano > budget.limit_in_force_nano:
            per = "in total" if budget.window == "total" else f"per {budget.window}"
            raise InvalidRequest(
                f"limit_usd must be at most {format_usd_short(budget.limit_in_force_nano)} USD, "
                f"the tenant's own budget {per} (got {format_usd_short(limit_nano)}).",
                param="limit_usd",
            )


def _is_as_long(window: Window, than: str) -> bool:
    return than in WINDOWS[: WINDOWS.index(window) + 1]
