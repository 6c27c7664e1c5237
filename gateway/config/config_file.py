"""The configuration file: TOML or JSON, a table for each group of settings.

A setting may also stand outside the tables, by its full name. Every message names the file and the
key, never a value.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.config.groups import GROUPS, NEVER_EMPTY, SETTINGS, Setting
from gateway.errors import ConfigurationError

MAX_FILE_BYTES = 1_048_576
OTHERS_MAY_USE = stat.S_IRWXG | stat.S_IRWXO
SEE = "docs/settings.md lists the tables and their keys."

TABLES: dict[str, dict[str, Setting]] = {
    group.table: {
        name: setting
        for setting in group
        if setting.key is not None
        for name in (setting.key, setting.name)
    }
    for group in GROUPS
}
FLAT = {setting.name: setting for setting in SETTINGS if setting.key is not None}


@dataclass(frozen=True)
class FileValue:
    """A setting's value, and its place in the file, such as `[storage] url (line 3)`."""

    setting: Setting
    value: object = field(repr=False)
    place: str


@dataclass(frozen=True)
class ConfigFile:
    """The settings of one file. Empty values are left out."""

    path: Path
    values: tuple[FileValue, ...]


@dataclass(frozen=True)
class _Document:
    """A parsed file, and its text to find lines in."""

    path: Path
    text: str
    content: Mapping[str, object]

    def place(self, table: str | None, key: str | None) -> str:
        """The words for a table or key, with its line in TOML."""
        words = " ".join([*([f"[{table}]"] if table else []), *([key] if key else [])])
        line = self._line(table, key) if self.path.suffix == ".toml" else None
        return words if line is None else f"{words} (line {line})"

    def _line(self, table: str | None, key: str | None) -> int | None:
        """The first line that looks like the key of this table, or like the table's header."""
        current = None
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"""\s*\[\s*["']?([^\]"']+?)["']?\s*\]""", line):
                current = header[1]
                if key is None and current.partition(".")[0] == table:
                    return number
            elif (
                current == table
                and key
                and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*=""", line)
            ):
                return number
        return None


def read_config_file(path: Path) -> ConfigFile:
    """Read and check a file; the values themselves are checked with all the settings.

    Raises:
        ConfigurationError: it cannot be read, holds an unknown name, or others may read a secret.
    """
    document, mode = _open(path)
    found = _values(document)
    secret = next((value for value in found if value.setting.is_secret), None)
    if secret is not None and os.name != "nt" and mode & OTHERS_MAY_USE:
        raise ConfigurationError(
            f"{path} holds a secret, {secret.place}, and its mode {mode:04o} lets other users "
            f"read it. Run: chmod 600 {path}"
        )
    return ConfigFile(path, found)


def _open(path: Path) -> tuple[_Document, int]:
    """Parse a file. Its mode is that of the very file that was read."""
    if path.suffix not in {".toml", ".json"}:
        raise ConfigurationError(f"GATEWAY_CONFIG_FILE: {path} must end with .toml or .json.")
    try:
        with path.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            raw = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"GATEWAY_CONFIG_FILE: {path} cannot be read: {error.strerror}."
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        text = raw.decode()
        content = tomllib.loads(text) if path.suffix == ".toml" else _parse_json(text)
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be parsed: {_reason(error)}.") from None
    return _Document(path, text, content), mode


def _parse_json(text: str) -> dict[str, object]:
    content = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError("it must be an object")  # noqa: TRY004 - as any other text that is wrong
    return content


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (at line {error.lineno}, column {error.colno})"
    return str(error)


def _values(document: _Document) -> tuple[FileValue, ...]:
    """Every value that is not empty.

    Raises:
        ConfigurationError: names are unknown or stand twice; it lists them all.
    """
    mistakes: list[str] = []
    places: dict[str, str] = {}
    found = []
    for table, key, value in _entries(document.content):
        place = document.place(table, key)
        known = FLAT if table is None else TABLES.get(table)
        setting = None if known is None or key is None else known.get(key)
        if known is None:
            mistakes.append(f"unknown table {place}")
        elif setting is None:
            mistakes.append(f"unknown key {place}")
        elif setting.name in places:
            mistakes.append(f"{place} repeats {places[setting.name]}")
        elif setting.variable in NEVER_EMPTY and isinstance(value, str) and not value.strip():
            mistakes.append(f"{place} is empty: give it a value, or remove it")
        else:
            places[setting.name] = place
            found.append(FileValue(setting, value, place))
    if mistakes:
        lines = [f"{document.path}: {text}." for text in mistakes]
        has_unknown = any(text.startswith("unknown") for text in mistakes)
        raise ConfigurationError("\n".join([*lines, SEE] if has_unknown else lines))
    return tuple(value for value in found if value.value not in ("", None))


def _entries(content: Mapping[str, object]) -> Iterator[tuple[str | None, str | None, object]]:
    """Table, key and value of each entry; an unknown table has one entry, without a key."""
    for name, value in content.items():
        if not isinstance(value, dict):
            yield None, name, value
        elif name not in TABLES:
            yield name, None, None
        else:
            for key, inner in value.items():
                yield name, key, inner
