"""A real identity provider on loopback: Authlib's own authorization server, served by Flask.

JWT access tokens (RFC 9068) for client credentials and for authorization codes with PKCE, a key
set, OpenID Connect discovery and RFC 8414. It can also sign whatever a test wants to try.
"""

import json
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from authlib.integrations.flask_oauth2 import (  # type: ignore[import-untyped]
    AuthorizationServer,
)
from authlib.oauth2.rfc6749 import ClientMixin  # type: ignore[import-untyped]
from authlib.oauth2.rfc6749.grants import (  # type: ignore[import-untyped]
    AuthorizationCodeGrant,
    ClientCredentialsGrant,
)
from authlib.oauth2.rfc7636 import CodeChallenge  # type: ignore[import-untyped]
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator  # type: ignore[import-untyped]
from flask import Flask, Response, jsonify, request
from joserfc import jws
from joserfc.jwk import Key, KeySet, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.registry import HeaderParameter
from werkzeug.serving import make_server
from werkzeug.wrappers import Response as AnyResponse

from tests.harness import free_port

REALM = "/realms/company"
CLIENT_SECRET = "client-secret-canary-81c7"
CALLBACK = "http://127.0.0.1:1/callback"
OPENID_SCOPES = "openid email profile"
ALL_SCOPES = "images:read images:write usage:read credentials:write"
OIDC = f"{REALM}/.well-known/openid-configuration"
RFC8414 = f"/.well-known/oauth-authorization-server{REALM}"
JWKS = f"{REALM}/jwks"
OK = 200


@dataclass(frozen=True)
class OAuthClient(ClientMixin):  # type: ignore[misc]
    """An application that the provider knows; its tokens are of one tenant."""

    client_id: str
    tenant: str | None
    callback: str = CALLBACK

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return self.callback

    def get_allowed_scope(self, scope: str) -> str:
        known = {*ALL_SCOPES.split(), *OPENID_SCOPES.split()}
        return " ".join(word for word in (scope or "").split() if word in known)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == self.callback

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == CLIENT_SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in {"client_secret_basic", "client_secret_post"}

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in {"client_credentials", "authorization_code"}


@dataclass(frozen=True)
class Person:
    """The user who is signed in at the provider, in a browser, with claims about them."""

    name: str
    claims: dict[str, object] = field(default_factory=dict)

    def get_user_id(self) -> str:
        return self.name


@dataclass
class Code:
    """An authorization code that was issued."""

    client_id: str
    person: Person
    scope: str
    code_challenge: str
    code_challenge_method: str = "S256"
    redirect_uri: str = CALLBACK
    nonce: str | None = None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass
class Issuer:
    """The identity provider, with controls for tests."""

    url: str
    clients: dict[str, OAuthClient] = field(default_factory=dict)
    signed_in: Person = field(default_factory=lambda: Person("alice"))
    keys: list[Key] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Callable[[], AnyResponse]] = field(default_factory=dict)
    """Answers by path that replace the right ones."""
    codes: dict[str, Code] = field(default_factory=dict)
    id_token_changes: dict[str, object] = field(default_factory=dict)
    """Claims that replace the right ones of ID tokens."""
    id_token_key: Key | None = None
    """The key that signs ID tokens in place of the current one."""
    callback_issuer: str | None = None
    """The `iss` of callbacks, in place of the right one; empty: none."""

    def add_client(self, client_id: str, tenant: str | None, *, callback: str = CALLBACK) -> None:
        self.clients[client_id] = OAuthClient(client_id, tenant, callback)

    def id_token(self, code: Code) -> str:
        """The ID token of a code."""
        changes: dict[str, object] = {"nonce": code.nonce, "tenant": None, "scope": None}
        changes |= {"sub": code.person.name, **code.person.claims} | self.id_token_changes
        claims = self.claims(code.client_id, **changes)
        return self.sign(claims, key=self.id_token_key, header={"typ": "JWT"})

    def rotate(self) -> None:
        """Sign with a new key from now on, and remove the old one from the key set."""
        self.keys = [rsa_key(int(str(self.keys[0].kid).removeprefix("key-")) + 1)]

    def claims(self, audience: str | list[str], **changes: object) -> dict[str, Any]:
        """The claims of a valid token; a change to None leaves a claim out."""
        now = int(time.time())
        good = {"iss": self.url, "aud": audience, "sub": "alice", "tenant": "acme"}
        good |= {"iat": now, "exp": now + 300, "scope": ALL_SCOPES}  # type: ignore[dict-item]
        return {name: value for name, value in (good | changes).items() if value is not None}

    def sign(
        self,
        claims: dict[str, Any],
        *,
        key: Key | None = None,
        header: dict[str, Any] | None = None,
    ) -> str:
        """A token with these claims, signed with the current key unless another is given."""
        used = key or self.keys[0]
        whole = {"alg": "RS256", "typ": "at+jwt", "kid": used.kid} | (header or {})
        whole = {name: value for name, value in whole.items() if value is not None}
        anything = HeaderParameter("whatever a test tries", lambda _value: None)
        registry = JWSRegistry(dict.fromkeys(whole, anything), algorithms=[str(whole["alg"])])
        # Escaped: a claim may be text that no encoding knows.
        return jws.serialize_compact(whole, json.dumps(claims), used, registry=registry)

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "client_credentials"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "scopes_supported": ALL_SCOPES.split(),
            "authorization_response_iss_parameter_supported": True,
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            "end_session_endpoint": f"{self.url}/logout",
        }

    def key_set(self) -> dict[str, Any]:
        return {"keys": [key.as_dict(private=False, use="sig") for key in self.keys]}


