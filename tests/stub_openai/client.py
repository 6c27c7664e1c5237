"""The control API from Python, for tests and benchmarks that run the stub as a process."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import orjson

from tests.stub_openai.bill import BillLine, line_from_json
from tests.stub_openai.control import DEFAULT_TIMEOUT_SECONDS
from tests.stub_openai.faults import Fault, fault_from_json, fault_to_json
from tests.stub_openai.state import Call, Totals

_GRACE_SECONDS = 10.0
_REPOSITORY = Path(__file__).resolve().parents[2]


class StubControlError(Exception):
    """The stub refused a control request."""


class StubControl:
    """A blocking client of a stub's control API. `root_url` has no `/v1`."""

    def __init__(self, root_url: str) -> None:
        self.root_url = root_url.rstrip("/")

    @property
    def base_url(self) -> str:
        """The `base_url` for an OpenAI client."""
        return f"{self.root_url}/v1"

    def bill(self, *, after_seq: int = 0) -> list[BillLine]:
        rows = self._ask("GET", f"bill?after_seq={after_seq}")["lines"]
        assert isinstance(rows, list)
        return [line_from_json(orjson.dumps(row)) for row in rows]

    def calls(self) -> list[Call]:
        rows = self._ask("GET", "calls")["calls"]
        assert isinstance(rows, list)
        return [_call_from_json(row) for row in rows]

    def totals(self) -> Totals:
        return _totals(self._ask("GET", "totals"))

    def add_faults(self, *faults: Fault) -> None:
        self._ask("POST", "faults", [fault_to_json(fault) for fault in faults])

    def armed_faults(self) -> list[Fault]:
        rows = self._ask("GET", "faults")["faults"]
        assert isinstance(rows, list)
        return [fault_from_json(row) for row in rows]

    def clear_faults(self) -> None:
        self._ask("DELETE", "faults")

    def configure(self, **settings: object) -> dict[str, object]:
        """Change settings of `StubConfig` by name (sets as lists); return all settings."""
        return self._ask("POST", "config", settings)

    def release(self, count: int | None = None) -> int:
        released = self._ask("POST", "release", {"count": count})["released"]
        assert isinstance(released, int)
        return released

    def reset(self) -> None:
        self._ask("POST", "reset")

    def wait(
        self,
        *,
        in_flight: int = 0,
        held: int = 0,
        bill_lines: int = 0,
        calls: int = 0,
        idle: bool = False,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> Totals:
        """Block until every count is at least as given; TimeoutError after `timeout_seconds`."""
        query: dict[str, object] = {
            "in_flight": in_flight,
            "held": held,
            "bill_lines": bill_lines,
            "calls": calls,
            "idle": int(idle),
            "timeout_seconds": timeout_seconds,
        }
        path = f"wait?{urlencode(query)}"
        return _totals(self._ask("GET", path, timeout_seconds=timeout_seconds))

    def _ask(
        self, method: str, path: str, body: object = None, timeout_seconds: float = 0.0
    ) -> dict[str, object]:
        data = None if body is None else orjson.dumps(body)
        request = urllib.request.Request(  # noqa: S310 - the test's own stub
            f"{self.root_url}/_stub/{path}",
            data=data,
            method=method,
            headers={"content-type": "application/json"},
        )
        # No proxy from the environment may stand between a test and its stub.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_seconds + _GRACE_SECONDS) as answer:
                found = orjson.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode()
            if error.code == 408:
                raise TimeoutError(text) from error
            raise StubControlError(text) from error
        assert isinstance(found, dict)
        return found


def _totals(row: dict[str, object]) -> Totals:
    return Totals(**row)  # type: ignore[arg-type]  # our own server wrote it


def _call_from_json(row: dict[str, object]) -> Call:
    row.pop("key_last4")
    files = row.pop("files")
    assert isinstance(files, list)
    return Call(**row, files=tuple(map(tuple, files)))  # type: ignore[arg-type]  # as above


@contextmanager
def stub_process(
    *, port: int = 0, bill_file: Path | None = None, options: tuple[str, ...] = ()
) -> Iterator[StubControl]:
    """A stub in its own process, stopped when the block ends."""
    command = [sys.executable, "-m", "tests.stub_openai", "--port", str(port), *options]
    if bill_file is not None:
        command += ["--bill-file", str(bill_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise StubControlError(f"the stub did not start: exit status {process.wait()}")
        yield StubControl(f"http://127.0.0.1:{int(line)}")
    finally:
        process.terminate()
        try:
            process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
