"""Forms: reading what was typed, and showing a refused form again with the reason at its field.

    async def change() -> str:
        limit_nano = usd(form, "limit_usd")
        …
        return f"{PATH}?done=set"

    return await sent("budget", form, change, partial(show_page, …))

In a template: `{{ ui.input("limit_usd", "Limit", state.value("budget", "limit_usd"),
error=state.error("budget", "limit_usd")) }}`. Errors of other fields: `state.notice("budget")`.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from starlette.responses import Response

from gateway.console.dependencies import redirect
from gateway.errors import Conflict, GatewayError, InvalidRequest, NotFound
from gateway.money import NanoUsd, parse_usd
from gateway.request_record import current

REFUSALS = (InvalidRequest, NotFound, Conflict)
"""The errors that a person can mend in the form."""
MAX_QUOTED = 40
MAX_WHOLE = 2**63 - 1
MAX_SECONDS = 1_000_000_000
GRACES = (
    ("0", "at once"),
    ("3600", "in an hour"),
    ("86400", "in a day"),
    ("604800", "in a week"),
    ("2592000", "in 30 days"),
)
"""The times after which a rolled secret can end, in seconds."""
_DIGITS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")
_GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
"""An amount with commas between thousands. A decimal comma would multiply it: it is refused."""
_WHOLE = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class FormState:
    """A form as a page shows it: untouched, or refused, with what was typed.

    `name`: the refused form, of several on a page. `at`: the field of the error.
    """

    name: str = ""
    message: str = ""
    at: str = ""
    status: int = 200
    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    def value(self, form: str, name: str, usual: object = "") -> str:
        """Return what was typed into a field, or its usual value."""
        if form == self.name:
            return self.values.get(name, "")
        return "" if usual is None else str(usual)

    def error(self, form: str, name: str) -> str:
        """Return the error of a field."""
        return self.message if form == self.name and name == self.at else ""

    def notice(self, form: str) -> str:
        """Return the error of a form that belongs to none of its fields."""
        is_elsewhere = form == self.name and self.at not in self.values
        return self.message if is_elsewhere else ""

    def is_open(self, form: str) -> bool:
        """Tell whether this form was refused: its dialog or section is shown open."""
        return form == self.name


UNTOUCHED = FormState()


def refused(name: str, form: Mapping[str, str], error: GatewayError) -> FormState:
    """Build the state of a refused form, and note the refusal in the request's record."""
    current().fail(error)
    return FormState(name, error.message, error.param or "", error.status, dict(form))


async def sent(
    name: str,
    form: Mapping[str, str],
    change: Callable[[], Awaitable[str]],
    show: Callable[..., Awaitable[Response]],
) -> Response:
    """Make the change of a form, and lead to the address that it returns.

    A refused form is shown again: `show` gets its state as `state`.
    """
    try:
        path = await change()
    except REFUSALS as error:
        return await show(state=refused(name, form, error))
    return redirect(path)


def typed(form: Mapping[str, str], name: str) -> str:
    """Return a field without spaces around it; "" if it is missing."""
    return form.get(name, "").strip()


def usd(form: Mapping[str, str], name: str) -> NanoUsd:
    """Read an amount of US dollars.

    Raises:
        InvalidRequest: it is none.
    """
    text = typed(form, name).removeprefix("$")
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    try:
        amount = parse_usd(text)
    except ValueError:
        amount = None
    if amount is None or not _DIGITS.fullmatch(text):
        raise InvalidRequest(
            "Enter US dollars from 0 to 1000000000 in digits, with a point before the cents, such "
            f"as 12.50 or 1,000.50 (got {_quoted(form, name)}).",
            param=name,
        )
    return amount


def usd_or_none(form: Mapping[str, str], name: str) -> NanoUsd | None:
    """Read an amount of US dollars; None if the field is empty."""
    return usd(form, name) if typed(form, name) else None


def whole(form: Mapping[str, str], name: str, *, at_most: int = MAX_WHOLE) -> int:
    """Read a whole number from 0 to `at_most`.

    Raises:
        InvalidRequest: it is none.
    """
    text = typed(form, name)
    if not _WHOLE.fullmatch(text) or int(text) > at_most:
        raise InvalidRequest(
            f"Enter a whole number from 0 to {at_most} (got {_quoted(form, name)}).", param=name
        )
    return int(text)


def grace(form: Mapping[str, str]) -> timedelta:
    """Read the time that a rolled secret stays valid; the core knows how long it may be.

    Raises:
        InvalidRequest: it is no number of seconds.
    """
    return timedelta(seconds=whole(form, "grace", at_most=MAX_SECONDS))


def moment(form: Mapping[str, str], name: str, zone: str) -> datetime:
    """Read a date and time of a zone, as browsers send it, or with an offset.

    Raises:
        InvalidRequest: it is none.
    """
    text = typed(form, name)
    try:
        found = datetime.fromisoformat(text)
        local = found if found.tzinfo else found.replace(tzinfo=ZoneInfo(zone))
        return local.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"Enter a date and time such as 2026-12-01T08:00 (got {_quoted(form, name)}).",
            param=name,
        ) from None


def moment_or_none(form: Mapping[str, str], name: str, zone: str) -> datetime | None:
    """Read a date and time of a zone; None if the field is empty."""
    return moment(form, name, zone) if typed(form, name) else None


def one_of(form: Mapping[str, str], name: str, allowed: Sequence[str]) -> str:
    """Read a choice.

    Raises:
        InvalidRequest: it is none of those allowed.
    """
    text = typed(form, name)
    if text not in allowed:
        raise InvalidRequest(
            f"{name} must be one of {', '.join(allowed)} (got {_quoted(form, name)}).", param=name
        )
    return text


def uuid_or_none(text: str) -> UUID | None:
    """Read an id; None if the text is not one."""
    try:
        return UUID(text.strip())
    except ValueError:
        return None


def _quoted(form: Mapping[str, str], name: str) -> str:
    text = typed(form, name)[:MAX_QUOTED]
    return repr(text) if text else "nothing"
