"""Explanations for operators of why Redis cannot be used, derived from the exception."""

import ssl
from collections.abc import Iterator

from redis.exceptions import AuthenticationError, ResponseError


def explain(error: Exception) -> str:
    """Return a clause that explains the error without quoting the address or the password."""
    for cause in _causes(error):
        known = _explain_one(cause)
        if known is not None:
            return known
    return (
        f"it cannot be reached ({type(error).__name__}). Is it running, and is the address right?"
    )


def _explain_one(error: BaseException) -> str | None:
    text = None
    match error:
        case ssl.SSLCertVerificationError():
            text = (
                f"its certificate is not trusted ({error.verify_message}). Name the authority that "
                "signed it: rediss://…?ssl_ca_certs=/path/to/ca.pem"
            )
        case ssl.SSLError():
            text = "TLS with it fails. If it uses no TLS, its address must begin with redis://"
        case FileNotFoundError() | PermissionError():
            text = "a file that its address names does not exist or cannot be read"
        case AuthenticationError():
            text = "it rejects the password"
        case ResponseError():
            text = f"it rejects the gateway's commands ({str(error).split(' ')[0]})"
        case TimeoutError():
            text = (
                "it does not answer in time. Is it overloaded, or does it not use TLS (rediss://)?"
            )
        case _:
            pass
    return text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
