"""The geometry of charts, from exact numbers; `templates/charts.html` draws them as SVG.

A chart keeps its text at one size at any width: x positions and widths are percents of the plot,
y positions and heights are pixels. All functions are pure. Money comes as whole nano-dollars, other
numbers as int or Decimal; no float is involved. Numbers below zero are drawn as zero, and shown as
they are in the tooltip and the table.

    chart = stacked_bars(ChartData(
        key="spend", title="Spend by day", description="US dollars, by model",
        labels=("1 Nov", "2 Nov"), series=(Series("gpt-image-2", (5_000_000, 0)),), unit=USD,
    ))

and in a template: `{{ charts.figure(chart) }}`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from gateway.console import formats
from gateway.console.formats import DASH, count, money_axis, money_exact

Number = int | Decimal
HEIGHT = 220
"""The plot's height in pixels."""
LINE_WIDTH = 1000
"""The width of the coordinates of lines, which are stretched over the plot."""
MOST_TICKS = 5
MOST_LABELS = 10
MOST_LABELS_ON_PHONES = 4
COLOURS = 8
BAR_PART = Fraction(18, 25)
"""The part of a bar's slot that the bar fills."""
WIDEST_BAR = Fraction(8)
STEPS = (1, 2, 5, 10)
SPARK_HEIGHT = 36


@dataclass(frozen=True, slots=True)
class ChartUnit:
    """The texts of a chart's numbers: short on the axis, exact elsewhere.

    `is_whole`: ticks are whole numbers.
    """

    axis: Callable[[Fraction], str]
    exact: Callable[[Number], str]
    is_whole: bool = False


USD = ChartUnit(money_axis, lambda nano: money_exact(int(nano)))
COUNT = ChartUnit(lambda value: count(int(value)), lambda value: count(int(value)), is_whole=True)
MILLISECONDS = ChartUnit(
    lambda value: f"{count(int(value))} ms", lambda value: f"{count(int(value))} ms", is_whole=True
)


@dataclass(frozen=True, slots=True)
class Series:
    """Named numbers, one for each label; None: there is no number, which a line leaves out."""

    name: str
    values: tuple[Number | None, ...]


@dataclass(frozen=True, slots=True)
class ChartData:
    """Numbers to draw. `key` is unique on its page.

    `before`: a further series, drawn as a dashed line: the period before. `links`: for each label,
    the address of what lies behind it, for the table. `label_name`: the heading of the labels.
    """

    key: str
    title: str
    description: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    unit: ChartUnit
    before: Series | None = None
    links: tuple[str, ...] = ()
    label_name: str = "Day"

    def __post_init__(self) -> None:
        """Refuse series of another length than the labels."""
        every = (*self.series, *(() if self.before is None else (self.before,)))
        if any(len(series.values) != len(self.labels) for series in every):
            raise ValueError(f"chart {self.key}: each series needs {len(self.labels)} values")

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing would be drawn."""
        return not any(value for series in self.series for value in series.values)


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid: y in pixels."""

    y: str
    text: str


