"""The operator's models file: its tables, checked one by one (docs/models-file.md)."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from gateway.catalog.toml_lines import line_of
from gateway.config.addresses import is_web_address
from gateway.errors import ConfigurationError
from gateway.money import parse_usd

MAX_FILE_BYTES = 1_048_576
MAX_ENTRIES = 1000
MAX_PROBLEMS = 10
MAX_EDGE = 8192
_LINE = re.compile(r"\(at line (\d+)")
_WORDS = {"extra_forbidden": "unknown key", "missing": "missing"}

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{1,3}x[1-9][0-9]{1,3}$")]
Defaulted = Literal["negative_prompt", "seed", "steps", "guidance_scale"]
Extension = Literal[
    "negative_prompt", "seed", "steps", "guidance_scale", "background", "moderation", "style"
]
"""The parameters that a model may declare beside those of every model."""
SentName = Literal[
    "prompt",
    "model",
    "n",
    "size",
    "width",
    "height",
    "quality",
    "user",
    "response_format",
    "negative_prompt",
    "seed",
    "steps",
    "guidance_scale",
    "background",
    "moderation",
    "style",
]
"""The names in a request to a host, before it is put in the host's words."""
Quality = Literal["low", "medium", "high"]


def _amount(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError('an amount is a string of US dollars, such as "0.002"')  # noqa: TRY004 - pydantic reports it
    return parse_usd(value)


Usd = Annotated[int, BeforeValidator(_amount)]
"""Nano-dollars."""


def _table_of_steps(value: object) -> object:
    """Read a list of qualities as a table without numbers of steps."""
    return dict.fromkeys(value, 0) if isinstance(value, list) else value


def _web_address(url: str) -> str:
    if not is_web_address(url) or {"?", "#"} & set(url):
        raise ValueError("must be an http:// or https:// address without user, password or query")
    return url.rstrip("/")


def _file_beside(name: str) -> str:
    path = Path(name)
    if not name.isprintable() or not name or (not path.is_absolute() and ".." in path.parts):
        raise ValueError("must be a path below the folder of this file, or an absolute one")
    return name


class FileEntry(BaseModel):
    """A table of the file; a key that it does not have is refused."""

    # Commands start quickly: the models are built when a file is read.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class ProviderEntry(FileEntry):
    """`[[providers]]`: a host that serves models."""

    name: Name
    kind: Literal["kserve", "openai-compatible"]
    base_url: Annotated[str, AfterValidator(_web_address)]
    protocol: Literal["v1", "v2"] | None = None
    bearer_env: Variable | None = None
    host_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")] | None = None
    # Beside the file, or below it: workers read a copy of the file, with links to these.
    ca_file: Annotated[str, AfterValidator(_file_beside)] | None = None
    probe_seconds: int = Field(30, ge=0, le=86_400)

    @model_validator(mode="after")
    def _check_protocol(self) -> Self:
        if self.protocol is not None and self.kind != "kserve":
            raise ValueError("protocol belongs to kind kserve")
        return self


class ModelPriceEntry(FileEntry):
    """The price of a declared model."""

    per_image_usd: Usd | None = None
    per_second_usd: Usd | None = None

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if (self.per_image_usd is None) == (self.per_second_usd is None):
            raise ValueError("give per_image_usd or per_second_usd")
        return self


class SizeEntry(FileEntry):
    """A rule for sizes: edges in pixels."""

    multiple_of: int = Field(8, ge=1, le=256)
    min: int = Field(256, ge=16, le=MAX_EDGE)
    max: int = Field(1536, ge=16, le=MAX_EDGE)

    @model_validator(mode="after")
    def _require_order(self) -> Self:
        if self.min > self.max or self.max // self.multiple_of * self.multiple_of < self.min:
            raise ValueError("no multiple of multiple_of lies between min and max")
        return self


class ModelEntry(FileEntry):
    """`[[models]]`: a model on a declared host."""

    id: ModelId
    provider: Name
    price: ModelPriceEntry
    upstream_name: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,200}$")] | None = None
    endpoints: list[Literal["generations", "edits"]] = Field(["generations"], min_length=1)
    sizes: list[Size] = Field([], max_length=100)
    size: SizeEntry | None = None
    default_size: Size | None = None
    qualities: Annotated[
        dict[Quality, Annotated[int, Field(ge=0, le=1000)]], BeforeValidator(_table_of_steps)
    ] = {}
    parameters: list[Extension] = []
    max_steps: int = Field(150, ge=1, le=1000)
    defaults: dict[Defaulted, str | int | float] = {}
    fields: dict[SentName, Annotated[str, Field(min_length=1, max_length=100)]] = {}
    types: dict[SentName, Literal["BYTES", "INT32", "INT64", "FP32", "FP64", "BOOL"]] = {}
    constants: dict[str, str | int | float | bool] = {}
    drop: list[SentName] = []
    template: dict[str, object] | None = None
    input_fields: dict[Literal["image", "mask"], str] = {}
    negative_prompt_after: Annotated[str, Field(min_length=1, max_length=10)] | None = None
    max_input_bytes: int = Field(20_000_000, ge=1024, le=52_428_800)
    timeout_seconds: int = Field(300, ge=1, le=3600)
    max_images: int = Field(4, ge=1, le=10)
    max_prompt_characters: int = Field(4000, ge=1, le=32_000)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if bool(self.sizes) == (self.size is not None):
            raise ValueError("give sizes, or size with multiple_of, min and max")
        if self.default_size is not None and not self._has(self.default_size):
            raise ValueError("default_size is none of the model's sizes")
        steps = (self.defaults.get("steps"), *self.qualities.values())
        if any(isinstance(one, int) and one > self.max_steps for one in steps):
            raise ValueError("a number of steps exceeds max_steps")
        for name, value in self.defaults.items():
            if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
                raise ValueError(  # noqa: TRY004 - pydantic reports this one
                    f"defaults.{name} has the wrong type"
                )
        return self

    def _has(self, size: str) -> bool:
        if self.size is None:
            return size in self.sizes
        rule = self.size
        return all(
            rule.min <= edge <= rule.max and edge % rule.multiple_of == 0
            for edge in map(int, size.split("x"))
        )


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "negative_prompt": str,
    "seed": int,
    "steps": int,
    "guidance_scale": (int, float),
}


