"""The provider's keys: rotation, outages, what floods cost it, and what it may answer."""

import asyncio
import threading
import time
from collections.abc import Callable

from flask import Response, jsonify, redirect
from werkzeug.wrappers import Response as AnyResponse

from gateway.config import OidcSettings, Settings
from gateway.oidc.signing_keys import SigningKeys
from tests.harness import Served, error_of, secret_of, served_gateway
from tests.identity_provider import JWKS, OIDC, RFC8414, Issuer
from tests.oauth_helpers import get, make_image, refusal, trusting_gateway
from tests.stub_openai import Stub

FLOOD = 300
AWAY = "identity_provider_unreachable"


def answer_503() -> Response:
    return Response("out of order", 503)


def token_of(served: Served, issuer: Issuer, **header: str) -> str:
    return issuer.sign(issuer.claims(served.base_url), header=header)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def keys_of(issuer: Issuer, clock: Clock, *, timeout_seconds: float = 2.0) -> SigningKeys:
    """The gateway's view of the provider's keys, by a clock of the test's."""
    bounds = OidcSettings(
        oidc_keys_seconds=3600.0,
        oidc_refetch_seconds=10.0,
        oidc_timeout_seconds=timeout_seconds,
        oidc_max_document_bytes=20_000,
    )
    return SigningKeys(issuer.url, bounds, clock=clock)


async def test_a_new_key_is_found_and_an_old_one_forgotten_without_a_restart(
    settings: Settings, issuer: Issuer
) -> None:
    async with trusting_gateway(settings, issuer, oidc_refetch_seconds=0.000_001) as served:
        old = token_of(served, issuer)
        assert (await get(served, old)).status_code == 200
        issuer.rotate()
        new = token_of(served, issuer)
        assert (await get(served, new)).status_code == 200
        assert refusal(await get(served, old)).code == "invalid_token"


