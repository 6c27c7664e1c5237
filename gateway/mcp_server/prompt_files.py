"""One prompt template file: its keys, its checks, and its errors with file and key."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
)
from pydantic_core import ErrorDetails

from gateway.errors import ConfigurationError, InvalidRequest
from gateway.mcp_server.prompt_text import ChosenOption, PromptText

MAX_FILE_BYTES = 65_536
MAX_ARGUMENTS = 20
MAX_CHOICES = 50
MAX_EDGE = 10_000

_TEMPLATE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_ARGUMENT_NAME = re.compile(r"(?!self$)[a-z][a-z0-9_]{0,39}")
"""Jinja2 has a `self` of its own."""
_CHOICE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
_NOTATION = ("{{", "{%", "{#")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _template_name(name: str) -> str:
    if not _TEMPLATE_NAME.fullmatch(name):
        raise ValueError("use up to 64 lower-case letters, digits, hyphens and underscores")
    return name


def _argument_name(name: str) -> str:
    if not _ARGUMENT_NAME.fullmatch(name):
        raise ValueError("use up to 40 lower-case letters, digits and underscores, and not 'self'")
    return name


def _choice(name: str) -> str:
    if not _CHOICE.fullmatch(name):
        raise ValueError("a choice is up to 40 lower-case letters, digits and hyphens")
    return name


def _wording(text: str) -> str:
    if any(mark in text for mark in _NOTATION):
        raise ValueError("a wording is inserted as it is; write conditions into the text")
    return _one_line(text)


def _size(text: object) -> tuple[int, int]:
    form = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if form is None or max(int(form[1]), int(form[2])) > MAX_EDGE:
        raise ValueError(
            f'write the size as "WIDTHxHEIGHT" in pixels, such as "1200x630", at most {MAX_EDGE}'
        )
    return int(form[1]), int(form[2])


def _choice_table(choices: object) -> object:
    """Convert a list of choices to a table in which each choice is its own wording."""
    if isinstance(choices, list):
        words = [choice for choice in choices if isinstance(choice, str)]
        if len(words) < len(choices) or len(set(words)) < len(words):
            raise ValueError("list each choice once, as a string")
        return {word: word for word in words}
    if not isinstance(choices, dict):
        raise ValueError('write a list of choices, or a table of choice = "wording"')  # noqa: TRY004 - pydantic expects a ValueError
    return choices


def _prompt_text(text: object) -> PromptText:
    if not isinstance(text, str):
        raise ValueError("write a text in quotes")  # noqa: TRY004 - pydantic expects a ValueError
    return PromptText(text)


ShortLine = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_one_line)]
Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_one_line)]
Wording = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_wording)]
Choice = Annotated[str, AfterValidator(_choice)]
Choices = Annotated[dict[Choice, Wording], BeforeValidator(_choice_table)]
Size = Annotated[tuple[int, int], BeforeValidator(_size)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, str_strip_whitespace=True)


class PromptArgument(_Table):
    """One argument of a template: `[[arguments]]`. `required` ones have no `default`.

    `choices` maps accepted values to their wording in the text; if it is empty, any value is
    accepted, and `suggestions` are examples. `sizes` maps choices to a preferred width and height.
    """

    name: Annotated[str, AfterValidator(_argument_name)]
    title: ShortLine
    description: Line
    required: bool = False
    choices: Choices = Field(default_factory=dict, max_length=MAX_CHOICES)
    suggestions: list[ShortLine] = Field(default_factory=list, max_length=MAX_CHOICES)
    default: Line | None = None
    sizes: dict[str, Size] = Field(default_factory=dict)


class PromptTemplate(_Table):
    """One template; `size` is the width and height that suit its use, for any model."""

    name: Annotated[str, AfterValidator(_template_name)]
    title: ShortLine
    description: Line
    size: Size
    output_format: Literal["png", "jpeg", "webp"] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    text: Annotated[InstanceOf[PromptText], BeforeValidator(_prompt_text)] = Field(repr=False)
    arguments: list[PromptArgument] = Field(default_factory=list, max_length=MAX_ARGUMENTS)

    def render(self, chosen: Mapping[str, str]) -> str:
        """Render the prompt; `chosen` has a checked value for each argument that has one at all.

        Raises:
            InvalidRequest: the text needs an argument that has no value.
        """
        values: dict[str, str | None] = {}
        for argument in self.arguments:
            value = chosen.get(argument.name)
            if value is not None and argument.choices:
                value = ChosenOption(value, argument.choices[value])
            values[argument.name] = value
        return self.text.render(values)

    def wished_size(self, chosen: Mapping[str, str]) -> tuple[int, int]:
        """The width and height that suit the prompt rendered with `chosen`."""
        for argument in self.arguments:
            size = argument.sizes.get(chosen.get(argument.name, ""))
            if size is not None:
                return size
        return self.size


@dataclass(frozen=True, slots=True)
class _Complaint:
    """An error at a key, such as `arguments[0].default`."""

    key: str
    message: str


def parse_file(data: bytes, path: str) -> PromptTemplate:
    """Read and check a template file; error messages call it `path`.

    Raises:
        ConfigurationError: one line for each error, as `path: key: what is wrong`.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path}: the file is larger than {MAX_FILE_BYTES} bytes.")
    try:
        values = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}: the file is not UTF-8 (at line {line}); save it as UTF-8."
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: invalid TOML: {error}.") from None
    try:
        template = PromptTemplate.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise _refusal(path, map(_schema_complaint, problems)) from None
    complaints = [*_argument_complaints(template), *_text_complaints(template)]
    if not complaints:
        complaints += _trial_complaints(template)
    if complaints:
        raise _refusal(path, complaints)
    return template