class FallbackEntry(FileEntry):
    """`[[fallbacks]]`: the models to ask after one that surely charged nothing."""

    model: ModelId
    to: list[ModelId] = Field(min_length=1, max_length=8)


class PriceEntry(FileEntry):
    """`[[prices]]`: a price version of a model of the catalogue."""

    model: Annotated[str, Field(max_length=200)]
    effective_from: datetime | None = None
    text_input: Usd | None = None
    image_input: Usd | None = None
    image_output: Usd | None = None
    text_output: Usd | None = None
    per_image: Usd | None = None

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        needed = (self.text_input, self.image_input, self.image_output)
        if self.per_image is not None:
            if any(rate is not None for rate in (*needed, self.text_output)):
                raise ValueError("per_image excludes rates of tokens")
        elif any(rate is None for rate in needed):
            raise ValueError("text_input, image_input and image_output are required, or per_image")
        return self

    @property
    def starts(self) -> datetime | None:
        """The start, in UTC where the file names no zone."""
        start = self.effective_from
        return start.replace(tzinfo=UTC) if start is not None and start.tzinfo is None else start


class FileTables(FileEntry):
    """The whole file."""

    providers: list[ProviderEntry] = Field([], max_length=MAX_ENTRIES)
    models: list[ModelEntry] = Field([], max_length=MAX_ENTRIES)
    fallbacks: list[FallbackEntry] = Field([], max_length=MAX_ENTRIES)
    prices: list[PriceEntry] = Field([], max_length=MAX_ENTRIES)


class ModelsFileError(ConfigurationError):
    """A models file that cannot be used; the message names the file, and lines and keys in it."""


@dataclass(frozen=True)
class ModelsFile:
    """The tables of a file, and its text to find lines in."""

    path: Path
    tables: FileTables
    text: str = field(default="", repr=False)

    def problem(self, place: Sequence[str | int], message: str) -> str:
        """Word a problem with its file, line and key."""
        return _problem(self.path, self.text, place, message)


def read_models_file(path: Path) -> ModelsFile:
    """Read a file and check each of its tables by itself.

    Raises:
        ModelsFileError: it cannot be read, is not TOML, or a table is wrong.
    """
    text = _read(path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = _LINE.search(str(error))
        where = f"{path}, line {at[1]}" if at else str(path)
        raise ModelsFileError(f"{where}: not TOML: {error}") from None
    try:
        tables = FileTables.model_validate(content)
    except ValidationError as error:
        raise refused(_problems(path, text, error)) from None
    return ModelsFile(path, tables, text)


def refused(problems: Sequence[str]) -> ModelsFileError:
    """Return the error that lists the problems, a line each."""
    more = len(problems) - MAX_PROBLEMS
    rest = [f"and {more} more"] if more > 0 else []
    return ModelsFileError("\n".join([*problems[:MAX_PROBLEMS], *rest]))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            raw = opened.read(MAX_FILE_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise ModelsFileError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ModelsFileError(f"{path} is not UTF-8.") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ModelsFileError(f"{path} is larger than {MAX_FILE_BYTES} bytes.")
    return text


def _problems(path: Path, text: str, error: ValidationError) -> list[str]:
    found = []
    # Without inputs: a token under a mistyped name must not be shown.
    for one in error.errors(include_input=False, include_url=False, include_context=False):
        message = _WORDS.get(one["type"], one["msg"].removeprefix("Value error, "))
        found.append(_problem(path, text, one["loc"], message))
    return found


def _problem(path: Path, text: str, place: Sequence[str | int], message: str) -> str:
    line = line_of(text, place)
    where = str(path) if line is None else f"{path}, line {line}"
    return f"{where}: {_words(place)}: {message}"


def _words(place: Sequence[str | int]) -> str:
    """Write a place such as `models[2].price`, counted from 1 as a reader counts."""
    words = ""
    for part in place:
        words += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if words else part
    return words
