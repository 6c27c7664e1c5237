"""Rendering of requests for REST and the command line; money as decimal strings."""

from gateway.db.listed_calls import render_calls
from gateway.money import NanoUsd, format_usd
from gateway.request_log.queries import LoggedRequest, RequestDetail, RequestReservation

COPIED = (
    *("id", "at", "livemode", "client_request_id", "trace_id", "method", "route", "tool"),
    *("status", "error_code", "error_param", "reason", "api_key_id", "user_id"),
    *("requested_model", "served_model", "generation_id", "provider", "credential"),
    *("provider_status", "provider_request_id", "provider_milliseconds"),
    *("provider_calls", "model_version"),
    *("cost_status", "milliseconds"),
)


def render_request(logged: LoggedRequest) -> dict[str, object]:
    """Render a request for its tenant."""
    row = logged.row
    return {name: getattr(row, name) for name in COPIED} | {
        "object": "request",
        "key_name": logged.key_name,
        "key_last4": logged.key_last4,
        "user": logged.user,
        "replayed": bool(row.replayed),
        "cost_usd": _usd(row.cost_nano),
    }


def render_for_operators(logged: LoggedRequest) -> dict[str, object]:
    """Render a request for operators, with its tenant."""
    row = logged.row
    return render_request(logged) | {
        "tenant_id": row.tenant_id,
        "tenant": logged.tenant,
        "operator_key_id": row.operator_key_id,
        "session_id": row.session_id,
    }


def render_outcome(detail: RequestDetail) -> dict[str, object]:
    """Render the fields of a single request: its generation's current state in the ledger."""
    purchase = detail.purchase
    return {
        "generation": None if purchase is None else _render_purchase(purchase),
        "others": detail.others,
    }


def _render_purchase(purchase: RequestReservation) -> dict[str, object]:
    return {
        "id": purchase.id,
        "state": purchase.state,
        "outcome": purchase.outcome,
        "held_usd": _usd(purchase.held_nano),
        "cost_usd": _usd(purchase.final_nano),
        "is_estimate": purchase.state == "posted_est",
        "admitted_at": purchase.admitted_at,
        "deadline_at": purchase.deadline_at,
        "resolved_at": purchase.resolved_at,
        **render_calls(purchase.calls),
        "ledger": [
            {
                "at": line.at,
                "kind": line.kind,
                "amount_usd": _usd(line.amount_nano),
                "images": line.images,
                "input_tokens": line.input_tokens,
                "output_tokens": line.output_tokens,
            }
            for line in purchase.lines
        ],
    }


def _usd(nano: int | None) -> str | None:
    return None if nano is None else format_usd(NanoUsd(nano))
