"""Prompt templates: the built-in ones and those of the operator's folder, and their rendering.

docs/prompts.md describes the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.mcp_server.prompt_files import MAX_FILE_BYTES, TemplateFile, parse_file
from gateway.mcp_server.prompt_text import Part, render_text

MAX_FILES = 200


@dataclass(frozen=True, slots=True)
class PromptArgument:
    """One argument of a template. `required` ones have no `default`; others may have one.

    `choices` maps accepted values to their wording in the text; if it is empty, any value is
    accepted, and `suggestions` are examples. `sizes` maps choices to a preferred width and height.
    """

    name: str
    title: str
    description: str
    required: bool = False
    choices: Mapping[str, str] = field(default_factory=dict)
    suggestions: tuple[str, ...] = ()
    default: str | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """One template; `size` is the width and height that suit its use, for any model."""

    name: str
    title: str
    description: str
    arguments: tuple[PromptArgument, ...]
    size: tuple[int, int]
    output_format: str | None
    background: str | None
    text: tuple[Part, ...] = field(repr=False)


def load_templates(folder: Path | None) -> Mapping[str, PromptTemplate]:
    """Load the templates by name: the built-in ones, then those of the operator's folder.

    An operator's template replaces a built-in one of the same name.

    Raises:
        ConfigurationError: a file is invalid; the message has file, line and advice.
    """
    own = _load_folder(resources.files("gateway.mcp_server").joinpath("prompts"), "prompts")
    if folder is None:
        return own
    if not folder.is_dir():
        raise ConfigurationError(
            f"GATEWAY_PROMPTS_DIR: the folder {folder} does not exist. Create it, or remove the "
            "setting."
        )
    return {**own, **_load_folder(folder, str(folder))}


def render_template(template: PromptTemplate, chosen: Mapping[str, str]) -> str:
    """Render the prompt; `chosen` has a checked value for each argument that has one at all."""
    words = {argument.name: argument.choices for argument in template.arguments}
    return render_text(
        template.text,
        values={name: words[name].get(value, value) for name, value in chosen.items()},
        choices=chosen,
    )


def wished_size(template: PromptTemplate, chosen: Mapping[str, str]) -> tuple[int, int]:
    """The width and height that suit the prompt rendered with `chosen`."""
    for argument in template.arguments:
        size = argument.sizes.get(chosen.get(argument.name, ""))
        if size is not None:
            return size
    return template.size


def _load_folder(folder: Traversable, label: str) -> dict[str, PromptTemplate]:
    """Load every template of a folder; the errors of all its files are reported together."""
    templates: dict[str, PromptTemplate] = {}
    places: dict[str, str] = {}
    mistakes: list[str] = []
    for file_name in _file_names(folder, label):
        path = f"{label}/{file_name}"
        try:
            file = parse_file(_read(folder.joinpath(file_name), path), path)
        except ConfigurationError as error:
            mistakes.append(str(error))
            continue
        name = file.content.name
        if name in templates:
            mistakes.append(
                f"{path}:{file.name_line}: {places[name]} has the name '{name}' already; "
                f"give one of them another."
            )
        templates[name] = _template(file)
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
            f"{path}:1: cannot be read: {error.strerror}. Grant the gateway's user read access, "
            f"or move it out of the folder."
        ) from None


def _template(file: TemplateFile) -> PromptTemplate:
    content = file.content
    return PromptTemplate(
        name=content.name,
        title=content.title,
        description=content.description,
        arguments=tuple(
            PromptArgument(
                name=argument.name,
                title=argument.title,
                description=argument.description,
                required=argument.required,
                choices=argument.choices,
                suggestions=tuple(argument.suggestions),
                default=argument.default,
                sizes=argument.sizes,
            )
            for argument in content.arguments
        ),
        size=content.size,
        output_format=content.output_format,
        background=content.background,
        text=file.parts,
    )