async def test_keys_are_fetched_once_and_kept(trusting: Served, issuer: Issuer) -> None:
    token = token_of(trusting, issuer)
    answers = await asyncio.gather(*(get(trusting, token) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert issuer.asked == {OIDC: 1, JWKS: 1}


async def test_a_flood_of_unknown_keys_costs_the_provider_next_to_nothing(
    trusting: Served, issuer: Issuer
) -> None:
    good = token_of(trusting, issuer)
    assert (await get(trusting, good)).status_code == 200
    started = time.monotonic()
    async with trusting.http() as http:
        for index in range(FLOOD):
            token = token_of(trusting, issuer, kid=f"made-up-{index}")
            answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401
    intervals = 1 + (time.monotonic() - started) // trusting.gateway.settings.oidc_refetch_seconds
    assert issuer.asked[JWKS] <= 1 + intervals
    assert (await get(trusting, good)).status_code == 200


async def test_no_tokens_are_judged_while_the_provider_was_never_there(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    issuer.answers = {OIDC: answer_503}
    token = token_of(trusting, issuer)
    for answer in (await get(trusting, token), await make_image(trusting, token)):
        assert (answer.status_code, error_of(answer)["code"]) == (503, AWAY)
        assert "retry-after" in answer.headers
        assert "www-authenticate" not in answer.headers
        assert issuer.url not in answer.text
    assert stub.calls == []
    assert (await get(trusting, secret_of(await trusting.key()))).status_code == 200


async def test_known_keys_stay_in_use_while_the_provider_is_away(
    settings: Settings, issuer: Issuer
) -> None:
    changes = {"oidc_refetch_seconds": 0.000_001, "oidc_keys_seconds": 0.000_001}
    async with trusting_gateway(settings, issuer, **changes) as served:
        known = token_of(served, issuer)
        assert (await get(served, known)).status_code == 200
        issuer.answers = {OIDC: answer_503}
        assert (await get(served, known)).status_code == 200
        # An unknown key cannot be checked now: it may be a new one of the provider.
        unknown = await get(served, token_of(served, issuer, kid="unknown"))
        assert (unknown.status_code, error_of(unknown)["code"]) == (503, AWAY)
        issuer.answers = {}
        issuer.rotate()
        assert (await get(served, token_of(served, issuer))).status_code == 200


async def test_keys_are_fetched_anew_when_they_are_old_and_not_before(issuer: Issuer) -> None:
    clock = Clock()
    keys = keys_of(issuer, clock)
    assert await keys.find("key-1", "RS256") is not None
    issuer.rotate()
    clock.now += 3599
    assert await keys.find("key-1", "RS256") is not None
    assert issuer.asked[JWKS] == 1
    clock.now += 1
    assert await keys.find("key-1", "RS256") is None
    assert issuer.asked[JWKS] == 2
    await keys.close()


async def test_an_unknown_key_is_looked_for_again_after_a_while(issuer: Issuer) -> None:
    clock = Clock()
    keys = keys_of(issuer, clock)
    assert await keys.find("key-1", "RS256") is not None
    issuer.rotate()
    clock.now += 9.9
    assert await keys.find("key-2", "RS256") is None
    clock.now += 0.1
    assert await keys.find("key-2", "RS256") is not None
    assert issuer.asked[JWKS] == 2
    await keys.close()


async def test_no_request_waits_for_a_provider_that_is_known_to_hang(issuer: Issuer) -> None:
    clock = Clock()
    keys = keys_of(issuer, clock, timeout_seconds=0.2)
    assert await keys.find("key-1", "RS256") is not None
    hanging = threading.Event()

    def hang() -> Response:
        hanging.wait(30)
        return answer_503()

    issuer.answers = {OIDC: hang}
    clock.now += 3600
    assert await keys.find("key-1", "RS256") is not None  # waited once, and in vain
    clock.now += 10
    started = time.monotonic()
    assert await keys.find("key-1", "RS256") is not None
    assert time.monotonic() - started < 0.1
    hanging.set()
    await keys.close()


async def keys_found(served: Served, issuer: Issuer) -> tuple[int, str]:
    answer = await get(served, token_of(served, issuer))
    return answer.status_code, "" if answer.status_code == 200 else error_of(answer)["code"]


async def test_discovery_is_that_of_openid_or_else_that_of_oauth(
    trusting: Served, issuer: Issuer
) -> None:
    issuer.answers = {OIDC: lambda: Response("no such page", 404)}
    assert await keys_found(trusting, issuer) == (200, "")
    assert issuer.asked == {OIDC: 1, RFC8414: 1, JWKS: 1}


async def test_an_unexpected_discovery_answer_of_a_provider_is_refused(
    settings: Settings, issuer: Issuer
) -> None:
    def described(**changes: object) -> Callable[[], AnyResponse]:
        return lambda: jsonify(issuer.metadata() | changes)

    elsewhere = f"{issuer.url}/elsewhere"
    wrong: dict[str, dict[str, Callable[[], AnyResponse]]] = {
        "another issuer": {OIDC: described(issuer=f"{issuer.url}/")},
        "no issuer": {OIDC: described(issuer=None)},
        "no key set": {OIDC: described(jwks_uri=None)},
        "a key set over plain http": {OIDC: described(jwks_uri="http://keys.example/jwks")},
        "a key set in a file": {OIDC: described(jwks_uri="file:///etc/hosts")},
        "a description elsewhere": {OIDC: lambda: redirect(elsewhere)},
        "keys elsewhere": {JWKS: lambda: redirect(elsewhere)},
        "no keys": {JWKS: lambda: jsonify({"keys": []})},
        "keys that are none": {JWKS: lambda: jsonify({"keys": {"kid": "key-1"}})},
        "a list": {JWKS: lambda: jsonify([])},
        "a page": {JWKS: lambda: Response("<html>", 200)},
        "too much": {JWKS: lambda: jsonify(issuer.key_set() | {"padding": "x" * 300_000})},
        "too much nesting": {JWKS: lambda: Response("[" * 100_000, 200)},
        "no such page": {OIDC: lambda: Response(status=404), RFC8414: lambda: Response(status=404)},
    }
    found = {}
    for name, answers in wrong.items():
        issuer.answers = answers
        async with trusting_gateway(settings, issuer) as served:
            found[name] = await keys_found(served, issuer)
    assert found == dict.fromkeys(wrong, (503, AWAY))
    assert elsewhere.removeprefix("http://") not in " ".join(issuer.asked)


async def test_a_gateway_starts_and_stops_without_its_provider(settings: Settings) -> None:
    change = {"oidc_issuer": "http://127.0.0.1:9/realms/unknown"}
    async with served_gateway(settings.model_copy(update=change)) as served:
        assert (await get(served, secret_of(await served.key()))).status_code == 200
