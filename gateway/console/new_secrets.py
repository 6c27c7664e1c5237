"""New secrets on pages: made once for each form, and shown once after a redirect.

A route that makes a secret redirects to the address that `made_once` returns. The page there passes
the `secret` of its query to `shown_once`.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from fastapi import Request

from gateway.bootstrap import Gateway
from gateway.console.render import FORM, Flash
from gateway.db.engine import OperatorSession, TenantSession
from gateway.identity import sent_forms
from gateway.identity.sent_forms import FormSecret
from gateway.identity.viewers import Viewer

WAS_SHOWN = Flash(
    "The new secret was shown already, and is not shown again. If it was not copied, roll it or "
    "make another.",
    "warn",
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A new secret, for the page that shows it; `use`: what it is for."""

    name: str
    secret: str
    use: str = ""


async def made_once(
    request: Request,
    session: OperatorSession | TenantSession,
    form: Mapping[str, str],
    make: Callable[[], Awaitable[FormSecret]],
) -> str:
    """Make the secret of a form unless the same form was sent before; return where it is shown."""
    gateway: Gateway = request.app.state.gateway
    viewer: Viewer = request.state.viewer
    # A program that wrote the form itself has no token: each of its requests is another form.
    token = request.query_params.get(FORM) or secrets.token_urlsafe()
    digest = sent_forms.digest_of_form(viewer, request.url.path, token, form)
    key = gateway.core.secrets.console_key
    return await sent_forms.make_once(session, viewer, digest, make, sealing_key=key)


async def shown_once(
    gateway: Gateway, viewer: Viewer, form_id: UUID | None, *, use: str = ""
) -> Shown | None:
    """Take the new secret that an address names; None if it names none, or one that was shown."""
    if form_id is None:
        return None
    key = gateway.core.secrets.console_key
    found = await sent_forms.show_once(gateway.database, viewer, form_id, sealing_key=key)
    return None if found is None else Shown(found.name, found.secret.reveal(), use)


def flash_of_secret(form_id: UUID | None, shown: Shown | None) -> Flash | None:
    """Return the message of an address whose secret was shown already."""
    return WAS_SHOWN if form_id is not None and shown is None else None
