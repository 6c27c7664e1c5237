"""Money as integers: nano-US-dollars (1e-9 USD), exact addition, one upward rounding."""

from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow
from typing import NewType

NanoUsd = NewType("NanoUsd", int)
"""An amount of money in 1e-9 USD. 1 USD = 1_000_000_000."""

NANO_PER_USD = 1_000_000_000
TOKENS_PER_RATE = 1_000_000
MAX_AMOUNT_NANO = 1_000_000_000 * NANO_PER_USD
"""One billion dollars: far above any budget, far below what a BIGINT holds."""
# More digits than any amount has, so that excess digits are refused, never rounded.
_EXACT = Context(prec=60, traps=[InvalidOperation, Overflow, Inexact])


def token_cost(tokens: int, rate_nano_per_million: int) -> NanoUsd:
    """Compute the cost of `tokens` at a rate in nano-USD per million, rounded up once."""
    return NanoUsd(-(-tokens * rate_nano_per_million // TOKENS_PER_RATE))


def parse_usd(text: str) -> NanoUsd:
    """Read a decimal string such as `"12.50"` as nano-USD.

    Raises:
        ValueError: not a finite decimal, negative, finer than 1e-9 USD, or above one billion.
    """
    try:
        nano = _EXACT.multiply(Decimal(text), NANO_PER_USD)
    except DecimalException:
        raise ValueError(f"{text!r} is not an amount of US dollars, such as 12.50") from None
    if not nano.is_finite() or nano != nano.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of nano-dollars (9 decimals at most)")
    if not 0 <= nano <= MAX_AMOUNT_NANO:
        raise ValueError(f"{text!r} must be between 0 and 1000000000 US dollars")
    return NanoUsd(int(nano))


def format_usd(amount_nano: int) -> str:
    """Write nano-USD as a decimal string with nine decimals: `16_000_000` → `"0.016000000"`."""
    sign = "-" if amount_nano < 0 else ""
    whole, fraction = divmod(abs(amount_nano), NANO_PER_USD)
    return f"{sign}{whole}.{fraction:09d}"


def format_usd_short(amount_nano: int) -> str:
    """Write nano-USD exactly, without trailing zeros: `5_920_000` → `"0.00592"`."""
    whole, fraction = format_usd(amount_nano).split(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"
