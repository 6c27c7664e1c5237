"""The ten prompts as clients get them: prose, arguments, sizes and completions."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain, combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.types import TextContent

from gateway.catalog.loading import load_catalog
from gateway.errors import InvalidRequest
from gateway.mcp_server.prompt_files import PromptArgument, PromptTemplate
from gateway.mcp_server.prompt_templates import load_templates
from gateway.mcp_server.prompts import (
    MAX_ARGUMENT_CHARACTERS,
    RECOMMENDED_KEY,
    complete_argument,
    prompt_list,
    prompt_result,
)

MODELS = load_catalog().models
MODEL = MODELS["gpt-image-2.5-sunburst"]
TEMPLATES = load_templates(None)
OG = TEMPLATES["og-image-prompt"]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "prompts.md"

YES_NO = ("yes", "no")
# name -> (size, {argument: choices}); a star marks the required ones.
TEN: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "creative-image-prompt": (
        "1024x1024",
        {"*subject": (), "style": (), "mood": (), "color_palette": ()},
    ),
    "product-image-prompt": (
        "1024x1024",
        {"*product": (), "background": (), "lighting": (), "angle": ()},
    ),
    "artistic-style-prompt": (
        "1024x1024",
        {"*subject": (), "artist_style": (), "medium": (), "era": ()},
    ),
    "og-image-prompt": (
        "1200x630",
        {
            "*title": (),
            "brand_name": (),
            "background_style": ("gradient", "solid", "pattern", "minimal", "tech"),
            "text_layout": ("centered", "left-aligned", "split", "overlay"),
            "color_scheme": ("professional", "vibrant", "monochrome", "brand-colors"),
            "include_logo": YES_NO,
        },
    ),
    "blog-header-prompt": (
        "1200x400",
        {
            "*topic": (),
            "style": ("modern", "minimalist", "illustrative", "photographic"),
            "mood": ("professional", "friendly", "exciting", "calm"),
            "include_text_space": YES_NO,
        },
    ),
    "social-media-post-prompt": (
        "1024x1024",
        {
            "*platform": ("instagram", "facebook", "twitter", "linkedin"),
            "*content_type": ("announcement", "quote", "tip", "behind-the-scenes"),
            "brand_style": (),
            "call_to_action": (),
        },
    ),
    "hero-banner-prompt": (
        "1920x800",
        {
            "*website_type": ("business", "portfolio", "e-commerce", "blog", "saas"),
            "industry": (),
            "message": (),
            "visual_style": ("modern", "classic", "bold", "elegant"),
            "include_cta_space": YES_NO,
        },
    ),
    "email-header-prompt": (
        "1200x400",
        {
            "*newsletter_type": ("business", "personal", "promotional", "educational"),
            "brand_name": (),
            "theme": (),
            "season": (),
            "layout": ("banner", "logo-focused", "text-heavy"),
        },
    ),
    "thumbnail-prompt": (
        "1280x720",
        {
            "*content_type": ("tutorial", "review", "vlog", "presentation", "demo"),
            "*topic": (),
            "style": ("bold", "clean", "dramatic", "friendly"),
            "include_text": YES_NO,
            "emotion": ("exciting", "trustworthy", "curious", "urgent"),
        },
    ),
    "infographic-prompt": (
        "1024x1536",
        {
            "*data_type": ("statistics", "process", "comparison", "timeline"),
            "*topic": (),
            "visual_approach": (),
            "color_count": ("monochrome", "two-color", "multi-color"),
            "layout": ("vertical", "horizontal", "circular", "grid"),
        },
    ),
}

UNTIDY = re.compile(
    r"  |\[\[|\]\]|[{}]| [,.;:!?)]|\.\.|,,|[,;:]\.|[.;:],|\( |“ | ”|\n{3,}| \n|\n |\bNone\b"
)


def finished(template: PromptTemplate, arguments: Mapping[str, str]) -> str:
    """The prompt alone, without the recommendation."""
    meta = prompt_result(template, arguments, MODEL).meta
    assert meta is not None
    prompt = meta[RECOMMENDED_KEY]["arguments"]["prompt"]
    assert isinstance(prompt, str)
    return prompt


def said(template: PromptTemplate, arguments: Mapping[str, str]) -> str:
    """The whole text of the message."""
    (message,) = prompt_result(template, arguments, MODEL).messages
    assert message.role == "user"
    assert isinstance(message.content, TextContent)
    return message.content.text


def refusal(template: PromptTemplate, arguments: Mapping[str, str]) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        prompt_result(template, arguments, MODEL)
    return caught.value.code, caught.value.param


def example(argument: PromptArgument) -> str:
    words = argument.name.replace("_", " ")
    return next(iter(argument.choices), f"a sample of {words}")


def uses(template: PromptTemplate) -> Iterator[dict[str, str]]:
    """Every set of optional arguments; and every choice of each, alone and with all others."""
    required = {a.name: example(a) for a in template.arguments if a.required}
    optional = {a.name: example(a) for a in template.arguments if not a.required}
    counts = range(len(optional) + 1)
    for names in chain.from_iterable(combinations(optional, count) for count in counts):
        yield required | {name: optional[name] for name in names}
    for argument in template.arguments:
        for choice in argument.choices or ("A whole sentence, as assistants write them.",):
            yield required | {argument.name: choice}
            yield required | optional | {argument.name: choice}


def test_the_ten_take_the_arguments_and_choices_they_should() -> None:
    found = {
        template.name: (
            "{}x{}".format(*template.size),
            {("*" * a.required) + a.name: tuple(a.choices) for a in template.arguments},
        )
        for template in TEMPLATES.values()
    }
    assert found == TEN


@pytest.mark.parametrize("name", TEN)
def test_every_use_of_a_template_reads_as_clean_prose(name: str) -> None:
    for arguments in uses(TEMPLATES[name]):
        prompt = finished(TEMPLATES[name], arguments)
        untidy = UNTIDY.search(prompt)
        assert untidy is None, (arguments, prompt[untidy.start() - 30 : untidy.end() + 30])
        for paragraph in prompt.split("\n\n"):
            assert paragraph[0].isupper(), (arguments, paragraph)
            assert paragraph.endswith("."), (arguments, paragraph)
            assert "\n" not in paragraph
            for sentence in re.split(r"(?<=\.) ", paragraph):
                assert sentence[0].isupper(), (arguments, sentence)
        assert prompt.count("“") == prompt.count("”")
        assert 400 < len(prompt) < 2500


@pytest.mark.parametrize("name", TEN)
def test_every_given_argument_is_in_the_prompt(name: str) -> None:
    template = TEMPLATES[name]
    for arguments in uses(template):
        prompt = finished(template, arguments)
        for argument in template.arguments:
            if argument.name in arguments and not argument.choices:
                assert arguments[argument.name] in prompt


@pytest.mark.parametrize("name", TEN)
def test_every_choice_makes_a_difference(name: str) -> None:
    template = TEMPLATES[name]
    required = {a.name: example(a) for a in template.arguments if a.required}
    for argument in template.arguments:
        prompts = {
            finished(template, required | {argument.name: choice}) for choice in argument.choices
        }
        assert len(prompts) == len(argument.choices)


def test_lettering_is_asked_for_only_where_it_is_quoted() -> None:
    silent = finished(TEMPLATES["email-header-prompt"], {"newsletter_type": "personal"})
    lettered = finished(
        TEMPLATES["email-header-prompt"], {"newsletter_type": "personal", "brand_name": "Acme"}
    )
    assert "“" not in silent
    assert "no lettering at all" in silent
    assert "“Acme”" in lettered
    assert "no lettering at all" not in lettered


def test_a_person_sees_titles_descriptions_choices_and_defaults() -> None:
    listed = {prompt.name: prompt for prompt in prompt_list(TEMPLATES)}
    assert list(listed) == list(TEMPLATES)
    for prompt in listed.values():
        assert prompt.title
        assert len(prompt.description or "") > 60
        for argument in prompt.arguments or []:
            assert argument.title
            assert (argument.description or "").endswith(".")
    arguments = {a.name: a for a in listed["og-image-prompt"].arguments or []}
    assert arguments["title"].required is True
    assert arguments["text_layout"].required is False
    assert (arguments["text_layout"].description or "").endswith(
        "One of: centered, left-aligned, split, overlay. Default: centered."
    )


def test_the_result_names_the_size_that_the_model_accepts() -> None:
    result = prompt_result(OG, {"title": "Hello"}, MODEL)
    prompt = finished(OG, {"title": "Hello"})
    assert result.description == OG.description
    assert result.meta == {
        RECOMMENDED_KEY: {
            "wished_size": "1200x630",
            "size": "1280x672",
            "model": "gpt-image-2.5-sunburst",
            "arguments": {"prompt": prompt, "size": "1280x672", "output_format": "png"},
        }
    }
    assert said(OG, {"title": "Hello"}) == (
        f"{prompt}\n\nRecommended: generate_image with the text above as its prompt, size 1280x672 "
        f"(the nearest that gpt-image-2.5-sunburst accepts to 1200x630) and output_format png."
    )


def test_a_size_that_the_model_accepts_is_recommended_as_it_is() -> None:
    text = said(TEMPLATES["creative-image-prompt"], {"subject": "a fox"})
    assert text.endswith("\n\nRecommended: generate_image with the text above as its prompt, "
                         "size 1024x1024.")  # fmt: skip


def test_a_layout_with_a_shape_of_its_own_recommends_its_own_size() -> None:
    given_ = {"data_type": "process", "topic": "Tea"}
    sizes = {}
    for layout in ("vertical", "horizontal", "circular", "grid"):
        meta = prompt_result(
            TEMPLATES["infographic-prompt"], given_ | {"layout": layout}, MODEL
        ).meta
        assert meta is not None
        sizes[layout] = meta[RECOMMENDED_KEY]["size"]
    assert sizes == {
        "vertical": "1024x1536",
        "horizontal": "1536x1024",
        "circular": "1024x1024",
        "grid": "1024x1024",
    }


def test_a_model_is_not_told_what_it_does_not_know() -> None:
    meta = prompt_result(OG, {"title": "Hello"}, MODELS["dall-e-3"]).meta
    assert meta is not None
    assert meta[RECOMMENDED_KEY]["arguments"].keys() == {"prompt", "size"}
    assert meta[RECOMMENDED_KEY]["size"] == "1792x1024"


def test_a_prompt_that_is_too_long_for_the_model_says_so() -> None:
    (message,) = prompt_result(OG, {"title": "Hello"}, MODELS["dall-e-2"]).messages
    assert isinstance(message.content, TextContent)
    assert "dall-e-2 takes at most 1000" in message.content.text
    assert "takes at most" not in said(OG, {"title": "Hello"})


@pytest.mark.parametrize(
    ("arguments", "code", "param"),
    [
        ({}, "missing_required_parameter", "title"),
        ({"title": " \n\t"}, "missing_required_parameter", "title"),
        ({"title": "x", "colour": "red"}, "unknown_parameter", "colour"),
        ({"title": "x", "text_layout": "diagonal"}, "invalid_value", "text_layout"),
        ({"title": "x" * (MAX_ARGUMENT_CHARACTERS + 1)}, "string_above_max_length", "title"),
        ({"title": "half \ud83d"}, "invalid_value", "title"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_by_name(
    arguments: dict[str, str], code: str, param: str
) -> None:
    assert refusal(OG, arguments) == (code, param)


def test_no_arguments_at_all_are_missing_ones() -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompt_result(OG, None, MODEL)
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "title")


def test_blank_optional_arguments_count_as_not_given() -> None:
    plain = finished(OG, {"title": "x"})
    assert finished(OG, {"title": "x", "brand_name": "", "text_layout": "  "}) == plain


def test_choices_are_understood_as_people_and_programs_write_them() -> None:
    exact = finished(OG, {"title": "x", "text_layout": "left-aligned", "include_logo": "yes"})
    for layout, logo in [
        ("Left Aligned", "true"),
        ("LEFT_ALIGNED", "True"),
        (" left-aligned ", "1"),
    ]:
        arguments = {"title": "x", "text_layout": layout, "include_logo": logo}
        assert finished(OG, arguments) == exact


@pytest.mark.parametrize(
    "value",
    [
        "{brand_name}",
        "{title}",
        "{{title}}",
        "{title.__class__}",
        "[[gone {brand_name}]]",
        "]] [[include_logo=yes: x]]",
        "%s %(title)s ${title} {0} \\{x\\}",
        "{% for x in y %}{{ 7 * 7 }}{% endfor %}",
    ],
)
def test_notation_in_an_argument_appears_as_it_is(value: str) -> None:
    prompt = finished(OG, {"title": value, "brand_name": "Acme"})
    assert prompt == finished(OG, {"title": "MARK", "brand_name": "Acme"}).replace("MARK", value)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_text_appears_as_it_is_but_for_its_spaces(value: str) -> None:
    words = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", value).split())
    if words:
        mark = "MARK"
        expected = finished(OG, {"title": mark}).replace(mark, words)
        assert finished(OG, {"title": value}) == expected


def test_a_sentence_for_a_subject_ends_with_one_full_stop() -> None:
    creative = TEMPLATES["creative-image-prompt"]
    assert "Subject: A fox sleeps.\n\n" in finished(creative, {"subject": "A fox sleeps."})
    assert "Subject: Who is it?\n\n" in finished(creative, {"subject": "Who is it?"})
    assert "Subject: a fox.\n\n" in finished(creative, {"subject": "a fox"})


@pytest.mark.parametrize(
    ("argument", "typed", "expected"),
    [
        ("background_style", "", ["gradient", "solid", "pattern", "minimal", "tech"]),
        ("background_style", "t", ["tech", "gradient", "pattern"]),
        ("background_style", " GRA", ["gradient"]),
        ("background_style", "zzz", []),
        ("include_logo", "y", ["yes"]),
        ("title", "any", []),
    ],
)
def test_completion_offers_what_begins_with_the_typed_text_first(
    argument: str, typed: str, expected: list[str]
) -> None:
    assert complete_argument(OG, argument, typed) == expected


def test_completion_of_free_text_offers_suggestions() -> None:
    offered = complete_argument(TEMPLATES["creative-image-prompt"], "style", "wat")
    assert offered == ["watercolor"]


def test_completion_of_an_unknown_argument_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete_argument(OG, "colour", "")
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "colour")


def test_the_page_of_prompts_lists_every_prompt() -> None:
    page = DOCS.read_text()
    for name, (size, arguments) in TEN.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert size in row
        for argument, choices in arguments.items():
            plain = argument.removeprefix("*")
            assert (f"**`{plain}`**" if plain != argument else f"`{plain}`") in row
            assert f"`{plain}`" in row
            if choices:
                assert f"({', '.join(choices)}" in row.replace("**", "")
