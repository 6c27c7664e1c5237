"""The catalogue of models, their parameters and lifetimes, loaded from `catalog.toml`."""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from importlib import resources
from typing import Any

from gateway.catalog.declared import NOTHING, Declaration, Host
from gateway.catalog.vendors import LEGACY, VENDORS, Vendor
from gateway.domain import Caller
from gateway.errors import ConfigurationError, Forbidden, ModelRetired, NotFound
from gateway.image_models import (
    AutoChoice,
    Continuity,
    InputRule,
    Model,
    SeedPrice,
    Shape,
    SizeRule,
    TokenRule,
    Unit,
    parse_size,
)
from gateway.money import parse_usd

DEFAULT_MODEL = "gpt-image-2.5-sunburst"
THINKING_QUALITIES = ("low", "medium", "high")


def utc_today() -> date:
    """Return today's date in UTC, as vendors' shutdown dates are."""
    return datetime.now(UTC).date()


class Catalog:
    """Every known model by id, including retired ones with their successor.

    With an operator's models file also the hosts and the chains of fallbacks that it declares.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        default_model: str,
        today: Callable[[], date],
        declaration: Declaration = NOTHING,
    ) -> None:
        self._models = dict(models)
        self._default_model = default_model
        self._today = today
        self._declaration = declaration
        self._announced: dict[str, date] = {}

    @property
    def models(self) -> Mapping[str, Model]:
        """Every model by id, retired ones included."""
        return self._models

    @property
    def declaration(self) -> Declaration:
        """The operator's own hosts, models, fallbacks and prices."""
        return self._declaration

    @property
    def hosts(self) -> Mapping[str, Host]:
        """The operator's own hosts by name."""
        return self._declaration.hosts

    @property
    def vendors(self) -> Mapping[str, Vendor]:
        """Everything that credentials are kept for, by the name that models and credentials use."""
        hosts = {
            host.name: Vendor(host.name, host.bearer_env or "bearer_env of the models file")
            for host in self.hosts.values()
        }
        return {**VENDORS, **hosts}

    def fallbacks(self, model_id: str) -> tuple[Model, ...]:
        """Return the models to ask after one that surely charged nothing, in their order."""
        return tuple(self._models[name] for name in self._declaration.fallbacks.get(model_id, ()))

    def adopt(self, other: "Catalog") -> None:
        """Take the content of a newly loaded catalogue, and keep the dates that vendors announced.

        Requests that have chosen their model already keep it.
        """
        self._models, self._declaration = dict(other.models), other.declaration
        self._default_model = other._default_model  # noqa: SLF001 - of its own class
        self.learn_shutdown_dates(self._announced)

    def find(self, caller: Caller, name: str) -> Model:
        """Find a model by name, if it is served to this caller by itself or by a successor.

        Raises:
            NotFound: the model is unknown.
            ModelRetired: its vendor has shut it down, and the tenant's continuity is off.
            Forbidden: the key is limited to other models.
        """
        model = self._models.get(name)
        if model is None:
            raise unknown_model(name)
        if caller.models is not None and name not in caller.models:
            raise Forbidden(
                f"This API key may not use the model '{name}'. "
                f"It may use: {', '.join(sorted(caller.models))}.",
                code="model_not_allowed",
                param="model",
            )
        if not self._is_served(caller, model):
            raise ModelRetired(name)
        return model

    def available(self, caller: Caller) -> Iterator[Model]:
        """Yield the models that the caller may use, including retired ones with a successor."""
        for model in self._models.values():
            allowed = caller.models is None or model.id in caller.models
            if allowed and self._is_served(caller, model):
                yield model

    def serving(self, model: Model, *, livemode: bool) -> Model:
        """Return the model that serves requests for `model`: itself, or its successor.

        In test mode the sandbox uses the successor even if an operator's own host has the model.
        """
        seen = {model.id}
        while model.is_retired(self._today()) and not (livemode and model.provider == LEGACY):
            successor = self._models[model.successor or self._default_model]
            if successor.id in seen:
                raise ModelRetired(model.id)
            seen.add(successor.id)
            model = successor
        return model

    def substitutes(self, caller: Caller, model: Model) -> Iterator[Model]:
        """Yield the living models that may serve this caller where `model` does not, in order."""
        for other in self.fallbacks(model.id):
            is_alive = other.provider == LEGACY or not other.is_retired(self._today())
            if is_alive and (caller.models is None or other.id in caller.models):
                yield other

    def living(self, provider: str) -> list[Model]:
        """List the models of a provider that are not shut down."""
        models = self._models.values()
        return [m for m in models if m.provider == provider and not m.is_retired(self._today())]

    def learn_shutdown_dates(self, dates: Mapping[str, date]) -> list[str]:
        """Apply the dates that a vendor announces; return the models whose date has changed."""
        self._announced |= dates
        changed = [
            name
            for name, shutdown in dates.items()
            if name in self._models and self._models[name].shutdown_date != shutdown
        ]
        for name in changed:
            self._models[name] = replace(self._models[name], shutdown_date=dates[name])
        return changed

    def _is_served(self, caller: Caller, model: Model) -> bool:
        is_hosted = model.provider == LEGACY
        is_alive = is_hosted or not model.is_retired(self._today())
        return is_alive or caller.tenant_settings.continuity


def unknown_model(name: str) -> NotFound:
    """Build the refusal of a model that the catalogue does not have."""
    return NotFound(
        f"The model '{name}' does not exist here. GET /v1/models lists those that do.",
        code="model_not_found",
        param="model",
    )


