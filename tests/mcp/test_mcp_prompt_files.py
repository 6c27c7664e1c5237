"""Template files of the operator's: what they add, and how each mistake is told with its line."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog.loading import load_catalog
from gateway.errors import ConfigurationError
from gateway.mcp_server.prompt_files import (
    MAX_ARGUMENTS,
    MAX_FILE_BYTES,
    MAX_TEXT_CHARACTERS,
    parse_file,
)
from gateway.mcp_server.prompt_templates import MAX_FILES, load_templates
from gateway.mcp_server.prompt_text import MAX_PLACEHOLDERS
from gateway.mcp_server.prompts import RECOMMENDED_KEY, prompt_result
from gateway.mcp_server.toml_lines import locate

MODEL = load_catalog().models["gpt-image-2"]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "prompts.md"

GOOD = '''# A template of our own
name = "poster"
title = "Poster"
description = "A poster."
size = "1024x1536"

text = """
A poster of {subject}.
[[Style: {style}.]]
[[layout=wide: It is wide.]]
"""

[[arguments]]
name = "subject"
title = "Subject"
description = "What it shows."
required = true

[[arguments]]
name = "style"
title = "Style"
description = "How it looks."

[[arguments]]
name = "layout"
title = "Layout"
description = "How it is arranged."
default = "tall"
[arguments.choices]
tall = "a tall one"
wide = "a wide one"
'''


def line_of(text: str) -> int:
    """Where this stands in GOOD."""
    return GOOD[: GOOD.index(text)].count("\n") + 1


def folder_with(tmp_path: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / f"{name}.toml").write_bytes(data)
    return tmp_path


def mistakes(folder: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_templates(folder)
    return str(caught.value).splitlines()


def rendered(folder: Path, name: str, **arguments: str) -> str:
    meta = prompt_result(load_templates(folder)[name], arguments, MODEL).meta
    assert meta is not None
    prompt = meta[RECOMMENDED_KEY]["arguments"]["prompt"]
    assert isinstance(prompt, str)
    return prompt


# What files add


def test_a_file_adds_a_template(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=GOOD)
    assert set(load_templates(folder)) == {*load_templates(None), "poster"}
    assert rendered(folder, "poster", subject="a cat") == "A poster of a cat."
    everything = {"subject": "a cat", "style": "woodcut", "layout": "wide"}
    assert rendered(folder, "poster", **everything) == (
        "A poster of a cat. Style: woodcut. It is wide."
    )


def test_a_file_replaces_the_template_of_its_name(tmp_path: Path) -> None:
    own = GOOD.replace('"poster"', '"og-image-prompt"')
    templates = load_templates(folder_with(tmp_path, a=own))
    assert templates.keys() == load_templates(None).keys()
    assert templates["og-image-prompt"].title == "Poster"


def test_only_visible_toml_files_of_the_folder_itself_count(tmp_path: Path) -> None:
    for name in ("notes.txt", "a.toml.bak", ".hidden.toml", "._a.toml"):
        (tmp_path / name).write_text("no TOML")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.toml").write_text(GOOD)
    assert load_templates(tmp_path).keys() == load_templates(None).keys()


def test_a_file_saved_on_windows_is_read(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert rendered(folder_with(tmp_path, a=data), "poster", subject="a cat") == (
        "A poster of a cat."
    )


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    folder = folder_with(tmp_path, example=text)
    template = load_templates(folder)["event-poster-prompt"]
    assert rendered(folder, template.name, title="Jazz") == (
        "Design a poster for an event. Its title reads exactly, letter for letter: “Jazz”. There "
        "is no other lettering.\n\nStyle: a screen print with few flat inks, slightly off "
        "register. Colors: deep green and cream.\n\nOne strong image, plenty of space around "
        "the title, no logos and no watermark."
    )
    meta = prompt_result(
        template,
        {"title": "Jazz", "date": "1 May", "audience": "children", "style": "photo"},
        MODEL,
    ).meta
    assert meta is not None
    recommended = meta[RECOMMENDED_KEY]
    assert recommended["wished_size"] == "1024x1280"
    assert recommended["arguments"].keys() == {"prompt", "size", "output_format", "background"}
    assert "“1 May”" in recommended["arguments"]["prompt"]
    assert "Friendly animals" in recommended["arguments"]["prompt"]


# Mistakes

TEXT = "A poster of {subject}."
STYLE = "[[Style: {style}.]]"
WIDE = "[[layout=wide: It is wide.]]"

# (what is replaced in GOOD, by what, the line that is named, what the message holds)
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "syntax": ('size = "1024x1536"', "size = 1024x1536", 'size = "1024x1536"', "TOML"),
    "unclosed string": ('"Subject"', '"Subject', 'title = "Subject"', "TOML"),
    "key twice": ('title = "Subject"', 'name = "x"', 'title = "Subject"', "TOML"),
    "unknown key": ('title = "Style"', 'titel = "Style"', 'title = "Style"', "'titel'"),
    "unknown key at the top": ('size = "1024x1536"', "sizes = 1", 'size = "1024x1536"', "'sizes'"),
    "wrong type": ("required = true", 'required = "yes"', "required = true", "'required'"),
    "empty text": ('"A poster."', '" "', 'description = "A poster."', "'description'"),
    "bad name": ('"poster"', '"My Poster"', 'name = "poster"', "'name'"),
    "bad argument name": ('"style"', '"the-style"', 'name = "style"', "'name'"),
    "size without x": ("1024x1536", "1024", 'size = "1024x1536"', "WIDTHxHEIGHT"),
    "size of nothing": ("1024x1536", "0x1536", 'size = "1024x1536"', "WIDTHxHEIGHT"),
    "size too large": ("1024x1536", "1024x99999", 'size = "1024x1536"', "WIDTHxHEIGHT"),
    "malformed placeholder": (TEXT, "A {Sub ject} of {subject}.", TEXT, "{Sub ject}"),
    "attribute access": (TEXT, "A {subject.name} of {subject}.", TEXT, "{subject.name}"),
    "empty placeholder": (TEXT, "A {} of {subject}.", TEXT, "{}"),
    "lone brace": (TEXT, "A { of {subject}.", TEXT, "double the brace"),
    "undeclared argument": (STYLE, "[[Style: {stile}.]] [[{style}]]", STYLE, "'stile'"),
    "unused argument": (STYLE, "", 'name = "style"', "'style'"),
    "unclosed part": (WIDE, "[[layout=wide: It is wide.", WIDE, "']]'"),
    "unopened part": (WIDE, "layout wide]]", WIDE, "'[['"),
    "nested part": (WIDE, "[[layout=wide: It [[is {style}]] wide.]]", WIDE, "nested"),
    "part that is always there": (WIDE, "[[{layout} is wide.]]", WIDE, "always appears"),
    "part without an argument": (WIDE, "[[Wide.]] {layout}", WIDE, "always appears"),
    "required only in parts": (TEXT, "A poster.[[ {style} {subject}]]", TEXT, "{subject}"),
    "optional outside of parts": (STYLE, "Style: {style}.", STYLE, "{style}"),
    "everything may vanish": (TEXT, "[[layout=tall: {subject}]]", TEXT, "{subject}"),
    "condition without a colon": (WIDE, "[[layout=wide It is wide.]]", WIDE, "layout=CHOICE"),
    "condition on an unknown argument": (
        WIDE, "[[form=wide: It is {layout}.]]", WIDE, "'form'",
    ),
    "condition on an unknown choice": (WIDE, "[[layout=round: It is round.]]", WIDE, "'round'"),
    "condition on free text": (WIDE, "{layout} [[style=wide: It is wide.]]", WIDE, "'style'"),
    "absence of what is always there": (WIDE, "[[no layout: Wide.]] {layout}", WIDE, "layout"),
    "default that is no choice": ('"tall"', '"long"', 'default = "tall"', "'long'"),
    "default of a required argument": (
        "required = true", 'required = true\ndefault = "a cat"', "required = true", "'subject'",
    ),
    "notation in a wording": (
        '"a wide one"', '"a wide {style}"', 'wide = "a wide one"', "[[layout=wide: …]]",
    ),
    "bad choice": ("wide = ", '"Very wide" = ', 'wide = "a wide one"', "choice"),
    "size of no choice": (
        'wide = "a wide one"', 'wide = "a wide one"\n[arguments.sizes]\nround = "1024x1024"',
        'wide = "a wide one"', "'round'",
    ),
    "argument twice": ('name = "style"', 'name = "subject"', 'name = "style"', "'subject'"),
    "missing key": ('description = "How it looks."\n', "", "[[arguments]]", "'description'"),
}  # fmt: skip
LATER = {"default of a required argument": 1, "size of no choice": 2, "missing key": 6}
"""Where the line is not that of what was replaced, but so many lines after the named one."""


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_with_its_file_and_line(tmp_path: Path, case: str) -> None:
    old, new, where, held = MISTAKES[case]
    assert old in GOOD
    content = GOOD.replace(old, new, 1)
    folder = folder_with(tmp_path, mistaken=content)
    told = mistakes(folder)
    place = f"{folder}/mistaken.toml:{line_of(where) + LATER.get(case, 0)}: "
    assert [line for line in told if line.startswith(place) and held in line], told
    assert all(line.endswith(".") for line in told)


@pytest.mark.parametrize(
    ("extra", "held"),
    [
        ('output_format = "gif"', "'png', 'jpeg' or 'webp'"),
        ('background = "green"', "'background'"),
        ('background = "transparent"\noutput_format = "jpeg"', "png or webp"),
    ],
)
def test_a_wish_that_no_model_knows_is_a_mistake(tmp_path: Path, extra: str, held: str) -> None:
    content = GOOD.replace('size = "1024x1536"', f'size = "1024x1536"\n{extra}')
    (told,) = mistakes(folder_with(tmp_path, a=content))
    assert told.startswith(f"{tmp_path}/a.toml:{5 + len(extra.splitlines())}: ")
    assert held in told


def test_several_mistakes_and_files_are_told_at_once(tmp_path: Path) -> None:
    mistaken = GOOD.replace(TEXT, "{subject} {one}\n{two}").replace('"tall"', '"long"')
    told = mistakes(folder_with(tmp_path, a=mistaken, b="name = 1", c=GOOD))
    assert [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in told] == [
        *("a.toml:8", "a.toml:9", "a.toml:29"),
        *("b.toml:1", "b.toml:1", "b.toml:1", "b.toml:1", "b.toml:1"),
    ]


def test_a_repeated_mark_is_told_where_it_is_wrong(tmp_path: Path) -> None:
    content = GOOD.replace(WIDE, f"{WIDE}\n[[layout=tall: x]]\n[[layout=odd: x]]")
    (told,) = mistakes(folder_with(tmp_path, a=content))
    assert told.startswith(f"{tmp_path}/a.toml:{line_of(WIDE) + 2}: ")


def test_two_files_with_one_name_are_a_mistake(tmp_path: Path) -> None:
    (told,) = mistakes(folder_with(tmp_path, a=GOOD, b=f"# b\n{GOOD}"))
    assert told.startswith(f"{tmp_path}/b.toml:3: ")
    assert f"{tmp_path}/a.toml" in told


def test_a_file_that_is_not_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    content = GOOD.encode().replace(b"What it shows.", b"What it sh\xf6ws.")
    (told,) = mistakes(folder_with(tmp_path, a=content))
    assert told.startswith(f"{tmp_path}/a.toml:{line_of('What it shows.')}: ")
    assert "UTF-8" in told


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    lines = "#" + "\n#" * (MAX_FILE_BYTES // 2)
    assert mistakes(folder_with(tmp_path, a=lines))[0].startswith(
        f"{tmp_path}/a.toml:{MAX_FILE_BYTES // 2 + 1}: "
    )
    for content, line in [
        (GOOD.replace(TEXT, TEXT + "x" * MAX_TEXT_CHARACTERS), 7),
        (GOOD.replace(TEXT, "{subject}" * (MAX_PLACEHOLDERS + 1)), 8),
        (GOOD + '[[arguments]]\nname = "x"\n' * MAX_ARGUMENTS, 13),
    ]:
        told = mistakes(folder_with(tmp_path, a=content))
        assert f"{tmp_path}/a.toml:{line}: " in "\n".join(told)


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.toml").touch()
    (told,) = mistakes(tmp_path)
    assert told.startswith("GATEWAY_PROMPTS_DIR: ")


def test_a_folder_that_is_not_there_is_told_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        (told,) = mistakes(path)
        assert told.startswith(f"GATEWAY_PROMPTS_DIR: the folder {path} does not exist.")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nowhere")
    told = mistakes(tmp_path)
    assert [line.split(" ")[0] for line in told] == [
        f"{tmp_path}/folder.toml:1:",
        f"{tmp_path}/gone.toml:1:",
    ]


def test_values_are_found_however_toml_spells_them() -> None:
    source = '''a.b = 1  # dotted
"quoted key" = { x = 1, y = [2, 3] }
long = [
  "one", # "]"
  "two",
]
text = """
]
a = 1"""

[table]
literal = \'\'\'
[[list]]
\'\'\'
[[list]]
x = 1
[[list]]
[list.inner]
y = 1
[[list.deep]]
z = 1
'''
    lines = {path: statement.line for path, statement in locate(source).items()}
    assert lines == {
        ("a",): 1,
        ("a", "b"): 1,
        ("quoted key",): 2,
        ("quoted key", "x"): 2,
        ("quoted key", "y"): 2,
        ("quoted key", "y", 0): 2,
        ("quoted key", "y", 1): 2,
        ("long",): 3,
        ("long", 0): 3,
        ("long", 1): 3,
        ("text",): 7,
        ("table",): 11,
        ("table", "literal"): 12,
        ("list",): 15,
        ("list", 0): 15,
        ("list", 0, "x"): 16,
        ("list", 1): 17,
        ("list", 1, "inner"): 18,
        ("list", 1, "inner", "y"): 19,
        ("list", 1, "deep"): 20,
        ("list", 1, "deep", 0): 20,
        ("list", 1, "deep", 0, "z"): 21,
    }


# Damage


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 30),
    st.text(st.sampled_from('{}[]="\n\\#abc \x00é'), max_size=10),
)
def test_a_damaged_file_is_used_or_refused_with_a_line(start: int, length: int, new: str) -> None:
    content = GOOD[:start] + new + GOOD[start + length :]
    try:
        parse_file(content.encode(), "x.toml")
    except ConfigurationError as error:
        for line in str(error).splitlines():
            place = re.match(r"x\.toml:(\d+): ", line)
            assert place is not None, line
            assert 1 <= int(place[1]) <= content.count("\n") + 1


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_line(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"x\.toml:\d+: "):
        parse_file(data, "x.toml")
