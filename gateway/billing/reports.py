"""Rendering of usage reports and budgets for every front, as JSON objects and CSV."""

import csv
import io
from collections.abc import Sequence

from gateway.billing import budgets
from gateway.billing.usage import UsageReport, UsageRow, cursor_of
from gateway.billing.usage_queries import ReportQuery
from gateway.money import format_usd, format_usd_short


def render_budget(budget: budgets.Budget) -> dict[str, object]:
    """Render one budget; money as decimal strings."""
    return {
        "object": "budget",
        "id": str(budget.id),
        "owner": budget.owner,
        "livemode": budget.livemode,
        "window": budget.window,
        "limit_usd": format_usd_short(budget.limit_nano),
        "raise": None
        if budget.raised_to_nano is None or budget.raised_until is None
        else {
            "limit_usd": format_usd_short(budget.raised_to_nano),
            "until": budget.raised_until.isoformat(),
        },
        "enforcement": budget.enforcement,
        "alert_percents": list(budget.alert_percents),
        "spent_usd": format_usd(budget.spent_nano),
        "held_usd": format_usd(budget.held_nano),
        "remaining_usd": format_usd(budget.remaining_nano),
        "period_start": budget.period_start.isoformat() if budget.period_start else None,
        "resets_at": budget.resets_at.isoformat() if budget.resets_at else None,
    }


def render_sums(row: UsageRow) -> dict[str, int | str]:
    """Render the sums of a report or of one of its groups; money as decimal strings."""
    return {
        "requests": row.requests,
        "failed_requests": row.failed_requests,
        "estimated_requests": row.estimated_requests,
        "open_requests": row.open_requests,
        "images": row.images,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cost_usd": format_usd(row.cost_nano),
        "estimated_usd": format_usd(row.estimated_nano),
        "open_usd": format_usd(row.open_nano),
    }


def render_report(report: UsageReport) -> dict[str, object]:
    """Render a report as in the public contract; money as decimal strings."""
    return {
        "object": "usage_report",
        "currency": "usd",
        "start": report.query.period.start.isoformat(),
        "end": report.query.period.end.isoformat(),
        "group_by": list(report.query.group_by),
        "data": [render_row(report.query, row) for row in report.rows],
        "total": render_sums(report.total),
        "has_more": report.has_more,
        "next_after": cursor_of(report.rows[-1].group) if report.has_more else None,
    }


def render_row(query: ReportQuery, row: UsageRow) -> dict[str, int | str | None]:
    """Render one row of a report, with the names of its group."""
    return {**dict(zip(query.columns, row.group, strict=True)), **render_sums(row)}


def csv_header(query: ReportQuery) -> str:
    """Render the first line of a report as CSV, with its line end."""
    return csv_line([*query.columns, *render_sums(UsageRow(()))])


def csv_row(row: UsageRow) -> str:
    """Render one row of a report as CSV, with its line end."""
    return csv_line([*(csv_text(value) for value in row.group), *render_sums(row).values()])


def csv_line(cells: Sequence[int | str]) -> str:
    """Render cells as one line of CSV, with its end."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def csv_text(value: str | None) -> str:
    """Escape a cell so that a spreadsheet does not read it as a formula."""
    text = value or ""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
