"""Texts of money, numbers and times as pages show them. Pure functions; exact, without floats.

Money is whole nano-dollars. A page shows a rounded amount and has the exact one in its title.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

from gateway.billing.budgets import Budget
from gateway.money import NANO_PER_USD, format_usd_short

CENT_NANO = NANO_PER_USD // 100
TEN_CENTS_NANO = NANO_PER_USD // 10
DASH = "\N{EN DASH}"
SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
SHORT = ((10**9, "B"), (10**6, "M"), (10**3, "k"))
MINUTE, HOUR, DAY = 60, 3600, 86_400
SECOND_MS = 1000
RECENT = timedelta(days=14)
HUNDRED = 100


def money(nano: int | None) -> str:
    """Write an amount to look at: cents, and below ten cents the first digits that matter.

    `1_234_567_890_000` → "$1,234.57", `5_920_000` → "$0.00592", None → a dash.
    """
    if nano is None:
        return DASH
    sign = "-" if nano < 0 else ""
    amount = abs(nano)
    if amount >= TEN_CENTS_NANO or amount == 0:
        return f"{sign}${_grouped(amount, CENT_NANO, 2)}"
    return f"{sign}${_significant(amount)}"


def money_exact(nano: int | None) -> str:
    """Write an amount with every digit: `5_920_000` → "$0.00592"."""
    if nano is None:
        return DASH
    text = format_usd_short(abs(nano))
    whole, fraction = text.split(".")
    return f"{'-' if nano < 0 else ''}${int(whole):,}.{fraction}"


def aligned(texts: Sequence[str]) -> list[str]:
    """Pad exact amounts of one column to the same number of decimals, so that points align."""
    most = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [
        text + "0" * (most - len(text.partition(".")[2])) if "." in text else text for text in texts
    ]


def money_axis(nano: Fraction) -> str:
    """Write a round amount for an axis, in few characters: "$1.2k", "$0.005"."""
    amount = nano / NANO_PER_USD
    for size, letter in SHORT:
        if amount >= size:
            return f"${_plain(amount / size)}{letter}"
    return f"${_plain(amount)}"


def count(number: int | None) -> str:
    """Write a whole number with separators: `12345` → "12,345"."""
    return DASH if number is None else f"{number:,}"


def percent(part: int, whole: int) -> str:
    """Write a share: "0 %", "<0.1 %", "12.3 %"; a dash of nothing."""
    if whole <= 0:
        return DASH
    tenths = round(Fraction(part * 1000, whole))
    if part and not tenths:
        return "<0.1 %"
    whole_part, rest = divmod(tenths, 10)
    return f"{whole_part}.{rest} %" if rest else f"{whole_part} %"


def milliseconds(value: int | None) -> str:
    """Write a duration: "840 ms", "12.3 s", "4 min 10 s"."""
    if value is None:
        return DASH
    if value < SECOND_MS:
        return f"{value} ms"
    seconds = Fraction(value, SECOND_MS)
    if seconds < MINUTE:
        tenths = round(seconds * 10)
        return f"{tenths // 10}.{tenths % 10} s"
    minutes, rest = divmod(round(seconds), MINUTE)
    return f"{minutes} min {rest} s"


def size(count_of_bytes: int | None) -> str:
    """Write a size in bytes: "512 B", "1.4 MB"."""
    if count_of_bytes is None:
        return DASH
    for power, unit in SIZES:
        if count_of_bytes >= power:
            return f"{_plain(Fraction(count_of_bytes, power), places=1)} {unit}"
    return f"{count_of_bytes} B"


def moment(at: datetime | None, zone: str) -> str:
    """Write a time in a zone: "30 Nov 2026, 08:15"."""
    if at is None:
        return DASH
    local = at.astimezone(ZoneInfo(zone))
    return f"{day(local.date())}, {local:%H:%M}"


def instant(at: datetime, zone: str) -> str:
    """Write a time to the millisecond: "30 Nov 2026, 08:15:04.120"."""
    local = at.astimezone(ZoneInfo(zone))
    return f"{day(local.date())}, {local:%H:%M:%S}.{local.microsecond // SECOND_MS:03d}"


def moment_exact(at: datetime, zone: str) -> str:
    """Write a time to the second, with its zone: "2026-11-30 08:15:04 Europe/Vienna (+01:00)"."""
    local = at.astimezone(ZoneInfo(zone))
    return f"{local:%Y-%m-%d %H:%M:%S} {zone} ({local.isoformat()[-6:]})"


def day(on: date | None, *, with_year: bool = True) -> str:
    """Write a date: "30 Nov 2026"."""
    if on is None:
        return DASH
    return f"{on.day} {on:%b %Y}" if with_year else f"{on.day} {on:%b}"


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """Write how long a time is past, or ahead: "3 h ago", "in 5 days"."""
    if at is None:
        return "never"
    seconds = int(((now or datetime.now(UTC)) - at).total_seconds())
    text = _span(abs(seconds))
    if text == "now":
        return "just now"
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def _span(seconds: int) -> str:
    if seconds < MINUTE:
        return "now"
    if seconds < HOUR:
        return f"{seconds // MINUTE} min"
    if seconds < DAY:
        return f"{seconds // HOUR} h"
    days = seconds // DAY
    return f"{days} day" if days == 1 else f"{days} days"


def delta(now: int, before: int) -> str:
    """Write a change: "+12 %", "-3 %"; "" without a number before."""
    if before <= 0:
        return ""
    change = round(Fraction((now - before) * HUNDRED, before))
    if abs(change) >= 10 * HUNDRED:
        return f"{round(Fraction(now, before))} times"
    return f"{change:+d} %" if change else "±0 %"


def budget_name(budget: Budget) -> str:
    """Name a budget by its owner and window: "Key website, per month"."""
    owner = {
        "house": "The operator's budget",
        "tenant": "Budget of the whole tenant",
        "user": f"User {budget.user_name or budget.user_id}",
        "key": f"Key {budget.api_key_name or budget.api_key_id}",
    }[budget.owner]
    return f"{owner}, {'in total' if budget.window == 'total' else f'per {budget.window}'}"


def _grouped(amount: int, unit: int, places: int) -> str:
    """Round to a unit, half up, and write with separators."""
    units = (amount + unit // 2) // unit
    whole, rest = divmod(units, 10**places)
    return f"{whole:,}.{rest:0{places}d}"


def _significant(nano: int, digits: int = 3) -> str:
    """Write less than ten cents: at least cents, at most so many digits that matter."""
    keep = max(0, len(str(nano)) - digits)
    step = 10**keep
    return format_usd_short((nano + step // 2) // step * step)


def _plain(value: Fraction, places: int = 9) -> str:
    """Write a fraction as a decimal, without an exponent and trailing zeros."""
    scaled = round(value * 10**places)
    whole, rest = divmod(abs(scaled), 10**places)
    sign = "-" if scaled < 0 else ""
    return f"{sign}{whole}.{rest:0{places}d}".rstrip("0").rstrip(".")