@dataclass(frozen=True, slots=True)
class Label:
    """A text below the plot: x in percent. `is_minor`: left out on phones."""

    x: str
    text: str
    is_minor: bool


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a stack: x and width in percent, y and height in pixels; `colour` from 1 on."""

    x: str
    width: str
    y: str
    height: str
    colour: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The column of one label, over the whole height, with the text of its tooltip."""

    x: str
    width: str
    tip: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line's path in the coordinates of `LINE_WIDTH` times the height; `dots` stand alone."""

    name: str
    path: str
    area: str
    dots: tuple[tuple[str, str], ...]
    colour: int


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart to draw, and its numbers for the table."""

    data: ChartData
    ticks: tuple[Tick, ...]
    labels: tuple[Label, ...]
    slots: tuple[Slot, ...]
    lines: tuple[Line, ...] = ()
    before: Line | None = None
    height: int = HEIGHT

    @property
    def rows(self) -> tuple[tuple[str, tuple[str, ...], str], ...]:
        """The rows of the table: label, the exact texts of its numbers, and its link, if any."""
        every = (*self.data.series, *(() if self.data.before is None else (self.data.before,)))
        links = self.data.links or ("",) * len(self.data.labels)
        columns = [
            formats.aligned([_exact(self.data.unit, value) for value in one.values])
            for one in every
        ]
        return tuple(
            (label, tuple(column[at] for column in columns), links[at])
            for at, label in enumerate(self.data.labels)
        )


def stacked_bars(data: ChartData) -> Chart:
    """Draw a bar for each label, its parts one above the other, and the period before as a line."""
    totals = [
        Fraction(sum(max(series.values[at] or 0, 0) for series in data.series))
        for at in range(len(data.labels))
    ]
    highest = max([*totals, *_numbers(data.before)], default=Fraction())
    top, ticks = _axis(data.unit, highest)
    slots = tuple(_slot(data, at, tuple(_stack(data, at, top))) for at in range(len(data.labels)))
    before = None if data.before is None else _line(data.before, top, colour=0)
    return Chart(data, ticks, _labels(data.labels), slots, before=before)


def lines(data: ChartData) -> Chart:
    """Draw a line for each series."""
    every = [number for series in data.series for number in _numbers(series)]
    top, ticks = _axis(data.unit, max(every, default=Fraction()))
    drawn = tuple(_line(series, top, colour=_colour(at)) for at, series in enumerate(data.series))
    slots = tuple(_slot(data, at, ()) for at in range(len(data.labels)))
    return Chart(data, ticks, _labels(data.labels), slots, lines=drawn)


def sparkline(values: Sequence[Number]) -> Line:
    """Draw a small line without axes, over `SPARK_HEIGHT` pixels."""
    series = Series("", tuple(values))
    highest = max(_numbers(series), default=Fraction()) or Fraction(1)
    return _line(series, highest, colour=1, height=SPARK_HEIGHT, is_centred=False)


def percent_of(part: Number, whole: Number) -> str:
    """Return a part as the percent of a whole, from 0 to 100, such as "12.5%"."""
    if whole <= 0:
        return "0%"
    share = min(Fraction(1), _positive(part) / Fraction(whole))
    return _percent(share * 100)


@dataclass(frozen=True, slots=True)
class Meter:
    """A budget's bar, in percents of its limit: what is spent, then what is held."""

    spent: str
    held_from: str
    held: str
    level: str
    """"", "warn" from 80 % on, "bad" from 100 % on."""
    text: str


def meter(spent: Number, held: Number, limit: Number) -> Meter:
    """Draw the use of a budget; a limit of 0 is used up."""
    whole = Fraction(limit)
    used = _positive(spent) + _positive(held)
    share = used / whole if whole > 0 else Fraction(1)
    spent_part = min(Fraction(1), _positive(spent) / whole) if whole > 0 else Fraction(1)
    held_part = min(Fraction(1), share) - spent_part
    level = "bad" if share >= 1 else "warn" if share >= Fraction(4, 5) else ""
    return Meter(
        _percent(spent_part * 100),
        _percent(spent_part * 100),
        _percent(held_part * 100),
        level,
        f"{int(share * 100)} %",
    )


