"""Links of the documentation lead somewhere, on a code host as in the site."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, anchors_of, links_of, name_of, pages, prose_of
from tests.tooling import error_pages

RECORD_ALONE = {"client_disconnected", "incomplete_body"}
"""Codes that no client gets, because it has left."""


def broken(page: Path, link: str) -> bool:
    """Tell if a link of the page leads to no file of the repository, or to none of its headings."""
    if "://" in link or link.startswith("mailto:"):
        return False
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return True
    return bool(anchor) and target.suffix == ".md" and anchor not in anchors_of(target)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert [link for link in links_of(page) if broken(page, link)] == []


def test_a_broken_link_and_a_broken_anchor_are_found() -> None:
    page = ROOT / "docs" / "money.md"
    assert broken(page, "none.md")
    assert broken(page, "money.md#none")
    assert broken(page, "#none")
    assert not broken(page, "#outcomes")
    assert not broken(page, "../README.md#start")


def test_links_of_pages_are_https_or_on_loopback() -> None:
    links = {link for page in pages() for link in links_of(page) if link.startswith("http://")}
    assert links == set()


def test_each_error_code_has_its_meaning_and_its_remedy() -> None:
    page = ROOT / "docs" / "troubleshooting.md"
    sections = re.split(r"^### `(\w+)`$", page.read_text(), flags=re.MULTILINE)[1:]
    explained = dict(zip(sections[::2], sections[1::2], strict=True))
    assert len(explained) == len(sections) / 2, "a code is explained twice"
    assert set(explained) == set(error_pages.codes()) | RECORD_ALONE
    assert [code for code, text in explained.items() if "**Do:**" not in text] == []


def test_each_threat_names_a_test() -> None:
    table = (ROOT / "docs" / "security.md").read_text().partition("## Threats\n")[2]
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert [row for row in rows if "](../tests/" not in row] == []


def misindented(text: str) -> list[str]:
    """Lines below an item of a list that the site would not show below it: indent them by four."""
    below_blank = r"(?<=\n\n) {1,3}(?=[^ \n])"
    below_item = r"(?<=\n) {1,3}(?=[-*] |\d+\. |```)"
    found = re.finditer(rf"(?:{below_blank}|{below_item}).*", text)
    return [one[0] for one in found]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_the_parts_of_a_list_are_indented_as_the_site_reads_them(page: Path) -> None:
    assert misindented(prose_of(page)) == []
    assert [line for line in page.read_text().splitlines() if re.match(r" {1,3}```\w", line)] == []


def test_a_list_that_only_a_code_host_reads_is_found() -> None:
    assert misindented("- a\n  - b\n") == ["  - b"]
    assert misindented("1. a\n\n   b\n") == ["   b"]
    assert misindented("- a\n    - b\n  goes on\n\n    c\n") == []
