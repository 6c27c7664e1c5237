"""Commands for prices and usage reports."""

import sys
import tomllib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from gateway.billing import prices as pricing
from gateway.billing import usage as reporting
from gateway.billing.reports import csv_header, csv_row, render_report, render_row, render_sums
from gateway.billing.usage_queries import GROUP_FIELDS, ReportQuery, UsageFilters
from gateway.cli.output import JsonOption, console, invoker, print_json, read, refuse, run, show
from gateway.core import Core, Reader
from gateway.db.engine import OperatorSession
from gateway.domain import Price
from gateway.image_models import SeedPrice, Unit
from gateway.money import format_usd_short, parse_usd
from gateway.tenancy import lookups

prices = typer.Typer(help="Price versions; immutable, new ones are added.", no_args_is_help=True)


HEADINGS = {
    "failed_requests": "failed",
    "estimated_requests": "estimated",
    "open_requests": "open",
    "input_tokens": "tokens_in",
    "output_tokens": "tokens_out",
}
COUNTS = ("requests", "failed", "estimated", "open")
MONEY = ("cost_usd", "estimated_usd", "open_usd")


class ReportFormat(StrEnum):
    """The output format of a report."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    JSONL = "jsonl"


@prices.command("list")
def list_prices(
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List all price versions, in US dollars per million tokens or per image."""

    async def work(core: Reader) -> list[Price]:
        async with core.database.operator() as session:
            return await pricing.list_prices(session)

    found = [price for price in read(work) if model in {None, price.model}]
    if model is not None and not found:
        refuse(f"There is no price for {model}. `gateway prices list` shows all models.")
    _show_prices(found, as_json=as_json)


