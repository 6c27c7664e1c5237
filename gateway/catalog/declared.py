"""Models, hosts, fallbacks and prices of the operator's models file, as the catalogue has them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from gateway.catalog.models_file import ModelEntry, ModelsFile, PriceEntry, refused
from gateway.catalog.vendors import LEGACY, SANDBOX, VENDORS
from gateway.image_models import (
    AutoChoice,
    Continuity,
    InputRule,
    Model,
    SeedPrice,
    SizeRule,
    TokenRule,
    Unit,
    Wording,
)

V = TypeVar("V")
Kind = Literal["kserve", "openai-compatible"]
RESERVED = frozenset({*VENDORS, LEGACY, SANDBOX})
USUAL_EDGE = 1024
EVERY_HOSTS = ("output_format", "output_compression", "stream")
PARAMETERS_OF: Mapping[Kind, tuple[str, ...]] = {"kserve": ("seed",), "openai-compatible": ()}
INPUT_TYPES = ("image/png", "image/jpeg", "image/webp")


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the operator's own, which serves declared models.

    `bearer_env`: the environment variable with the house credential. `probe_seconds`: the least
    time between questions for readiness; 0 asks never.
    """

    name: str
    kind: Kind
    base_url: str
    protocol: Literal["v1", "v2"] = "v1"
    bearer_env: str | None = None
    host_header: str | None = None
    ca_file: Path | None = None
    probe_seconds: int = 30


@dataclass(frozen=True, slots=True)
class DeclaredPrice:
    """A price that must be in force, from a start on or from now."""

    name: str
    rates: SeedPrice
    effective_from: datetime | None = None


@dataclass(frozen=True, slots=True)
class Declaration:
    """All that an operator declares beside the catalogue."""

    hosts: Mapping[str, Host]
    models: Mapping[str, Model]
    fallbacks: Mapping[str, tuple[str, ...]]
    prices: tuple[DeclaredPrice, ...] = ()


NOTHING = Declaration({}, {}, {})


def declare(file: ModelsFile, known: Mapping[str, Model]) -> Declaration:
    """Build what a file declares, beside the models `known` of the catalogue.

    Raises:
        ModelsFileError: names, models, fallbacks and prices do not fit together.
    """
    tables = file.tables
    problems = [file.problem(place, message) for place, message in _problems(file, known)]
    if problems:
        raise refused(problems)
    hosts = {
        entry.name: Host(
            name=entry.name,
            kind=entry.kind,
            base_url=entry.base_url,
            protocol=entry.protocol or "v1",
            bearer_env=entry.bearer_env,
            host_header=entry.host_header,
            # Beside the file, wherever the gateway was started.
            ca_file=None if entry.ca_file is None else file.path.parent / entry.ca_file,
            probe_seconds=entry.probe_seconds,
        )
        for entry in tables.providers
    }
    models = {entry.id: declared_model(entry, hosts[entry.provider]) for entry in tables.models}
    own = [DeclaredPrice(one.id, one.price) for one in models.values() if one.price is not None]
    return Declaration(
        hosts=hosts,
        models=models,
        fallbacks={entry.model: tuple(entry.to) for entry in tables.fallbacks},
        prices=(*own, *(_price(entry) for entry in tables.prices)),
    )


Problem = tuple[Sequence[str | int], str]


def _problems(file: ModelsFile, known: Mapping[str, Model]) -> Iterator[Problem]:
    declared = {model.id for model in file.tables.models}
    yield from _wrong_hosts(file)
    yield from _wrong_models(file, known)
    yield from _wrong_fallbacks(file, {*known, *declared})
    yield from _wrong_prices(file, known, declared)


def _wrong_hosts(file: ModelsFile) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, entry in enumerate(file.tables.providers):
        place = ("providers", number, "name")
        if entry.name in RESERVED:
            yield place, f"'{entry.name}' is a provider of the gateway; choose another name"
        elif entry.name in seen:
            yield place, f"duplicate name '{entry.name}'"
        seen.add(entry.name)
        if entry.ca_file is not None and not (file.path.parent / entry.ca_file).is_file():
            yield ("providers", number, "ca_file"), f"there is no file '{entry.ca_file}'"


def _wrong_models(file: ModelsFile, known: Mapping[str, Model]) -> Iterator[Problem]:
    kinds = {entry.name: entry.kind for entry in file.tables.providers}
    seen = set(known)
    for number, entry in enumerate(file.tables.models):
        if entry.id in seen:
            yield ("models", number, "id"), f"duplicate id '{entry.id}'"
        seen.add(entry.id)
        if entry.provider not in kinds:
            yield ("models", number, "provider"), f"there is no provider '{entry.provider}'"
        elif kinds[entry.provider] == "openai-compatible":
            for name in ("template", "types"):
                if getattr(entry, name):
                    yield ("models", number, name), "belongs to providers of kind kserve"
        elif entry.negative_prompt_after is not None:
            place = ("models", number, "negative_prompt_after")
            yield place, "belongs to providers of kind openai-compatible"


def _wrong_fallbacks(file: ModelsFile, models: set[str]) -> Iterator[Problem]:
    chains: dict[str, list[str]] = {}
    for number, entry in enumerate(file.tables.fallbacks):
        place = ("fallbacks", number)
        if entry.model in chains:
            yield (*place, "model"), f"duplicate chain of '{entry.model}'"
        if entry.model not in models:
            yield (*place, "model"), f"there is no model '{entry.model}'"
        for name in entry.to:
            if name not in models:
                yield (*place, "to"), f"there is no model '{name}'"
        if len(set(entry.to)) < len(entry.to):
            yield (*place, "to"), "a model stands twice in the chain"
        chains.setdefault(entry.model, entry.to)
        if (circle := _circle(entry.model, chains)) is not None:
            yield (*place, "to"), f"the fallbacks form a circle: {' → '.join(circle)}"