@cache
def rsa_key(number: int) -> RSAKey:
    """One of a few cached keys; generating one takes a tenth of a second."""
    return RSAKey.generate_key(2048, {"kid": f"key-{number}"})


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    """Serve a provider on loopback until the end of the block."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    port = free_port()
    issuer = Issuer(url=f"http://127.0.0.1:{port}{REALM}", keys=[rsa_key(1)])
    server = make_server("127.0.0.1", port, behind_tls(_application(issuer)), threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def behind_tls(application: Flask) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """Tell Authlib that a proxy ends TLS: it refuses to serve anything else."""

    def call(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return application(environment | {"wsgi.url_scheme": "https"}, start_response)

    return call


def _application(issuer: Issuer) -> Flask:
    application = Flask("identity_provider")
    server = _authorization_server(application, issuer)

    @application.before_request
    def take_note() -> AnyResponse | None:
        issuer.asked[request.path] += 1
        return issuer.answers[request.path]() if request.path in issuer.answers else None

    @application.get(OIDC)
    @application.get(RFC8414)
    def describe() -> Response:
        return jsonify(issuer.metadata())

    @application.get(JWKS)
    def list_keys() -> Response:
        return jsonify(issuer.key_set())

    @application.post(f"{REALM}/token")
    def give_token() -> Any:
        code = issuer.codes.get(request.form.get("code", ""))
        answer = server.create_token_response()
        if code is None or "openid" not in code.scope.split() or answer.status_code != OK:
            return answer
        return jsonify({**answer.get_json(), "id_token": issuer.id_token(code)})

    @application.get(f"{REALM}/authorize")
    def authorize() -> Any:
        grant = server.get_consent_grant(end_user=issuer.signed_in)
        answer = server.create_authorization_response(grant_user=issuer.signed_in, grant=grant)
        # RFC 9207: the answer says who gives it.
        told = issuer.url if issuer.callback_issuer is None else issuer.callback_issuer
        answer.headers["Location"] += f"&iss={told}" if told else ""
        return answer

    return application


def _authorization_server(application: Flask, issuer: Issuer) -> Any:
    class CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc]
        TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "client_secret_post")

        def save_authorization_code(self, code: str, given: Any) -> None:
            issuer.codes[code] = Code(
                client_id=given.client.client_id,
                person=given.user,
                scope=given.payload.scope,
                code_challenge=given.payload.data["code_challenge"],
                redirect_uri=given.payload.redirect_uri,
                nonce=given.payload.data.get("nonce"),
            )

        def query_authorization_code(self, code: str, client: OAuthClient) -> Code | None:
            found = issuer.codes.get(code)
            return found if found is not None and found.client_id == client.client_id else None

        def delete_authorization_code(self, code: Code) -> None:
            issuer.codes = {k: value for k, value in issuer.codes.items() if value is not code}

        def authenticate_user(self, code: Code) -> Person:
            return code.person

    class Tokens(JWTBearerTokenGenerator):  # type: ignore[misc]
        def get_jwks(self) -> KeySet:
            return KeySet(issuer.keys[:1])

        def get_audiences(self, client: OAuthClient, user: Person | None, scope: str) -> str:
            # RFC 8707: a token is for the resource that was asked for, and for nothing else.
            return str(request.values.get("resource", client.client_id))

        def get_extra_claims(
            self, client: OAuthClient, grant_type: str, user: Person | None, scope: str
        ) -> dict[str, str]:
            return {} if client.tenant is None else {"tenant": client.tenant}

        def get_jti(self, client: OAuthClient, grant_type: str, user: Any, scope: str) -> str:
            return secrets.token_hex(8)

    server = AuthorizationServer(
        application,
        query_client=issuer.clients.get,
        save_token=lambda token, given: None,
    )
    server.register_grant(CodeGrant, [CodeChallenge(required=True)])
    server.register_grant(ClientCredentialsGrant)
    server.register_token_generator("default", Tokens(issuer=issuer.url))
    return server
