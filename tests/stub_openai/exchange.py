"""One API request from arrival to answer: record, validate, charge, answer or misbehave."""

import asyncio
from dataclasses import dataclass

import orjson

from tests.stub_openai.catalog import MODELS, ModelFacts
from tests.stub_openai.connection import Connection, Request, Work
from tests.stub_openai.errors import (
    PRESETS,
    ApiError,
    bad_json,
    invalid_url,
    missing_key,
    model_not_found,
    wrong_key,
)
from tests.stub_openai.faults import Fault
from tests.stub_openai.rendering import (
    Answer,
    UsageForm,
    render_bare_404,
    render_error,
    render_html,
    render_images,
    render_json,
    render_stream,
    render_unreadable,
)
from tests.stub_openai.state import State
from tests.stub_openai.uploads import Part, read_form_edit, read_json_edit, split_multipart
from tests.stub_openai.validation import ImageCall, read_call, require_object

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"
MODELS_PATH = "/v1/models"

_PLAIN = Fault()
_USAGE_FORMS: dict[str, UsageForm] = {
    "usage_missing": "missing",
    "usage_without_details": "no_details",
}
_STREAM_END = 2  # the last event, and the chunk that ends the body
_DELIVERING = ("answer", *_USAGE_FORMS)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that OpenAI would have accepted, with its answer or charge (`plan`)."""

    state: State
    connection: Connection
    key: str
    request_id: str
    plan: ImageCall | Answer

    def charge(self, *, delivered: bool) -> None:
        if isinstance(self.plan, ImageCall):
            self.state.bill.charge(
                self.plan, key=self.key, request_id=self.request_id, delivered=delivered
            )
            self.state.changed()

    def answer(self, usage_form: UsageForm = "full", error: ApiError | None = None) -> Answer:
        plan, config = self.plan, self.state.config
        min_b64, sample = config.min_b64_bytes, config.image_base64
        if isinstance(plan, Answer):
            return plan
        if plan.stream:
            return render_stream(
                plan,
                self.request_id,
                min_b64=min_b64,
                sample=sample,
                usage_form=usage_form,
                error=error,
            )
        if error is not None:
            return render_error(error, self.request_id)
        return render_images(
            plan, self.request_id, min_b64=min_b64, sample=sample, usage_form=usage_form
        )


@dataclass(frozen=True, slots=True)
class _Body:
    """A parsed request body; `error` is the reason why it could not be parsed."""

    json: dict[str, object] | None = None
    parts: list[Part] | None = None
    error: ApiError | None = None


def serve_api(state: State, connection: Connection, request: Request) -> Work | None:
    """Answer now and return None, or return a coroutine that will answer later."""
    request_id = state.next_request_id()
    key, content_type = _key_and_type(request.headers)
    body = _read_body(request, content_type)
    state.arrive()
    _record(state, request, key, body)
    try:
        plan = _route(state, request, key, body, request_id)
    except ApiError as error:
        connection.send(render_error(error, request_id))
        state.leave()
        return None
    prompt = plan.prompt if isinstance(plan, ImageCall) else ""
    fault = state.faults.take(path=request.path, prompt=prompt, key=key)
    exchange = Exchange(state, connection, key, request_id, plan)
    latency = state.config.latency_seconds if isinstance(plan, ImageCall) else 0.0
    if fault is not None or latency:
        return _serve_slowly(exchange, fault or _PLAIN, latency)
    exchange.charge(delivered=connection.is_open)
    connection.send(exchange.answer())
    state.leave()
    return None


def _key_and_type(headers: list[tuple[bytes, bytes]]) -> tuple[str, str]:
    key, content_type = "", ""
    for name, value in headers:
        if len(name) == 13 and name.lower() == b"authorization":
            scheme, _, secret = value.decode("latin-1").partition(" ")
            key = secret.strip() if scheme.lower() == "bearer" else ""
        elif len(name) == 12 and name.lower() == b"content-type":
            content_type = value.decode("latin-1")
    return key, content_type


def _read_body(request: Request, content_type: str) -> _Body:
    if request.method != "POST" or request.path not in (GENERATIONS, EDITS):
        return _Body()
    try:
        if content_type.lower().startswith("multipart/form-data"):
            return _Body(parts=split_multipart(content_type, request.body))
        return _Body(json=dict(require_object(orjson.loads(request.body))))
    except orjson.JSONDecodeError:
        return _Body(error=bad_json())
    except ApiError as error:
        return _Body(error=error)


def _record(state: State, request: Request, key: str, body: _Body) -> None:
    form: dict[str, str] | None = None
    files: tuple[tuple[str, str, int], ...] = ()
    if body.parts is not None:
        form = {
            part.name: part.data.decode("utf-8", "replace")
            for part in body.parts
            if part.filename is None
        }
        files = tuple(
            (part.name, part.content_type, len(part.data))
            for part in body.parts
            if part.filename is not None
        )
        if state.config.keep_files:
            state.files.append(tuple(p.data for p in body.parts if p.filename is not None))
    if request.path.startswith("/v1/images/"):
        state.image_call_count += 1
    state.record(
        method=request.method,
        path=request.path,
        key=key,
        json=body.json,
        form=form,
        files=files,
        headers=request.headers,
    )


def _route(
    state: State, request: Request, key: str, body: _Body, request_id: str
) -> ImageCall | Answer:
    if request.path == VARIATIONS:
        # OpenAI's edge removed this route: it answers before the key is checked.
        return render_bare_404()
    _authenticate(state, key)
    config, route = state.config, (request.method, request.path)
    if route in (("POST", GENERATIONS), ("POST", EDITS)) and body.error is not None:
        raise body.error
    if route == ("POST", GENERATIONS) and body.json is not None:
        return read_call(body.json, config, endpoint="generations", request_id=request_id)
    if route == ("POST", EDITS) and body.parts is not None:
        return read_form_edit(body.parts, config, request_id)
    if route == ("POST", EDITS) and body.json is not None:
        return read_json_edit(body.json, config, request_id)
    if route == ("GET", MODELS_PATH):
        data = [
            _model_row(name, facts)
            for name, facts in MODELS.items()
            if name not in config.retired_models
        ]
        return render_json(200, orjson.dumps({"object": "list", "data": data}), request_id)
    if request.method == "GET" and request.path.startswith(MODELS_PATH + "/"):
        name = request.path.removeprefix(MODELS_PATH + "/")
        if name not in MODELS or name in config.retired_models:
            raise model_not_found(name)
        return render_json(200, orjson.dumps(_model_row(name, MODELS[name])), request_id)
    raise invalid_url(request.method, request.path)


def _authenticate(state: State, key: str) -> None:
    if not key:
        raise missing_key()
    accepted = state.config.accepted_keys
    if not (key.startswith("sk-") if accepted is None else key in accepted):
        raise wrong_key(key)


def _model_row(name: str, facts: ModelFacts) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": facts.created,
        "owned_by": "system",
        "shutdown_date": facts.shutdown_date,
    }


async def _serve_slowly(exchange: Exchange, fault: Fault, latency_seconds: float) -> None:
    try:
        if fault.bill_at_arrival:
            exchange.charge(delivered=False)
        if latency_seconds or fault.delay_seconds:
            await asyncio.sleep(latency_seconds + fault.delay_seconds)
        if fault.hold:
            await exchange.state.hold()
        if fault.is_billed and not fault.bill_at_arrival:
            # Charged even if the client has disconnected: the images were made.
            delivers = fault.kind in _DELIVERING and exchange.connection.is_open
            exchange.charge(delivered=delivers)
        await _strike(exchange, fault)
    finally:
        exchange.state.leave()


async def _strike(exchange: Exchange, fault: Fault) -> None:
    connection, kind = exchange.connection, fault.kind
    if kind in _DELIVERING:
        connection.send(exchange.answer(_USAGE_FORMS.get(kind, "full")))
    elif kind == "status":
        connection.send(_error_answer(exchange, fault))
    elif kind == "stream_error":
        connection.send(exchange.answer(error=PRESETS["server_error"]))
    elif kind == "unreadable_json":
        connection.send(render_unreadable(exchange.request_id))
    elif kind.startswith("close_"):
        connection.close()
    elif kind == "truncated_body":
        _send_half(exchange)
        connection.close()
    elif kind == "stream_hold" or kind.startswith("hang_"):
        await _pause(exchange, kind)
    else:
        if kind == "reset_after_headers":
            connection.write(exchange.answer().head)
            await connection.flushed()
        connection.reset()


async def _pause(exchange: Exchange, kind: str) -> None:
    connection = exchange.connection
    if kind == "stream_hold":
        answer = exchange.answer()
        connection.write(answer.head, *answer.body[:-_STREAM_END])
        await exchange.state.hold()
        connection.write(*answer.body[-_STREAM_END:])
        return
    if kind == "hang_in_body":
        _send_half(exchange)
    await connection.lost()


def _error_answer(exchange: Exchange, fault: Fault) -> Answer:
    error = fault.error()
    if fault.html:
        return render_html(error.status, fault.retry_after or error.retry_after)
    return render_error(error, exchange.request_id, fault.retry_after)


def _send_half(exchange: Exchange) -> None:
    answer = exchange.answer()
    body = b"".join(answer.body)
    exchange.connection.write(answer.head, body[: len(body) // 2])