@prices.command("add")
def add_price(
    model: Annotated[str, typer.Option(help="Model of the price.")],
    text_input: Annotated[
        str | None, typer.Option(help="USD per million text input tokens.")
    ] = None,
    image_input: Annotated[
        str | None, typer.Option(help="USD per million image input tokens.")
    ] = None,
    image_output: Annotated[
        str | None, typer.Option(help="USD per million image output tokens.")
    ] = None,
    text_output: Annotated[
        str | None, typer.Option(help="USD per million text output tokens. Default: same as image.")
    ] = None,
    per_image: Annotated[
        str | None,
        typer.Option(
            help="USD per image, instead of token rates; e.g. for --model dall-e-2/512x512."
        ),
    ] = None,
    effective_from: Annotated[
        datetime | None, typer.Option(help="Start of the version (UTC). Default: now.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a price version. Calls reserved before its start are settled with the old one."""
    entry = {
        "model": model,
        "text_input": text_input,
        "image_input": image_input,
        "image_output": image_output,
        "text_output": text_output,
        "per_image": per_image,
        "effective_from": effective_from,
    }
    _add([{k: v for k, v in entry.items() if v is not None}], as_json=as_json)


@prices.command("import")
def import_prices(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="TOML: [[prices]] …")],
    as_json: JsonOption = False,
) -> None:
    """Add many price versions, all or none.

    The file holds [[prices]] tables with model, text_input, image_input, image_output and, where
    they apply, text_output and effective_from. Rates are strings: US dollars per million tokens.
    A model that bills by the image has per_image instead: US dollars per image.
    """
    try:
        entries = tomllib.loads(file.read_text())["prices"]
    except (tomllib.TOMLDecodeError, KeyError, UnicodeDecodeError, OSError) as error:
        refuse(f"{file} is not a valid price file ({type(error).__name__}: {error}).")
    if not isinstance(entries, list):
        refuse(f"{file} contains no [[prices]] tables.")
    _add(entries, as_json=as_json)


_TOKEN_RATES = ("text_input", "image_input", "image_output", "text_output")
_RATES = (*_TOKEN_RATES, "per_image", "per_second")
_ENTRY_KEYS = frozenset({"model", *_TOKEN_RATES, "per_image", "effective_from"})


def _add(entries: list[dict[str, Any]], *, as_json: bool) -> None:
    versions = [_version(number, entry) for number, entry in enumerate(entries, start=1)]

    async def work(core: Core) -> list[Price]:
        for (name, _, _), entry in zip(versions, entries, strict=True):
            unit = Unit.IMAGE if "per_image" in entry else Unit.TOKEN
            pricing.check(name, unit, core.catalog.models)
        async with core.database.operator(by=invoker()) as session:
            return [
                await pricing.add(session, model, rates, effective_from=start)
                for model, rates, start in versions
            ]

    _show_prices(run(work), as_json=as_json)


def _version(number: int, entry: object) -> tuple[str, SeedPrice, datetime]:
    where = f"Price {number}"
    if not isinstance(entry, dict):
        refuse(f"{where} is not a [[prices]] table.")
    if unknown := entry.keys() - _ENTRY_KEYS:
        refuse(
            f"{where} ({entry.get('model', 'no model')}) has an unknown key: {min(unknown)}. "
            f"Known: {', '.join(sorted(_ENTRY_KEYS))}."
        )
    try:
        return str(entry["model"]), _rates(entry), _start(entry)
    except KeyError as error:
        refuse(f"{where} ({entry.get('model', 'no model')}) lacks {error.args[0]}.")
    except (TypeError, ValueError) as error:
        refuse(f"{where} ({entry['model']}) cannot be read: {error}")


def _rates(entry: dict[str, Any]) -> SeedPrice:
    if "per_image" in entry:
        if any(name in entry for name in _TOKEN_RATES):
            raise ValueError("per_image excludes rates of tokens")
        return SeedPrice(0, 0, 0, 0, per_image_nano=parse_usd(str(entry["per_image"])))
    text_output = entry.get("text_output")
    if text_output is None:
        text_output = entry["image_output"]
    return SeedPrice(
        text_input_nano=parse_usd(str(entry["text_input"])),
        image_input_nano=parse_usd(str(entry["image_input"])),
        image_output_nano=parse_usd(str(entry["image_output"])),
        text_output_nano=parse_usd(str(text_output)),
    )


def _start(entry: dict[str, Any]) -> datetime:
    start = entry.get("effective_from") or datetime.now(UTC)
    if not isinstance(start, datetime):
        raise TypeError("effective_from must be a date-time, such as 2026-12-01T00:00:00Z")
    return start if start.tzinfo is not None else start.replace(tzinfo=UTC)


def _show_prices(found: list[Price], *, as_json: bool) -> None:
    if as_json:
        print_json([_price_row(price) for price in found])
        return
    show(
        [
            {
                "model": price.model,
                "from": f"{price.effective_from:%Y-%m-%d}",
                **{name.replace("put", ""): rate for name, rate in _rates_of(price).items()},
            }
            for price in found
        ],
        as_json=False,
        title="US dollars per million tokens, per image or per second",
        right=[name.replace("put", "") for name in _RATES],
    )


def _price_row(price: Price) -> dict[str, object]:
    return {
        "version": price.id,
        "model": price.model,
        "effective_from": price.effective_from,
        **_rates_of(price),
    }


def _rates_of(price: Price) -> dict[str, str]:
    return {name: format_usd_short(getattr(price, f"{name}_nano")) for name in _RATES}


@dataclass(frozen=True, slots=True)
class _ReportRequest:
    """The options of a report as given on the command line."""

    tenant: str | None
    start: str | None
    end: str | None
    last_month: bool
    group_by: str
    key: str | None
    user: str | None
    model: str | None
    zone: str | None
    modes: tuple[bool, ...]


def usage(
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Name or id. Default: every tenant.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="First day, e.g. 2026-11-01.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Last day, included.")] = None,
    last_month: Annotated[
        bool, typer.Option("--last-month", help="The calendar month before this one.")
    ] = False,
    group_by: Annotated[str, typer.Option(help=f"Any of {', '.join(GROUP_FIELDS)}.")] = "day,model",
    key: Annotated[
        str | None, typer.Option("--key", help="Only this key: id, name or last four characters.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only this user: name or id.")] = None,
    model: Annotated[str | None, typer.Option(help="Only calls served by this model.")] = None,
    zone: Annotated[
        str | None, typer.Option(help="Time zone of days and hours. Default: the tenant's.")
    ] = None,
    mode: Annotated[str, typer.Option(help="live, test or all.")] = "all",
    output: Annotated[ReportFormat, typer.Option("--format", help="Output format.")] = (
        ReportFormat.TABLE
    ),
    as_json: JsonOption = False,
) -> None:
    """Report usage and cost. Default: this month, live and test separately."""
    modes = {"live": (True,), "test": (False,), "all": (True, False)}.get(mode)
    if modes is None:
        raise typer.BadParameter("--mode must be live, test or all")
    if last_month and (start or end):
        raise typer.BadParameter("give either --last-month or --from and --to")
    asked = _ReportRequest(tenant, start, end, last_month, group_by, key, user, model, zone, modes)
    if output in {ReportFormat.CSV, ReportFormat.JSONL} and not as_json:
        read(lambda core: _export(core, asked, output))
    else:
        reports = read(lambda core: _reports(core, asked))
        _print_reports(reports, ReportFormat.JSON if as_json else output)


