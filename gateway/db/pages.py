"""Pages of a list, for cursor pagination."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of items in order; `has_more`: further items follow."""

    items: tuple[T, ...]
    has_more: bool


def page_of(found: Sequence[T], limit: int) -> Page[T]:
    """Build the page from the rows of a query for one more than `limit`."""
    return Page(tuple(found[:limit]), len(found) > limit)
