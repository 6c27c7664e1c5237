"""One-time links that sign in as operator-admin, made on the server by `gateway console-link`."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from gateway.config import Settings
from gateway.db.actors import Actor
from gateway.db.audit import Action, record
from gateway.db.console_tables import SignInLinkRow
from gateway.db.engine import Database, OperatorSession
from gateway.domain import SecretText
from gateway.errors import Unauthenticated
from gateway.identity.sessions import SignedIn
from gateway.identity.tokens import digest_of, is_token, new_token
from gateway.identity.viewers import Role

LINK_PATH = "/console/login/link"


class LinkRefused(Unauthenticated):
    """A sign-in link that does not exist, was used, or is too old: all look the same."""

    code = "link_refused"


async def make_link(
    session: OperatorSession, maker: Actor, settings: Settings, *, base_url: str | None = None
) -> SecretText:
    """Make a link; return its address, which is not stored.

    `base_url`: the gateway's address, if it is not that of the settings.
    """
    token = new_token()
    expires_at = datetime.now(UTC) + timedelta(seconds=settings.console_link_seconds)
    made_by = maker.name or maker.id
    await session.execute(
        insert(SignInLinkRow).values(
            digest=digest_of(token.reveal()), made_by=made_by, expires_at=expires_at
        )
    )
    await record(
        session,
        Action.LINK_MADE,
        tenant_id=None,
        object_id=made_by,
        after={"expires_at": expires_at},
    )
    base_url = base_url or settings.public_url
    return SecretText(f"{base_url.rstrip('/')}{LINK_PATH}?token={token.reveal()}")


async def use_link(database: Database, token: str) -> SignedIn:
    """Use a link, once.

    Raises:
        LinkRefused: unknown, used, or too old.
        DatabaseUnavailable: Postgres is away.
    """
    rows = (
        await database.call("SELECT * FROM use_console_link(:digest)", {"digest": digest_of(token)})
        if is_token(token)
        else []
    )
    if not rows:
        raise LinkRefused(
            "This sign-in link was used already, or is too old. Make a new one with "
            "`gateway console-link` on the server."
        )
    return SignedIn(f"{rows[0].made_by} (sign-in link)", Role.OPERATOR_ADMIN, "link")