def _circle(start: str, chains: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Return a way through the chains from a model back to itself."""
    ways = [[start]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for name in chains.get(way[-1], ()):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return None


def _wrong_prices(
    file: ModelsFile, known: Mapping[str, Model], declared: set[str]
) -> Iterator[Problem]:
    seen: set[tuple[str, datetime | None]] = set()
    for number, entry in enumerate(file.tables.prices):
        place = ("prices", number, "model")
        if entry.model in declared:
            yield place, f"the price of '{entry.model}' stands in its own table"
        elif (message := _wrong_price(entry, known)) is not None:
            yield place, message
        if (entry.model, entry.starts) in seen:
            yield place, f"duplicate price of '{entry.model}' from this start"
        seen.add((entry.model, entry.starts))


def _wrong_price(entry: PriceEntry, known: Mapping[str, Model]) -> str | None:
    name, _, choice = entry.model.partition("/")
    model = known.get(name)
    if model is None or (choice and choice not in model.per_image):
        return f"there is no price '{entry.model}' in the catalogue"
    if model.priced_as != name:
        return f"'{name}' has the price of '{model.priced_as}'"
    if bool(model.per_image) != bool(choice):
        return f"'{name}' has prices for its sizes: {', '.join(model.per_image)}"
    if bool(model.per_image) != (entry.per_image is not None):
        return f"'{name}' is priced by the {'image' if model.per_image else 'token'}"
    return None


def _price(entry: PriceEntry) -> DeclaredPrice:
    image_output = entry.image_output or 0
    rates = SeedPrice(
        text_input_nano=entry.text_input or 0,
        image_input_nano=entry.image_input or 0,
        image_output_nano=image_output,
        text_output_nano=image_output if entry.text_output is None else entry.text_output,
        per_image_nano=entry.per_image or 0,
    )
    return DeclaredPrice(entry.model, rates, entry.starts)


def declared_model(entry: ModelEntry, host: Host) -> Model:
    """Build the model of an entry.

    The gateway encodes images in the format that was asked for, whatever the host makes. To KServe
    a seed is always sent, so that an image can be made again.
    """
    default_size = entry.default_size or _default_size(entry)
    per_second = entry.price.per_second_usd
    return Model(
        id=entry.id,
        provider=entry.provider,
        endpoints=frozenset(entry.endpoints),
        released=None,
        deprecation_date=None,
        shutdown_date=None,
        successor=None,
        sizes=_size_rule(entry),
        qualities=(*entry.qualities, "auto"),
        output_formats=("png", "jpeg", "webp"),
        backgrounds=("transparent", "opaque", "auto") if "background" in entry.parameters else (),
        complexities=(),
        parameters=frozenset({*entry.parameters, *EVERY_HOSTS, *PARAMETERS_OF[host.kind]}),
        inputs=_input_rule(entry),
        continuity=Continuity(),
        default_response_format="b64_json",
        max_prompt_characters=entry.max_prompt_characters,
        max_images=entry.max_images,
        read_timeout_seconds=entry.timeout_seconds,
        priced_as=entry.id,
        text_output_bound=0,
        usual=AutoChoice("auto", default_size),
        tokens=TokenRule(),
        price=SeedPrice(
            *(0, 0, 0, 0),
            per_image_nano=entry.price.per_image_usd or 0,
            per_second_nano=per_second or 0,
        ),
        unit=Unit.IMAGE if per_second is None else Unit.SECOND,
        one_image_per_call=host.kind == "kserve",
        own_format=True,
        max_steps=entry.max_steps,
        wording=Wording(
            name=entry.upstream_name or entry.id,
            default_size=default_size,
            fields=_by_name(entry.fields),
            types=_by_name(entry.types),
            defaults=_by_name(entry.defaults),
            constants=entry.constants,
            dropped=frozenset(entry.drop),
            template=entry.template,
            input_fields=_by_name(entry.input_fields),
            steps=_by_name(entry.qualities),
            negative_mark=entry.negative_prompt_after or "",
        ),
    )


def _by_name(entries: Mapping[Any, V]) -> Mapping[str, V]:
    """Return a table whose keys were checked as the texts that they are."""
    return {str(name): value for name, value in entries.items()}


def _default_size(entry: ModelEntry) -> str:
    if entry.size is None:
        return entry.sizes[0]
    rule = entry.size
    edge = max(rule.min, min(rule.max, USUAL_EDGE)) // rule.multiple_of * rule.multiple_of
    edge += rule.multiple_of if edge < rule.min else 0
    return f"{edge}x{edge}"


def _size_rule(entry: ModelEntry) -> SizeRule:
    if entry.size is None:
        return SizeRule(fixed=tuple(entry.sizes))
    rule = entry.size
    return SizeRule(
        multiple_of=rule.multiple_of,
        min_edge=rule.min,
        max_edge=rule.max,
        max_ratio=-(-rule.max // rule.min),
        min_pixels=rule.min * rule.min,
        max_pixels=rule.max * rule.max,
    )


def _input_rule(entry: ModelEntry) -> InputRule:
    if "edits" not in entry.endpoints:
        return InputRule()
    return InputRule(
        max_images=1,
        max_bytes=entry.max_input_bytes,
        max_mask_bytes=entry.max_input_bytes,
        media_types=INPUT_TYPES,
        masks="mask" in entry.input_fields,
    )
