"""Allowed targets of webhooks: https on the public internet, checked against SSRF.

The operator can allow private networks and plain http for internal receivers; a cloud's
metadata service is refused even then.
"""

import re
from enum import StrEnum

from yarl import URL

from gateway.net.addresses import is_public, is_public_or_private
from gateway.net.outbound import (
    Guard,
    UnreadableUrl,
    has_user,
    is_host_name,
    is_literal,
    origin,
    read_url,
)

_SHORT_NAME = re.compile(r"[a-z](?:[a-z0-9_-]{0,61}[a-z0-9])?", re.ASCII | re.IGNORECASE)
MAX_PORT = 65_535


class DeliveryFailure(StrEnum):
    """The reasons of failed attempts."""

    BAD_URL = "bad_url"
    NOT_HTTPS = "not_https"
    PRIVATE_ADDRESS = "private_address"
    UNREACHABLE = "unreachable"
    BAD_CERTIFICATE = "bad_certificate"
    BROKEN_OFF = "broken_off"
    TIMEOUT = "timeout"
    REDIRECT = "redirect"
    BAD_STATUS = "bad_status"
    GONE = "gone"
    SECRET_UNREADABLE = "secret_unreadable"  # noqa: S105 - the name of a failure
    DISABLED = "disabled"
    ABANDONED = "abandoned"


class TargetRefused(Exception):
    """A refused target. `message` never quotes the URL: it may hold a secret."""

    def __init__(self, reason: DeliveryFailure, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def guard(*, allow_private: bool) -> Guard:
    """Build the guard of network addresses."""
    return is_public_or_private if allow_private else is_public


def read_target(url: str, *, allow_private: bool) -> URL:
    """Parse and check a target URL.

    Raises:
        TargetRefused: it is not an allowed target.
    """
    try:
        address = read_url(url)
    except UnreadableUrl:
        raise _bad_url() from None
    if has_user(address) or address.raw_fragment:
        raise TargetRefused(
            DeliveryFailure.BAD_URL,
            "The URL must not contain a user name, a password or a #fragment. Receivers "
            "authenticate events by their signature.",
        )
    if address.scheme != "https" and not (allow_private and address.scheme == "http"):
        raise TargetRefused(DeliveryFailure.NOT_HTTPS, "The URL must begin with https://.")
    host = address.raw_host
    if not host or not 0 < (address.port or 0) <= MAX_PORT:
        raise _bad_url()
    if is_literal(host):
        if not guard(allow_private=allow_private)(host):
            raise TargetRefused(
                DeliveryFailure.PRIVATE_ADDRESS,
                "The URL leads to an address that is not on the public internet. Give a public "
                "one, or ask the operator to set GATEWAY_WEBHOOK_ALLOW_PRIVATE.",
            )
    elif not is_host_name(host) and not (allow_private and _SHORT_NAME.fullmatch(host)):
        raise _bad_url()
    return address


def shown(url: str) -> str:
    """Shorten a URL for logs and the audit trail: paths and queries are often secrets."""
    try:
        return origin(read_url(url))
    except UnreadableUrl:
        return "unreadable"


def _bad_url() -> TargetRefused:
    return TargetRefused(
        DeliveryFailure.BAD_URL, "The URL is invalid. Give one such as https://example.com/hooks"
    )
