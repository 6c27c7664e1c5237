"""The request log: one line and one row for each request, for every outcome."""

import shutil
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from gateway.config import Settings
from gateway.request_ids import REQUEST_ID
from tests.harness import GPT2, HOUSE_KEY, LogAs, Served, served_gateway
from tests.image_helpers import png
from tests.mcp_helpers import call, error_of
from tests.money_helpers import until_states
from tests.request_log_helpers import Json, Logged, logged, rows_of
from tests.stream_helpers import open_stream, read_image
from tests.stub_openai import Fault, Stub

PATH = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
NEVER = {"prompt", "a red circle"}


@dataclass(frozen=True)
class Ended:
    """The expected record of one request."""

    status: int
    code: str | None = None
    reason: str | None = None
    state: str | None = None
    """Of its reservation; None where nothing was held."""
    provider_status: int | None = None


OUTCOMES = {
    "made": Ended(200, state="posted", provider_status=200),
    "misspelt": Ended(400, "unknown_parameter"),
    "refused-by-provider": Ended(400, "moderation_blocked", "moderation", "void", 400),
    "no-key": Ended(401, "invalid_api_key"),
    "over-budget": Ended(402, "budget_exceeded", "budget tenant/month"),
    "nowhere": Ended(404, "not_found"),
    "other-method": Ended(405, "method_not_allowed"),
    "own-key-refused": Ended(424, "credential_rejected", "credential", "void", 401),
    "limited-by-provider": Ended(429, "rate_limit_exceeded", "rate_limited", "void", 429),
    "unreachable": Ended(502, "provider_unreachable", "unreachable", "void"),
    "house-key-refused": Ended(503, "provider_unavailable", "credential", "void", 401),
    "broken": Ended(504, "outcome_unknown", "unknown", "unknown", 500),
    "not-stored": Ended(500, "storage_failed", state="posted", provider_status=200),
}


async def ask(http: httpx2.AsyncClient, name: str, **changes: Any) -> httpx2.Response:
    """Ask for an image as the client's own request `name`."""
    answer = await http.post(PATH, json=LOW | changes, headers={"X-Request-Id": name})
    assert answer.headers["x-client-request-id"] == name
    return answer


async def end_in_every_way(served: Served, stub: Stub) -> dict[str, httpx2.Response]:
    """One request for each of `OUTCOMES`."""
    key = await served.key(user="alice")
    got = {}
    async with served.http(key) as http:
        got["made"] = await ask(http, "made")
        got["misspelt"] = await ask(http, "misspelt", sise="1024x1024")
        for name, preset in {
            "refused-by-provider": "moderation_blocked",
            "limited-by-provider": "rate_limited",
            "house-key-refused": "invalid_api_key",
        }.items():
            stub.faults.add(Fault("status", preset=preset))
            got[name] = await ask(http, name)
        stub.faults.add(Fault("status", status=500))
        got["broken"] = await ask(http, "broken")
        got["nowhere"] = await http.get("/nowhere", headers={"X-Request-Id": "nowhere"})
        got["other-method"] = await http.get(PATH, headers={"X-Request-Id": "other-method"})
        stub.faults.add(Fault("status", preset="invalid_api_key"))
        await http.put("/v1/credentials/openai", json={"secret": "sk-tenant-0123456789"})
        got["own-key-refused"] = await ask(http, "own-key-refused")
        await http.delete("/v1/credentials/openai")
        images = served.gateway.settings.data_dir / "images"
        shutil.rmtree(images)
        images.write_bytes(b"a file where the folder was")
        got["not-stored"] = await ask(http, "not-stored", response_format="url")
    async with served.http("igw_live_wrong") as http:
        got["no-key"] = await ask(http, "no-key")
    async with served.http(await served.key(livemode=False)) as http:
        got["unreachable"] = await ask(http, "unreachable", prompt="[sandbox:unreachable]")
    await served.budget("0.0001")
    async with served.http(key) as http:
        got["over-budget"] = await ask(http, "over-budget")
    return got


