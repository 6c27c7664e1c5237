"""The notation of prompt texts: what vanishes, what is put in, and that nothing else happens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mcp_server.prompt_text import Part, TextMistake, parse_text, render_text

words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
hostile = st.text(st.sampled_from("{}[]=: ab.no\n"), max_size=40)


def parsed(text: str) -> tuple[Part, ...] | TextMistake:
    try:
        return parse_text(text)
    except TextMistake as mistake:
        return mistake


@settings(max_examples=500, deadline=None)
@given(hostile)
def test_any_text_is_rendered_or_refused_at_a_place_in_it(text: str) -> None:
    parts = parsed(text)
    if isinstance(parts, TextMistake):
        assert text.startswith(parts.mark, parts.offset)
        return
    names = {place.name for part in parts for place in part.placeholders}
    shown = render_text(parts, values=dict.fromkeys(names, "{a}[[b]]"), choices={})
    assert "  " not in shown.replace("{a}[[b]]", "x")
    assert shown == shown.strip()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(words, st.booleans()), min_size=1, max_size=12), st.data())
def test_parts_are_there_as_a_whole_or_leave_nothing(
    pieces: list[tuple[str, bool]], data: st.DataObject
) -> None:
    """Each piece is a sentence, some in an optional part of their own."""
    given_values = {}
    template, expected = [], []
    for index, (word, is_optional) in enumerate(pieces):
        name = f"a{index}"
        is_there = not is_optional or data.draw(st.booleans())
        value = data.draw(hostile.map(lambda text: f"<{' '.join(text.split())}>"))
        if is_there:
            given_values[name] = value
            expected.append(f"{word}: {value}.")
        sentence = f"{word}: {{{name}}}."
        template.append(f"[[{sentence}]]" if is_optional else sentence)
        template.append(data.draw(st.sampled_from([" ", "\n", "  \n "])))
    parts = parse_text("".join(template))
    assert render_text(parts, values=given_values, choices={}) == " ".join(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{a}[[ in {gone}]], with {b}.", "A, with B."),
        ("{a} [[in {gone}]], with {b}.", "A, with B."),
        ("{a}, [[in {gone}, ]]with {b}.", "A, with B."),
        ("{a}.\n\n[[{gone}]]\n\n{b}.", "A.\n\nB."),
        ("{a}.\n[[{gone}]]\n{b}.", "A. B."),
        ("[[{gone}.]]\n\n{a}", "A"),
        ("{{{a}}} [x] {b} .NET", "{A} [x] B .NET"),
        ("{a}[[no gone:, alone]][[no a: never]].", "A, alone."),
        ("[[x=1: one {a}]][[x=2: two]][[x=1: but {gone}]]", "one A"),
    ],
)
def test_what_vanishes_leaves_the_rest_in_order(text: str, expected: str) -> None:
    values = {"a": "A", "b": "B", "x": "1"}
    assert render_text(parse_text(text), values=values, choices=values) == expected
