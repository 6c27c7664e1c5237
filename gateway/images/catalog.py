"""The catalogue: which models there are, what they accept, how long they live. Data, not code."""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import resources
from typing import Any

from gateway.domain import Caller, Model, SeedPrice, SizeRule, TokenRule
from gateway.errors import Forbidden, NotFound
from gateway.money import parse_usd


def utc_today() -> date:
    """Vendors' shutdown dates are days in UTC."""
    return datetime.now(UTC).date()


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every known model by id; retired ones stay known, with their successor."""

    models: Mapping[str, Model]
    today: Callable[[], date] = utc_today

    def find(self, caller: Caller, name: str) -> Model:
        """The living model of this name, if the caller's key may use it.

        Raises:
            NotFound: unknown, or retired by its vendor; the message names the successor.
            Forbidden: the key is limited to other models.
        """
        model = self.models.get(name)
        if model is None:
            raise NotFound(
                f"The model '{name}' does not exist here. GET /v1/models lists those that do.",
                code="model_not_found",
                param="model",
            )
        if caller.models is not None and name not in caller.models:
            raise Forbidden(
                f"This API key may not use the model '{name}'. "
                f"It may use: {', '.join(sorted(caller.models))}.",
                code="model_not_allowed",
                param="model",
            )
        if model.is_retired(self.today()):
            raise NotFound(
                f"The model '{name}' was shut down by its vendor on {model.shutdown_date}. "
                f"Use '{model.successor}'.",
                code="model_not_found",
                param="model",
            )
        return model

    def available(self, caller: Caller) -> Iterator[Model]:
        """The living models that the caller's key may use."""
        for model in self.models.values():
            allowed = caller.models is None or model.id in caller.models
            if allowed and not model.is_retired(self.today()):
                yield model


def load_catalog(today: Callable[[], date] = utc_today) -> Catalog:
    """Read the catalogue that comes with the package."""
    text = resources.files("gateway.images").joinpath("catalog.toml").read_text()
    data = tomllib.loads(text)
    models: dict[str, Model] = {}
    for entry in data["models"]:
        merged = {**data["families"][entry["family"]], **entry}
        for name in (entry["id"], *entry.get("snapshots", ())):
            models[name] = _model(name, merged)
    return Catalog(models, today)


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    price = entry.get("price")
    return Model(
        id=name,
        provider="openai",
        endpoints=frozenset(entry["endpoints"]),
        released=entry.get("released"),
        deprecation_date=entry.get("deprecation_date"),
        shutdown_date=entry.get("shutdown_date"),
        successor=entry.get("successor"),
        sizes=SizeRule(fixed=tuple(entry["sizes"]["fixed"])),
        qualities=tuple(entry["qualities"]),
        output_formats=tuple(entry["output_formats"]),
        backgrounds=tuple(entry.get("backgrounds", ())),
        complexities=tuple(entry.get("complexities", ())),
        parameters=frozenset(entry["parameters"]),
        max_prompt_characters=entry["max_prompt_characters"],
        max_images=entry["max_images"],
        read_timeout_seconds=entry["read_timeout_seconds"],
        priced_as=entry["id"],
        text_output_bound=entry.get("text_output_bound", 0),
        tokens=TokenRule(
            fixed=entry.get("tokens", {}).get("fixed", {}),
            base=entry.get("tokens", {}).get("base", {}),
        ),
        price=None if price is None else _seed_price(price),
    )


def _seed_price(rates: Mapping[str, str]) -> SeedPrice:
    """Where no rate for text output is published, it counts as image output, the dearest."""
    return SeedPrice(
        text_input_nano=parse_usd(rates["text_input"]),
        image_input_nano=parse_usd(rates["image_input"]),
        image_output_nano=parse_usd(rates["image_output"]),
        text_output_nano=parse_usd(rates.get("text_output", rates["image_output"])),
    )
