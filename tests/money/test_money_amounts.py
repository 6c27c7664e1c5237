"""Amounts of money: read and written exactly, rounded upwards once."""

import pytest

from gateway.money import MAX_AMOUNT_NANO, format_usd, format_usd_short, parse_usd, token_cost


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("-0", 0),
        ("12.50", 12_500_000_000),
        ("0.000000001", 1),
        ("1e-9", 1),
        ("1000000000", MAX_AMOUNT_NANO),
    ],
)
def test_an_amount_is_read_exactly(text: str, nano: int) -> None:
    assert parse_usd(text) == nano


@pytest.mark.parametrize(
    "text",
    [
        *("", "a lot", "12,50", "$1", "NaN", "Infinity", "-Infinity", "sNaN"),
        *("-0.000000001", "-1", "0.0000000001", "1.0000000005", "1e-60"),
        *("1000000000.000000001", "1e10", "1e999", "1" * 80),
    ],
)
def test_no_other_text_is_an_amount(text: str) -> None:
    with pytest.raises(ValueError, match=r"US dollars|nano-dollars"):
        parse_usd(text)


@pytest.mark.parametrize(
    ("nano", "text", "short"),
    [
        (0, "0.000000000", "0.00"),
        (1, "0.000000001", "0.000000001"),
        (-1, "-0.000000001", "-0.000000001"),
        (5_920_000, "0.005920000", "0.00592"),
        (-1_500_000_000, "-1.500000000", "-1.50"),
        (12_000_000_000, "12.000000000", "12.00"),
        (MAX_AMOUNT_NANO, "1000000000.000000000", "1000000000.00"),
    ],
)
def test_an_amount_is_written_exactly(nano: int, text: str, short: str) -> None:
    assert (format_usd(nano), format_usd_short(nano)) == (text, short)


@pytest.mark.parametrize(
    ("tokens", "rate", "nano"),
    [(0, 5, 0), (1, 0, 0), (1, 1, 1), (1_000_000, 7, 7), (1_000_001, 1, 2), (3, 500_000, 2)],
)
def test_a_cost_is_rounded_up_to_the_next_nano_dollar(tokens: int, rate: int, nano: int) -> None:
    assert token_cost(tokens, rate) == nano
