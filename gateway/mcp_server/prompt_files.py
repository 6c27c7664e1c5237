"""One prompt template file: its keys, its checks, and its errors with file and line."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from gateway.errors import ConfigurationError
from gateway.mcp_server.prompt_text import Condition, Part, Placeholder, TextMistake, parse_text
from gateway.mcp_server.toml_lines import KeyPath, Statement, explain_syntax, locate

MAX_FILE_BYTES = 65_536
MAX_TEXT_CHARACTERS = 8000
MAX_ARGUMENTS = 20
MAX_CHOICES = 50
MAX_EDGE = 10_000

_TEMPLATE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_ARGUMENT_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CHOICE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
_ADVICE = {
    "string_type": "write a text in quotes",
    "string_too_short": "write something, or remove the line",
    "bool_type": "write true or false, without quotes",
    "list_type": "write a list in square brackets",
    "dict_type": "write a table",
    "model_type": "write it as a table",
}
"""Messages for users, in place of pydantic's technical ones."""
_NOTATION = ("{", "}", "[[", "]]")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _template_name(name: str) -> str:
    if not _TEMPLATE_NAME.fullmatch(name):
        raise ValueError("use up to 64 lower-case letters, digits, hyphens and underscores")
    return name


def _argument_name(name: str) -> str:
    if not _ARGUMENT_NAME.fullmatch(name):
        raise ValueError("use up to 40 lower-case letters, digits and underscores")
    return name


def _choice(name: str) -> str:
    if not _CHOICE.fullmatch(name):
        raise ValueError("a choice is up to 40 lower-case letters, digits and hyphens")
    return name


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


ShortLine = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_one_line)]
Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_one_line)]
Choice = Annotated[str, AfterValidator(_choice)]
Choices = Annotated[dict[Choice, Line], BeforeValidator(_choice_table)]
Size = Annotated[tuple[int, int], BeforeValidator(_size)]


class ArgumentContent(BaseModel):
    """`[[arguments]]` of a template file."""

    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    name: Annotated[str, AfterValidator(_argument_name)]
    title: ShortLine
    description: Line
    required: bool = False
    choices: Choices = Field(default_factory=dict, max_length=MAX_CHOICES)
    suggestions: list[ShortLine] = Field(default_factory=list, max_length=MAX_CHOICES)
    default: Line | None = None
    sizes: dict[str, Size] = Field(default_factory=dict)

    @property
    def is_always_there(self) -> bool:
        """Return True if the argument has a value in every prompt."""
        return self.required or self.default is not None


class TemplateContent(BaseModel):
    """The content of a template file."""

    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    name: Annotated[str, AfterValidator(_template_name)]
    title: ShortLine
    description: Line
    size: Size
    output_format: Literal["png", "jpeg", "webp"] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)
    arguments: list[ArgumentContent] = Field(default_factory=list, max_length=MAX_ARGUMENTS)


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """A checked file: its content, and its parsed text."""

    content: TemplateContent
    parts: tuple[Part, ...]
    source: str

    @property
    def name_line(self) -> int:
        """The line of its name; computed only for an error, since it parses the file again."""
        return _statement(locate(self.source), ("name",)).line


@dataclass(frozen=True, slots=True)
class _Complaint:
    """An error at a path; within the text, at the `mark` found at `offset`."""

    path: KeyPath
    message: str
    offset: int = 0
    mark: str = ""


def parse_file(data: bytes, path: str) -> TemplateFile:
    """Read and check a template file; error messages call it `path`.

    Raises:
        ConfigurationError: one line for each error, as `path:line: what is wrong and what to do`.
    """
    source = _decode(data, path)
    try:
        values = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        line, complaint = explain_syntax(error, source)
        raise ConfigurationError(f"{path}:{line}: invalid TOML: {complaint}.") from None
    try:
        content = TemplateContent.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise _refusal(path, map(_schema_complaint, problems), source) from None
    try:
        parts = parse_text(content.text)
    except TextMistake as mistake:
        complaint_in_text = _Complaint(("text",), mistake.message, mistake.offset, mistake.mark)
        raise _refusal(path, [complaint_in_text], source, content.text) from None
    complaints = [*_argument_complaints(content), *_text_complaints(content, parts)]
    if complaints:
        raise _refusal(path, complaints, source, content.text)
    return TemplateFile(content, parts, source)


