"""Paths of the console, and the check of those that a browser brings back."""

import re

HOME = "/console"
LOGIN = "/console/login"
SIGN_OUT = "/console/sign-out"
SESSIONS = "/console/sessions"
PEOPLE = "/console/people"
ALL_SESSIONS = "/console/people/sessions"
INVITATIONS = "/console/people/invitations"
LEAVE_PORTAL = "/console/portal/leave"
MAX_NEXT_CHARACTERS = 1000
# Printable ASCII but the backslash, which browsers read as a slash.
_OWN = re.compile(r"/console(?:[/?][\x21-\x5b\x5d-\x7e]*)?")


def own_path(text: str | None) -> str:
    """Return the path if it is one of the console's pages, else the console's first page.

    Anything else would let a link to the sign-in lead to another site afterwards.
    """
    if text is None or len(text) > MAX_NEXT_CHARACTERS or not _OWN.fullmatch(text):
        return HOME
    return HOME if text.startswith(LOGIN) else text
