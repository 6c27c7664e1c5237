"""The command tree."""

import typer

from gateway.cli import (
    accounts,
    admin_keys,
    billing,
    budgets,
    limits,
    operations,
    reconcile,
    requests,
    serving,
    tenants,
    webhooks,
)
from gateway.cli.demo import demo
from gateway.cli.mcp import mcp_stdio

app = typer.Typer(
    name="gateway",
    help="One place to make images with AI, and to know who spent what.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serving.serve)
app.command()(operations.migrate)
app.command()(operations.doctor)
app.command()(demo)
app.command()(mcp_stdio)
app.command()(billing.usage)
app.add_typer(requests.requests, name="requests")
app.add_typer(tenants.tenants, name="tenants")
app.add_typer(accounts.keys, name="keys")
app.add_typer(admin_keys.admin_keys, name="admin-keys")
app.add_typer(accounts.credentials, name="credentials")
app.add_typer(budgets.budgets, name="budgets")
app.add_typer(limits.limits, name="limits")
app.add_typer(webhooks.webhooks, name="webhooks")
app.add_typer(billing.prices, name="prices")
app.add_typer(reconcile.reconcile, name="reconcile")
app.add_typer(operations.master_key, name="master-key")


def main() -> None:
    """Run the command line."""
    app()
