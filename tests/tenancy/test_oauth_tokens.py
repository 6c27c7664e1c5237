"""Invalid tokens are refused by REST and MCP."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from gateway.domain import Scope
from gateway.errors import InvalidToken
from gateway.oidc.signing_keys import read_key_set
from gateway.oidc.tokens import TokenExpectations, read_header, read_identity
from tests.harness import Served
from tests.identity_provider import Issuer, rsa_key
from tests.oauth_helpers import GENERATIONS, JSON, LIST_TOOLS, LOW, Refused, challenge, get, refusal
from tests.stub_openai import Stub

# The tests make keys that are too short, and sign under a name that is out of fashion.
pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
HOUR = 3600
Forge = Callable[[Issuer, str], str]


def changed(**changes: object) -> Forge:
    """A token that is good but for these claims."""
    return lambda issuer, audience: issuer.sign(issuer.claims(audience, **changes))


def at(**seconds_from_now: int) -> Forge:
    """A token that is good but for these times."""

    def forge(issuer: Issuer, audience: str) -> str:
        times = {name: int(time.time()) + seconds for name, seconds in seconds_from_now.items()}
        return issuer.sign(issuer.claims(audience, **times))

    return forge


def under(**header: Any) -> Forge:
    """A token that is good but for these fields of its header."""
    return lambda issuer, audience: issuer.sign(issuer.claims(audience), header=header)


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def with_header(value: object) -> Forge:
    """A good token whose header was replaced."""

    def forge(issuer: Issuer, audience: str) -> str:
        _, payload, signature = issuer.sign(issuer.claims(audience)).split(".")
        return f"{encoded(value)}.{payload}.{signature}"

    return forge


def unsigned(algorithm: str) -> Forge:
    def forge(issuer: Issuer, audience: str) -> str:
        header = {"alg": algorithm, "typ": "at+jwt", "kid": issuer.keys[0].kid}
        return f"{encoded(header)}.{encoded(issuer.claims(audience))}."

    return forge


def with_the_public_key_as_secret(issuer: Issuer, audience: str) -> str:
    assert isinstance(issuer.keys[0], RSAKey)
    header = {"alg": "HS256", "typ": "at+jwt", "kid": issuer.keys[0].kid}
    signed = f"{encoded(header)}.{encoded(issuer.claims(audience))}"
    digest = hmac.digest(issuer.keys[0].as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def by_another_key(issuer: Issuer, audience: str) -> str:
    """Signed with another key, under the name of the provider's."""
    header = {"kid": issuer.keys[0].kid}
    return issuer.sign(issuer.claims(audience), key=rsa_key(9), header=header)


def by_the_key_it_brings(issuer: Issuer, audience: str) -> str:
    brought = rsa_key(9)
    header = {"kid": issuer.keys[0].kid, "jwk": brought.as_dict(private=False)}
    return issuer.sign(issuer.claims(audience), key=brought, header=header)


def by_an_elliptic_key(issuer: Issuer, audience: str) -> str:
    header = {"alg": "ES256", "kid": issuer.keys[0].kid}
    return issuer.sign(issuer.claims(audience), key=ECKey.generate_key("P-256"), header=header)


def tampered(issuer: Issuer, audience: str) -> str:
    """Of another tenant, under the signature of a good one."""
    header, _, signature = issuer.sign(issuer.claims(audience)).split(".")
    return f"{header}.{encoded(issuer.claims(audience, tenant='other'))}.{signature}"


def signed_text(issuer: Issuer, payload: str) -> str:
    """A token with a payload that no encoder would write."""
    header = {"alg": "RS256", "typ": "at+jwt", "kid": issuer.keys[0].kid}
    return jws.serialize_compact(header, payload, issuer.keys[0])


def nested(levels: int, opening: str = "[", closing: str = "]") -> Forge:
    """A token that is good but for a claim that nests so deep."""

    def forge(issuer: Issuer, audience: str) -> str:
        claims = json.dumps(issuer.claims(audience))
        return signed_text(
            issuer, f'{claims[:-1]}, "deep": {opening * levels}1{closing * levels}}}'
        )

    return forge


