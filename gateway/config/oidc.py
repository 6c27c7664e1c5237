"""Settings of sign-in by tokens of an OpenID Connect identity provider."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from gateway.config.addresses import is_https_or_loopback
from gateway.config.base import SettingsGroup

CONSOLE_ROLES = (
    *("operator-admin", "operator-viewer"),
    *("tenant-admin", "tenant-member", "tenant-billing-viewer"),
)
"""The names of the console's roles, as `gateway.identity.viewers` has them; a test compares."""


class OidcSettings(SettingsGroup):
    """Your identity provider: tokens beside API keys (docs/oauth.md), sign-in to the console."""

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
    oidc_client_id: str | None = Field(
        default=None,
        min_length=1,
        description="The client id of this gateway at the identity provider. With it, people sign "
        "in to the console there; the callback is `GATEWAY_PUBLIC_URL/console/login/callback`.",
        examples=["image-gateway"],
    )
    oidc_client_secret: SecretStr | None = Field(
        default=None,
        description="The secret of that client. Without it, the gateway is a public client (PKCE "
        "alone).",
    )
    oidc_sign_in_scope: str = Field(
        default="openid email profile",
        pattern=r"^openid( [\x21\x23-\x5b\x5d-\x7e]+)*$",
        description="The scopes that sign-in to the console asks for; `openid` comes first.",
    )
    oidc_role_claim: str = Field(
        default="groups",
        min_length=1,
        description="The claim of the ID token that `GATEWAY_OIDC_ROLES` reads. `realm.roles` "
        "reads a nested claim.",
    )
    oidc_roles: str = Field(
        default="",
        description="The role in the console for each value of that claim, as `value=role` "
        "separated by commas. Of several roles the most powerful counts. Roles of tenants need the "
        "claim `GATEWAY_OIDC_TENANT_CLAIM` too. People without such a claim need an invitation.",
        examples=["image-admins=operator-admin,finance=tenant-billing-viewer"],
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

    @property
    def oidc_role_map(self) -> tuple[tuple[str, str], ...]:
        """The pairs of a claim's value and a role's name."""
        parts = (part.strip() for part in self.oidc_roles.split(","))
        pairs = (part.rpartition("=") for part in parts if part)
        return tuple((value.strip(), role.strip()) for value, _, role in pairs)

    @model_validator(mode="after")
    def _require_known_roles(self) -> Self:
        for value, role in self.oidc_role_map:
            if not value or role not in CONSOLE_ROLES:
                raise ValueError(
                    f"GATEWAY_OIDC_ROLES has {value}={role}. Write value=role with one of: "
                    f"{', '.join(CONSOLE_ROLES)}."
                )
        if self.oidc_client_id is not None and self.oidc_issuer is None:
            raise ValueError("GATEWAY_OIDC_CLIENT_ID needs GATEWAY_OIDC_ISSUER, the provider.")
        return self

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
