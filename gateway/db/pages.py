"""Pages of a list: as many as were asked for, and whether there are more behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items in their order, and whether more follow."""

    items: tuple[T, ...]
    has_more: bool


def page_of(found: Sequence[T], limit: int) -> Page[T]:
    """The page of a query that looked for one more than `limit`."""
    return Page(tuple(found[:limit]), len(found) > limit)
