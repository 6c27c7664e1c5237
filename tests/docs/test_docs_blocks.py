"""Every fenced block of the documentation is run or read by a test, or says why not."""

import ast
import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import jinja2
import pytest
import yaml  # type: ignore[import-untyped]  # ships without types

from tests.docs.pages import ROOT, CodeBlock, all_blocks
from tests.docs.running import RUN_PAGES
from tests.docs.shell import is_rehearsed, simple_commands
from tests.tooling.command_pages import commands

TESTED: dict[str, tuple[str, ...]] = {
    "tests/rest/test_admin_docs.py": ("docs/admin.md",),
    "tests/webhooks/test_webhooks_docs.py": ("docs/webhooks.md",),
    "tests/mcp/test_mcp_clients_page.py": ("docs/mcp-clients.md",),
    "tests/tooling/test_requests_docs.py": ("docs/requests.md",),
}
"""Pages whose curl commands or transcripts a test of their own runs."""
QUERIES = ("docs/runbooks/", "docs/guides/")
"""Pages whose queries tests/deploy/test_alerts.py sends to a real Prometheus."""
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROBES = ("/health", "/ready")


def parses(read: Callable[[str], object]) -> Callable[[CodeBlock], None]:
    """A check that only reads the block."""
    return lambda block: (read(block.text), None)[1]


def is_queried(block: CodeBlock) -> None:
    assert block.page.startswith(QUERIES), "no test sends this query to Prometheus"


def is_drawn(block: CodeBlock) -> None:
    assert block.page.startswith("docs/"), "test_docs_site.py draws the diagrams of docs/ alone"


def is_transcript(block: CodeBlock) -> None:
    assert any(block.page in of for of in TESTED.values()), "no test compares this transcript"


def is_run_as_a_program(block: CodeBlock) -> None:
    assert block.page in RUN_PAGES, "no test runs this program"


def exists_and_parses(block: CodeBlock) -> None:
    """Every command of the block exists, with its options; test_docs_commands.py runs them."""
    for words in simple_commands(block.text):
        if is_rehearsed(block) and not words[0].endswith("gateway"):
            continue
        check_command(block, words)


def check_command(block: CodeBlock, words: list[str]) -> None:
    match words:
        case ["gateway" | ".venv/bin/gateway" | "venv/bin/gateway", *rest]:
            check_gateway(rest)
        case ["make", *rest]:
            named = [word for word in rest if "=" not in word]
            assert set(named) <= TARGETS, words
        case ["export", *_] | ["python" | "node", _]:
            return
        case ["curl", *rest] if any(word.endswith(PROBES) for word in rest):
            return
        case ["curl", *_]:
            is_tested = any(block.page in of for of in TESTED.values())
            assert is_tested or block.page in RUN_PAGES, f"no test runs {words}"
        case _:
            assert block.page in RUN_PAGES, f"no test runs {words}"


def check_gateway(words: list[str]) -> None:
    """Expect a command of this name, and its options."""
    known = commands()
    plain = [word for word in words if not word.startswith("-")]
    if not plain:
        assert words[0] in {"--version", "--help", "--install-completion"}
        return
    name = next((n for n in (" ".join(plain[:2]), plain[0]) if n in known), None)
    assert name is not None, f"there is no command {words}"
    command: Any = known[name]
    assert not hasattr(command, "commands"), f"{name} is a group"
    options = {one for option in command.params for one in (*option.opts, *option.secondary_opts)}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= options | {"--help"}, f"{name} has no {given - options}"


CHECKS: dict[str, Callable[[CodeBlock], None]] = {
    "console": is_transcript,
    "jinja": parses(jinja2.Environment(autoescape=True).parse),
    "json": parses(json.loads),
    "mermaid": is_drawn,
    "promql": is_queried,
    "python": parses(ast.parse),
    "sh": exists_and_parses,
    "text": lambda _: None,  # usage lines of docs/cli.md, which is generated
    "toml": parses(tomllib.loads),
    "ts": is_run_as_a_program,
    "yaml": parses(yaml.safe_load),
}


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.where)
def test_every_block_is_checked_or_says_why_not(block: CodeBlock) -> None:
    if block.not_run is not None and block.language == "sh":
        for words in simple_commands(block.text):
            if words[0] == "gateway":
                check_gateway(words[1:])
    elif block.not_run is None and block.language:
        assert block.language in CHECKS, f"no test reads {block.language}"
        CHECKS[block.language](block)


def test_the_tests_of_pages_exist() -> None:
    for test, named in TESTED.items():
        text = (ROOT / test).read_text()
        assert all(page.rpartition("/")[2] in text for page in named)


PLANTED = {
    "sh": ["gateway tenants paint", "gateway keys list --paint", "make paint", "rm -r x"],
    "json": ["{"],
    "python": ["def"],
    "toml": ["a ="],
    "yaml": ["a: ["],
    "ts": ["1"],
    "promql": ["up"],
    "console": ["$ gateway"],
}


@pytest.mark.parametrize(
    ("language", "text"), [(name, text) for name, texts in PLANTED.items() for text in texts]
)
def test_a_planted_mistake_is_found(language: str, text: str) -> None:
    block = CodeBlock("docs/planted.md", 1, language, None, text, None)
    with pytest.raises((AssertionError, ValueError, SyntaxError, yaml.YAMLError)):
        CHECKS[language](block)
