"""Secrets in texts that people read: logs, messages of providers, ids that clients choose."""

import logging
import re

_SECRET = re.compile(
    r"\b(?:igw_(?:live|test|admin)_[0-9A-Za-z]{4,}|sk-[0-9A-Za-z_\-*.]{4,}"
    r"|AIza[0-9A-Za-z_\-*.]{4,}|AQ\.[0-9A-Za-z_\-*.]{8,}"
    r"|whsec_[0-9A-Za-z+/=]{4,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)|(?i:bearer)\s+\S+"
)


def redact(text: str) -> str:
    """Replace every substring that looks like an API key or a bearer token."""
    return _SECRET.sub("[redacted]", text)


class RedactingFormatter(logging.Formatter):
    """A formatter for plain lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