def _decode(data: bytes, path: str) -> str:
    if len(data) > MAX_FILE_BYTES:
        line = data.count(b"\n", 0, MAX_FILE_BYTES) + 1
        raise ConfigurationError(
            f"{path}:{line}: the file is larger than {MAX_FILE_BYTES} bytes; shorten it."
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}:{line}: the file is not UTF-8; save it as UTF-8."
        ) from None


def _refusal(
    path: str,
    complaints: Iterable[_Complaint],
    source: str,
    text: str = "",
) -> ConfigurationError:
    places = locate(source)
    lines: list[tuple[int, str]] = []
    for complaint in complaints:
        statement = _statement(places, complaint.path)
        line = statement.line
        if complaint.mark:
            line = statement.line_of(text, complaint.offset, complaint.mark)
        lines.append((line, _one_line(complaint.message)))
    lines.sort(key=lambda told: told[0])
    return ConfigurationError("\n".join(f"{path}:{line}: {said}." for line, said in lines))


def _statement(places: Mapping[KeyPath, Statement], path: KeyPath) -> Statement:
    """Find the statement of this path, or of the nearest table around it."""
    while path and path not in places:
        path = path[:-1]
    return places.get(path, Statement(1, ""))


def _schema_complaint(problem: ErrorDetails) -> _Complaint:
    path = problem["loc"]
    name = next((part for part in reversed(path) if isinstance(part, str) and part != "[key]"), "")
    if problem["type"] == "missing":
        return _Complaint(path, f"'{name}' is missing; add it")
    if problem["type"] == "extra_forbidden":
        model = ArgumentContent if path[0] == "arguments" else TemplateContent
        known = ", ".join(model.model_fields)
        return _Complaint(path, f"unknown key '{name}'; the keys are: {known}")
    advice = _ADVICE.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return _Complaint(path, f"'{name}': {advice}")


# Rules that involve several keys


def _argument_complaints(content: TemplateContent) -> Iterator[_Complaint]:
    names = Counter[str]()
    sized = ""
    for index, argument in enumerate(content.arguments):
        path: KeyPath = ("arguments", index)
        names[argument.name] += 1
        if names[argument.name] == 2:  # noqa: PLR2004 - the second one
            yield _Complaint(
                (*path, "name"), f"two arguments are named '{argument.name}'; rename or remove one"
            )
        yield from _choice_complaints(argument, path)
        if argument.sizes and sized:
            yield _Complaint(
                (*path, "sizes"), f"'{sized}' determines the size already; remove these sizes"
            )
        sized = sized or (argument.name if argument.sizes else "")
    if content.background == "transparent" and content.output_format == "jpeg":
        yield _Complaint(
            ("output_format",), "jpeg cannot have a transparent background; write png or webp"
        )


def _choice_complaints(argument: ArgumentContent, path: KeyPath) -> Iterator[_Complaint]:
    name, choices = argument.name, argument.choices
    known = ", ".join(choices) or "none"
    if argument.required and argument.default is not None:
        yield _Complaint(
            (*path, "default"),
            f"'{name}' is required, so its default is never used; remove one of the two",
        )
    if choices and argument.suggestions:
        yield _Complaint(
            (*path, "suggestions"), f"'{name}' has choices; remove them or the suggestions"
        )
    if choices and argument.default is not None and argument.default not in choices:
        yield _Complaint(
            (*path, "default"),
            f"the default '{argument.default}' is not one of the choices; use one of: {known}",
        )
    for choice, wording in choices.items():
        if any(mark in wording for mark in _NOTATION):
            yield _Complaint(
                (*path, "choices", choice),
                f"the wording of '{choice}' contains notation, which works in the text only; "
                f"write [[{name}={choice}: …]] there",
            )
    for choice in argument.sizes:
        if choice not in choices:
            yield _Complaint(
                (*path, "sizes", choice),
                f"'{choice}' is not one of the choices of '{name}': {known}",
            )


