"""The provider's own books: every charge, independent of what the client believes."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path

import orjson

from tests.stub_openai.usage import cost_nano_usd
from tests.stub_openai.validation import ImageCall


@dataclass(frozen=True, slots=True)
class BillLine:
    """One charged call. `cost_nano_usd` is in 1e-9 USD; `time` in Unix seconds."""

    seq: int
    time: float
    key: str
    model: str
    endpoint: str
    n: int
    size: str
    quality: str
    input_text_tokens: int
    input_image_tokens: int
    output_tokens: int
    """All output tokens: images, partial images and `output_text_tokens`."""
    output_text_tokens: int
    cost_nano_usd: int
    request_id: str
    prompt: str
    delivered: bool
    """True if the whole answer was written to a connection that was open at that time."""

    @property
    def prompt_sha256(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()


_FIELDS = tuple(field.name for field in dataclass_fields(BillLine))


def line_to_json(line: BillLine) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(line, name) for name in _FIELDS}
    row["prompt_sha256"] = line.prompt_sha256
    return row


def line_from_json(text: bytes | str) -> BillLine:
    row = orjson.loads(text)
    return BillLine(**{name: row[name] for name in _FIELDS})


def read_bill_file(path: Path) -> list[BillLine]:
    """The complete lines of a bill file; a line that is still being written is left out."""
    text = path.read_bytes() if path.exists() else b""
    return [line_from_json(line) for line in text.split(b"\n")[:-1]]


class Bill:
    """Append-only charges. `seq` never restarts, so lines stay distinct across a reset."""

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self.lines: list[BillLine] = []
        self._clock = clock
        self._next_seq = 1
        self._file: int | None = None
        if path is not None:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def charge(self, call: ImageCall, *, key: str, request_id: str, delivered: bool) -> None:
        usage = call.usage
        line = BillLine(
            self._next_seq,
            self._clock(),
            key,
            call.model,
            call.endpoint,
            call.n,
            call.size,
            call.quality,
            usage.input_text_tokens,
            usage.input_image_tokens,
            usage.output_tokens,
            usage.output_text_tokens,
            cost_nano_usd(call.facts, usage),
            request_id,
            call.prompt,
            delivered,
        )
        self._next_seq += 1
        self.lines.append(line)
        if self._file is not None:
            # One unbuffered write per line: nothing is lost when this process is killed.
            os.write(self._file, orjson.dumps(line_to_json(line), option=orjson.OPT_APPEND_NEWLINE))

    @property
    def total_nano_usd(self) -> int:
        return sum(line.cost_nano_usd for line in self.lines)

    def forget(self) -> None:
        """Start a new in-memory list; the file keeps every line."""
        self.lines = []

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
