"""Pages and fragments as HTML: Jinja templates that escape everything and refuse unknown names.

A page's function computes plain values and hands them to `page`:

    return page(shell, "costs.html", title="Costs", report=report)

    {# templates/costs.html #}
    {% extends "page.html" %}
    {% block content %}
      {{ ui.tile("Spend", report.cost_nano | usd) }}
      <p>Since {{ report.start | time }}, {{ report.requests | count }} requests.</p>
    {% endblock %}

Filters: `usd` (rounded, the exact amount in its title), `usd_short` (rounded, a plain text),
`usd_exact`, `count`, `time`, `instant`, `clock` and `date` (in the shell's zone), `ago`, `ms`,
`size`. The macros of templates/ui.html and templates/charts.html are there in every template as
`ui` and `charts`; docs/console-pages.md shows them. A block of a template alone, for htmx and for
live tiles: `fragment(shell, "overview.html", "tiles", …)`.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

from fastapi import Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from gateway.console import charts, formats
from gateway.console.assets import assets
from gateway.console.navigation import (
    NavigationGroup,
    Side,
    current_path,
    navigation_for,
)
from gateway.identity.viewers import Permission
from gateway.webhooks import targets

MARK = "as"
"""The parameter of a form's address that says for whom, and for which tenant, its page was made."""
FORM = "form"
"""The parameter of a form's address that tells its page from the same page loaded again."""
_POST_FORM = re.compile(r'(<form\b[^>]*? method="post" action=")([^"#]*)')
TEMPLATES = Path(__file__).parent / "templates"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; object-src 'none'"
)
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    # A program that asks for JSON gets another answer at the same address.
    "Vary": "Accept, Cookie, HX-Request",
}
"""The headers of every page: nothing inline, nothing from elsewhere, in no frame, in no cache."""


@dataclass(frozen=True, slots=True)
class Flash:
    """A message about what was just done. `kind`: "good", "warn", "bad" or "info"."""

    text: str
    kind: str = "good"


@dataclass(frozen=True, slots=True)
class Crumb:
    """A page above this one."""

    label: str
    path: str


@dataclass(frozen=True, slots=True)
class Shell:
    """The frame around a page: who looks at it, and from where.

    `zone`: the time zone of all times on the page. `has_key`: it is the holder of an API key.
    `modes`: those that the viewer may choose. `tenant_name` and `livemode` are those of a
    tenant's portal. `visits`: an operator looks at the portal; `leave_path` ends that. `mark`: see
    `Viewer.mark`.
    """

    path: str
    name: str
    role: str
    side: Side
    zone: str = "UTC"
    tenant_name: str | None = None
    livemode: bool | None = None
    is_break_glass: bool = False
    leave_path: str | None = None
    sign_out_path: str = "/console/sign-out"
    sessions_path: str | None = None
    flashes: tuple[Flash, ...] = ()
    permissions: frozenset[Permission] = frozenset()
    has_key: bool = False
    modes: tuple[bool, ...] = ()
    mark: str = ""

    @property
    def navigation(self) -> list[NavigationGroup]:
        """The links that this viewer may follow."""
        return navigation_for(self.side, self.permissions, has_key=self.has_key)

    @property
    def current(self) -> str | None:
        """The path of the page's line in the navigation."""
        return current_path(self.side, self.path)


NO_SHELL = Shell(path="", name="", role="", side="operator")
"""For pages that stand alone, such as errors: times in UTC, no navigation."""


def page(
    shell: Shell,
    template: str,
    *,
    title: str,
    lead: str = "",
    crumbs: Sequence[Crumb] = (),
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: object,
) -> Response:
    """Render a page; `lead` is a sentence below its title."""
    text = render(shell, template, title=title, lead=lead, crumbs=tuple(crumbs), **context)
    return HTMLResponse(text, status_code=status, headers=PAGE_HEADERS | dict(headers or {}))


def render(shell: Shell, template: str, **context: object) -> str:
    """Render a template to text.

    Raises:
        jinja2.UndefinedError: the template uses a name that `context` lacks.
    """
    return _marked(shell, environment().get_template(template).render(shell=shell, **context))