def _refusal(path: str, complaints: Iterable[_Complaint]) -> ConfigurationError:
    return ConfigurationError(
        "\n".join(f"{path}: {one.key}: {_one_line(one.message)}." for one in complaints)
    )


def _schema_complaint(problem: ErrorDetails) -> _Complaint:
    """Name the key as TOML does, and say what to do in the words of the file."""
    path = problem["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[:-1])
    last = path[-1] if path else ""
    if last != "[key]":  # pydantic's mark for the name of an entry, which is the part before
        key += f"[{last}]" if isinstance(last, int) else f".{last}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        message = "is missing; add it"
    elif problem["type"] == "extra_forbidden":
        model = PromptArgument if path[0] == "arguments" else PromptTemplate
        message = f"unknown key; the keys are: {', '.join(model.model_fields)}"
    return _Complaint(key.removeprefix("."), message)


# Rules that involve several keys


def _argument_complaints(template: PromptTemplate) -> Iterator[_Complaint]:
    names: set[str] = set()
    sized = ""
    for index, argument in enumerate(template.arguments):
        key = f"arguments[{index}]"
        if argument.name in names:
            yield _Complaint(f"{key}.name", f"two arguments are named '{argument.name}'")
        names.add(argument.name)
        yield from _choice_complaints(argument, key)
        if argument.sizes and sized:
            yield _Complaint(f"{key}.sizes", f"'{sized}' determines the size already")
        sized = sized or (argument.name if argument.sizes else "")
    if template.background == "transparent" and template.output_format == "jpeg":
        yield _Complaint(
            "output_format", "jpeg cannot have a transparent background; write png or webp"
        )


def _choice_complaints(argument: PromptArgument, key: str) -> Iterator[_Complaint]:
    name, choices = argument.name, argument.choices
    known = ", ".join(choices) or "none"
    if argument.required and argument.default is not None:
        yield _Complaint(
            f"{key}.default", f"'{name}' is required, so its default is never used; remove one"
        )
    if choices and argument.suggestions:
        yield _Complaint(
            f"{key}.suggestions", f"'{name}' has choices; remove them or the suggestions"
        )
    wrong = {choice: f"{key}.sizes.{choice}" for choice in argument.sizes}
    if argument.default is not None and choices:
        wrong[argument.default] = f"{key}.default"
    for choice, where in wrong.items():
        if choice not in choices:
            yield _Complaint(where, f"'{choice}' is not one of the choices of '{name}': {known}")


def _text_complaints(template: PromptTemplate) -> Iterator[_Complaint]:
    declared = {argument.name: argument for argument in template.arguments}
    for name, line in template.text.names.items():
        if name not in declared:
            yield _Complaint(
                "text", f"line {line}: unknown argument '{name}'; declare it in [[arguments]]"
            )
    for index, argument in enumerate(template.arguments):
        if argument.name not in template.text.names:
            yield _Complaint(
                f"arguments[{index}].name",
                f"the text does not use '{argument.name}'; write {{{{ {argument.name} }}}} into "
                f"it, or remove the argument",
            )
    for name, constant, line in template.text.comparisons():
        if name in declared and constant not in declared[name].choices:
            known = ", ".join(declared[name].choices) or "none"
            yield _Complaint(
                "text",
                f"line {line}: '{constant}' is not one of the choices of '{name}': {known}",
            )


def _trial_complaints(template: PromptTemplate) -> Iterator[_Complaint]:
    """Render the text with and without each argument and choice, and report the first error."""
    for chosen in _trials(template):
        said = ", ".join(f"{name}={value}" for name, value in chosen.items()) or "no arguments"
        try:
            prompt = template.render(chosen).casefold()
        except InvalidRequest as error:
            yield _Complaint("text", f"with {said}: {error.message.rstrip('.')}")
            return
        if not prompt:
            yield _Complaint("text", f"with {said}, the prompt is empty")
            return
        for argument in template.arguments:
            if argument.required and not argument.choices and chosen[argument.name] not in prompt:
                yield _Complaint(
                    "text", f"with {said}, the prompt lacks the required '{argument.name}'"
                )
                return


def _trials(template: PromptTemplate) -> Iterator[dict[str, str]]:
    """Sets of arguments: the fewest, all, and both with each argument added, omitted and chosen."""
    samples = {
        argument.name: next(iter(argument.choices), f"<{argument.name}>")
        for argument in template.arguments
    }
    fewest = {
        argument.name: argument.default or samples[argument.name]
        for argument in template.arguments
        if argument.required or argument.default is not None
    }
    everything = samples | fewest
    yield fewest
    yield everything
    for argument in template.arguments:
        if argument.name not in fewest:
            yield {name: value for name, value in everything.items() if name != argument.name}
        for choice in argument.choices or (samples[argument.name],):
            yield fewest | {argument.name: choice}
            yield everything | {argument.name: choice}
