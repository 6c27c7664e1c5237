"""Settings of sign-in by tokens of an OpenID Connect identity provider."""

from typing import Self

from pydantic import Field, model_validator

from gateway.config.addresses import is_https_or_loopback
from gateway.config.base import SettingsGroup


class OidcSettings(SettingsGroup):
    """Tokens of your identity provider, beside API keys (docs/oauth.md)."""

    oidc_issuer: str | None = Field(
        default=None,
        description="The identity provider's issuer, exactly as its discovery document spells it. "
        "Without it, only API keys are accepted.",
        examples=["https://login.example.com/realms/company"],
    )
    oidc_audience: str = Field(
        default="",
        description="The audiences of which a token's `aud` must name one, separated by commas. "
        "Default: `GATEWAY_PUBLIC_URL` and `GATEWAY_PUBLIC_URL/mcp`.",
        examples=["https://images.example.com"],
    )
    oidc_tenant_claim: str = Field(
        default="tenant",
        min_length=1,
        description="The claim that holds the tenant's name or id. `realm.tenant` reads a nested "
        "claim.",
    )
    oidc_user_claim: str = Field(
        default="sub", min_length=1, description="The claim that identifies the user."
    )
    oidc_scope_prefix: str = Field(
        default="",
        pattern=r"^[\x21\x23-\x5b\x5d-\x7e]*$",
        description="The prefix that the identity provider puts before `images:read` and the other "
        "scopes.",
        examples=["api://my-app/"],
    )
    oidc_leeway_seconds: int = Field(
        default=30, ge=0, le=300, description="The seconds by which clocks may differ."
    )
    oidc_keys_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="The seconds that the provider's signing keys are used before they are fetched "
        "again.",
    )
    oidc_refetch_seconds: float = Field(
        default=10.0,
        gt=0,
        description="The shortest time, in seconds, between two fetches because of an unknown key.",
    )
    oidc_timeout_seconds: float = Field(
        default=5.0, gt=0, description="The seconds that one fetch may take."
    )
    oidc_max_document_bytes: int = Field(
        default=262_144, ge=1024, description="The bytes of a document of the identity provider."
    )
    oidc_max_token_characters: int = Field(
        default=16_384, ge=512, description="The characters of a token."
    )

    @model_validator(mode="after")
    def _require_safe_issuer(self) -> Self:
        issuer = self.oidc_issuer
        if issuer is not None and (not is_https_or_loopback(issuer) or {"?", "#"} & set(issuer)):
            raise ValueError(
                "GATEWAY_OIDC_ISSUER must be the https:// address that your identity provider "
                "calls its issuer, without a query (http:// on this machine only). To accept API "
                "keys alone, remove it."
            )
        return self
