"""Models files for tests: the six servers of the KServe stub, and hosts of OpenAI's kind."""

from pathlib import Path
from typing import get_args

from gateway.catalog.declared import Host, Kind, declare, declared_model
from gateway.catalog.loading import Catalog, load_catalog
from gateway.catalog.models_file import ModelEntry, read_models_file
from gateway.image_models import Model

ALL = '["negative_prompt", "seed", "steps", "guidance_scale"]'
SIX = f"""
[[providers]]
name = "cluster"
kind = "kserve"
base_url = "BASE"
bearer_env = "CLUSTER_TOKEN"

[[providers]]
name = "second"
kind = "kserve"
base_url = "BASE"
protocol = "v2"
bearer_env = "CLUSTER_TOKEN"

[[models]]
id = "sd-demo"
provider = "cluster"
upstream_name = "demo"
size = {{ multiple_of = 8, min = 64, max = 1024 }}
default_size = "512x512"
parameters = {ALL}
qualities = {{ low = 20, medium = 30, high = 50 }}
max_steps = 80
defaults = {{ steps = 25, guidance_scale = 7.5 }}
constants = {{ scheduler = "Euler" }}
price = {{ per_image_usd = "0.002" }}

[[models]]
id = "sd-openshift"
provider = "cluster"
upstream_name = "openshift"
sizes = ["512x512", "768x512"]
parameters = {ALL}
defaults = {{ steps = 25 }}
price = {{ per_image_usd = "0.002" }}

[[models]]
id = "sd-minimal"
provider = "cluster"
upstream_name = "minimal"
sizes = ["512x512"]
template = {{ instances = ["$prompt"] }}
price = {{ per_image_usd = "0.002" }}

[[models]]
id = "sd-raw"
provider = "cluster"
upstream_name = "raw"
sizes = ["512x512", "64x64"]
parameters = {ALL}
price = {{ per_image_usd = "0.002" }}
[models.template]
prompt = "$prompt"
[models.template.parameters]
seed = "$seed"
width = "$width"
height = "$height"
guidance_scale = "$guidance_scale"

[[models]]
id = "sd-v2"
provider = "second"
upstream_name = "v2"
sizes = ["512x512", "64x64"]
parameters = {ALL}
price = {{ per_image_usd = "0.002" }}

[[models]]
id = "sd-triton"
provider = "second"
upstream_name = "triton"
sizes = ["64x64", "64x128"]
parameters = ["steps", "guidance_scale"]
defaults = {{ steps = 10, guidance_scale = 7.5 }}
price = {{ per_image_usd = "0.002" }}
[models.fields]
prompt = "PROMPT"
seed = "SEED"
width = "WIDTH"
height = "HEIGHT"
steps = "STEPS"
guidance_scale = "GUIDANCE_SCALE"
[models.types]
seed = "INT64"
width = "INT32"
height = "INT32"
steps = "INT32"
guidance_scale = "FP32"

[[models]]
id = "sd-by-second"
provider = "cluster"
upstream_name = "demo"
sizes = ["512x512"]
parameters = {ALL}
defaults = {{ steps = 25, guidance_scale = 7.5 }}
constants = {{ scheduler = "Euler" }}
price = {{ per_second_usd = "0.001" }}
timeout_seconds = 3
"""
HOSTS = {kind: Host(kind, kind, "http://127.0.0.1:9") for kind in get_args(Kind)}
"""A host of each kind."""


def host_model(name: str, kind: Kind) -> Model:
    """A model of one of them that takes every parameter of such models."""
    fields = {
        "id": name,
        "provider": kind,
        "size": {},
        "endpoints": ["generations", "edits"],
        "parameters": ["negative_prompt", "seed", "steps", "guidance_scale"],
        "max_steps": 1000,
        "price": {"per_image_usd": "0.002"},
    }
    return declared_model(ModelEntry.model_validate(fields), HOSTS[kind])


MODELS = ("sd-demo", "sd-openshift", "sd-minimal", "sd-raw", "sd-v2", "sd-triton")
SERVERS = {name: name.removeprefix("sd-") for name in MODELS}


def write(folder: Path, text: str, base_url: str = "http://127.0.0.1:9") -> Path:
    """Write a models file; `BASE` stands for an address."""
    path = folder / "models.toml"
    path.write_text(text.replace("BASE", base_url))
    return path


def catalog_with(folder: Path, text: str) -> Catalog:
    """The catalogue with a models file."""
    file = read_models_file(write(folder, text))
    return load_catalog(declare=lambda known: declare(file, known))
