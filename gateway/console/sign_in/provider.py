"""The operator's identity provider as the console's sign-in: OpenID Connect, by Authlib.

Authorization code with PKCE (S256), state and nonce. Authlib exchanges the code and verifies the ID
token; what it leaves out is checked here: the `iss` of the callback (RFC 9207), the exact issuer
and audience, and the signature's algorithm.
"""

import logging
from collections.abc import Mapping

import httpx2
from authlib.integrations.base_client import OAuthError  # type: ignore[import-untyped]
from authlib.integrations.starlette_client import OAuth  # type: ignore[import-untyped]
from fastapi import Request
from joserfc.errors import JoseError
from starlette.datastructures import QueryParams

from gateway.config import Settings
from gateway.domain import SecretText
from gateway.errors import Unauthenticated, Unavailable
from gateway.identity.federated import Identity
from gateway.identity.pending import PendingSignIn
from gateway.oidc.tokens import ALGORITHMS, find_claim

NAME = "provider"
CALLBACK_PATH = "/console/login/callback"
DISCOVERY = "/.well-known/openid-configuration"
ALGORITHMS_CLAIM = "id_token_signing_alg_values_supported"
FAILURES = (httpx2.HTTPError, OAuthError, JoseError, ValueError, KeyError, TypeError, RuntimeError)
# At this level the library logs code verifiers.
logging.getLogger("authlib").setLevel(logging.WARNING)
log = logging.getLogger(__name__)


class ProviderUnavailable(Unavailable):
    """The identity provider does not answer, or not as it should."""

    code = "identity_provider_unreachable"


class ProviderRefused(Unauthenticated):
    """The identity provider did not sign the person in, or its answer is not acceptable."""

    code = "sign_in_refused"