def _text_complaints(content: TemplateContent, parts: tuple[Part, ...]) -> Iterator[_Complaint]:
    declared = {argument.name: argument for argument in content.arguments}
    used = {placeholder.name for part in parts for placeholder in part.placeholders}
    used |= {part.condition.name for part in parts if part.condition is not None}
    for part in parts:
        yield from _part_complaints(part, declared)
    for index, argument in enumerate(content.arguments):
        if argument.name not in used:
            yield _Complaint(
                ("arguments", index, "name"),
                f"the text does not use the argument '{argument.name}'; "
                f"write {{{argument.name}}} into it, or remove the argument",
            )
    yield from _lost_arguments(parts, declared)
    if not any(part.says_something for part in parts if not part.is_optional):
        yield _Complaint(
            ("text",), "every part of the text is optional; move something out of [[ ]]"
        )


def _part_complaints(part: Part, declared: Mapping[str, ArgumentContent]) -> Iterator[_Complaint]:
    condition = part.condition
    if condition is not None:
        message = _wrong_condition(condition, declared)
        if message:
            yield _Complaint(("text",), message, part.offset, "[[")
    for place in part.placeholders:
        if place.name not in declared:
            message = f"unknown argument '{place.name}'; declare it in [[arguments]]"
            yield _Complaint(("text",), message, place.offset, place.mark)
    can_vanish = condition is not None or not all(
        place.name in declared and declared[place.name].is_always_there
        for place in part.placeholders
    )
    if part.is_optional and not can_vanish:
        message = "this optional part always appears; remove its brackets, or name an argument"
        yield _Complaint(("text",), message, part.offset, "[[")


def _wrong_condition(condition: Condition, declared: Mapping[str, ArgumentContent]) -> str:
    argument = declared.get(condition.name)
    if argument is None:
        return f"unknown argument '{condition.name}'; declare it in [[arguments]]"
    if condition.choice is None:
        is_possible = not argument.is_always_there
        return "" if is_possible else f"'{argument.name}' always has a value; remove this part"
    if not argument.choices:
        return (
            f"'{argument.name}' has no choices; give it some, or write [[… {{{argument.name}}} …]]"
        )
    if condition.choice not in argument.choices:
        known = ", ".join(argument.choices)
        return f"'{condition.choice}' is not one of the choices of '{argument.name}': {known}"
    return ""


def _lost_arguments(
    parts: tuple[Part, ...], declared: Mapping[str, ArgumentContent]
) -> Iterator[_Complaint]:
    """Find arguments that always have a value but may not appear in the text, and the reverse."""
    always: set[str] = set()
    maybe: dict[str, Placeholder] = {}
    for part in parts:
        for place in part.placeholders:
            argument = declared.get(place.name)
            if argument is None:
                continue
            if part.is_optional:
                maybe.setdefault(place.name, place)
            else:
                always.add(place.name)
                if not argument.is_always_there:
                    yield _Complaint(
                        ("text",),
                        f"{place.mark} may have no value; put the part that needs it in [[ ]], "
                        f"or give the argument a default",
                        place.offset,
                        place.mark,
                    )
    for name, place in maybe.items():
        if declared[name].required and name not in always:
            yield _Complaint(
                ("text",),
                f"the required {place.mark} appears in optional parts only and may be dropped; "
                f"use it outside of them too, or make it optional",
                place.offset,
                place.mark,
            )
