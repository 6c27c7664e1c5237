"""The catalogue of a gateway: the package's models and those that its operator declares."""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from gateway.catalog.declared import declare
from gateway.catalog.loading import Catalog, load_catalog, utc_today
from gateway.catalog.models_file import FileTables, ModelsFile, read_models_file
from gateway.config import Settings
from gateway.errors import ConfigurationError

SINGLE = "kserve"
"""The provider of the one model that settings declare without a file."""
_ADDRESS = re.compile(
    r"(?P<base>.*?)/(?P<protocol>v[12])/models/(?P<name>[^/:]+)(:predict|/infer)?"
)


def open_catalog(settings: Settings, today: Callable[[], date] = utc_today) -> Catalog:
    """Load the catalogue, the models file and the one model of `KSERVE_ENDPOINT`.

    Raises:
        ConfigurationError: the file, or a setting that names a model, is wrong.
    """
    file = None if settings.models_file is None else read_models_file(settings.models_file)
    if settings.kserve_endpoint is not None:
        file = _with_single(file, settings, settings.kserve_endpoint)
    return load_catalog(
        today,
        default_model=settings.default_model,
        hosted=settings.hosted_models,
        declare=None if file is None else lambda known: declare(file, known),
    )


def _with_single(file: ModelsFile | None, settings: Settings, endpoint: str) -> ModelsFile:
    """Add the model of the settings to the tables of a file."""
    if settings.kserve_price_per_image_usd is None:
        raise ConfigurationError(
            "KSERVE_ENDPOINT needs KSERVE_PRICE_PER_IMAGE_USD, the price of an image in US dollars "
            'such as "0.002"; "0" makes it free.'
        )
    form = _ADDRESS.fullmatch(endpoint.rstrip("/"))
    name = settings.kserve_model_name or (form and form["name"])
    if name is None:
        raise ConfigurationError(
            "KSERVE_ENDPOINT must end with /v1/models/NAME or /v2/models/NAME, or "
            "KSERVE_MODEL_NAME must name the model."
        )
    single = {
        "providers": [
            {
                "name": SINGLE,
                "kind": "kserve",
                "base_url": form["base"] if form else endpoint,
                "protocol": form["protocol"] if form else "v1",
            }
        ],
        "models": [
            {
                "id": name,
                "provider": SINGLE,
                "upstream_name": form["name"] if form else name,
                "size": {},
                "default_size": "512x512",
                "parameters": ["negative_prompt", "seed", "steps", "guidance_scale"],
                "price": {"per_image_usd": settings.kserve_price_per_image_usd},
                "timeout_seconds": settings.kserve_timeout,
            }
        ],
    }
    try:
        tables = FileTables.model_validate(single)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)[0]
        words = {"price": "KSERVE_PRICE_PER_IMAGE_USD", "base_url": "KSERVE_ENDPOINT"}
        setting = next(
            (words[str(p)] for p in found["loc"] if str(p) in words), "KSERVE_MODEL_NAME"
        )
        raise ConfigurationError(
            f"{setting}: {found['msg'].removeprefix('Value error, ')}."
        ) from None
    if file is None:
        return ModelsFile(Path("KSERVE_ENDPOINT"), tables)
    both = file.tables.model_copy(
        update={
            "providers": [*file.tables.providers, *tables.providers],
            "models": [*file.tables.models, *tables.models],
        }
    )
    return ModelsFile(file.path, both, file.text)