class SignInProvider:
    """The identity provider of one gateway; its documents are fetched at the first sign-in."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.oidc_client_secret
        self._settings = settings
        self._issuer = settings.oidc_issuer or ""
        self._redirect_uri = settings.public_url.rstrip("/") + CALLBACK_PATH
        self._app = OAuth().register(
            NAME,
            client_id=settings.oidc_client_id,
            client_secret=None if secret is None else secret.get_secret_value(),
            server_metadata_url=self._issuer.rstrip("/") + DISCOVERY,
            client_kwargs={
                "scope": settings.oidc_sign_in_scope,
                "code_challenge_method": "S256",
                "timeout": settings.oidc_timeout_seconds,
                **({} if secret is not None else {"token_endpoint_auth_method": "none"}),
            },
        )

    async def begin(self, *, next_path: str, invitation: str) -> tuple[str, str, PendingSignIn]:
        """Return the address to lead the browser to, the request's state, and what to keep.

        Raises:
            ProviderUnavailable: the provider does not answer as it should.
        """
        await self._metadata()
        try:
            made = await self._app.create_authorization_url(self._redirect_uri)
            entry = PendingSignIn(
                nonce=made["nonce"],
                code_verifier=made["code_verifier"],
                redirect_uri=self._redirect_uri,
                next_path=next_path,
                invitation=invitation,
            )
        except FAILURES as error:
            raise _unavailable(error) from error
        return str(made["url"]), str(made["state"]), entry

    async def finish(self, request: Request, query: QueryParams, entry: PendingSignIn) -> Identity:
        """Exchange the callback's code, and return the verified identity.

        Raises:
            ProviderRefused: the provider refused, or its answer is not acceptable.
            ProviderUnavailable: the provider does not answer as it should.
        """
        metadata = await self._metadata()
        self._check_issuer(query, metadata)
        if "error" in query:
            raise ProviderRefused("The identity provider did not sign you in.")
        state = query.get("state", "")
        request.scope["session"] = {
            f"_state_{NAME}_{state}": {
                "data": {
                    "nonce": entry.nonce,
                    "code_verifier": entry.code_verifier,
                    "redirect_uri": entry.redirect_uri,
                }
            }
        }
        try:
            token = await self._app.authorize_access_token(
                request,
                leeway=self._settings.oidc_leeway_seconds,
                claims_options={
                    "iss": {"essential": True, "value": self._issuer},
                    "aud": {"essential": True, "value": self._settings.oidc_client_id},
                },
            )
            claims = dict(token["userinfo"])
            claims = await self._with_userinfo(token, claims, metadata)
            return self._identity(claims, SecretText(str(token["id_token"])))
        except httpx2.HTTPError as error:
            raise _unavailable(error) from error
        except FAILURES as error:
            # The library's messages may quote the provider's answer.
            log.warning("console_sign_in_refused: %s", type(error).__name__)
            raise ProviderRefused(
                "The answer of the identity provider could not be verified. Sign in again."
            ) from error
        finally:
            del request.scope["session"]

    async def sign_out_url(self, token: SecretText) -> str | None:
        """Return the address at which the provider ends its own session, if it has one."""
        try:
            metadata = await self._metadata()
            if not metadata.get("end_session_endpoint"):
                return None
            made = await self._app.create_logout_url(
                post_logout_redirect_uri=self._settings.public_url.rstrip("/") + "/console/login",
                id_token_hint=token.reveal(),
                client_id=self._settings.oidc_client_id,
            )
        except (ProviderUnavailable, *FAILURES):
            return None
        return str(made["url"])

    async def _metadata(self) -> Mapping[str, object]:
        try:
            metadata: dict[str, object] = await self._app.load_server_metadata()
            if metadata["issuer"] != self._issuer:
                raise ValueError("another issuer")
            offered = metadata.get(ALGORITHMS_CLAIM)
            names = [str(name) for name in offered] if isinstance(offered, list) else []
            # Neither unsigned tokens nor ones signed with a shared secret.
            metadata[ALGORITHMS_CLAIM] = [n for n in names if n in ALGORITHMS] or ["RS256"]
        except FAILURES as error:
            raise _unavailable(error) from error
        return metadata

    def _check_issuer(self, query: QueryParams, metadata: Mapping[str, object]) -> None:
        """Refuse an answer of another provider (RFC 9207), before its code is sent anywhere."""
        given = query.get("iss")
        is_promised = metadata.get("authorization_response_iss_parameter_supported") is True
        if (given is None and is_promised) or (given is not None and given != self._issuer):
            raise ProviderRefused("This answer came from another identity provider.")

    async def _with_userinfo(
        self, token: Mapping[str, object], claims: dict[str, object], metadata: Mapping[str, object]
    ) -> dict[str, object]:
        """Add the claims that the provider tells at its other address alone.

        Raises:
            ValueError: they are about another person.
        """
        wanted = ("email", self._settings.oidc_role_claim)
        if "userinfo_endpoint" not in metadata or all(
            find_claim(claims, name) is not None for name in wanted
        ):
            return claims
        more = dict(await self._app.userinfo(token=token))
        if more.get("sub") != claims["sub"]:
            raise ValueError("another person")
        return more | claims

    def _identity(self, claims: Mapping[str, object], token: SecretText) -> Identity:
        settings = self._settings
        email = claims.get("email")
        is_verified = claims.get("email_verified") in {True, "true"}
        groups = find_claim(claims, settings.oidc_role_claim)
        tenant = find_claim(claims, settings.oidc_tenant_claim)
        user = find_claim(claims, settings.oidc_user_claim)
        subject = str(claims["sub"])
        name = next(
            (
                text
                for key in ("name", "preferred_username", "email")
                if isinstance(text := claims.get(key), str) and text.strip()
            ),
            subject,
        )
        return Identity(
            issuer=self._issuer,
            subject=subject,
            name=name,
            email=email if isinstance(email, str) and is_verified else None,
            groups=_words(groups),
            tenant=tenant if isinstance(tenant, str) else None,
            user=user if isinstance(user, str) else subject,
            token=token,
        )


def provider_of(request: Request, settings: Settings) -> SignInProvider | None:
    """Return the application's provider, if sign-in through one is configured."""
    if settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    state = request.app.state
    if not hasattr(state, "sign_in_provider"):
        state.sign_in_provider = SignInProvider(settings)
    found: SignInProvider = state.sign_in_provider
    return found


def _words(value: object) -> frozenset[str]:
    """The values of a claim: a list, or a text with words."""
    if isinstance(value, str):
        return frozenset({value, *value.split()})
    if isinstance(value, list):
        return frozenset(word for word in value if isinstance(word, str))
    return frozenset()


def _unavailable(error: Exception) -> ProviderUnavailable:
    log.warning("console_identity_provider_unavailable: %s", type(error).__name__)
    return ProviderUnavailable(
        "The identity provider does not answer as it should. Try again, or sign in another way.",
        retry_after_seconds=5,
    )
