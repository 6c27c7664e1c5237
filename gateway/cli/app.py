"""The command tree. The module of a command is imported when the command runs, no sooner."""

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
    """Where a command or a group of commands is, and its line in the help."""

    place: str
    """Module in this package and name in it, with a colon between."""
    help: str


COMMANDS = {
    "serve": Entry(
        "serving:serve",
        "Run the server. Migrates first; on a terminal, prints keys and an example to begin with.",
    ),
    "migrate": Entry(
        "operations:migrate",
        "Bring the database to the newest schema; several at once wait for each other.",
    ),
    "doctor": Entry(
        "operations:doctor", "Check configuration, database, storage and keys; say what to mend."
    ),
    "demo": Entry(
        "demo:demo",
        "Make an image through the OpenAI client and one through an MCP client; show the usage.",
    ),
    "mcp-stdio": Entry(
        "mcp:mcp_stdio",
        "Connect an MCP client that starts local programs to a gateway: MCP on stdin and stdout.",
    ),
    "usage": Entry(
        "billing:usage",
        "Show what was used and what it cost. Default: this month, live and test apart.",
    ),
    "requests": Entry("requests:requests", "Outcome, cost and provider id of each request."),
    "tenants": Entry("tenants:tenants", "Tenants: the customers that own everything."),
    "users": Entry("users:users", "Persons and applications of a tenant."),
    "keys": Entry("accounts:keys", "API keys of tenants and users."),
    "admin-keys": Entry("admin_keys:admin_keys", "Keys of operators and of monitoring."),
    "credentials": Entry("accounts:credentials", "Provider keys of tenants and users."),
    "budgets": Entry("budgets:budgets", "Money limits, held before each call."),
    "limits": Entry("limits:limits", "How much a minute, and how much at once."),
    "webhooks": Entry("webhooks:webhooks", "Where events are sent, and what arrived."),
    "prices": Entry("billing:prices", "Price versions; never edited, only added."),
    "reconcile": Entry(
        "reconcile:reconcile", "Calls whose real cost is not known: look at them, resolve them."
    ),
    "master-key": Entry(
        "master_key:master_key", "Keys at rest: the master key and those that it wraps."
    ),
}
"""Every command, in the order of the help."""


class CommandTree(TyperGroup):
    """A group that lists its commands from `COMMANDS` and imports the one that is called."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the options of typer
        super().__init__(**options)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name=name, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer hides its types
        """Find the command that is called, for running it or completing its words."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load(str(name)), rest


def load(name: str) -> Any:  # noqa: ANN401 - as above
    """Import a command's module; the command as it runs."""
    module, _, attribute = COMMANDS[name].place.partition(":")
    # What is imported stays: looking for garbage in it meanwhile took a third of the time.
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
    help="One place to make images with AI, and to know who spent what.",
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
    """One place to make images with AI, and to know who spent what."""


def main() -> None:
    """Run the command line."""
    app(prog_name="gateway")
