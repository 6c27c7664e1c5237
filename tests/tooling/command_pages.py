"""The commands of `docs/cli.md`, from the command line's own parser."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gateway.cli.app import COMMANDS, load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
MARKER = "<!-- `make generated` writes everything below from gateway/cli. -->\n"
HEAD = "| option | default | meaning |\n|---|---|---|\n"
Command = Any
"""A command or an option of typer, which hides its types."""


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {PAGE: f"{by_hand}{MARKER}{''.join(_sections())}"}


@cache
def commands() -> dict[str, Command]:
    """Every command by its words, groups included."""
    found = {}
    for name in COMMANDS:
        found[name] = group = load(name)
        for below, command in getattr(group, "commands", {}).items():
            found[f"{name} {below}"] = command
    return found


def _sections() -> Iterator[str]:
    """A section for each command of the tree, below it one for each of a group's own."""
    for name, command in commands().items():
        level = "###" if " " in name else "##"
        is_group = hasattr(command, "commands")
        said = COMMANDS[name].help if is_group else command.help
        yield f"\n{level} `gateway {name}`\n\n{_paragraphs(said)}"
        if not is_group:
            yield from _usage(name, command)


def _usage(name: str, command: Command) -> Iterator[str]:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    words = [_argument(one) for one in arguments]
    yield f"\n```text\n{' '.join(['gateway', name, *words, '[options]'])}\n```\n"
    rows = [f"| {' | '.join(_cells(one))} |\n" for one in shown]
    if rows:
        yield f"\n{HEAD}{''.join(rows)}"


def _argument(one: Command) -> str:
    word = (one.metavar or one.name or "").upper().replace("-", "_")
    return word if one.required else f"[{word}]"


def _cells(one: Command) -> Iterator[str]:
    if one.param_type_name == "argument":
        yield f"`{_argument(one)}`"
    else:
        yield ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    default = one.default
    is_told = default not in (None, "", False, ()) and not callable(default)
    yield "required" if one.required else f"`{default}`" if is_told else ""
    yield " ".join((one.help or "").split()).replace("|", "\\|")


def _paragraphs(said: str | None) -> str:
    parts = (said or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts) + "\n"