def with_a_deep_header(issuer: Issuer, audience: str) -> str:
    _, payload, signature = issuer.sign(issuer.claims(audience)).split(".")
    deep = '{"alg": "RS256", "kid": "key-1", "x": ' + "[" * 1000 + "]" * 1000 + "}"
    header = base64.urlsafe_b64encode(deep.encode()).decode().rstrip("=")
    return f"{header}.{payload}.{signature}"


def short_signature(issuer: Issuer, audience: str) -> str:
    return issuer.sign(issuer.claims(audience))[:-8]


BAD: dict[str, Forge] = {
    "another audience": changed(aud="https://elsewhere.example/mcp"),
    "an audience that only begins alike": lambda issuer, audience: issuer.sign(
        issuer.claims(audience.removesuffix("/mcp") + ".evil.example/mcp")
    ),
    "no audience": changed(aud=None),
    "an empty audience": changed(aud=[]),
    "an audience that is a number": changed(aud=7),
    "another issuer": changed(iss="https://elsewhere.example/"),
    "the issuer with a slash more": lambda issuer, audience: issuer.sign(
        issuer.claims(audience, iss=f"{issuer.url}/")
    ),
    "no issuer": changed(iss=None),
    "expired": at(exp=-HOUR),
    "expired a moment beyond the leeway": at(exp=-31),
    "no expiry": changed(exp=None),
    "an expiry that never comes": changed(exp="never"),
    "an infinite expiry": changed(exp=float("inf")),
    "an expiry that is no number": changed(exp=float("nan")),
    "an expiry that is true": changed(exp=True),
    "not valid yet": at(nbf=HOUR),
    "issued in the future": at(iat=HOUR),
    "a subject that is a number": changed(sub=7),
    "no user": changed(sub=None),
    "an empty user": changed(sub=" "),
    "a user that cannot be printed": changed(sub="a\nlice"),
    "a user with a zero byte": changed(sub="alice\x00"),
    "a user with half a character": changed(sub="alice\ud800"),
    "a user too long": changed(sub="a" * 256),
    "no tenant": changed(tenant=None),
    "an empty tenant": changed(tenant=""),
    "two tenants": changed(tenant=["acme", "other"]),
    "a tenant that is an object": changed(tenant={"name": "acme"}),
    "a tenant with half a character": changed(tenant="acme\ud800"),
    "alg=none": unsigned("none"),
    "alg=None": unsigned("None"),
    "no signature": unsigned("RS256"),
    "HS256 by the public key": with_the_public_key_as_secret,
    "an unknown key id": under(kid="unknown"),
    "another's key": by_another_key,
    "the key it brings along": by_the_key_it_brings,
    "a key of another type": by_an_elliptic_key,
    "an algorithm that is not the key's": with_header({"alg": "PS256", "kid": "key-1"}),
    "a tampered payload": tampered,
    "a cut signature": short_signature,
    "a key id that is a list": with_header({"alg": "RS256", "kid": ["key-1"]}),
    "a key id too long": with_header({"alg": "RS256", "kid": "k" * 300}),
    "an algorithm that is a list": with_header({"alg": ["RS256"], "kid": "key-1"}),
    "a header that is a text": with_header("alg"),
    "a header that is a list": with_header(["alg"]),
    "a header without an algorithm": with_header({"kid": "key-1"}),
    "an extension that is not understood": under(crit=["exp"], exp=1),
    "extensions that are a number": with_header({"alg": "RS256", "kid": "key-1", "crit": 7}),
    "a payload that is not encoded": under(crit=["b64"], b64=False),
    "a logout token": under(typ="logout+jwt"),
    "an identity proof": under(typ="dpop+jwt"),
    "a type that is a number": with_header({"alg": "RS256", "kid": "key-1", "typ": 1}),
    "claims 5 000 lists deep": nested(5000),
    "claims 1 500 objects deep": nested(1500, '{"a":', "}"),
    "claims 40 lists deep": nested(40),
    "claims that never close": nested(5000, "[", ""),
    "a deep header": with_a_deep_header,
    "garbage": lambda _issuer, _audience: "garbage",
    "dots": lambda _issuer, _audience: "..",
    "three words": lambda _issuer, _audience: "a.b.c",
    "five parts": lambda _issuer, _audience: "a.b.c.d.e",
    "too long": changed(padding="x" * 20_000),
}


