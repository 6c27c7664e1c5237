"""Failed sign-ins: each account waits longer after each failure, at every gateway.

An attempt counts as a failure before its secret is looked at, so that attempts in parallel do not
all pass the check of the first. Success forgets the account.
"""

from math import ceil

from gateway.config import Settings
from gateway.db.engine import Database
from gateway.errors import RateLimited

FREE_FAILURES = 5
"""Failures in a row without a wait; after that it doubles from a second."""
FORGIVEN_AFTER_SECONDS = 86_400
MAX_ACCOUNT_CHARACTERS = 200
_ATTEMPT = """
    INSERT INTO console_failure AS f (account, failures) VALUES (:account, 1)
    ON CONFLICT (account) DO UPDATE SET
        failures = CASE WHEN f.last_at < now() - make_interval(secs => :forgiven) THEN 1
            ELSE least(f.failures + 1, 1000) END,
        last_at = now(),
        not_before = now() + make_interval(secs => CASE
            WHEN f.failures + 1 < :free OR f.last_at < now() - make_interval(secs => :forgiven)
                THEN 0
            ELSE least(:longest, 2 ^ least(f.failures + 1 - :free, 20)) END)
    WHERE f.not_before <= now()
    RETURNING failures
"""
_WAIT = """
    SELECT extract(epoch FROM not_before - now())::float AS seconds FROM console_failure
    WHERE account = :account
"""


async def begin_attempt(database: Database, account: str, settings: Settings) -> None:
    """Count an attempt to sign in to an account, before it is known to be right.

    Raises:
        RateLimited: the account must wait after its last failures; the attempt is not looked at.
        DatabaseUnavailable: Postgres is away.
    """
    account = account[:MAX_ACCOUNT_CHARACTERS]
    rows = await database.call(
        _ATTEMPT,
        {
            "account": account,
            "free": FREE_FAILURES,
            "forgiven": FORGIVEN_AFTER_SECONDS,
            "longest": settings.console_max_delay_seconds,
        },
    )
    if rows:
        return
    waits = await database.call(_WAIT, {"account": account})
    seconds = max(1, ceil(waits[0].seconds)) if waits else 1
    raise RateLimited(
        f"Too many sign-ins have failed. Wait {seconds} seconds, then try again.",
        retry_after_seconds=seconds,
        reason="sign_in_delay",
    )


async def forget(database: Database, account: str) -> None:
    """Forget the failures of an account that has signed in.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    await database.call(
        "DELETE FROM console_failure WHERE account = :account RETURNING account",
        {"account": account[:MAX_ACCOUNT_CHARACTERS]},
    )
