"""The settings of the stub, and how the control API changes them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType


@dataclass(frozen=True, slots=True)
class StubConfig:
    """Behaviour that lasts until it is changed; a single misbehaviour is a `Fault`."""

    latency_seconds: float = 0.0
    """The shortest time that an image call takes."""
    min_b64_bytes: int = 0
    """Each image's base64 is padded to at least this many bytes."""
    image_base64: str = ""
    """The image that every call gets, if not drawn ones; it stands for any size and format."""
    seed: int = 1
    """Chooses, together with the prompt, the quality and size for `auto`."""
    accepted_keys: frozenset[str] | None = None
    """None accepts every key that starts with `sk-`."""
    retired_models: frozenset[str] = frozenset({"dall-e-2", "dall-e-3", "gpt-image-1"})
    """The models that are answered as OpenAI answers a retired one."""
    output_text_tokens: int = 0
    """The text output tokens that a call of gpt-image-1.5 or chatgpt-image-latest is billed for."""
    record_calls: bool = True
    """Record every call; off for long benchmarks, where the list would only grow."""
    keep_files: bool = False
    """Keep uploads for `Stub.files`; off by default, since they can be large."""
    max_body_bytes: int = 900 * 2**20


def patched(config: StubConfig, patch: Mapping[str, object]) -> StubConfig:
    """A copy of `config` with these values; ValueError for an unknown name or a wrong type."""
    known = {field.name for field in fields(StubConfig)}
    for name in patch.keys() - known:
        raise ValueError(f"unknown setting: {name}")
    merged = {name: getattr(config, name) for name in known} | dict(patch)
    return StubConfig(
        latency_seconds=float(_number(merged, "latency_seconds", int | float)),
        min_b64_bytes=int(_number(merged, "min_b64_bytes", int)),
        image_base64=str(merged["image_base64"]),
        seed=int(_number(merged, "seed", int)),
        accepted_keys=None if merged["accepted_keys"] is None else _names(merged, "accepted_keys"),
        retired_models=_names(merged, "retired_models"),
        output_text_tokens=int(_number(merged, "output_text_tokens", int)),
        record_calls=bool(_number(merged, "record_calls", bool)),
        keep_files=bool(_number(merged, "keep_files", bool)),
        max_body_bytes=int(_number(merged, "max_body_bytes", int)),
    )


def _number(values: Mapping[str, object], name: str, kind: type | UnionType) -> float:
    value = values[name]
    if not isinstance(value, kind) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"wrong value for {name}: {value!r}")
    return value


def _names(values: Mapping[str, object], name: str) -> frozenset[str]:
    value = values[name]
    if not isinstance(value, list | tuple | set | frozenset):
        # ValueError for every refused setting, wrong types included, so that callers catch one.
        raise ValueError(f"{name} is a list of strings, not {value!r}")  # noqa: TRY004
    return frozenset(map(str, value))
