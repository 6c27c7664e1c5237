"""Prompt templates: the built-in ones and those of the operator's folder.

docs/prompts.md describes the files.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

from gateway.errors import ConfigurationError
from gateway.mcp_server.prompt_files import MAX_FILE_BYTES, PromptTemplate, parse_file

MAX_FILES = 200


def load_templates(folder: Path | None) -> Mapping[str, PromptTemplate]:
    """Load the templates by name: the built-in ones, then those of the operator's folder.

    An operator's template replaces a built-in one of the same name.

    Raises:
        ConfigurationError: a file is invalid; the message has file, key and advice.
    """
    own = _built_in()
    if folder is None:
        return own
    if not folder.is_dir():
        raise ConfigurationError(
            f"GATEWAY_PROMPTS_DIR: the folder {folder} does not exist. Create it, or remove the "
            "setting."
        )
    return {**own, **_load_folder(folder, str(folder))}


@cache
def _built_in() -> Mapping[str, PromptTemplate]:
    """Load the built-in templates, once a process: each is compiled and rendered on trial."""
    folder = resources.files("gateway.mcp_server").joinpath("prompts")
    return MappingProxyType(_load_folder(folder, "prompts"))


def _load_folder(folder: Traversable, label: str) -> dict[str, PromptTemplate]:
    """Load every template of a folder; the errors of all its files are reported together."""
    templates: dict[str, PromptTemplate] = {}
    places: dict[str, str] = {}
    mistakes: list[str] = []
    for file_name in _file_names(folder, label):
        path = f"{label}/{file_name}"
        try:
            template = parse_file(_read(folder.joinpath(file_name), path), path)
        except ConfigurationError as error:
            mistakes.append(str(error))
            continue
        name = template.name
        if name in templates:
            mistakes.append(
                f"{path}: name: {places[name]} has the name '{name}' already; "
                f"give one of them another."
            )
        templates[name] = template
        places[name] = path
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    return templates


def _file_names(folder: Traversable, label: str) -> list[str]:
    """The `*.toml` of a folder, sorted; hidden files, which editors leave behind, are skipped."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise ConfigurationError(
            f"GATEWAY_PROMPTS_DIR: {label} cannot be read: {error.strerror}. "
            f"Grant the gateway's user read access."
        ) from None
    found = [name for name in names if name.endswith(".toml") and not name.startswith(".")]
    if len(found) > MAX_FILES:
        raise ConfigurationError(
            f"GATEWAY_PROMPTS_DIR: {label} has {len(found)} templates; at most {MAX_FILES} are "
            "allowed."
        )
    return found


def _read(file: Traversable, path: str) -> bytes:
    """Read the file, or enough of it to tell that it is too large."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}. Grant the gateway's user read access, "
            f"or move it out of the folder."
        ) from None