def load_catalog(
    today: Callable[[], date] = utc_today,
    *,
    default_model: str = DEFAULT_MODEL,
    hosted: Iterable[str] = (),
    declare: Callable[[Mapping[str, Model]], Declaration] | None = None,
) -> Catalog:
    """Read the catalogue that comes with the package.

    `default_model` also serves for retired models whose vendor named no successor. The operator's
    own host serves the models `hosted`, even after their vendor's shutdown date. `declare` builds
    what the operator declares beside the models of the catalogue.

    Raises:
        ConfigurationError: `default_model` or a hosted model is unknown, or a declaration is wrong.
    """
    text = resources.files("gateway.catalog").joinpath("catalog.toml").read_text()
    data = tomllib.loads(text)
    models: dict[str, Model] = {}
    for entry in data["models"]:
        shared = {"pixels": data["pixels"], "styles": data["styles"]}
        merged = {**shared, **data["families"][entry["family"]], **entry}
        for name in (entry["id"], *entry.get("snapshots", ())):
            models[name] = _model(name, merged)
    declaration = NOTHING if declare is None else declare(models)
    models |= declaration.models
    for setting, name in [
        ("GATEWAY_DEFAULT_MODEL", default_model),
        *(("GATEWAY_LEGACY_MODELS", name) for name in hosted),
    ]:
        if name not in models:
            raise ConfigurationError(
                f"{setting}: there is no model '{name}'. Known models: {', '.join(models)}."
            )
    for name in hosted:
        models[name] = replace(models[name], provider=LEGACY)
    return Catalog(models, default_model=default_model, today=today, declaration=declaration)


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    price = entry.get("price")
    shapes = _shapes(entry)
    return Model(
        id=name,
        provider=entry.get("provider", "openai"),
        endpoints=frozenset(entry["endpoints"]),
        released=entry.get("released"),
        deprecation_date=entry.get("deprecation_date"),
        shutdown_date=entry.get("shutdown_date"),
        successor=entry.get("successor"),
        sizes=_size_rule(entry, shapes),
        qualities=tuple(entry["qualities"]),
        output_formats=tuple(entry["output_formats"]),
        backgrounds=tuple(entry.get("backgrounds", ())),
        complexities=tuple(entry.get("complexities", ())),
        parameters=frozenset(entry["parameters"]),
        inputs=_input_rule(entry),
        continuity=Continuity(**entry.get("continuity", {})),
        default_response_format=entry.get("default_response_format", "b64_json"),
        max_prompt_characters=entry["max_prompt_characters"],
        max_images=entry["max_images"],
        read_timeout_seconds=entry["read_timeout_seconds"],
        priced_as=entry["id"],
        text_output_bound=entry.get("text_output_bound", 0),
        usual=AutoChoice(**entry["usual"]),
        tokens=TokenRule(
            fixed=_tier_tokens(entry, shapes) or entry.get("tokens", {}).get("fixed", {}),
            base=entry.get("tokens", {}).get("base", {}),
        ),
        price=None if price is None else _seed_price(price),
        unit=Unit.IMAGE if "per_image" in entry else Unit.TOKEN,
        per_image={
            name: SeedPrice(0, 0, 0, 0, per_image_nano=parse_usd(amount))
            for name, amount in entry.get("per_image", {}).items()
        },
        shapes=shapes,
        thinking=entry.get("thinking", {}),
        one_image_per_call=entry.get("one_image_per_call", False),
        own_format=entry.get("own_format", False),
        style_sentences=entry["styles"],
    )


def _shapes(entry: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the sizes of a model that is asked for ratio and tier, the smallest tier first."""
    return {
        f"{int(width * tier['scale'])}x{int(height * tier['scale'])}": Shape(ratio, name)
        for name, tier in entry.get("tiers", {}).items()
        for ratio in entry["ratios"]
        for width, height in [parse_size(entry["pixels"][ratio])]
    }


def _size_rule(entry: Mapping[str, Any], shapes: Mapping[str, Shape]) -> SizeRule:
    if not shapes:
        rule = entry["sizes"]
        return SizeRule(fixed=tuple(rule["fixed"]), auto=rule.get("auto", True))
    usual = entry["usual"]["size"]
    return SizeRule(
        fixed=tuple(shapes),
        unspecified=tuple(size for size in shapes if shapes[size].tier == shapes[usual].tier),
        **entry.get("near", {}),
    )


def _tier_tokens(
    entry: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, dict[str, int]]:
    """Return the output tokens by quality and size, which depend on the tier alone."""
    tokens = {size: entry["tiers"][shape.tier]["tokens"] for size, shape in shapes.items()}
    return dict.fromkeys(THINKING_QUALITIES, tokens) if shapes else {}


def _input_rule(entry: Mapping[str, Any]) -> InputRule:
    """Return the family's rule for inputs; a model may restrict the fidelities."""
    rule = dict(entry.get("inputs", {}))
    fidelities = entry.get("fidelities", rule.get("fidelities", ()))
    media_types = tuple(rule.get("media_types", ()))
    return InputRule(**{**rule, "fidelities": tuple(fidelities), "media_types": media_types})


def _seed_price(rates: Mapping[str, str]) -> SeedPrice:
    """Parse published rates; without one for text output, the higher image output rate applies."""
    return SeedPrice(
        text_input_nano=parse_usd(rates["text_input"]),
        image_input_nano=parse_usd(rates["image_input"]),
        image_output_nano=parse_usd(rates["image_output"]),
        text_output_nano=parse_usd(rates.get("text_output", rates["image_output"])),
    )
