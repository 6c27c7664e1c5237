"""Forms that make a secret: each is used once, and its secret is shown once.

A browser without scripts sends a form twice by a double click, and again by a reload of the answer.
So the answer is a redirect to a page that shows the secret, and the second sending of the same form
leads to the same page. In between the secret is sealed, for minutes, and for one session.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

import orjson
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.db.console_tables import SentFormRow
from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.domain import SecretText, new_id
from gateway.identity.tokens import digest_of
from gateway.identity.viewers import Viewer
from gateway.vault.sealing import SealBroken, seal, unseal

SHOWN_SECONDS = 600
"""The time within which the new secret is shown: a redirect takes less than one."""
KEPT_SECONDS = 86_400
"""The time within which a form that was sent is recognised: that of a tab which is left open."""
_TAKE = """
    WITH found AS (
        SELECT id, sealed FROM console_form
        WHERE id = :id AND session_id = :session_id AND shown_until > now() FOR UPDATE
    )
    UPDATE console_form f SET sealed = NULL FROM found
    WHERE f.id = found.id AND found.sealed IS NOT NULL
    RETURNING found.sealed
"""


@dataclass(frozen=True, slots=True)
class FormSecret:
    """A secret that a form made. `path`: the page that shows it; `name`: what it belongs to."""

    path: str
    name: str
    secret: SecretText


@dataclass(frozen=True, slots=True)
class ShownSecret:
    """A secret for the one page that shows it."""

    name: str
    secret: SecretText


def digest_of_form(viewer: Viewer, path: str, token: str, form: Mapping[str, str]) -> bytes:
    """Compute what makes two sendings the same: session, address, token of the page, content."""
    parts = [str(viewer.session_id), path, token, sorted(form.items())]
    return digest_of(json.dumps(parts))


async def make_once(
    session: OperatorSession | TenantSession,
    viewer: Viewer,
    digest: bytes,
    make: Callable[[], Awaitable[FormSecret]],
    *,
    sealing_key: bytes,
) -> str:
    """Make the secret of a form unless it was sent before; return the address that shows it.

    A second sending waits for the transaction of the first. A refusal of `make` undoes the claim.
    """
    form_id = new_id()
    claimed = await session.scalar(
        insert(SentFormRow)
        .values(
            id=form_id,
            digest=digest,
            session_id=viewer.session_id,
            path="",
            shown_until=func.now() + _interval(SHOWN_SECONDS),
            expires_at=func.now() + _interval(KEPT_SECONDS),
        )
        .on_conflict_do_nothing()
        .returning(SentFormRow.id)
    )
    if claimed is None:
        sent = await session.scalar(select(SentFormRow.path).where(SentFormRow.digest == digest))
        return str(sent)
    made = await make()
    path = f"{made.path}{'&' if '?' in made.path else '?'}secret={form_id}"
    content = orjson.dumps([made.name, made.secret.reveal()])
    await session.execute(
        update(SentFormRow)
        .where(SentFormRow.id == form_id)
        .values(path=path, sealed=seal(sealing_key, content, *_place(form_id)))
        .execution_options(synchronize_session=False)
    )
    return path


async def show_once(
    database: Database, viewer: Viewer, form_id: UUID, *, sealing_key: bytes
) -> ShownSecret | None:
    """Take the secret of a form, for its session, once; None if it was shown before.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    rows = await database.call(_TAKE, {"id": form_id, "session_id": viewer.session_id})
    if not rows:
        return None
    try:
        name, secret = orjson.loads(unseal(sealing_key, rows[0].sealed, *_place(form_id)))
    except SealBroken:
        return None
    return ShownSecret(name, SecretText(secret))


def _interval(seconds: int) -> object:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _place(form_id: UUID) -> tuple[str, UUID]:
    return "console_form", form_id