async def _queries(session: OperatorSession, asked: _ReportRequest) -> list[ReportQuery]:
    """Resolve the names in a request; one query for each mode."""
    grouping = reporting.parse_group_by(asked.group_by, allowed=GROUP_FIELDS)
    owner = None if asked.tenant is None else await lookups.find_tenant(session, asked.tenant)
    default = "UTC" if owner is None else owner.time_zone
    zone = await reporting.report_zone(session, asked.zone, default)
    start, end = reporting.last_month(zone) if asked.last_month else (asked.start, asked.end)
    period = reporting.parse_period(start, end, zone)
    tenant_id = None if owner is None else owner.id
    ids = await lookups.find_key_and_user(session, tenant_id, asked.key, asked.user)
    filters = UsageFilters(*ids, asked.model)
    return [
        ReportQuery(tenant_id, filters, livemode, period, grouping, asked.zone)
        for livemode in asked.modes
    ]


async def _reports(core: Reader, asked: _ReportRequest) -> list[reporting.UsageReport]:
    async with core.database.operator() as session:
        return [
            await reporting.report(session, query, limit=reporting.MAX_EXPORTED_ROWS)
            for query in await _queries(session, asked)
        ]


async def _export(core: Reader, asked: _ReportRequest, output: ReportFormat) -> None:
    """Print every row as it is read; in CSV, a column tells live from test if both are asked."""
    tells_mode = len(asked.modes) > 1
    async with core.database.operator() as session:
        for number, query in enumerate(await _queries(session, asked)):
            mode = str(query.livemode).lower()
            if output is ReportFormat.CSV and number == 0:
                sys.stdout.write("livemode," * tells_mode + csv_header(query))
            async for row in reporting.export(session, query):
                if output is ReportFormat.CSV:
                    sys.stdout.write(f"{mode}," * tells_mode + csv_row(row))
                else:
                    line = {"livemode": query.livemode, **render_row(query, row)}
                    sys.stdout.write(orjson.dumps(line).decode() + "\n")


def _has_calls(total: reporting.UsageRow) -> bool:
    return bool(total.requests or total.failed_requests or total.open_requests)


def _print_reports(reports: list[reporting.UsageReport], output: ReportFormat) -> None:
    if output is ReportFormat.JSON:
        rendered = [
            {"livemode": report.query.livemode, **render_report(report)} for report in reports
        ]
        print_json(rendered[0] if len(rendered) == 1 else rendered)
        return
    for report in reports:
        if not _has_calls(report.total) and len(reports) > 1:
            continue
        total = replace(report.total, group=("total", *[None] * (len(report.query.columns) - 1)))
        rows = [*report.rows, total] if report.query.group_by else [report.total]
        show(
            [
                {
                    **dict(zip(report.query.columns, row.group, strict=False)),
                    **{HEADINGS.get(name, name): value for name, value in render_sums(row).items()},
                }
                for row in rows
            ],
            as_json=False,
            title="Live" if report.query.livemode else "Test keys (sandbox: nothing was paid)",
            right=(*COUNTS, "images", "tokens_in", "tokens_out", *MONEY),
        )
        console.print()
    if not any(_has_calls(report.total) for report in reports):
        console.print("No usage in this period.")