async def test_every_outcome_leaves_one_line_and_one_row_that_agree_with_the_ledger(
    served: Served, stub: Stub, capfd: pytest.CaptureFixture[str], log_as: LogAs
) -> None:
    log_as("INFO", "json")
    answers = await end_in_every_way(served, stub)
    found = await logged(served, capfd)
    by_id = {row["request_id"]: row for row in found.rows}
    assert {line["request_id"]: line for line in found.lines} == by_id
    assert len(found.lines) == len(found.rows) == len(by_id)
    by_name = {row["client_request_id"]: row for row in found.rows if "client_request_id" in row}
    seen, expected = {}, {}
    for name, row in by_name.items():
        reservation = await _reservation(served, row.get("generation_id"))
        state = None if reservation is None else reservation.state
        seen[name] = Ended(
            row["status"],
            row.get("error_code"),
            row.get("reason"),
            state,
            row.get("provider_status"),
        )
        expected[name] = OUTCOMES[name]
        answer = answers[name]
        assert answer.status_code == row["status"]
        assert answer.headers["x-request-id"] == row["request_id"]
        assert answer.headers.get("x-gateway-generation-id") == row.get("generation_id")
        assert row.get("cost_nano") == (None if reservation is None else reservation.final_nano)
    assert seen == expected == OUTCOMES
    assert len(found.rows) == len(OUTCOMES) + 2  # the own key's coming and going
    billed = {line.request_id for line in stub.bill}
    paid = {row["provider_request_id"] for row in by_name.values() if row.get("cost_nano")}
    assert paid == billed
    assert not any(words in str(found) for words in NEVER)


async def _reservation(served: Served, generation_id: str | None) -> Any:
    if generation_id is None:
        return None
    [row] = await served.owner_sql(
        "SELECT state, final_nano FROM reservation WHERE id = CAST(:id AS uuid)", id=generation_id
    )
    return row


async def test_a_tools_call_is_recorded_with_its_tool_and_names_its_generation(
    served: Served, stub: Stub
) -> None:
    arguments = {**LOW}
    async with served.mcp(await served.key()) as client:
        made = await call(client, "generate_image", **arguments)
        stub.faults.add(Fault("status", status=500))
        broken = await call(client, "generate_image", **arguments)
    assert not made.is_error
    rows = [row for row in await rows_of(served) if "tool" in row]
    assert [(row["route"], row["tool"], row["status"], row.get("error_code")) for row in rows] == [
        ("/mcp", "generate_image", 200, None),
        ("/mcp", "generate_image", 200, "outcome_unknown"),
    ]
    assert broken.meta is not None
    assert broken.meta["generation_id"] == rows[1]["generation_id"]
    assert rows[1]["generation_id"] in str(broken.content)
    assert error_of(broken)["code"] == "outcome_unknown"


