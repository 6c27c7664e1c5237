"""Charts: their geometry for any numbers, and the page that shows them."""

import re
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console import charts, formats
from gateway.console.charts import COUNT, HEIGHT, USD, ChartData, Series
from gateway.console.render import NO_SHELL, environment

AMOUNTS = st.integers(min_value=-(10**12), max_value=10**18)
NUMBERS = st.none() | AMOUNTS | st.decimals(0, 10**9, allow_nan=False, places=3)


@st.composite
def chart_data(
    draw: st.DrawFn, numbers: st.SearchStrategy[charts.Number | None] = AMOUNTS
) -> ChartData:
    """Series of equal length, money or counts, with or without the period before."""
    length = draw(st.integers(0, 70))
    values = st.lists(numbers, min_size=length, max_size=length).map(tuple)
    series = tuple(Series(f"model {at}", draw(values)) for at in range(draw(st.integers(0, 12))))
    before = Series("before", draw(values)) if draw(st.booleans()) else None
    return ChartData(
        key="c",
        title="Spend",
        description="By day",
        labels=tuple(f"day {at}" for at in range(length)),
        series=series,
        unit=draw(st.sampled_from([USD, COUNT])),
        before=before,
    )


def number(text: str) -> Fraction:
    """The exact number of an attribute: digits with a decimal point, maybe a percent sign."""
    assert re.fullmatch(r"-?\d+(\.\d+)?%?", text), text
    return Fraction(Decimal(text.rstrip("%")))


@given(chart_data())
def test_bars_stay_in_the_plot_and_stacks_are_as_high_as_their_sum(data: ChartData) -> None:
    chart = charts.stacked_bars(data)
    top = max((number(tick.y) for tick in chart.ticks), default=Fraction(HEIGHT))
    assert top == HEIGHT
    positive = [
        [max(0, int(series.values[at] or 0)) for series in data.series]
        for at in range(len(data.labels))
    ]
    for values, slot in zip(positive, chart.slots, strict=True):
        for bar in slot.bars:
            x, width = number(bar.x), number(bar.width)
            y, height = number(bar.y), number(bar.height)
            assert 0 <= x <= x + width <= 100
            assert 0 <= y <= y + height <= HEIGHT
            assert height > 0
            assert 1 <= bar.colour <= charts.COLOURS
        # Parts touch: each begins exactly where the one below it ends.
        edges = [number(bar.y) + number(bar.height) for bar in slot.bars]
        assert edges == [Fraction(HEIGHT), *(number(bar.y) for bar in slot.bars)][: len(edges)]
        total = sum(number(bar.height) for bar in slot.bars)
        axis = charts.nice_ticks(
            max(
                [Fraction(sum(one)) for one in positive]
                + [
                    Fraction(max(0, int(v or 0)))
                    for v in (data.before.values if data.before else ())
                ]
                + [Fraction()]
            ),
            is_whole=data.unit.is_whole,
        )[-1]
        assert abs(total - HEIGHT * Fraction(sum(values)) / axis) <= Fraction(1, 100)


@given(chart_data(NUMBERS))
def test_lines_stay_in_the_plot_and_break_where_there_is_no_number(data: ChartData) -> None:
    chart = charts.lines(data)
    for series, line in zip(data.series, chart.lines, strict=True):
        drawn = re.findall(r"[ML](\S+) (\S+)", line.path)
        known = sum(value is not None for value in series.values)
        assert len(drawn) + len(line.dots) == known
        for x, y in drawn:
            assert 0 <= number(x) <= charts.LINE_WIDTH
            assert 0 <= number(y) <= HEIGHT
        for x, y in line.dots:
            assert 0 <= number(x) <= 100
            assert 0 <= number(y) <= HEIGHT


@given(st.fractions(min_value=0, max_value=10**20), st.booleans())
def test_ticks_are_few_and_round_and_reach_the_highest_number(
    highest: Fraction,
    is_whole: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    ticks = charts.nice_ticks(highest, is_whole=is_whole)
    assert ticks[0] == 0
    assert ticks[-1] >= highest
    assert 2 <= len(ticks) <= charts.MOST_TICKS + 1
    steps = {later - earlier for earlier, later in pairwise(ticks)}
    assert len(steps) == 1
    digits = str((steps.pop() * 10**40).numerator).rstrip("0")
    assert digits in {"1", "2", "5"}
    assert not is_whole or all(tick.denominator == 1 for tick in ticks)


@given(AMOUNTS, AMOUNTS, st.integers(0, 10**18))
def test_a_budget_is_never_drawn_longer_than_its_limit(spent: int, held: int, limit: int) -> None:
    meter = charts.meter(spent, held, limit)
    assert number(meter.spent) >= 0
    assert number(meter.held) >= 0
    assert number(meter.spent) + number(meter.held) <= Fraction(100_001, 1000)
    assert meter.level in {"", "warn", "bad"}


@given(AMOUNTS)
def test_exact_amounts_have_every_digit(nano: int) -> None:
    text = formats.money_exact(nano).replace(",", "").replace("$", "")
    assert Decimal(text) * 10**9 == nano


@given(AMOUNTS)
def test_short_amounts_are_off_by_less_than_half_a_cent_or_a_percent(nano: int) -> None:
    shown = Decimal(formats.money(nano).replace(",", "").replace("$", "")) * 10**9
    half_a_cent = 5 * 10**6 if abs(nano) >= 10**8 else 0
    assert abs(shown - nano) <= max(Decimal(abs(nano)) / 100, Decimal(half_a_cent))


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (5_920_000, "$0.00592"),
        (85_500_000, "$0.0855"),
        (606_000_000, "$0.61"),
        (999_999_999, "$1.00"),
        (1_234_567_890_000, "$1,234.57"),
        (-1_500_000_000, "-$1.50"),
        (None, "\N{EN DASH}"),
    ],
)
def test_amounts_are_shown_with_the_digits_that_matter(nano: int | None, text: str) -> None:
    assert formats.money(nano) == text


def test_a_chart_has_a_title_a_description_and_a_table_with_exact_amounts() -> None:
    data = ChartData(
        key="spend",
        title="Spend <by> day",
        description="US dollars",
        labels=("1 Nov", "2 Nov"),
        series=(Series("<script>alert(1)</script>", (5_920_000, 0)),),
        unit=USD,
        before=Series("Before", (1, 2)),
        links=("/console/costs?day=1", "/console/costs?day=2"),
    )
    template = environment().from_string(
        '{% import "charts.html" as charts %}{{ charts.figure(chart) }}'
    )
    text = template.render(chart=charts.stacked_bars(data), shell=NO_SHELL)
    assert 'role="img" aria-labelledby="spend-title spend-desc"' in text
    assert "Spend &lt;by&gt; day" in text
    assert "<script>" not in text
    assert '<a href="/console/costs?day=1">1 Nov</a>' in text
    assert '<td class="num">$0.00592</td>' in text
    assert '<td class="num">$0.00000</td>' in text
    assert "style=" not in text


def test_a_chart_without_numbers_says_so() -> None:
    data = ChartData("k", "Spend", "", ("1 Nov",), (Series("a", (0,)),), USD)
    template = environment().from_string(
        '{% import "charts.html" as charts %}{{ charts.figure(chart) }}'
    )
    text = template.render(chart=charts.stacked_bars(data), shell=NO_SHELL)
    assert "nothing to draw" in text
    assert "<rect" not in text


def test_series_of_another_length_than_the_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="each series needs 1 values"):
        ChartData("k", "t", "d", ("1 Nov",), (Series("a", (1, 2)),), USD)
