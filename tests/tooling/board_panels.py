"""The panels of the dashboards of money, providers and tenants."""

from tests.tooling.board_parts import INSTANCE, RATE, USD, Board, Panel, Row, quantile, rate

MONEY = Board(
    "money",
    "money",
    "The cost of calls, the operator's budgets, and calls whose cost is not known.",
    rows=(
        Row(
            "Cost",
            (
                Panel(
                    "Cost of a day",
                    "currencyUSD",
                    "Live calls of the last 24 hours, as counted by the gateways.",
                    {
                        "USD": "sum(increase(gateway_cost_nano_usd_total"
                        f'{{livemode="true"}}[24h])) {USD}'
                    },
                    kind="stat",
                ),
                Panel(
                    "Cost per hour",
                    "currencyUSD",
                    "At the present rate, live calls, by provider and model.",
                    {
                        "{{provider}} {{model}}": "sum by (provider, model)"
                        f' (rate(gateway_cost_nano_usd_total{{livemode="true"}}{RATE}))'
                        f" * 3600 {USD}"
                    },
                ),
                Panel(
                    "Cost per image",
                    "currencyUSD",
                    "Cost divided by images, live calls, by model.",
                    {
                        "{{model}}": "sum by (model)"
                        f' (rate(gateway_cost_nano_usd_total{{livemode="true"}}{RATE})) {USD}'
                        f' / sum by (model) (rate(gateway_images_total{{livemode="true"}}{RATE}))'
                    },
                ),
                Panel(
                    "Tokens",
                    "short",
                    "Tokens a second that providers reported, live calls, by kind.",
                    {
                        "{{kind}}": "sum by (kind)"
                        f' (rate(gateway_tokens_total{{livemode="true"}}{RATE}))'
                    },
                ),
            ),
        ),
        Row(
            "The operator's budgets",
            (
                Panel(
                    "Used part",
                    "percentunit",
                    "Spent and held part of each budget in its current period.",
                    {
                        "{{window}}": "max by (window) (gateway_house_budget_used_nano_usd)"
                        " / max by (window) (gateway_house_budget_limit_nano_usd)"
                    },
                    kind="bargauge",
                    limit=0.9,
                ),
                Panel(
                    "Used amount",
                    "currencyUSD",
                    "Spent and held amount of each budget, and its limit.",
                    {
                        "used, {{window}}": "max by (window)"
                        f" (gateway_house_budget_used_nano_usd) {USD}",
                        "limit, {{window}}": "max by (window)"
                        f" (gateway_house_budget_limit_nano_usd) {USD}",
                    },
                ),
            ),
        ),
        Row(
            "Open calls",
            (
                Panel(
                    "Calls without a final cost",
                    "short",
                    "Held: under way. Unknown: no outcome. Estimated: posted without usage.",
                    {"{{state}}": "max by (state) (gateway_reservations_open)"},
                ),
                Panel(
                    "Their amount",
                    "currencyUSD",
                    "The amount of live ones.",
                    {"{{state}}": f"max by (state) (gateway_reservations_open_nano_usd) {USD}"},
                ),
                Panel(
                    "Age of the oldest",
                    "s",
                    "Of live ones. Unknown ones are for an operator after an hour.",
                    {"{{state}}": "max by (state) (gateway_reservations_open_age_seconds)"},
                ),
                Panel(
                    "Settlements that wait",
                    "short",
                    "Ended calls whose cost Postgres has not acknowledged.",
                    {"waiting": "sum(gateway_settlements_waiting)"},
                    limit=50,
                ),
            ),
        ),
        Row(
            "The books",
            (
                Panel(
                    "Broken invariants",
                    "short",
                    "Rows that contradict each other, at the last hourly check.",
                    {"rows": "max(gateway_invariant_breaks)"},
                    kind="stat",
                    limit=1,
                ),
                Panel(
                    "Alarms about money",
                    "short",
                    "In the last hour.",
                    {
                        "{{kind}}": "sum by (kind) (increase(gateway_alarms_total"
                        '{kind=~"bound_breach|usage_missing|settle_.*|journal_.*|outcome_estimated|'
                        'reservation_expired|house_credential|model_rerouted"}[1h]))'
                    },
                ),
            ),
        ),
    ),
)