async def test_a_token_that_is_not_right_in_every_part_is_refused(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    await trusting.tenant("other")
    tokens = {name: forge(issuer, f"{trusting.base_url}/mcp") for name, forge in BAD.items()}
    read, made, tools = {}, {}, {}
    async with trusting.http() as http:
        for name, token in tokens.items():
            headers = JSON | {"Authorization": f"Bearer {token}"}
            read[name] = refusal(await http.get("/v1/models", headers=headers))
            made[name] = refusal(await http.post(GENERATIONS, json=LOW, headers=headers))
            tools[name] = refusal(await http.post("/mcp", json=LIST_TOOLS, headers=headers))
    rest = Refused(401, "invalid_token", challenge(trusting, "invalid_token"))
    mcp = Refused(401, "invalid_token", challenge(trusting, "invalid_token", path="/mcp"))
    assert read == dict.fromkeys(BAD, rest)
    assert made == dict.fromkeys(BAD, rest)
    assert tools == dict.fromkeys(BAD, mcp)
    assert stub.calls == []
    assert await trusting.owner_sql("SELECT name FROM tenant_user") == []


GOOD: dict[str, Forge] = {
    "as it is": changed(),
    "claims 30 lists deep": nested(30),
    "many claims that do not nest": changed(groups=[["a"]] * 200),
    "brackets within texts": changed(note='["\\' * 100),
    "several audiences": lambda issuer, audience: issuer.sign(
        issuer.claims(["https://elsewhere.example", audience])
    ),
    "for the whole gateway": lambda issuer, audience: issuer.sign(
        issuer.claims(audience.removesuffix("/mcp"))
    ),
    "for the whole gateway, with a slash": lambda issuer, audience: issuer.sign(
        issuer.claims(audience.removesuffix("mcp"))
    ),
    "expired a moment ago": at(exp=-1),
    "valid in a moment": at(nbf=5),
    "valid until long after the calendar": changed(exp=10**30),
    "a list of one tenant": changed(tenant=["acme"]),
    "the longest user": changed(sub="ü" * 255),
    "no type": under(typ=None),
    "the plain type": under(typ="JWT"),
    "the whole type": under(typ="application/at+jwt"),
    "no key id, where there is one key": under(kid=None),
    "a header field of its own": under(vendor="x"),
    "RS512": under(alg="RS512"),
    "PS256": under(alg="PS256"),
    "scopes as a list": changed(scope=None, scp=["images:read", 7, "other"]),
}


async def test_a_token_may_be_written_in_more_than_one_way(
    trusting: Served, issuer: Issuer
) -> None:
    tokens = {name: forge(issuer, f"{trusting.base_url}/mcp") for name, forge in GOOD.items()}
    read, tools = {}, {}
    async with trusting.http() as http:
        for name, token in tokens.items():
            headers = JSON | {"Authorization": f"Bearer {token}"}
            read[name] = (await http.get("/v1/models", headers=headers)).status_code
            tools[name] = (await http.post("/mcp", json=LIST_TOOLS, headers=headers)).status_code
    assert read == tools == dict.fromkeys(GOOD, 200)


async def test_every_kind_of_key_pair_is_accepted(trusting: Served, issuer: Issuer) -> None:
    pairs: dict[str, Key] = {
        "ES256": ECKey.generate_key("P-256", {"kid": "p256"}),
        "ES512": ECKey.generate_key("P-521", {"kid": "p521"}),
        "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "ed25519"}),
        "Ed448": OKPKey.generate_key("Ed448", {"kid": "ed448"}),
    }
    issuer.keys = [rsa_key(1), *pairs.values()]
    claims = issuer.claims(trusting.base_url)
    for algorithm, key in pairs.items():
        named = issuer.sign(claims, key=key, header={"alg": algorithm})
        assert (await get(trusting, named)).status_code == 200, algorithm
    nameless = issuer.sign(claims, header={"kid": None})
    assert (await get(trusting, nameless)).status_code == 200
    # Two keys could have signed this one, so it must say which.
    unclear = issuer.sign(claims, key=pairs["EdDSA"], header={"alg": "EdDSA", "kid": None})
    assert refusal(await get(trusting, unclear)).code == "invalid_token"


async def test_a_key_signs_only_as_the_provider_says(trusting: Served, issuer: Issuer) -> None:
    issuer.key_set = lambda: {  # type: ignore[method-assign]  # what the provider publishes
        "keys": [
            rsa_key(1).as_dict(private=False, alg="RS256"),
            rsa_key(2).as_dict(private=False, use="enc"),
            {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            {"kty": "lattice", "kid": "new"},
            RSAKey.generate_key(1024, {"kid": "short"}).as_dict(private=False),
            7,
        ]
    }
    claims = issuer.claims(trusting.base_url)
    assert (await get(trusting, issuer.sign(claims))).status_code == 200
    for token in (
        issuer.sign(claims, header={"alg": "RS384"}),
        issuer.sign(claims, key=rsa_key(2)),
        issuer.sign(
            claims, key=OctKey.import_key("secret", {"kid": "shared"}), header={"alg": "HS256"}
        ),
        issuer.sign(claims, header={"kid": "broken"}),
    ):
        assert refusal(await get(trusting, token)).code == "invalid_token"


# Arbitrary input

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["RS256", "key-1", "JWT", "AQAB", "P-256", "RSA", "EC", "OKP", "sig"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
HEADERS = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "x5c", "b64"]), VALUES
)
CLAIMS = st.dictionaries(
    st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "jti", "tenant", "scope", "scp"]),
    VALUES,
)
KEYS = st.dictionaries(
    st.sampled_from(["kty", "n", "e", "crv", "x", "y", "use", "alg", "kid", "key_ops", "x5c"]),
    VALUES,
)
EXPECTED = TokenExpectations("https://a.example", ("a",), 30, "tenant", "sub", "", 16_384)
thorough = hypothesis_settings(
    max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@thorough
@given(header=HEADERS | VALUES, payload=CLAIMS | VALUES, signature=st.binary(max_size=300))
def test_text_that_looks_like_a_token_is_refused_without_a_server_error(
    header: object, payload: object, signature: bytes
) -> None:
    tail = base64.urlsafe_b64encode(signature).decode().rstrip("=")
    token = f"{encoded(header)}.{encoded(payload)}.{tail}"
    with pytest.raises(InvalidToken):
        read_identity(token, read_header(token, max_characters=16_384), rsa_key(1), EXPECTED)


@thorough
@given(claims=CLAIMS)
def test_every_signed_token_is_read_or_refused(claims: dict[str, object]) -> None:
    issuer = Issuer("https://a.example", keys=[rsa_key(1)])
    token = issuer.sign(issuer.claims("a") | claims)
    with suppress(InvalidToken):
        header = read_header(token, max_characters=16_384)
        assert read_identity(token, header, rsa_key(1), EXPECTED).scopes <= set(Scope)


@thorough
@given(entries=st.lists(KEYS | VALUES, max_size=20))
def test_the_valid_key_is_found_in_any_key_set(entries: list[object]) -> None:
    good = rsa_key(1).as_dict(private=False)
    assert (
        read_key_set({"keys": [*entries, {**good, "kid": "the good one"}]})[-1].kid
        == "the good one"
    )