def fragment(shell: Shell, template: str, block: str, **context: object) -> str:
    """Render one block of a template, with what the whole page would be given."""
    found = environment().get_template(template)
    known = found.new_context({"shell": shell, **context})
    return _marked(shell, "".join(found.blocks[block](known)))


def _marked(shell: Shell, text: str) -> str:
    """Put the marks of viewer and page into the address of every form that changes something.

    Here rather than in the templates, so that no form can be without it. Texts of users are
    escaped: none of them is a tag.
    """
    if not shell.mark:
        return text
    token = secrets.token_urlsafe(12)

    def add(found: re.Match[str]) -> str:
        joint = "&amp;" if "?" in found[2] else "?"
        return f"{found[1]}{found[2]}{joint}{MARK}={shell.mark}&amp;{FORM}={token}"

    return _POST_FORM.sub(add, text)


@cache
def environment() -> Environment:
    """Build the templates' environment, once in a process."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "asset": assets().url,
        "percent_of": charts.percent_of,
        "meter_of": charts.meter,
        "sparkline": charts.sparkline,
        "delta": formats.delta,
        "percent": formats.percent,
        "budget_name": formats.budget_name,
    }
    made.filters |= {
        "usd": _usd,
        "usd_short": formats.money,
        "usd_exact": formats.money_exact,
        "count": formats.count,
        "ms": formats.milliseconds,
        "size": formats.size,
        "time": _time,
        "clock": _clock,
        "instant": _instant,
        "date": _date,
        "ago": _ago,
        "iso_date": _iso_date,
        "origin": targets.shown,
    }
    # Globals rather than imports: a block that is rendered alone runs no import of its template.
    made.globals |= {
        "ui": made.get_template("ui.html").module,
        "charts": made.get_template("charts.html").module,
    }
    return made


def _usd(nano: int | None) -> Markup:
    """Show an amount, with all of its digits in its title."""
    if nano is None:
        return escape(formats.DASH)
    exact = formats.money_exact(nano)
    return Markup('<span class="tabular" title="{} USD">{}</span>').format(
        exact, formats.money(nano)
    )


@pass_context
def _time(context: Context, at: datetime | None) -> Markup:
    """Show a time in the page's zone, to the second and with the zone in its title."""
    if at is None:
        return escape(formats.DASH)
    zone = context["shell"].zone
    return Markup('<time class="nowrap" datetime="{}" title="{}">{}</time>').format(
        at.isoformat(), formats.moment_exact(at, zone), formats.moment(at, zone)
    )


@pass_context
def _instant(context: Context, at: datetime | None) -> Markup:
    """Show a time to the millisecond, where its order among others matters."""
    if at is None:
        return escape(formats.DASH)
    zone = context["shell"].zone
    return Markup('<time class="nowrap" datetime="{}" title="{}">{}</time>').format(
        at.isoformat(), formats.moment_exact(at, zone), formats.instant(at, zone)
    )


@pass_context
def _clock(context: Context, at: datetime) -> str:
    """Show the time of day in the page's zone, to the second, with the zone."""
    zone = context["shell"].zone
    return f"{at.astimezone(ZoneInfo(zone)):%H:%M:%S} {zone}"


@pass_context
def _ago(context: Context, at: datetime | None) -> Markup:
    """Show how long a time is past or ahead, with the time in its title."""
    if at is None:
        return Markup("never")
    return Markup('<time class="nowrap" datetime="{}" title="{}">{}</time>').format(
        at.isoformat(), formats.moment_exact(at, context["shell"].zone), formats.ago(at)
    )


@pass_context
def _iso_date(context: Context, at: datetime, zone: str | None = None) -> str:
    """Write the date of a time in a zone, usually the page's, as addresses have it."""
    return at.astimezone(ZoneInfo(zone or context["shell"].zone)).date().isoformat()


def _date(on: date | None) -> str:
    return formats.day(on)
