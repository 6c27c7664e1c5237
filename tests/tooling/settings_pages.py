"""`.env.example` and the tables of `docs/settings.md`, written from the settings themselves."""

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic_core import PydanticUndefined

from gateway.config.groups import GROUPS, SETTINGS, Group, Setting

ROOT = Path(__file__).resolve().parents[2]
ENV_EXAMPLE = ROOT / ".env.example"
PAGE = ROOT / "docs" / "settings.md"
MARKER = "<!-- `make generated` writes everything below from gateway/config. -->\n"
COLUMNS = 98
ENV_HEADER = """\
# Every setting of the gateway, with its default, or with an example where it has none.
# `make generated` writes this file from gateway/config. Copy it to `.env` and uncomment what you
# change. docs/settings.md has the same settings as tables, with their bounds.
# An empty value counts as unset, except for secrets and GATEWAY_DATABASE_URL: if they are empty,
# the gateway refuses to start.
"""
FIRST_TITLE = "The settings that matter first"


def rendered() -> dict[Path, str]:
    """The text that each generated file should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {ENV_EXAMPLE: env_example(), PAGE: f"{by_hand}{MARKER}{tables()}"}


def env_example() -> str:
    """`.env.example`: the dozen that matter first, then the rest by group."""
    first = (setting for setting in SETTINGS if setting.is_first)
    parts = [ENV_HEADER, _env_heading(FIRST_TITLE), *map(_env_lines, first)]
    for group in GROUPS:
        rest = [_env_lines(setting) for setting in group if not setting.is_first]
        parts += [_env_heading(group.title) + _comment(_introduction(group)), *rest]
    return "\n".join(parts)


def _env_heading(title: str) -> str:
    return f"# --- {title} ".ljust(COLUMNS, "-") + "\n"


def _env_lines(setting: Setting) -> str:
    value = default_of(setting) or next(iter(setting.field.examples or []), "")
    return f"{_comment(setting.field.description or '')}#{setting.variable}={value}\n"


def _comment(text: str) -> str:
    wrapped = textwrap.wrap(text, COLUMNS - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in wrapped)


def tables() -> str:
    """The generated part of the page."""
    first = "".join(
        f"| `{setting.variable}` | {setting.field.description} |\n"
        for setting in SETTINGS
        if setting.is_first
    )
    lead = f"\n## {FIRST_TITLE}\n\n| variable | meaning |\n|---|---|\n{first}"
    return lead + "".join(_section(group) for group in GROUPS)


def _section(group: Group) -> str:
    rows = "".join(f"| {' | '.join(_cells(setting))} |\n" for setting in group)
    head = f"\n## {group.title}\n\n{_introduction(group)} Table `[{group.table}]` of a file.\n\n"
    return f"{head}| variable | key | default | bounds | meaning |\n|---|---|---|---|---|\n{rows}"


def _introduction(group: Group) -> str:
    return " ".join((group.fields.__doc__ or "").split())


def _cells(setting: Setting) -> Iterable[str]:
    default = default_of(setting)
    yield f"`{setting.variable}`"
    yield "" if setting.key is None else f"`{setting.key}`"
    yield f"`{default}`" if default else ""
    yield bounds_of(setting)
    yield setting.field.description or ""


def default_of(setting: Setting) -> str:
    """The default as a variable would give it; nothing where there is none."""
    default = setting.field.default
    if default in (None, PydanticUndefined):
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def bounds_of(setting: Setting) -> str:
    """The values that are accepted, in words."""
    annotation = setting.field.annotation
    if annotation is bool:
        return "`true`, `false`"
    choices = [
        choice
        for part in (annotation, *get_args(annotation))
        if get_origin(part) is Literal
        for choice in get_args(part)
    ]
    return ", ".join([*(f"`{choice}`" for choice in choices), *_limits(setting.field.metadata)])


def _limits(metadata: Iterable[object]) -> Iterator[str]:
    match [bound for bound in metadata if isinstance(bound, Ge | Gt | Le | MinLen)]:
        case [Ge(ge=least), Le(le=most)]:
            yield f"{least} to {most}"
        case bounds:
            yield from map(_limit, bounds)


def _limit(bound: Ge | Gt | Le | MinLen) -> str:
    match bound:
        case Ge(ge=least):
            return f"at least {least}"
        case Gt(gt=less):
            return f"more than {less}"
        case Le(le=most):
            return f"at most {most}"
        case MinLen():
            return "not empty"