PROVIDERS = Board(
    "providers",
    "providers",
    "Calls to each provider and model: outcomes, durations, circuits and rate limits.",
    variables={
        **INSTANCE,
        "provider": "label_values(gateway_provider_duration_seconds_count, provider)",
    },
    rows=(
        Row(
            "Calls",
            (
                Panel(
                    "Calls",
                    "reqps",
                    "By provider and outcome.",
                    {
                        "{{provider}} {{outcome}}": rate(
                            "provider_duration_seconds_count",
                            "provider, outcome",
                            'provider=~"$provider"',
                        )
                    },
                ),
                Panel(
                    "Calls without success",
                    "percentunit",
                    "Share of calls with another outcome than an image, by model.",
                    {
                        "{{provider}} {{model}}": "1 - "
                        + rate(
                            "provider_duration_seconds_count",
                            "provider, model",
                            'provider=~"$provider", outcome=~"success.*"',
                        )
                        + " / "
                        + rate(
                            "provider_duration_seconds_count",
                            "provider, model",
                            'provider=~"$provider"',
                        )
                    },
                    limit=0.1,
                ),
                Panel(
                    "Images",
                    "ops",
                    "Images a second, by model.",
                    {
                        "{{provider}} {{model}}": rate(
                            "images_total", "provider, model", 'provider=~"$provider"'
                        )
                    },
                ),
            ),
        ),
        Row(
            "Duration of calls",
            tuple(
                Panel(
                    f"p{share * 100:.0f}",
                    "s",
                    "By provider and model.",
                    {
                        "{{provider}} {{model}}": quantile(
                            share,
                            "provider_duration_seconds",
                            "provider, model",
                            'provider=~"$provider"',
                        )
                    },
                )
                for share in (0.5, 0.95)
            ),
        ),
        Row(
            "Circuits and limits",
            (
                Panel(
                    "Open circuits",
                    "short",
                    "Circuits that are open or half open.",
                    {
                        "{{provider}}": "sum by (provider) (gateway_circuits_open"
                        '{instance=~"$instance", provider=~"$provider"})'
                    },
                    limit=1,
                ),
                Panel(
                    "Refused by circuits",
                    "reqps",
                    "By provider and trouble.",
                    {
                        "{{provider}} {{trouble}}": rate(
                            "circuit_refused_total", "provider, trouble", 'provider=~"$provider"'
                        )
                    },
                ),
                Panel(
                    "Fallbacks",
                    "ops",
                    "Calls that another model served.",
                    {"{{model}} by {{instead}}": rate("fallbacks_total", "model, instead")},
                ),
                Panel(
                    "Left of the provider's rate limits",
                    "percentunit",
                    "As its last answer told, by credential and kind.",
                    {
                        "{{credential}} {{kind}}": "min by (provider, credential, kind)"
                        ' (gateway_provider_limit_remaining{provider=~"$provider"}'
                        ' / gateway_provider_limit{provider=~"$provider"})'
                    },
                ),
            ),
        ),
    ),
)

LIVE = 'livemode="true", tenant=~"$tenant"'
TENANTS = Board(
    "tenants",
    "tenants",
    "Requests, images, tokens, cost and budgets of the tenants with series of their own.",
    variables={"tenant": "label_values(gateway_tenant_requests_total, tenant)"},
    rows=(
        Row(
            "Requests",
            (
                Panel(
                    "Requests",
                    "reqps",
                    "Answers a second, by tenant: the ten with the most.",
                    {
                        "{{tenant}}": "topk(10, sum by (tenant)"
                        f" (rate(gateway_tenant_requests_total{{{LIVE}}}{RATE})))"
                    },
                ),
                Panel(
                    "Failed",
                    "percentunit",
                    "Share of requests with status 500 to 599, by tenant.",
                    {
                        "{{tenant}}": "sum by (tenant)"
                        f' (rate(gateway_tenant_requests_total{{{LIVE}, status="5xx"}}{RATE}))'
                        f" / sum by (tenant) (rate(gateway_tenant_requests_total{{{LIVE}}}{RATE}))"
                    },
                    limit=0.005,
                ),
                Panel(
                    "Refused",
                    "percentunit",
                    "Share of requests with status 400 to 499, by tenant.",
                    {
                        "{{tenant}}": "sum by (tenant)"
                        f' (rate(gateway_tenant_requests_total{{{LIVE}, status="4xx"}}{RATE}))'
                        f" / sum by (tenant) (rate(gateway_tenant_requests_total{{{LIVE}}}{RATE}))"
                    },
                ),
            ),
        ),
        Row(
            "Use",
            (
                Panel(
                    "Cost per hour",
                    "currencyUSD",
                    "At the present rate, live calls.",
                    {
                        "{{tenant}}": "sum by (tenant)"
                        f" (rate(gateway_tenant_cost_nano_usd_total{{{LIVE}}}{RATE}))"
                        f" * 3600 {USD}"
                    },
                ),
                Panel(
                    "Images",
                    "ops",
                    "Images a second, live calls.",
                    {
                        "{{tenant}}": "sum by (tenant)"
                        f" (rate(gateway_tenant_images_total{{{LIVE}}}{RATE}))"
                    },
                ),
                Panel(
                    "Tokens",
                    "short",
                    "Tokens a second, live calls, by direction.",
                    {
                        "{{tenant}} {{kind}}": "sum by (tenant, kind)"
                        f" (rate(gateway_tenant_tokens_total{{{LIVE}}}{RATE}))"
                    },
                ),
            ),
        ),
        Row(
            "Money",
            (
                Panel(
                    "Cost of the shown time",
                    "currencyUSD",
                    "Live calls, as the gateways count them; usage reports are exact.",
                    {
                        "{{tenant}}": "sort_desc(sum by (tenant)"
                        f" (increase(gateway_tenant_cost_nano_usd_total{{{LIVE}}}[$__range])))"
                        f" {USD}"
                    },
                    kind="bargauge",
                ),
                Panel(
                    "Used part of budgets",
                    "percentunit",
                    "Spent and held part of each tenant's own budget in its current period.",
                    {
                        "{{tenant}}, {{window}}": "max by (tenant, window)"
                        ' (gateway_tenant_budget_used_ratio{tenant=~"$tenant"})'
                    },
                    kind="bargauge",
                    limit=0.9,
                ),
            ),
        ),
    ),
)
