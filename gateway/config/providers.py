"""Settings of the providers, their connections and the default models."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from gateway.config.addresses import is_web_address
from gateway.config.base import FIRST, SettingsGroup


class ProviderSettings(SettingsGroup):
    """Providers, default models, and calls to them.

    The gateway calls providers through a proxy if `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say
    so. They are read from the environment only.
    """

    openai_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="OPENAI_API_KEY",
        description="The house credential: the OpenAI key for every tenant that has stored no key "
        "of its own.",
        examples=["sk-…"],
        json_schema_extra=FIRST,
    )
    openai_base_url: str = Field(
        default="https://api.openai.com/v1",
        validation_alias="OPENAI_BASE_URL",
        description="The address of OpenAI's API, without user, password or query.",
    )
    gemini_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="GEMINI_API_KEY",
        description="The house credential for Google's Gemini API, for models such as "
        "`gemini-nano-banana-2.1`.",
        examples=["AIza…"],
    )
    gemini_base_url: str = Field(
        default="https://generativelanguage.googleapis.com",
        validation_alias="GEMINI_BASE_URL",
        description="The address of Google's Gemini API, without user, password or query.",
    )
    legacy_base_url: str | None = Field(
        default=None,
        description="The address of an OpenAI-compatible host of your own that still has retired "
        "models. It requires `GATEWAY_LEGACY_MODELS`.",
        examples=["http://127.0.0.1:8080/v1"],
    )
    legacy_api_key: SecretStr | None = Field(
        default=None, description="The key for that host, if it requires one."
    )
    legacy_models: str = Field(
        default="",
        description="The retired models that this host serves, separated by commas. DALL·E's are "
        "then priced by the image.",
        examples=["dall-e-2"],
    )
    models_file: Path | None = Field(
        default=None,
        description="A TOML file with your own models, hosts, fallbacks and prices "
        "(docs/models-file.md). It is read again at SIGHUP.",
        examples=["/etc/image-gateway/models.toml"],
    )
    kserve_endpoint: str | None = Field(
        default=None,
        validation_alias="KSERVE_ENDPOINT",
        description="The address of one diffusers model on KServe, for use without a models file. "
        "It requires `KSERVE_PRICE_PER_IMAGE_USD`.",
        examples=["http://127.0.0.1:8080/v1/models/stable-diffusion"],
    )
    kserve_model_name: str | None = Field(
        default=None,
        validation_alias="KSERVE_MODEL_NAME",
        description="The id of that model. Default: the last part of the address.",
        examples=["stable-diffusion"],
    )
    kserve_timeout: int = Field(
        default=60,
        validation_alias="KSERVE_TIMEOUT",
        ge=1,
        le=3600,
        description="The seconds to wait for an image of that model.",
    )
    kserve_price_per_image_usd: str | None = Field(
        default=None,
        validation_alias="KSERVE_PRICE_PER_IMAGE_USD",
        description="The price of an image of that model. `0` makes it free.",
        examples=["0.002"],
    )
    default_model: str = Field(
        default="gpt-image-2.5-sunburst",
        description="The model for calls that name none. `dall-e-2` was OpenAI's default until "
        "2025.",
    )
    default_quality: Literal["low", "medium", "high", "xhigh", "max", "auto"] | None = Field(
        default=None,
        description="The quality for calls that name none, at models that have it. Without it the "
        "model chooses, and the dearest is reserved. The default model must have it.",
        examples=["medium"],
    )
    default_size: str | None = Field(
        default=None,
        description="The size for calls that name none, at models that make it. Without it the "
        "model chooses, and the dearest is reserved. The default model must make it.",
        examples=["1024x1024"],
    )
    default_style: Literal["vivid", "natural"] | None = Field(
        default=None, description="The style for generations that name none."
    )
    default_output_format: Literal["png", "jpeg", "webp"] | None = Field(
        default=None,
        description="The file format for calls that name none, where it fits the call's other "
        "parameters.",
    )
    default_moderation: Literal["auto", "low"] | None = Field(
        default=None, description="The moderation for generations that name none."
    )
    dall_e_2_for_old_sdks: bool = Field(
        default=True,
        description="Use `dall-e-2` for calls that name no model and come from an OpenAI SDK that "
        "knows DALL·E only (docs/api.md). `false` gives them the default model too.",
    )
    provider_connect_timeout_seconds: float = Field(
        default=5.0, gt=0, description="The seconds to connect to a provider."
    )
    provider_read_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="The seconds to wait for a provider's answer. Default: each model's own, from "
        "the catalogue.",
    )
    provider_max_connections: int = Field(
        default=1000, ge=1, description="The connections to providers per process."
    )
    provider_max_answer_bytes: int = Field(
        default=536_870_912,
        ge=1_048_576,
        description="The bytes that are read of a provider's answer. A longer answer is refused, "
        "although its call may have been paid for.",
    )

    @model_validator(mode="after")
    def _require_legacy_host(self) -> Self:
        if bool(self.hosted_models) != (self.legacy_base_url is not None):
            raise ValueError(
                "GATEWAY_LEGACY_BASE_URL and GATEWAY_LEGACY_MODELS belong together: the address of "
                "an OpenAI-compatible host, and the retired models it still has (dall-e-2,…)."
            )
        return self

    @model_validator(mode="after")
    def _require_provider_addresses(self) -> Self:
        named = {"OPENAI_BASE_URL": self.openai_base_url, "GEMINI_BASE_URL": self.gemini_base_url}
        if self.legacy_base_url is not None:
            named["GATEWAY_LEGACY_BASE_URL"] = self.legacy_base_url
        for name, url in named.items():
            if not is_web_address(url) or {"?", "#"} & set(url):
                raise ValueError(
                    f"{name} must be an https:// or http:// address such as "
                    "https://api.openai.com/v1, without user, password or query."
                )
        return self

    @property
    def request_defaults(self) -> dict[str, str]:
        """The operator's values for parameters that a call leaves open, by name."""
        values = {
            # First: whether another parameter is accepted can depend on it.
            "output_format": self.default_output_format,
            "size": self.default_size,
            "quality": self.default_quality,
            "style": self.default_style,
            "moderation": self.default_moderation,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def provider_addresses(self) -> dict[str, str]:
        """The address of each vendor's API, by its provider's name."""
        return {"openai": self.openai_base_url, "gemini": self.gemini_base_url}

    @property
    def house_keys(self) -> dict[str, SecretStr]:
        """The house credentials that are set, by the name of their provider."""
        keys = {"openai": self.openai_api_key, "gemini": self.gemini_api_key}
        return {name: key for name, key in keys.items() if key is not None}

    @property
    def hosted_models(self) -> list[str]:
        """Retired models that the operator's own OpenAI-compatible host still has."""
        return [name.strip() for name in self.legacy_models.split(",") if name.strip()]
