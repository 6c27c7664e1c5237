"""Sign-ins that have begun at the identity provider, each bound to one browser by a cookie.

A browser has one row with an entry for each of its tabs, by the `state` that the provider returns.
Entries are sealed: they hold the code verifier, and the nonce.
"""

from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass

import orjson

from gateway.db.engine import Database
from gateway.domain import SecretText
from gateway.identity.tokens import digest_of, is_token, new_token
from gateway.vault.sealing import SealBroken, seal, unseal

PENDING_SECONDS = 600
MAX_TABS = 8
_ADD = """
    INSERT INTO console_sign_in AS s (digest, state, expires_at)
    VALUES (:digest, CAST(:entry AS jsonb), now() + make_interval(secs => :seconds))
    ON CONFLICT (digest) DO UPDATE SET state = CASE
        WHEN s.expires_at > now()
            AND (SELECT count(*) FROM jsonb_object_keys(s.state)) < :most
        THEN s.state || excluded.state ELSE excluded.state END,
        expires_at = excluded.expires_at
    RETURNING digest
"""
_TAKE = """
    WITH found AS (
        SELECT digest, state FROM console_sign_in
        WHERE digest = :digest AND expires_at > now() FOR UPDATE
    )
    UPDATE console_sign_in s SET state = found.state - CAST(:state AS text)
    FROM found WHERE s.digest = found.digest
    RETURNING found.state -> CAST(:state AS text) AS entry
"""


@dataclass(frozen=True, slots=True)
class PendingSignIn:
    """One tab's sign-in: secrets of its request, where it leads, and an invitation's digest.

    `invitation`: the digest in hexadecimal; empty for none.
    """

    nonce: str
    code_verifier: str
    redirect_uri: str
    next_path: str
    invitation: str = ""


@dataclass(frozen=True, slots=True)
class TakenSignIn:
    """A browser's row was found; `entry` is None if it has none (any more) for this state."""

    entry: PendingSignIn | None


async def add(
    database: Database, token: str, state: str, entry: PendingSignIn, *, sealing_key: bytes
) -> SecretText:
    """Add a sign-in to a browser's row for ten minutes; return the token of its cookie.

    `token`: the browser's own, or anything else if it has none.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    kept = SecretText(token) if is_token(token) and await _is_known(database, token) else None
    kept = kept or new_token()
    digest = digest_of(kept.reveal())
    sealed = seal(sealing_key, orjson.dumps(asdict(entry)), *_place(digest, state))
    await database.call(
        _ADD,
        {
            "digest": digest,
            "entry": orjson.dumps({state: b64encode(sealed).decode()}).decode(),
            "seconds": PENDING_SECONDS,
            "most": MAX_TABS,
        },
    )
    return kept


async def take(
    database: Database, token: str, state: str, *, sealing_key: bytes
) -> TakenSignIn | None:
    """Take a sign-in from a browser's row, once; None if the browser has no row.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    if not is_token(token):
        return None
    digest = digest_of(token)
    rows = await database.call(_TAKE, {"digest": digest, "state": state})
    if not rows:
        return None
    sealed = rows[0].entry
    try:
        # An entry of the release before is not sealed: the sign-in begins again.
        content = unseal(sealing_key, b64decode(sealed), *_place(digest, state))
    except (SealBroken, TypeError, ValueError):
        return TakenSignIn(None)
    return TakenSignIn(PendingSignIn(**orjson.loads(content)))


def _place(digest: bytes, state: str) -> tuple[str, str, str]:
    return "console_sign_in", digest.hex(), state


async def _is_known(database: Database, token: str) -> bool:
    """Return True if the gateway made this token: none that was planted in the browser is kept."""
    rows = await database.call(
        "SELECT 1 FROM console_sign_in WHERE digest = :digest AND expires_at > now()",
        {"digest": digest_of(token)},
    )
    return bool(rows)
