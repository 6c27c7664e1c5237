"""Template files of the operator's: what they add, and errors with file and key."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog.loading import load_catalog
from gateway.errors import ConfigurationError
from gateway.mcp_server.prompt_files import MAX_ARGUMENTS, MAX_FILE_BYTES, parse_file
from gateway.mcp_server.prompt_templates import MAX_FILES, load_templates
from gateway.mcp_server.prompt_text import MAX_TEXT_CHARACTERS, MAX_VALUES
from gateway.mcp_server.prompts import RECOMMENDED_KEY, prompt_result

MODEL = load_catalog().models["gpt-image-2"]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "prompts.md"

GOOD = '''# A template of our own
name = "poster"
title = "Poster"
description = "A poster."
size = "1024x1536"

text = """
A poster of {{ subject }}.
{% if style %}Style: {{ style }}.{% endif %}
{% if layout == "wide" %}It is wide.{% endif %}
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


# Added templates


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

TEXT = "A poster of {{ subject }}."
STYLE = "{% if style %}Style: {{ style }}.{% endif %}"
WIDE = '{% if layout == "wide" %}It is wide.{% endif %}'

# (what is replaced in GOOD, by what, the key that is named, what the message holds)
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "syntax": ('size = "1024x1536"', "size = 1024x1536", "invalid TOML", "at line 5"),
    "unclosed string": ('"Subject"', '"Subject', "invalid TOML", "at line 15"),
    "key twice": ('title = "Subject"', 'name = "x"', "invalid TOML", "at line 15"),
    "unknown key": ('title = "Style"', 'titel = "Style"', "arguments[1].titel", "title"),
    "unknown key at the top": ('size = "1024x1536"', "sizes = 1", "sizes", "output_format"),
    "wrong type": ("required = true", 'required = "yes"', "arguments[0].required", "boolean"),
    "empty text": ('"A poster."', '" "', "description", "at least 1 character"),
    "text of another type": ("text =", "text = 1\nunknown =", "text", "text in quotes"),
    "bad name": ('"poster"', '"My Poster"', "name", "lower-case"),
    "bad argument name": ('"style"', '"the-style"', "arguments[1].name", "lower-case"),
    "name that Jinja2 has": ('"style"', '"self"', "arguments[1].name", "'self'"),
    "size without x": ("1024x1536", "1024", "size", "WIDTHxHEIGHT"),
    "size of nothing": ("1024x1536", "0x1536", "size", "WIDTHxHEIGHT"),
    "size too large": ("1024x1536", "1024x99999", "size", "WIDTHxHEIGHT"),
    "malformed placeholder": (TEXT, f"{TEXT} {{{{ Sub ject }}}}", "text: line 1", "'ject'"),
    "attribute access": (TEXT, f"{TEXT} {{{{ subject.name }}}}", "text: line 1", "'getattr'"),
    "call": (TEXT, f"{TEXT} {{{{ subject.upper() }}}}", "text: line 1", "not allowed"),
    "loop": (
        TEXT, f"{TEXT} {{% for a in subject %}}x{{% endfor %}}", "text: line 1", "'for'",
    ),
    "arithmetic": (TEXT, f"{TEXT} {{{{ 'a' * 1000000000 }}}}", "text: line 1", "'mul'"),
    "include": (TEXT, f"{TEXT} {{% include 'x' %}}", "text: line 1", "'include'"),
    "unknown filter": (TEXT, f"{TEXT} {{{{ subject | tojson }}}}", "text: line 1", "'tojson'"),
    "empty placeholder": (TEXT, f"{TEXT} {{{{ }}}}", "text: line 1", "Expected an expression"),
    "single braces": (TEXT, "A poster of {subject}.", "text: line 1", "write {{ name }}"),
    "square brackets": (STYLE, "[[Style: {{ style }}.]]", "text: line 2", "{% if name %}"),
    "lone surrogate": (TEXT, f"{TEXT} {{{{ '\\\\ud800' }}}}", "text", "surrogates"),
    "undeclared argument": (STYLE, f"{STYLE} {{{{ stile }}}}", "text: line 2", "'stile'"),
    "unused argument": (STYLE, "", "arguments[1].name", "'style'"),
    "unclosed part": (WIDE, '{% if layout == "wide" %}It is.', "text: line 3", "endif"),
    "unopened part": (WIDE, "layout wide {% endif %}", "text: line 3", "'endif'"),
    "nested too deeply": (
        WIDE, WIDE + "{% if 'x' %}" * 200 + "{% endif %}" * 200, "text", "too deeply",
    ),
    "required only in parts": (
        TEXT, "A poster.{% if style %} {{ subject }}{% endif %}", "text", "lacks the required",
    ),
    "optional outside of parts": (STYLE, "Style: {{ style }}.", "text", "'style' may have no"),
    "optional in the part of another": (
        STYLE, "{% if not style %}Style: {{ style | upper }}.{% endif %}", "text", "'style' may",
    ),
    "everything may vanish": (
        TEXT, '{% if layout == "tall" %}{{ subject }}{% endif %}', "text", "layout=wide",
    ),
    "condition without a choice": (WIDE, "{% if layout = 'wide' %}x{% endif %}", "text", "'='"),
    "condition on an unknown argument": (
        WIDE, '{% if form == "wide" %}{{ layout }}{% endif %}', "text: line 3", "'form'",
    ),
    "condition on an unknown choice": (
        WIDE, '{% if layout == "round" %}x{% endif %}', "text: line 3", "'round'",
    ),
    "condition on several choices": (
        WIDE, '{% if layout in ("wide", "round") %}x{% endif %}', "text: line 3", "'round'",
    ),
    "condition on free text": (
        WIDE, '{{ layout }}{% if style == "wide" %}x{% endif %}', "text: line 3", "'style'",
    ),
    "comparison of order": (
        WIDE, '{% if layout < "wide" %}x{% endif %}', "text: line 3", "compare with",
    ),
    "default that is no choice": ('"tall"', '"long"', "arguments[2].default", "'long'"),
    "default of a required argument": (
        "required = true", 'required = true\ndefault = "a cat"', "arguments[0].default",
        "'subject'",
    ),
    "notation in a wording": (
        '"a wide one"', '"a wide {{ style }}"', "arguments[2].choices.wide", "as it is",
    ),
    "bad choice": ("wide = ", '"Very wide" = ', "arguments[2].choices.Very wide", "choice"),
    "size of no choice": (
        'wide = "a wide one"', 'wide = "a wide one"\n[arguments.sizes]\nround = "1024x1024"',
        "arguments[2].sizes.round", "'round'",
    ),
    "argument twice": ('name = "style"', 'name = "subject"', "arguments[1].name", "'subject'"),
    "missing key": (
        'description = "How it looks."\n', "", "arguments[1].description", "missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_an_error_names_its_file_and_key(tmp_path: Path, case: str) -> None:
    old, new, key, held = MISTAKES[case]
    assert old in GOOD
    folder = folder_with(tmp_path, mistaken=GOOD.replace(old, new, 1))
    told = mistakes(folder)
    place = f"{folder}/mistaken.toml: {key}: "
    assert [line for line in told if line.startswith(place) and held in line], told
    assert all(line.endswith(".") for line in told)


@pytest.mark.parametrize(
    ("extra", "held"),
    [
        ('output_format = "gif"', "output_format: Input should be 'png', 'jpeg' or 'webp'."),
        ('background = "green"', "background: Input should be 'transparent', 'opaque' or 'auto'."),
        ('background = "transparent"\noutput_format = "jpeg"', "write png or webp."),
    ],
)
def test_a_format_that_no_model_knows_is_an_error(tmp_path: Path, extra: str, held: str) -> None:
    content = GOOD.replace('size = "1024x1536"', f'size = "1024x1536"\n{extra}')
    (told,) = mistakes(folder_with(tmp_path, a=content))
    assert told.startswith(f"{tmp_path}/a.toml: ")
    assert told.endswith(held)


def test_errors_of_several_keys_and_files_are_reported_at_once(tmp_path: Path) -> None:
    mistaken = GOOD.replace(TEXT, "{{ subject }} {{ one }}\n{{ two }}").replace('"tall"', '"long"')
    told = mistakes(folder_with(tmp_path, a=mistaken, b="name = 1", c=GOOD))
    assert [line.removeprefix(f"{tmp_path}/").split(": ")[:2] for line in told] == [
        *(["a.toml", "arguments[2].default"], ["a.toml", "text"], ["a.toml", "text"]),
        *(["b.toml", key] for key in ("name", "title", "description", "size", "text")),
    ]
    assert [line.split(": ")[2] for line in told[1:3]] == ["line 1", "line 2"]


def test_two_files_with_one_name_are_an_error(tmp_path: Path) -> None:
    (told,) = mistakes(folder_with(tmp_path, a=GOOD, b=f"# b\n{GOOD}"))
    assert told.startswith(f"{tmp_path}/b.toml: name: ")
    assert f"{tmp_path}/a.toml" in told


def test_a_file_that_is_not_utf_8_is_refused_with_the_line(tmp_path: Path) -> None:
    content = GOOD.encode().replace(b"What it shows.", b"What it sh\xf6ws.")
    (told,) = mistakes(folder_with(tmp_path, a=content))
    assert told.startswith(f"{tmp_path}/a.toml: ")
    assert "UTF-8" in told
    assert "at line 16" in told


def test_files_texts_and_lists_above_their_limits_are_refused(tmp_path: Path) -> None:
    for content, held in [
        ("#" * (MAX_FILE_BYTES + 1), f"larger than {MAX_FILE_BYTES} bytes"),
        (GOOD.replace(TEXT, TEXT + "x" * MAX_TEXT_CHARACTERS), "characters are allowed"),
        (GOOD.replace(TEXT, "{{ subject }}" * (MAX_VALUES + 1)), f"more than {MAX_VALUES} values"),
        (GOOD + '[[arguments]]\nname = "x"\n' * MAX_ARGUMENTS, "arguments: List should have"),
    ]:
        told = mistakes(folder_with(tmp_path, a=content))
        assert held in "\n".join(told)


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.toml").touch()
    (told,) = mistakes(tmp_path)
    assert told.startswith("GATEWAY_PROMPTS_DIR: ")


def test_a_missing_folder_is_reported_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        (told,) = mistakes(path)
        assert told.startswith(f"GATEWAY_PROMPTS_DIR: the folder {path} does not exist.")


def test_an_unreadable_template_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nowhere")
    told = mistakes(tmp_path)
    assert [line.split(" ")[0] for line in told] == [
        f"{tmp_path}/folder.toml:",
        f"{tmp_path}/gone.toml:",
    ]


# Damage


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 30),
    st.text(st.sampled_from('{}%|[]="\n\\#abc \x00é'), max_size=10),
)
def test_a_damaged_file_is_used_or_refused_by_name(start: int, length: int, new: str) -> None:
    content = GOOD[:start] + new + GOOD[start + length :]
    refusal = ""
    try:
        parse_file(content.encode(), "x.toml")
    except ConfigurationError as error:
        refusal = str(error)
    assert all(line.startswith("x.toml: ") for line in refusal.splitlines())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"x\.toml: "):
        parse_file(data, "x.toml")
