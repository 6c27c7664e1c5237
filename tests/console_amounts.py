"""The amounts of a page of the console, with their names and links."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html.parser import HTMLParser

VOID = frozenset({"input", "link", "meta", "br", "img", "use", "path", "rect", "line", "circle"})
BLOCKS = frozenset({"p", "li", "div", "td", "dd", "tr"})


@dataclass(frozen=True)
class Amount:
    """An amount with all of its digits.

    `name`: that of its column, tile or fact, or in a sentence the word before it. `link`: the
    address to which it leads.
    """

    usd: Decimal
    name: str
    link: str | None


@dataclass(frozen=True)
class _Element:
    tag: str
    attributes: dict[str, str]

    def has(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()


class _Amounts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Amount] = []
        self._open: list[_Element] = []
        self._label: list[str] = []
        self._label_link: str | None = None
        self._word = ""

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        one = _Element(tag, {name: value or "" for name, value in attrs})
        if tag in BLOCKS:
            self._word = ""
        if tag == "dt" or one.has("tile__label"):
            self._label, self._label_link = [], None
        if tag == "a" and self._open and self._open[-1].has("tile__label"):
            self._label_link = one.attributes["href"]
        self._open.append(one)
        title = one.attributes.get("title", "")
        if tag == "span" and title.startswith(("$", "-$")) and title.endswith(" USD"):
            usd = Decimal(title.removesuffix(" USD").replace("$", "").replace(",", ""))
            self.found.append(Amount(usd, self._name(), self._link()))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        words = data.split()
        self._word = words[-1] if words else self._word
        if any(one.tag == "dt" or one.has("tile__label") for one in self._open):
            self._label += words

    def _name(self) -> str:
        for one in reversed(self._open):
            if one.tag == "td":
                return one.attributes.get("data-label", "")
            if one.tag == "dd" or one.has("tile__value"):
                return " ".join(self._label)
        return self._word

    def _link(self) -> str | None:
        for one in reversed(self._open):
            if one.tag == "a":
                return one.attributes["href"]
            if one.has("tile"):
                return self._label_link
        return None


def amounts_of(page: str) -> list[Amount]:
    """Read the amounts of a page that are not zero."""
    reader = _Amounts()
    reader.feed(page)
    return [one for one in reader.found if one.usd]
