"""The periods that pages offer, and the period before each, to compare with."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from gateway.billing.usage_queries import OwnDays, Period
from gateway.console import formats
from gateway.errors import InvalidRequest

CHOICES = {
    "today": "Today",
    "7d": "7 days",
    "30d": "30 days",
    "90d": "90 days",
    "365d": "365 days",
    "month": "This month",
    "last-month": "Last month",
}
DAYS = {"today": 1, "7d": 7, "30d": 30, "90d": 90, "365d": 365}
USUAL = "30d"
MAX_DAYS = 366
MAX_LISTED_DAYS = 36_600
"""A list reads only the calls that it shows."""


@dataclass(frozen=True, slots=True)
class Days:
    """Whole days of a time zone, `first` to `last`, both included."""

    first: date
    last: date
    zone: str

    @property
    def number(self) -> int:
        """The number of days."""
        return (self.last - self.first).days + 1

    @property
    def period(self) -> Period:
        """The instants of these days."""
        return Period(_midnight(self.first, self.zone), self.end)

    def own_days(self) -> OwnDays:
        """These days as each tenant has them. Where it is tomorrow, that belongs to today."""
        is_today = self.last == datetime.now(UTC).date()
        return OwnDays(self.first, self.last + timedelta(days=1) if is_today else self.last)

    @property
    def end(self) -> datetime:
        """The instant at which the day after the last one begins."""
        return _midnight(self.last + timedelta(days=1), self.zone)

    @property
    def before(self) -> "Days":
        """The same number of days just before; of a whole month, the month before."""
        if self.first.day == 1 and self.last == end_of_month(self.first):
            end = self.first - timedelta(days=1)
            return Days(end.replace(day=1), end, self.zone)
        length = timedelta(days=self.number)
        return Days(self.first - length, self.last - length, self.zone)

    def clamp(self, first: str, last: str) -> tuple[str, str]:
        """Return the part of other days that lies in these."""
        return max(first, self.first.isoformat()), min(last, self.last.isoformat())

    @property
    def text(self) -> str:
        """The days in words: "1 Nov to 30 Nov 2026"."""
        if self.first == self.last:
            return formats.day(self.last)
        has_year = self.first.year != self.last.year
        return f"{formats.day(self.first, with_year=has_year)} to {formats.day(self.last)}"

    def dates(self) -> list[date]:
        """Every day."""
        return [self.first + timedelta(days=at) for at in range(self.number)]


def parse_days(
    choice: str, start: str, end: str, today: date, zone: str, *, longest: int = MAX_DAYS
) -> Days:
    """Read a period of at most `longest` days from a form: a choice, or dates, which win.

    Raises:
        InvalidRequest: a date is not one, the end is before the start, or it is too long.
    """
    if start or end:
        first = _date(start, "start") if start else _date(end, "end") - timedelta(days=29)
        last = _date(end, "end") if end else today
        if last < first:
            raise InvalidRequest(
                f"The end must not be before the start (got {first} and {last}).", param="end"
            )
        days = Days(first, last, zone)
        if days.number > longest:
            raise InvalidRequest(
                f"A period has at most {longest} days; {days.number} requested.", param="start"
            )
        return days
    if choice == "last-month":
        last = today.replace(day=1) - timedelta(days=1)
        return Days(last.replace(day=1), last, zone)
    if choice == "month":
        return Days(today.replace(day=1), today, zone)
    return Days(today - timedelta(days=DAYS.get(choice, DAYS[USUAL]) - 1), today, zone)


def _midnight(on: date, zone: str) -> datetime:
    return datetime.combine(on, time(), ZoneInfo(zone))


def end_of_month(on: date) -> date:
    """Return the last day of a month."""
    return (on.replace(day=1) + timedelta(days=32)).replace(day=1) - timedelta(days=1)


def _date(text: str, param: str) -> date:
    try:
        found = date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{param} must be a date such as 2026-11-20 (got {text[:40]!r}).", param=param
        ) from None
    earliest, latest = date(2000, 1, 1), date(2200, 1, 1)
    if not earliest <= found <= latest:
        raise InvalidRequest(
            f"{param} must lie between {earliest} and {latest} (got {found}).", param=param
        )
    return found
