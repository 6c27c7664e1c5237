"""The outcome of one paid call, as it is written to the ledger. See docs/money.md."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from gateway import telemetry
from gateway.db.listed_calls import ListedCall, to_json
from gateway.image_models import AutoChoice
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome, Provenance, Usage

SettlementKind = Literal["post", "post_est", "void", "unknown"]
KIND_BY_OUTCOME: dict[Outcome, SettlementKind] = {
    Outcome.NOT_SENT: "void",
    Outcome.REJECTED: "void",
    Outcome.MODERATION: "void",
    Outcome.SUCCESS: "post",
    Outcome.REFUSED_CHARGED: "post",
    Outcome.SUCCESS_NO_USAGE: "post_est",
    Outcome.AMBIGUOUS: "unknown",
}
CHARGED = frozenset({Outcome.SUCCESS, Outcome.REFUSED_CHARGED})
"""Outcomes whose cost is known and more than nothing."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One stored image, recorded together with the settlement.

    `ttl_seconds`: its retention; `link_expires_at`: the expiry of the link given to the client
    (Unix seconds). `prompt` is set only if the tenant stores prompts.
    """

    id: str
    path: str
    media_type: str
    size_bytes: int
    ttl_seconds: int
    link_expires_at: int = 0
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    prompt: str | None = field(default=None, repr=False)
    prompt_hash: bytes | None = field(default=None, repr=False)
    provenance: Provenance = Provenance.ORIGINAL


@dataclass(frozen=True, slots=True)
class Settlement:
    """The outcome of one reservation.

    `answer`: the answer to repeated requests. `served`: the quality and size of the images made.
    `calls`: the provider calls that were made for it, of which `usage` is the sum.
    """

    id: UUID
    outcome: Outcome
    amount_nano: NanoUsd
    images: int = 0
    usage: Usage | None = None
    stored: tuple[StoredFile, ...] = ()
    answer: Mapping[str, object] | None = field(default=None, repr=False)
    served: AutoChoice | None = None
    calls: tuple[ListedCall, ...] = ()


def report_conflict(settlement: Settlement) -> None:
    """Log a settlement of a call whose final amount differs, or whose month is archived."""
    telemetry.alarm(
        "settle_conflict",
        reservation=str(settlement.id),
        outcome=settlement.outcome,
        nano=settlement.amount_nano,
    )


def settlement_fields(tenant_id: UUID, settlement: Settlement) -> dict[str, object]:
    """Render a settlement for the SQL function `settle`."""
    fields: dict[str, object] = {
        "tenant_id": tenant_id,
        "id": settlement.id,
        "kind": KIND_BY_OUTCOME[settlement.outcome],
        "amount_nano": settlement.amount_nano,
        "outcome": settlement.outcome,
        "images": settlement.images,
    }
    if settlement.usage is not None:
        fields |= {
            "text_input_tokens": settlement.usage.text_input_tokens,
            "image_input_tokens": settlement.usage.image_input_tokens,
            "text_output_tokens": settlement.usage.text_output_tokens,
            "image_output_tokens": settlement.usage.image_output_tokens,
        }
    if settlement.stored:
        fields["stored"] = [_stored_fields(file) for file in settlement.stored]
    if settlement.answer is not None:
        fields["answer"] = settlement.answer
    if settlement.calls:
        fields["calls"] = to_json(settlement.calls)
    if settlement.served is not None:
        fields |= {"quality": settlement.served.quality, "size": settlement.served.size}
    return fields


def _stored_fields(file: StoredFile) -> dict[str, object]:
    return {
        "id": file.id,
        "path": file.path,
        "media_type": file.media_type,
        "size_bytes": file.size_bytes,
        "ttl_seconds": file.ttl_seconds,
        "width": file.width,
        "height": file.height,
        "seed": file.seed,
        "prompt": None if file.prompt is None else _storable(file.prompt),
        "prompt_hash": None if file.prompt_hash is None else file.prompt_hash.hex(),
        "provenance": file.provenance,
    }


def _storable(text: str) -> str:
    """Replace characters that JSON or Postgres refuse: one would fail the whole batch."""
    return text.replace("\x00", "").encode(errors="replace").decode()
