"""The command tree. A command's module is imported only when the command runs."""

import gc
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from gateway import __version__


@dataclass(frozen=True, slots=True)
class Entry:
    """The location of a command or command group, and its line in the help."""

    place: str
    """The module in this package and the name in it, separated by a colon."""
    help: str


COMMANDS = {
    "serve": Entry(
        "serving:serve",
        "Run the server. Migrates first; on a terminal, prints keys and an example.",
    ),
    "migrate": Entry(
        "operations:migrate",
        "Migrate the database to the newest schema; concurrent runs wait for each other.",
    ),
    "doctor": Entry(
        "operations:doctor", "Check configuration, database, storage and keys; report what to fix."
    ),
    "maintain": Entry(
        "operations:maintain", "Do the periodic work once; exit status 1 if the books are broken."
    ),
    "backup": Entry(
        "backup:backup",
        "Write database, images and master key to one file, while the gateway serves.",
    ),
    "restore": Entry(
        "backup:restore",
        "Restore a backup into an empty data directory, and migrate it to this release.",
    ),
    "demo": Entry(
        "demo:demo",
        "Make an image with the OpenAI client and one with an MCP client; show the usage.",
    ),
    "console-link": Entry(
        "console:console_link",
        "Print a link that signs in to the console as operator-admin, once, within ten minutes.",
    ),
    "mcp-stdio": Entry(
        "mcp:mcp_stdio",
        "Connect an MCP client that starts local programs to a gateway: MCP on stdin and stdout.",
    ),
    "usage": Entry(
        "billing:usage",
        "Report usage and cost. Default: this month, live and test separately.",
    ),
    "usage-sums": Entry(
        "usage_sums:usage_sums",
        "The sums that reports read: compare them with the ledger, or make them anew.",
    ),
    "requests": Entry("requests:requests", "Outcome, cost and provider id of each request."),
    "tenants": Entry("tenants:tenants", "Tenants: the customers that own everything."),
    "users": Entry("users:users", "Persons and applications of a tenant."),
    "keys": Entry("accounts:keys", "API keys of tenants and users."),
    "admin-keys": Entry("admin_keys:admin_keys", "Keys of operators and of monitoring."),
    "credentials": Entry("accounts:credentials", "Provider keys of tenants and users."),
    "budgets": Entry("budgets:budgets", "Spending limits; each call reserves its worst-case cost."),
    "limits": Entry("limits:limits", "Rate limits and concurrency limits."),
    "webhooks": Entry("webhooks:webhooks", "Webhooks and their deliveries."),
    "models": Entry("models:models", "Models: list them, check a models file."),
    "prices": Entry("billing:prices", "Price versions; immutable, new ones are added."),
    "ledger": Entry("ledger:ledger", "The books: check them; list, export and archive months."),
    "reconcile": Entry(
        "reconcile:reconcile", "Calls of unknown cost: list, show and resolve them."
    ),
    "master-key": Entry(
        "master_key:master_key", "Keys at rest: the master key and the keys that it wraps."
    ),
}
"""Every command, in the order of the help."""


class CommandTree(TyperGroup):
    """A group that lists its commands from `COMMANDS` and imports the called one."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the options of typer
        super().__init__(**options)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name=name, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer hides its types
        """Find the called command, to run it or to complete its arguments."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load(str(name)), rest


def load(name: str) -> Any:  # noqa: ANN401 - as above
    """Import a command's module; return the command as it runs."""
    module, _, attribute = COMMANDS[name].place.partition(":")
    # Imported objects stay alive: collecting garbage during imports took a third of the time.
    gc.disable()
    found = getattr(import_module(f"gateway.cli.{module}"), attribute)
    gc.freeze()
    gc.enable()
    if isinstance(found, typer.Typer):
        command: Any = get_group(found)
    else:
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(name)(found)
        command = get_command(alone)
    command.name = name
    return command


app = typer.Typer(
    name="gateway",
    cls=CommandTree,
    help="A gateway for image generation, with budgets and cost accounting.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"gateway {__version__}")
        raise typer.Exit


@app.callback()
def _gateway(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """A gateway for image generation, with budgets and cost accounting."""


def main() -> None:
    """Run the command line."""
    app(prog_name="gateway")