async def test_a_replay_names_the_generation_that_was_bought_before(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        for _ in range(2):
            await http.post(PATH, json=LOW, headers={"Idempotency-Key": "order-17"})
    bought, replayed = await rows_of(served)
    assert bought["generation_id"] == replayed["generation_id"]
    assert ("replayed" in bought, replayed["replayed"]) == (False, True)
    assert bought["cost_nano"] == replayed["cost_nano"] == stub.bill[0].cost_nano_usd
    async with served.http(await served.key()) as http:
        for _ in range(2):
            edit = {"model": GPT2, "prompt": "a red circle", "quality": "low"}
            files, key = {"image": png(64, 64)}, {"Idempotency-Key": "order-18"}
            await http.post("/v1/images/edits", data=edit, files=files, headers=key)
    *_, bought, replayed = await rows_of(served)
    assert replayed["replayed"] is True
    for name in ("served_model", "provider", "credential"):
        assert bought[name] == replayed[name] is not None


async def test_a_stream_that_its_client_leaves_is_recorded_once_the_call_is_settled(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("stream_hold"))
    key = await served.key()
    async with open_stream(served, key, "generations", partial_images=1) as response:
        await read_image(response.aiter_lines())
        await stub.until_held(1)
    assert await rows_of(served) == []
    stub.release()
    await until_states(served, {"posted": 1})
    [row] = await until_recorded(served)
    assert (row["status"], row["error_code"]) == (200, "client_disconnected")
    assert row["provider_request_id"] == stub.bill[0].request_id
    assert row["cost_nano"] == stub.bill[0].cost_nano_usd


async def until_recorded(served: Served) -> list[Json]:
    """The rows, once there are any: a call is settled a moment before its task ends."""
    while not (rows := await rows_of(served)):
        pass
    return rows


async def test_requests_that_need_no_key_are_not_recorded(
    served: Served, capfd: pytest.CaptureFixture[str], log_as: LogAs
) -> None:
    log_as("INFO", "json")
    async with served.http() as http:
        for path in ("/health", "/ready", "/docs", "/openapi.json", "/images/x"):
            await http.get(path)
    async with served.http("igw_admin_wrong") as http:
        assert (await http.get("/metrics")).status_code == 401
    assert await logged(served, capfd) == Logged([], [])


async def test_a_clients_id_of_another_form_is_neither_echoed_nor_recorded(
    served: Served,
) -> None:
    wrong = ["", "a b", "x" * 129, "naïve", '"quoted"', "<b>", "a;b", "a/b", "{}"]
    given = [[one] for one in wrong] + [["a", "a"]]
    async with served.http(await served.key()) as http:
        for values in given:
            headers = [(b"X-Request-Id", value.encode()) for value in values]
            answer = await http.get("/v1/models", headers=headers)
            assert "x-client-request-id" not in answer.headers, values
            assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
    rows = await rows_of(served)
    assert len(rows) == len(given)
    assert [row for row in rows if "client_request_id" in row] == []


async def test_a_secret_as_a_clients_id_is_struck_out(served: Served) -> None:
    key = await served.key()
    async with served.http(key) as http:
        answer = await http.get("/v1/models", headers={"X-Request-Id": key.secret.reveal()})
    [row] = await rows_of(served)
    assert answer.headers["x-client-request-id"] == row["client_request_id"] == "[redacted]"


async def test_a_trace_is_passed_on_as_a_new_span_and_recorded(served: Served, stub: Stub) -> None:
    key = await served.key()
    async with served.http(key) as http:
        for given in (f"00-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-00-more"):
            await http.post(PATH, json=LOW, headers={"traceparent": given})
    passed = [one.stainless["traceparent"].split("-") for one in stub.calls]
    assert [(version, trace, flags) for version, trace, _, flags in passed] == [
        ("00", TRACE, "01"),
        ("00", TRACE, "00"),
    ]
    spans = {span for _, _, span, _ in passed}
    assert len(spans) == 2
    assert SPAN not in spans
    assert [row["trace_id"] for row in await rows_of(served)] == [TRACE, TRACE]


async def test_a_trace_that_is_not_valid_is_left_out(served: Served, stub: Stub) -> None:
    wrong = [
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        "nonsense",
    ]
    async with served.http(await served.key()) as http:
        for given in wrong:
            await http.post(PATH, json=LOW, headers={"traceparent": given})
    assert [one.stainless for one in stub.calls if "traceparent" in one.stainless] == []
    rows = await rows_of(served)
    assert (len(rows), [row for row in rows if "trace_id" in row]) == (len(wrong), [])


async def test_a_key_that_has_expired_is_recorded_as_its_tenants(served: Served) -> None:
    key = await served.key()
    await served.owner_sql("UPDATE api_key SET expires_at = now() - interval '1 hour'")
    async with served.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 401
    [row] = await rows_of(served)
    assert (row["status"], row["tenant_id"]) == (401, str(served.tenant_id))
    assert row["api_key_id"] == str(key.id)


async def test_without_rows_the_lines_remain(
    settings: Settings, capfd: pytest.CaptureFixture[str], log_as: LogAs
) -> None:
    log_as("INFO", "json")
    changed = settings.model_copy(update={"request_log": False})
    async with served_gateway(changed) as served:
        async with served.http(HOUSE_KEY) as http:
            assert (await http.get("/v1/models")).status_code == 401
        found = await logged(served, capfd)
    assert ([line["status"] for line in found.lines], found.rows) == ([401], [])


async def test_on_a_console_a_line_reads_as_text(
    settings: Settings, stub: Stub, capfd: pytest.CaptureFixture[str], log_as: LogAs
) -> None:
    log_as("INFO", "console")
    console = settings.model_copy(update={"log_format": "console"})
    async with served_gateway(console) as served, served.http(await served.key()) as http:
        await ask(http, "made")
    [line] = [line for line in capfd.readouterr().err.splitlines() if "request_id" in line]
    assert f"tenant_id={served.tenant_id} " in f"{line} "
    assert "client_request_id=made" in line
    assert "datetime" not in line
