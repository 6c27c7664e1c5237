"""The control API under /_stub/, for a stub that runs in a process of its own."""

from collections.abc import Callable
from dataclasses import asdict
from urllib.parse import parse_qs

import orjson

from tests.stub_openai.bill import line_to_json
from tests.stub_openai.config import StubConfig, patched
from tests.stub_openai.connection import CONTROL_PREFIX, Connection, Request, Work
from tests.stub_openai.faults import fault_from_json, fault_to_json
from tests.stub_openai.rendering import render_json
from tests.stub_openai.state import Call, State

DEFAULT_TIMEOUT_SECONDS = 10.0


class _Refused(Exception):
    """An invalid control request; the message becomes the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def serve_control(state: State, connection: Connection, request: Request) -> Work:
    return _serve(state, connection, request)


async def _serve(state: State, connection: Connection, request: Request) -> None:
    status = 200
    try:
        result = await _dispatch(state, request)
    except _Refused as refusal:
        status, result = refusal.status, {"error": str(refusal)}
    except TimeoutError:
        status, result = 408, {"error": "timed out waiting", **asdict(state.totals())}
    except (ValueError, TypeError) as error:
        status, result = 400, {"error": str(error)}
    connection.send(render_json(status, orjson.dumps(result), "req_control"))


async def _dispatch(state: State, request: Request) -> dict[str, object]:
    path = request.path.removeprefix(CONTROL_PREFIX)
    query = {name: values[-1] for name, values in parse_qs(request.query).items()}
    if (request.method, path) == ("GET", "wait"):
        return await _wait(state, query)
    if (request.method, path) == ("POST", "reset"):
        await state.reset()
        return asdict(state.totals())
    if request.method == "GET" and path in _READ:
        return _READ[path](state, query)
    if (request.method, path) in _WRITE:
        return _WRITE[request.method, path](state, request.body)
    raise _Refused(404, f"no such control route: {request.method} {request.path}")


def _bill(state: State, query: dict[str, str]) -> dict[str, object]:
    after = int(query.get("after_seq", "0"))
    return {"lines": [line_to_json(line) for line in state.bill.lines if line.seq > after]}


def _calls(state: State, query: dict[str, str]) -> dict[str, object]:
    return {"calls": [call_to_json(call) for call in state.calls]}


def _totals(state: State, query: dict[str, str]) -> dict[str, object]:
    return asdict(state.totals())


def _faults(state: State, query: dict[str, str]) -> dict[str, object]:
    return {"faults": [fault_to_json(fault) for fault in state.faults.armed]}


def _config(state: State, query: dict[str, str]) -> dict[str, object]:
    return config_to_json(state.config)


def _add_faults(state: State, body: bytes) -> dict[str, object]:
    found = orjson.loads(body)
    rows = found if isinstance(found, list) else [found]
    state.faults.add(*[fault_from_json(row) for row in rows])
    return {"armed": len(state.faults.armed)}


def _clear_faults(state: State, body: bytes) -> dict[str, object]:
    state.faults.clear()
    return {"armed": 0}


def _configure(state: State, body: bytes) -> dict[str, object]:
    state.config = patched(state.config, _read_object(body))
    return config_to_json(state.config)


def _release(state: State, body: bytes) -> dict[str, object]:
    count = _read_object(body).get("count")
    if count is not None and (not isinstance(count, int) or count < 0):
        raise _Refused(400, "count must be a number of calls, or null")
    return {"released": state.release(count)}


_READ: dict[str, Callable[[State, dict[str, str]], dict[str, object]]] = {
    "bill": _bill,
    "calls": _calls,
    "totals": _totals,
    "faults": _faults,
    "config": _config,
}
_WRITE: dict[tuple[str, str], Callable[[State, bytes], dict[str, object]]] = {
    ("POST", "faults"): _add_faults,
    ("DELETE", "faults"): _clear_faults,
    ("POST", "config"): _configure,
    ("POST", "release"): _release,
}


async def _wait(state: State, query: dict[str, str]) -> dict[str, object]:
    timeout_seconds = float(query.pop("timeout_seconds", DEFAULT_TIMEOUT_SECONDS))
    counters: dict[str, Callable[[], int]] = {
        "in_flight": lambda: state.in_flight,
        "held": lambda: state.held,
        "bill_lines": lambda: len(state.bill.lines),
        "calls": lambda: state.call_count,
    }
    idle = query.pop("idle", "") == "1"
    if query.keys() - counters.keys():
        raise _Refused(400, f"can wait for idle=1 and {sorted(counters)}")
    wanted = [(counters[name], int(value)) for name, value in query.items()]

    def reached() -> bool:
        if idle and state.in_flight:
            return False
        return all(count() >= least for count, least in wanted)

    await state.until(reached, timeout_seconds)
    return asdict(state.totals())


def _read_object(body: bytes) -> dict[str, object]:
    found = orjson.loads(body or b"{}")
    if not isinstance(found, dict):
        raise _Refused(400, "expected a JSON object")
    return found


def config_to_json(config: StubConfig) -> dict[str, object]:
    row = asdict(config)
    accepted = config.accepted_keys
    row["accepted_keys"] = None if accepted is None else sorted(accepted)
    row["retired_models"] = sorted(config.retired_models)
    return row


def call_to_json(call: Call) -> dict[str, object]:
    row: dict[str, object] = asdict(call)
    row["key_last4"] = call.key_last4
    return row
