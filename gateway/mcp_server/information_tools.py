"""The tools that buy nothing: models, cost estimates, and usage."""

from datetime import datetime
from itertools import groupby
from zoneinfo import ZoneInfo

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, Field

from gateway.billing import budgets, usage
from gateway.billing.budgets import Budget
from gateway.billing.reports import render_budget, render_sums
from gateway.billing.usage_queries import ReportQuery, UsageFilters
from gateway.db.pools import Beside
from gateway.generation.parameters import parse_image_request
from gateway.mcp_server.calls import ToolCall
from gateway.mcp_server.model_cards import ModelCard, model_card
from gateway.money import format_usd_short


class ProviderModels(BaseModel):
    """The models of one vendor."""

    provider: str
    models: list[ModelCard]


class AvailableModels(BaseModel):
    """The models that this key may use. Prices are US dollars as decimal strings."""

    default_model: str
    defaults: dict[str, str] = Field(
        description="The operator's values for other arguments, at models that have them."
    )
    providers: list[ProviderModels]


class CostEstimate(BaseModel):
    """The worst-case cost of a call, a decimal string in US dollars. Nothing was bought."""

    model: str = Field(description="The model that would be charged.")
    requested_model: str
    n: int
    size: str | None
    quality: str | None
    max_cost_usd: str


class PeriodUsage(BaseModel):
    """Requests, images, tokens and cost of a period in the tenant's time zone."""

    start: str
    requests: int = Field(description="Calls that were charged, at a known or an estimated cost.")
    failed_requests: int = Field(description="Calls that were not charged.")
    estimated_requests: int = Field(description="Those of `requests` whose cost is estimated.")
    open_requests: int = Field(
        description="Calls under way, or of unknown outcome; in no other count."
    )
    images: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    estimated_usd: str = Field(description="The estimated part of `cost_usd`.")
    open_usd: str = Field(description="Reserved for `open_requests`; not in `cost_usd`.")


class BudgetLeft(BaseModel):
    """One budget that calls with this key count against."""

    owner: str = Field(description="Owner of the budget: key, user or tenant.")
    window: str
    limit_usd: str = Field(description="The limit in force: the raised one, if it was raised.")
    spent_usd: str
    held_usd: str
    remaining_usd: str
    resets_at: str | None


class UsageSoFar(BaseModel):
    """Usage of today and this month, and the remainder of every budget."""

    livemode: bool
    time_zone: str
    today: PeriodUsage
    month: PeriodUsage
    budgets: list[BudgetLeft]


async def list_available_models(call: ToolCall) -> CallToolResult:
    """List the models that can be used, by provider.

    Shows each model's capabilities, its cost, and its shutdown date. Free.
    """
    catalog = call.gateway.core.catalog
    models = sorted(catalog.available(call.caller), key=lambda model: model.provider)
    providers = [
        ProviderModels(
            provider=provider,
            models=[await model_card(call.gateway, call.caller, model) for model in group],
        )
        for provider, group in groupby(models, key=lambda model: model.provider)
    ]
    found = AvailableModels(
        default_model=call.gateway.settings.default_model,
        defaults=call.gateway.settings.request_defaults,
        providers=providers,
    )
    lines = [_line(card) for vendor in providers for card in vendor.models]
    return _result(found, "\n".join([f"Default: {found.default_model}", *lines]))


async def estimate_cost(call: ToolCall) -> CallToolResult:
    """Estimate the maximum cost of generate_image with the same arguments.

    Free; no image is made.
    """
    request = parse_image_request(
        call.arguments,
        call.caller,
        call.gateway.core.catalog,
        default_model=call.gateway.settings.default_model,
        defaults=call.gateway.settings.request_defaults,
        default_response_format="url",
    )
    served, quote = await call.gateway.pipeline.quote_most(call.caller, request)
    estimate = CostEstimate(
        model=served.model.id,
        requested_model=request.requested_model,
        n=request.n,
        size=request.size,
        quality=request.quality,
        max_cost_usd=format_usd_short(quote.amount_nano),
    )
    images = "one image" if request.n == 1 else f"{request.n} images"
    said = [f"At most {estimate.max_cost_usd} USD for {images} with {estimate.model}."]
    left_open = [
        name
        for name, value in (("size", request.size), ("quality", request.quality))
        if value in {None, "auto"}
    ]
    if left_open:
        said.append(
            f"Naming {' and '.join(left_open)} lowers this: open values count as the dearest."
        )
    return _result(estimate, " ".join(said))


async def get_usage(call: ToolCall) -> CallToolResult:
    """Report usage and spending of today and this month, and the remainder of every budget.

    Free.
    """
    caller = call.caller
    async with call.gateway.database.beside(Beside.REPORTS).tenant(caller.tenant_id) as session:
        zone = await usage.tenant_zone(session, caller.tenant_id)
        today = datetime.now(ZoneInfo(zone)).date().isoformat()
        sums = [
            _sums(
                await usage.report(
                    session,
                    ReportQuery(
                        caller.tenant_id,
                        UsageFilters(user_id=caller.user_id),
                        caller.livemode,
                        usage.parse_period(start, None, zone),
                    ),
                )
            )
            for start in (today, None)
        ]
        left = [_budget(budget) for budget in await budgets.for_caller(session, caller)]
    used = UsageSoFar(
        livemode=caller.livemode, time_zone=zone, today=sums[0], month=sums[1], budgets=left
    )
    said = [
        f"Today {used.today.cost_usd} USD for {used.today.images} images.",
        f"This month {used.month.cost_usd} USD for {used.month.images} images.",
        *(
            f"The {budget.owner}'s budget per {budget.window} has {budget.remaining_usd} of "
            f"{budget.limit_usd} USD left"
            + (f" until {budget.resets_at}." if budget.resets_at else ".")
            for budget in left
        ),
        *([] if left else ["No budget limits this key."]),
    ]
    return _result(used, "\n".join(said))


def _result(structured: BaseModel, text: str) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=structured.model_dump(mode="json"),
    )


def _line(card: ModelCard) -> str:
    costs = ", ".join(f"{quality} {cost}" for quality, cost in card.max_cost_usd.items())
    served = "" if card.served_by == card.id else f", retired: served by {card.served_by}"
    ends = f", ends {card.shutdown_date}" if card.shutdown_date and not served else ""
    price = f": USD per {card.sample_size} image at most {costs}" if costs else ""
    return f"{card.id}{served}{ends}{price}"


def _sums(report: usage.UsageReport) -> PeriodUsage:
    return PeriodUsage.model_validate(
        {"start": report.query.period.start.isoformat(), **render_sums(report.total)}
    )


def _budget(budget: Budget) -> BudgetLeft:
    limit_usd = format_usd_short(budget.limit_in_force_nano)
    return BudgetLeft.model_validate({**render_budget(budget), "limit_usd": limit_usd})