def nice_ticks(highest: Fraction, *, is_whole: bool = False) -> tuple[Fraction, ...]:
    """Choose round numbers from 0 to at least `highest`, at most `MOST_TICKS` above 0."""
    if highest <= 0:
        return (Fraction(), Fraction(1))
    power = Fraction(1)
    least = highest / MOST_TICKS
    while power * 10 <= least:
        power *= 10
    while power > least:
        power /= 10
    step = next(power * size for size in STEPS if power * size >= least)
    if is_whole:
        step = Fraction(max(1, -(-step.numerator // step.denominator)))
    number = -(-highest // step)
    return tuple(step * at for at in range(int(number) + 1))


def _axis(unit: ChartUnit, highest: Fraction) -> tuple[Fraction, tuple[Tick, ...]]:
    values = nice_ticks(highest, is_whole=unit.is_whole)
    top = values[-1]
    return top, tuple(Tick(_pixels(_y(value, top)), unit.axis(value)) for value in values)


def _labels(texts: Sequence[str]) -> tuple[Label, ...]:
    every = max(1, -(-len(texts) // MOST_LABELS))
    on_phones = every * max(1, -(-len(texts) // (every * MOST_LABELS_ON_PHONES)))
    return tuple(
        Label(_percent(_centre(at, len(texts))), text, is_minor=at % on_phones != 0)
        for at, text in enumerate(texts)
        if at % every == 0
    )


def _slot(data: ChartData, at: int, bars: tuple[Bar, ...]) -> Slot:
    width = Fraction(100, len(data.labels))
    return Slot(_percent(width * at), _percent(width), _tip(data, at), bars)


def _stack(data: ChartData, at: int, top: Fraction) -> list[Bar]:
    """Stack the parts of one label; each begins exactly where the one below it ends."""
    number = len(data.labels)
    width = min(BAR_PART * 100 / number, WIDEST_BAR)
    x, wide = _percent(_centre(at, number) - width / 2), _percent(width)
    edges: list[Number] = [0]
    for series in data.series:
        edges.append(edges[-1] + max(series.values[at] or 0, 0))
    # Whole hundredths of a pixel by one division: a page has hundreds of edges.
    whole, part = (HEIGHT * 100 / top).as_integer_ratio()
    heights = [HEIGHT * 100 - _rounded(edge * whole, part) for edge in edges]
    return [
        Bar(x, wide, _hundredths(upper), _hundredths(lower - upper), colour)
        for colour, (lower, upper) in enumerate(pairwise(heights), 1)
        if lower > upper
        for colour in [_colour(colour - 1)]
    ]


def _line(
    series: Series, top: Fraction, *, colour: int, height: int = HEIGHT, is_centred: bool = True
) -> Line:
    """Draw the path of a series, broken where there is no number."""
    number = len(series.values)
    runs: list[list[tuple[Fraction, Fraction]]] = [[]]
    for at, value in enumerate(series.values):
        if value is None:
            runs.append([])
            continue
        edge = Fraction(100 * at, number - 1) if number > 1 else Fraction(50)
        x = (_centre(at, number) if is_centred else edge) * LINE_WIDTH / 100
        runs[-1].append((x, _y(_positive(value), top, height)))
    long = [run for run in runs if len(run) > 1]
    alone = [run[0] for run in runs if len(run) == 1]
    return Line(
        series.name,
        " ".join(_path(run) for run in long),
        " ".join(_area(run, height) for run in long),
        tuple((_percent(x * 100 / LINE_WIDTH), _pixels(y)) for x, y in alone),
        colour,
    )


def _path(run: Sequence[tuple[Fraction, Fraction]]) -> str:
    return "M" + " L".join(f"{_pixels(x)} {_pixels(y)}" for x, y in run)


def _area(run: Sequence[tuple[Fraction, Fraction]], height: int) -> str:
    return f"{_path(run)} L{_pixels(run[-1][0])} {height} L{_pixels(run[0][0])} {height} Z"


def _tip(data: ChartData, at: int) -> str:
    known = [(series.name, series.values[at]) for series in data.series]
    shown = [
        f"{name}: {_exact(data.unit, value)}"
        for name, value in known
        if value or len(data.series) == 1
    ]
    numbers = [value for _, value in known if value is not None]
    if len(shown) > 1:
        shown.append(f"Total: {data.unit.exact(sum(numbers))}")
    if data.before is not None:
        shown.append(f"{data.before.name}: {_exact(data.unit, data.before.values[at])}")
    return "\n".join([data.labels[at], *(shown or [data.unit.exact(0)])])


def _exact(unit: ChartUnit, value: Number | None) -> str:
    return DASH if value is None else unit.exact(value)


def _numbers(series: Series | None) -> list[Fraction]:
    values = () if series is None else series.values
    return [_positive(value) for value in values if value is not None]


def _positive(value: Number | None) -> Fraction:
    return max(Fraction(), Fraction(value or 0))


def _centre(at: int, number: int) -> Fraction:
    return Fraction(100 * (2 * at + 1), 2 * number)


def _colour(at: int) -> int:
    return min(at, COLOURS - 1) + 1


def _y(value: Fraction, top: Fraction, height: int = HEIGHT) -> Fraction:
    return height - min(Fraction(1), value / top) * height


def _rounded(number: Number, part: int) -> int:
    """Divide and round to the nearest whole number, half up."""
    return int((2 * number + part) // (2 * part))


def _percent(value: Fraction) -> str:
    return f"{_thousandths(round(value * 1000))}%"


def _pixels(value: Fraction) -> str:
    return _hundredths(round(value * 100))


def _hundredths(value: int) -> str:
    return _decimal(value, 2)


def _thousandths(value: int) -> str:
    return _decimal(value, 3)


def _decimal(value: int, places: int) -> str:
    """Write a whole number of parts as a decimal: never an exponent, and no trailing zeros."""
    sign, digits = "-" if value < 0 else "", str(abs(value)).rjust(places + 1, "0")
    return f"{sign}{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")
