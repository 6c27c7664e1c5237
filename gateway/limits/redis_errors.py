"""What an operator should look at when Redis cannot be used, from the error it was noticed by."""

import ssl
from collections.abc import Iterator

from redis.exceptions import AuthenticationError, ResponseError


def explain(error: Exception) -> str:
    """One clause, which tells nothing of the address or the password."""
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
                "vouches for it: rediss://…?ssl_ca_certs=/path/to/ca.pem"
            )
        case ssl.SSLError():
            text = "TLS with it fails. Without TLS, its address begins with redis://"
        case FileNotFoundError() | PermissionError():
            text = "a file that its address names is not there, or cannot be read"
        case AuthenticationError():
            text = "it refuses the password"
        case ResponseError():
            text = f"it refuses what the gateway asks of it ({str(error).split(' ')[0]})"
        case TimeoutError():
            text = (
                "it does not answer in time. Is it overloaded, or does rediss:// meet no TLS there?"
            )
        case _:
            pass
    return text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
