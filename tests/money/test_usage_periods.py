"""The period of a usage report: days and months of the tenant's time zone."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from gateway.billing.usage import last_month, parse_moment, parse_period
from gateway.billing.usage_queries import Period
from gateway.errors import InvalidRequest

VIENNA = "Europe/Vienna"


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_last_month_ends_on_the_day_before_this_month_of_the_zone(zone: str) -> None:
    first, last = (date.fromisoformat(day) for day in last_month(zone))
    today = datetime.now(ZoneInfo(zone)).date()
    assert last + timedelta(days=1) == today.replace(day=1)
    assert first == last.replace(day=1)


@pytest.mark.parametrize(
    ("text", "is_end", "moment"),
    [
        # On that day summer time begins: it is 23 hours long.
        ("2026-03-29", False, datetime(2026, 3, 28, 23, tzinfo=UTC)),
        ("2026-03-29", True, datetime(2026, 3, 29, 22, tzinfo=UTC)),
        ("20260329", True, datetime(2026, 3, 29, 22, tzinfo=UTC)),
        ("2026-07-01T12:00:00", False, datetime(2026, 7, 1, 10, tzinfo=UTC)),
        ("2026-07-01T12:00:00", True, datetime(2026, 7, 1, 10, tzinfo=UTC)),
        ("2026-07-01T12:00:00-04:00", False, datetime(2026, 7, 1, 16, tzinfo=UTC)),
    ],
)
def test_a_bound_is_an_instant_or_the_start_or_end_of_a_day(
    text: str,
    is_end: bool,  # noqa: FBT001
    moment: datetime,
) -> None:
    assert parse_moment(text, "start", VIENNA, is_end=is_end) == moment


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-02-30", "9999-12-31", "now"])
def test_a_bound_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_moment(text, "end", VIENNA, is_end=True)
    assert refused.value.param == "end"


def test_a_period_of_one_day_ends_where_the_next_begins() -> None:
    day = Period(datetime(2026, 7, 1, 22, tzinfo=UTC), datetime(2026, 7, 2, 22, tzinfo=UTC))
    assert parse_period("2026-07-02", "2026-07-02", VIENNA) == day


@pytest.mark.parametrize("end", ["2026-07-01", "2026-07-02T00:00:00"])
def test_a_period_must_have_a_length(end: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_period("2026-07-02", end, VIENNA)
    assert refused.value.param == "start"


def test_a_period_without_bounds_is_this_month_until_now() -> None:
    now = datetime.now(ZoneInfo(VIENNA))
    period = parse_period(None, None, VIENNA)
    assert period.start == datetime(now.year, now.month, 1, tzinfo=ZoneInfo(VIENNA))
    minute = timedelta(minutes=1)
    assert now + minute <= period.end <= datetime.now(ZoneInfo(VIENNA)) + minute
