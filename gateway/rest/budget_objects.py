"""Budgets in REST's answers, all built by `BudgetFields.of`: each class shows what it declares."""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, Field

from gateway.billing.budgets import Budget, Enforcement, Window
from gateway.billing.reports import render_budget


class RaiseObject(BaseModel):
    """The temporary limit that replaces the usual one, and its end."""

    limit_usd: str
    until: datetime


class BudgetFields(BaseModel):
    """The fields common to all budgets; US dollars as decimal strings."""

    id: str
    object: Literal["budget"] = "budget"
    livemode: bool
    window: Window
    limit_usd: str = Field(description="The usual limit.")
    raised: RaiseObject | None = Field(alias="raise", description="null: the limit is not raised.")
    enforcement: Enforcement = Field(description="soft: the budget warns, but refuses no calls.")
    alert_percents: list[int] = Field(
        description="Percentages of the limit that trigger a warning."
    )
    spent_usd: str
    held_usd: str
    remaining_usd: str
    period_start: datetime | None
    resets_at: datetime | None

    @classmethod
    def of(cls, budget: Budget) -> Self:
        """Build the object; fields that it does not declare are left out."""
        owner = {
            "api_key_id": budget.api_key_id,
            "api_key_name": budget.api_key_name,
            "user_id": budget.user_id,
            "user_name": budget.user_name,
        }
        return cls.model_validate({**render_budget(budget), **owner, "time_zone": budget.time_zone})


class TenantBudget(BudgetFields):
    """A budget and its use in the current period; US dollars as decimal strings."""

    owner: Literal["tenant", "user", "key"]


class BudgetList(BaseModel):
    """The budgets that a call counts against."""

    object: Literal["list"] = "list"
    data: list[TenantBudget]
