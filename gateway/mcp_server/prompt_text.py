"""The text of a prompt template: Jinja2 with values, conditions and a few filters, nothing else.

A template has no loops, calls, attributes or arithmetic, so its cost and its output are bounded by
its size: Jinja2's sandbox alone would let `{% for %}` run for minutes.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Self

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.filters import FILTERS
from jinja2.sandbox import SandboxedEnvironment

from gateway.errors import InvalidRequest

MAX_TEXT_CHARACTERS = 8000
MAX_VALUES = 100
"""Places where a value may be inserted or compared."""

_ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const),
    *(nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.Tuple, nodes.List),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Filter),
)
_COMPARISONS = {"eq", "ne", "in", "notin"}
_SHARED_FILTERS = ("capitalize", "default", "lower", "title", "trim", "upper")
_NOT_JINJA = re.compile(r"\[\[|\]\]|\}\}|%\}|\{[a-z_][a-z0-9_]*\}")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_PARAGRAPH = "\u2029"
"""Marks paragraphs of the text, so that the lines of an omitted part do not look like one."""
_ENDS = (".", "!", "?", "…")


class ChosenOption(str):
    """A choice: it is inserted as its wording, and compared as the choice itself."""

    __slots__ = ("_choice",)
    _choice: str

    def __new__(cls, choice: str, wording: str) -> Self:
        """Make the wording of a choice."""
        chosen = super().__new__(cls, wording)
        chosen._choice = choice
        return chosen

    def __eq__(self, other: object) -> bool:
        return self._choice == other

    def __ne__(self, other: object) -> bool:
        return self._choice != other

    def __hash__(self) -> int:
        return hash(self._choice)


class _Absent(Undefined):
    """An argument without a value: false in a condition, equal to no choice, never inserted."""

    __slots__ = ()
    __str__ = __iter__ = __len__ = Undefined._fail_with_undefined_error  # noqa: SLF001 - meant for subclasses


class PromptText:
    """A parsed text. `names` are the variables that it uses, each with the line of its first use.

    Raises:
        ValueError: it is not valid, or uses something that prompts do not allow.
    """

    def __init__(self, text: str) -> None:
        if not text.strip():
            raise ValueError("write a text")
        if len(text) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"at most {MAX_TEXT_CHARACTERS} characters are allowed")
        source = _BLANK_LINE.sub(lambda blank: _PARAGRAPH + blank[0], text)
        try:
            self._tree = _ENVIRONMENT.parse(source)
            _check(self._tree)
            self._template = _ENVIRONMENT.from_string(self._tree)
        except TemplateSyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.message}") from None
        except (RecursionError, SyntaxError):
            raise ValueError("conditions or parentheses are nested too deeply") from None
        self.names: dict[str, int] = {}
        for name in self._tree.find_all(nodes.Name):
            self.names.setdefault(name.name, name.lineno)

    def comparisons(self) -> Iterator[tuple[str, str, int]]:
        """Iterate over comparisons of a variable with a constant: name, constant, line."""
        for comparison in self._tree.find_all(nodes.Compare):
            names = list(comparison.find_all(nodes.Name))
            for constant in comparison.find_all(nodes.Const):
                for name in names:
                    yield name.name, str(constant.value), comparison.lineno

    def render(self, values: Mapping[str, str | None]) -> str:
        """Insert the values; None: the argument has no value.

        Line breaks become spaces, and an empty line starts a paragraph. Values are inserted as they
        are, with nothing in them interpreted.

        Raises:
            InvalidRequest: the text inserts an argument that has no value.
        """
        try:
            shown = self._template.render({name: _value(name, values[name]) for name in values})
        except TemplateError as error:
            raise InvalidRequest(f"The prompt cannot be written: {error.message}.") from None
        paragraphs = (" ".join(one.split()) for one in shown.split(_PARAGRAPH))
        return "\n\n".join(one for one in paragraphs if one)


def _value(name: str, value: str | None) -> object:
    if value is not None:
        return value
    return _Absent(f"'{name}' may have no value; put what needs it in {{% if {name} %}}", name=name)


def _sentence(value: str) -> str:
    """End a value with a full stop, unless it ends a sentence by itself."""
    text = str(value)
    return text if text.endswith(_ENDS) else f"{text}."


def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals.clear()
    environment.tests.clear()
    environment.filters = {name: FILTERS[name] for name in _SHARED_FILTERS}
    environment.filters["sentence"] = _sentence
    return environment


_ENVIRONMENT = _environment()


def _check(tree: nodes.Template) -> None:
    """Refuse what prompts do not allow.

    Raises:
        TemplateSyntaxError: with the line.
        ValueError: a constant contains a lone surrogate.
    """
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _ALLOWED):
            raise TemplateSyntaxError(
                f"'{type(node).__name__.lower()}' is not allowed here; use values, conditions and "
                f"the filters {', '.join(_ENVIRONMENT.filters)}",
                node.lineno,
            )
    for comparison in tree.find_all(nodes.Compare):
        if any(operand.op not in _COMPARISONS for operand in comparison.ops):
            raise TemplateSyntaxError("compare with ==, != or in", comparison.lineno)
    for constant in tree.find_all(nodes.Const):
        str(constant.value).encode()
    for literal in tree.find_all(nodes.TemplateData):
        mark = _NOT_JINJA.search(literal.data)
        if mark is not None:
            raise TemplateSyntaxError(
                f"'{mark[0]}' has no meaning; write {{{{ name }}}} for a value, and "
                "{% if name %} … {% endif %} around a part that may be omitted",
                literal.lineno + literal.data.count("\n", 0, mark.start()),
            )
    for name in islice(tree.find_all(nodes.Name), MAX_VALUES, None):
        raise TemplateSyntaxError(f"more than {MAX_VALUES} values; use fewer", name.lineno)
