"""Verification of the identity provider's tokens: signature and claims. No I/O.

JSON Web Tokens as access tokens: RFC 7519, RFC 9068, and the recommendations of RFC 8725.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from gateway.domain import Scope
from gateway.errors import InvalidToken

ALGORITHMS: Mapping[str, str] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519", "Ed448"), "OKP"),
}
"""Accepted asymmetric signature algorithms, with their key types. No `none`, no HMAC."""
TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Accepted values of `typ`: a provider signs other kinds of tokens with the same keys."""
MAX_KEY_ID_CHARACTERS = 256
MAX_USER_CHARACTERS = 255
"""The longest `sub` of OpenID Connect Core, section 2."""
LATEST_TIMESTAMP = 253_402_300_799
"""The end of the year 9999."""
MAX_DEPTH = 32
"""Claims of real providers nest three or four levels deep."""
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)
_FORM = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
_NEW_ONE = "Get a new one from your identity provider."


@dataclass(frozen=True, slots=True)
class TokenExpectations:
    """The required claims of an accepted token, and the names of the claims for tenant and user."""

    issuer: str
    audiences: tuple[str, ...]
    leeway_seconds: int
    tenant_claim: str
    user_claim: str
    scope_prefix: str
    max_characters: int


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """The key id and algorithm in a token's header, which are unverified."""

    key_id: str | None
    algorithm: str


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """The identity in a verified token. `tenant` is a name or an id, `user` a name."""

    tenant: str
    user: str
    scopes: frozenset[str]
    expires_at: datetime


class _StrictJson(json.JSONDecoder):
    """A decoder for strict RFC 8259: the standard library's accepts NaN and unlimited nesting."""

    def decode(self, s: str) -> object:  # type: ignore[override]  # only called by json.loads
        return orjson.loads(s)


def nests_deeper(document: bytes, most: int) -> bool:
    """Tell if arrays and objects of a JSON text nest more than `most` levels deep."""
    if document.count(b"[") + document.count(b"{") <= most:
        return False
    depth = 0
    for found in _BRACKET.finditer(document):
        depth += (found[1] is not None) - (found[2] is not None)
        if depth > most:
            return True
    return False


def read_header(token: str, *, max_characters: int) -> TokenHeader:
    """Parse the header of a token.

    Raises:
        InvalidToken: not a signed JWT, too long, or signed with an algorithm that is not accepted.
    """
    if len(token) > max_characters:
        raise InvalidToken(f"This token is longer than {max_characters} characters.")
    if not _FORM.fullmatch(token):
        raise InvalidToken(
            "This is neither an API key of this gateway (igw_live_…, igw_test_…), nor a signed JWT "
            "of its identity provider."
        )
    try:
        parts = [urlsafe_b64decode(part.encode()) for part in token.split(".")[:2]]
        if any(nests_deeper(part, MAX_DEPTH) for part in parts):
            raise InvalidToken(f"This token nests its claims deeper than {MAX_DEPTH} levels.")
        header = orjson.loads(parts[0])
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise InvalidToken(f"The header of this token cannot be read. {_NEW_ONE}")
    algorithm, key_id, kind = (header.get(name) for name in ("alg", "kid", "typ"))
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise InvalidToken(
            "This token is not signed with an accepted algorithm. "
            f"Accepted are {', '.join(ALGORITHMS)}."
        )
    if kind is not None and not (isinstance(kind, str) and kind.lower() in TYPES):
        raise InvalidToken("This token is not an access token, according to `typ` in its header.")
    if "crit" in header:
        raise InvalidToken("This token requires an extension that this gateway does not support.")
    if key_id is not None and not (
        isinstance(key_id, str) and len(key_id) <= MAX_KEY_ID_CHARACTERS
    ):
        raise InvalidToken(f"The `kid` of this token cannot be used. {_NEW_ONE}")
    return TokenHeader(key_id, algorithm)


def read_identity(
    token: str, header: TokenHeader, key: Key, expected: TokenExpectations
) -> TokenIdentity:
    """Verify the signature and every claim, and return the identity.

    Raises:
        InvalidToken: one of them is invalid; the message names it, without its value.
    """
    registry = JWSRegistry(algorithms=[header.algorithm], strict_check_header=False)
    try:
        claims = jwt.decode(token, key, registry=registry, decoder_cls=_StrictJson).claims
    except (JoseError, ValueError) as error:
        raise InvalidToken(f"The signature of this token is not valid. {_NEW_ONE}") from error
    registered = jwt.JWTClaimsRegistry(
        leeway=expected.leeway_seconds,
        iss={"essential": True, "value": expected.issuer},
        aud={"essential": True, "values": list(expected.audiences)},
        exp={"essential": True},
    )
    try:
        registered.validate(claims)
    except JoseError as error:
        raise InvalidToken(_explain(error, expected)) from error
    return TokenIdentity(
        tenant=_name(claims, expected.tenant_claim),
        user=_user(claims, expected.user_claim),
        scopes=_scopes(claims, expected.scope_prefix),
        expires_at=datetime.fromtimestamp(min(claims["exp"], LATEST_TIMESTAMP), UTC),
    )


def _explain(error: JoseError, expected: TokenExpectations) -> str:
    if isinstance(error, ExpiredTokenError):
        return f"This token has expired. {_NEW_ONE}"
    if isinstance(error, MissingClaimError):
        return "This token lacks one of the claims iss, aud and exp."
    claim = error.claim if isinstance(error, InvalidClaimError) else ""
    if claim == "aud":
        return (
            "This token was not issued for this gateway. Ask your identity provider for one with "
            f"the audience {expected.audiences[0]}."
        )
    if claim == "iss":
        return "This token was not issued by this gateway's identity provider."
    if claim in {"nbf", "iat"}:
        return "This token is not valid yet. Check the clocks of both machines."
    return f"The claims of this token cannot be used. {_NEW_ONE}"


def find_claim(claims: Mapping[str, object], name: str) -> object:
    """Find a claim by its name; a name `a.b` that is absent means `b` within `a`."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _name(claims: Mapping[str, object], name: str) -> str:
    found = find_claim(claims, name)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, str) or not found.strip():
        raise InvalidToken(
            f"This token does not identify the caller: the claim {name} is missing or not a string."
        )
    return found


def _user(claims: Mapping[str, object], name: str) -> str:
    user = _name(claims, name)
    if len(user) > MAX_USER_CHARACTERS or not user.isprintable():
        raise InvalidToken(
            f"This token does not identify the caller: the claim {name} is longer than "
            f"{MAX_USER_CHARACTERS} characters, or not printable."
        )
    return user


def _scopes(claims: Mapping[str, object], prefix: str) -> frozenset[str]:
    """Collect the gateway's scopes in `scope` and `scp`, each a string of words or a list."""
    granted: set[object] = set()
    for name in ("scope", "scp"):
        value = claims.get(name)
        words = value.split() if isinstance(value, str) else value
        if isinstance(words, list):
            granted |= {word.removeprefix(prefix) for word in words if isinstance(word, str)}
    return frozenset(scope.value for scope in Scope if scope in granted)
