"""The text of a prompt template: conditions, spaces, and values that are never interpreted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.mcp_server.prompt_text import ChosenOption, PromptText

words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
hostile = st.text(st.sampled_from("{}%[]|=: ab.no\"'\n"), max_size=40)


@settings(max_examples=500, deadline=None)
@given(hostile)
def test_any_text_is_rendered_or_refused(text: str) -> None:
    try:
        parsed = PromptText(text)
    except ValueError:
        return
    try:
        shown = parsed.render(dict.fromkeys(parsed.names, "{{ a }}[[b]]"))
    except InvalidRequest:
        return  # an inline `if` without an `else`
    assert "  " not in shown
    assert shown == shown.strip()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(words, st.booleans()), min_size=1, max_size=12), st.data())
def test_parts_are_there_as_a_whole_or_leave_nothing(
    pieces: list[tuple[str, bool]], data: st.DataObject
) -> None:
    """Each piece is a sentence, some in an optional part of their own."""
    values: dict[str, str | None] = {}
    template, expected = [], []
    for index, (word, is_optional) in enumerate(pieces):
        name = f"a{index}"
        is_there = not is_optional or data.draw(st.booleans())
        value = data.draw(hostile.map(lambda text: f"<{' '.join(text.split())}>"))
        values[name] = value if is_there else None
        if is_there:
            expected.append(f"{word}: {value}.")
        sentence = f"{word}: {{{{ {name} }}}}."
        template.append(f"{{% if {name} %}}{sentence}{{% endif %}}" if is_optional else sentence)
        template.append(data.draw(st.sampled_from([" ", "\n", "  \n "])))
    assert PromptText("".join(template)).render(values) == " ".join(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ a }}{% if gone %} in {{ gone }}{% endif %}, with {{ b }}.", "A, with B."),
        ("{{ a }}.\n\n{% if gone %}{{ gone }}{% endif %}\n\n{{ b }}.", "A.\n\nB."),
        ("{{ a }}.\n{% if gone %}\n{{ gone }}\n{% endif %}\n{{ b }}.", "A. B."),
        ("{{ a }}.\n{% if b %}\n{{ b }}\n{% endif %}\n{{ a }}.", "A. B A."),
        ("{% if gone %}{{ gone }}.{% endif %}\n\n{{ a }}", "A"),
        ("{ {{ a }} } [x] {{ '{{ c }}' }} .NET", "{ A } [x] {{ c }} .NET"),
        ("{{ a }}{% if not gone %}, alone{% else %}, not{% endif %}.", "A, alone."),
        ("{{ x }}{% if x == '1' %}!{% endif %}{% if x == 'one' %}?{% endif %}", "one!"),
        ("{{ x | upper }} {{ 'few' if x in ('1', '2') else 'many' }}", "ONE few"),
        ("{{ gone | default('no style') }}", "no style"),
        ("{{ a | sentence }} {{ s | sentence }} {{ x | sentence }}", "A. So! one."),
        ("{{ a }} {# a remark #} {{ b | lower }}", "A b"),
    ],
)
def test_conditions_and_filters_leave_the_rest_in_order(text: str, expected: str) -> None:
    values = {"a": "A", "b": "B", "s": "So!", "x": ChosenOption("1", "one"), "gone": None}
    assert PromptText(text).render(values) == expected


@pytest.mark.parametrize("filters", ["", " | upper", " | sentence", " | trim"])
def test_a_missing_value_is_refused_by_name(filters: str) -> None:
    parsed = PromptText(f"A {{{{ gone{filters} }}}}")
    with pytest.raises(InvalidRequest, match="'gone' may have no value"):
        parsed.render({"gone": None})
