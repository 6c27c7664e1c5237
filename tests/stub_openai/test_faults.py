"""Faults of the stub on demand, and its bill."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tests.stub_openai import (
    Fault,
    Stub,
    StubControlError,
    read_bill_file,
    running_stub,
    stub_process,
)
from tests.stub_openai.driving import (  # noqa: F401 - fixtures are used by name
    KEY,
    SMALL,
    client_fixture,
    generate,
    stub_fixture,
)

# Faults


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (408, openai.APIStatusError),
        (409, openai.ConflictError),
        (413, openai.APIStatusError),
        (418, openai.APIStatusError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (502, openai.InternalServerError),
        (503, openai.InternalServerError),
        (504, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"billed": True}, {"html": True}, {"html": True, "billed": True}], ids=str
)
async def test_a_status_fault_raises_the_clients_exception_and_bills_only_when_told(
    stub: Stub,
    client: AsyncOpenAI,
    status: int,
    error: type[openai.APIStatusError],
    options: dict[str, bool],
) -> None:
    fault = Fault("status", status=status, html="html" in options, billed=options.get("billed"))
    stub.faults.add(fault)
    with pytest.raises(error) as caught:
        await generate(client)
    assert caught.value.status_code == status
    assert (caught.value.request_id is None) is fault.html
    assert (caught.value.type is None) is fault.html
    assert [line.delivered for line in stub.bill] == ([False] if fault.is_billed else [])


@pytest.mark.parametrize(
    ("preset", "status", "code"),
    [
        ("billing_hard_limit", 400, "billing_hard_limit_reached"),
        ("content_policy_violation", 400, "content_policy_violation"),
        ("moderation_blocked", 400, "moderation_blocked"),
        ("no_model_access", 403, "model_not_found"),
        ("insufficient_quota", 429, "insufficient_quota"),
        ("rate_limited", 429, "rate_limit_exceeded"),
    ],
)
async def test_a_status_fault_can_name_the_error(
    stub: Stub, client: AsyncOpenAI, preset: str, status: int, code: str
) -> None:
    stub.faults.add(Fault("status", preset=preset))
    with pytest.raises(openai.APIStatusError) as caught:
        await generate(client)
    assert (caught.value.status_code, caught.value.code) == (status, code)


async def test_a_rate_limit_says_when_to_retry(stub: Stub, client: AsyncOpenAI) -> None:
    stub.faults.add(Fault("status", status=429), Fault("status", status=503, retry_after="7"))
    waits = []
    for _ in range(2):
        with pytest.raises(openai.APIStatusError) as caught:
            await generate(client)
        waits.append(caught.value.response.headers["retry-after"])
    assert waits == ["12", "7"]


@pytest.mark.parametrize(
    ("fault", "bill_lines", "calls"),
    [
        (Fault("close_unread"), 0, 1),
        (Fault("close_before_billing"), 0, 1),
        (Fault("close_after_billing"), 1, 1),
        (Fault("reset_before_billing"), 0, 1),
        (Fault("reset_after_billing"), 1, 1),
        (Fault("reset_after_headers"), 1, 1),
        (Fault("truncated_body"), 1, 1),
        (Fault("truncated_body", billed=False), 0, 1),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
async def test_a_broken_connection_is_a_connection_error_billed_as_declared(
    stub: Stub, client: AsyncOpenAI, fault: Fault, bill_lines: int, calls: int
) -> None:
    stub.faults.add(fault)
    with pytest.raises((openai.APIConnectionError, httpx2.TransportError)):
        await generate(client)
    await stub.until_idle()
    assert [line.delivered for line in stub.bill] == [False] * bill_lines
    assert len(stub.calls) == calls
    await generate(client)
    assert stub.bill[-1].delivered


async def test_a_reset_is_a_reset_and_a_close_is_a_close(stub: Stub) -> None:
    body = b'{"prompt":"a","model":"gpt-image-2","size":"1024x1024","quality":"low"}'
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()

    async def read_all() -> bytes:
        reader, writer = await asyncio.open_connection(stub.host, stub.port)
        writer.write(head + body)
        try:
            return await reader.read()
        finally:
            writer.close()

    stub.faults.add(Fault("reset_before_billing"), Fault("close_before_billing"))
    with pytest.raises(ConnectionResetError):
        await read_all()
    assert await read_all() == b""
    stub.faults.add(Fault("truncated_body"))
    headers, _, rest = (await read_all()).partition(b"\r\n\r\n")
    (length,) = [line for line in headers.split(b"\r\n") if line.startswith(b"content-length")]
    assert 0 < len(rest) < int(length.split(b":")[1])


async def test_close_unread_also_applies_to_a_reused_connection(
    stub: Stub, client: AsyncOpenAI
) -> None:
    await generate(client)
    stub.faults.add(Fault("close_unread"))
    with pytest.raises(openai.APIConnectionError):
        await generate(client)
    assert [call.method for call in stub.calls] == ["POST", ""]


@pytest.mark.parametrize(
    ("kind", "bill_lines"),
    [("hang_before_billing", 0), ("hang_after_billing", 1), ("hang_in_body", 1)],
)
async def test_a_hanging_call_ends_when_the_client_leaves(
    stub: Stub, client: AsyncOpenAI, kind: str, bill_lines: int
) -> None:
    stub.faults.add(Fault(kind))  # type: ignore[arg-type]
    task = asyncio.create_task(generate(client))
    await stub.until_in_flight(1)
    await stub.until_billed(bill_lines)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await stub.until_idle()
    assert len(stub.bill) == bill_lines


async def test_a_200_can_lack_usage_or_its_details_or_be_unreadable(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stub.faults.add(
        Fault("usage_missing"), Fault("usage_without_details"), Fault("unreadable_json")
    )
    assert (await generate(client)).usage is None
    raw = await client.images.with_raw_response.generate(prompt="a cat", extra_body=SMALL)
    usage = raw.http_response.json()["usage"]
    assert usage == {"input_tokens": 9, "output_tokens": 196, "total_tokens": 205}
    raw = await client.images.with_raw_response.generate(prompt="a cat", extra_body=SMALL)
    with pytest.raises(ValueError, match="Unterminated"):
        raw.http_response.json()
    assert [line.delivered for line in stub.bill] == [True, True, False]


async def test_held_calls_are_in_flight_until_released_and_then_billed(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    tasks = [asyncio.create_task(generate(client)) for _ in range(3)]
    await stub.until_held(3)
    assert (stub.totals.in_flight, stub.totals.bill_lines) == (3, 0)
    assert sorted(call.in_flight for call in stub.calls) == [1, 2, 3]
    assert stub.release(1) == 1
    await stub.until_billed(1)
    assert stub.totals.held == 2
    assert stub.release() == 2
    await asyncio.gather(*tasks)
    assert stub.totals.max_in_flight == 3
    assert stub.totals.bill_lines == 3


async def test_a_client_that_leaves_is_billed_all_the_same(stub: Stub, client: AsyncOpenAI) -> None:
    stub.faults.add(Fault(hold=True))
    task = asyncio.create_task(generate(client))
    await stub.until_held(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stub.release()
    await stub.until_billed(1)
    assert len(stub.bill) == 1


async def test_a_held_call_can_be_billed_at_arrival_and_still_fail(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stub.faults.add(Fault("status", status=500, billed=True, hold=True, bill_at_arrival=True))
    task = asyncio.create_task(generate(client))
    await stub.until_held(1)
    assert [line.delivered for line in stub.bill] == [False]
    stub.release()
    with pytest.raises(openai.InternalServerError):
        await task
    assert len(stub.bill) == 1


async def test_delay_and_latency_still_answer(stub: Stub, client: AsyncOpenAI) -> None:
    stub.configure(latency_seconds=0.01)
    stub.faults.add(Fault(delay_seconds=0.01))
    loop = asyncio.get_running_loop()
    start = loop.time()
    await generate(client)
    assert loop.time() - start >= 0.02
    assert stub.bill[0].delivered


async def test_a_fault_applies_only_to_matching_requests_and_as_often_as_set(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stub.faults.add(
        Fault("status", status=500, prompt_contains="unlucky", times=2),
        Fault("status", status=429, key="sk-poor", times=None),
    )
    poor = client.with_options(api_key="sk-poor")
    outcomes = []
    for who, prompt in [
        (client, "lucky one"),
        (client, "unlucky"),
        (poor, "cat"),
        (client, "unlucky"),
        (client, "unlucky"),
        (poor, "cat"),
    ]:
        try:
            await generate(who, prompt)
            outcomes.append(200)
        except openai.APIStatusError as error:
            outcomes.append(error.status_code)
    # "lucky one" does not contain "unlucky".
    assert outcomes == [200, 500, 429, 500, 200, 429]
    assert [fault.status for fault in stub.faults.armed] == [429]


async def test_an_invalid_request_uses_no_fault_up(stub: Stub, client: AsyncOpenAI) -> None:
    stub.faults.add(Fault("status", status=500))
    with pytest.raises(openai.BadRequestError):
        await generate(client, n=99)
    with pytest.raises(openai.InternalServerError):
        await generate(client)


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "nonsense"},
        {"kind": "reset_before_billing", "billed": True},
        {"kind": "hang_after_billing", "billed": False},
        {"kind": "close_unread", "prompt_contains": "x"},
        {"kind": "status", "status": 200},
        {"kind": "status", "preset": "nonsense"},
        {"kind": "status", "bill_at_arrival": True},
        {"times": 0},
    ],
)
async def test_a_fault_that_contradicts_itself_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^\w"):
        Fault(**row)  # type: ignore[arg-type]


# Books


async def test_calls_keep_key_body_and_the_clients_own_headers(
    stub: Stub, client: AsyncOpenAI
) -> None:
    await client.images.generate(
        prompt="a cat", model="gpt-image-2", extra_headers={"Idempotency-Key": "once"}
    )
    (call,) = stub.calls
    assert (call.method, call.path, call.key) == ("POST", "/v1/images/generations", KEY)
    assert call.json == {"prompt": "a cat", "model": "gpt-image-2"}
    assert call.stainless["x-stainless-retry-count"] == "0"
    assert call.stainless["idempotency-key"] == "once"


async def test_reset_forgets_and_aborts_uncharged_but_never_reuses_a_sequence_number(
    stub: Stub, client: AsyncOpenAI
) -> None:
    await generate(client)
    stub.faults.add(Fault(hold=True), Fault("status", times=None))
    task = asyncio.create_task(generate(client))
    await stub.until_held(1)
    await stub.reset()
    with pytest.raises(openai.APIConnectionError):
        await task
    assert (stub.calls, stub.bill, stub.faults.armed) == ([], [], [])
    await generate(client)
    assert [line.seq for line in stub.bill] == [2]


async def test_waiting_for_an_event_that_does_not_happen_times_out(stub: Stub) -> None:
    with pytest.raises(TimeoutError):
        await stub.until_held(1, timeout_seconds=0.01)


async def test_unknown_settings_are_refused(stub: Stub) -> None:
    for wrong in ({"latency": 1}, {"seed": "x"}, {"min_b64_bytes": -1}, {"accepted_keys": "sk"}):
        with pytest.raises(ValueError, match=r"^\w"):
            stub.configure(**wrong)


async def test_the_bill_file_holds_every_line(tmp_path: Path) -> None:
    path = tmp_path / "bill.jsonl"
    async with (
        running_stub(bill_file=path) as stub,
        AsyncOpenAI(api_key=KEY, base_url=stub.base_url, max_retries=0) as client,
    ):
        await generate(client)
        await generate(client, "a dog")
        kept = stub.bill
        assert read_bill_file(path) == kept
        await stub.reset()
        await generate(client)
        assert read_bill_file(path) == kept + stub.bill


async def test_a_stub_in_its_own_process_is_driven_over_its_control_api(tmp_path: Path) -> None:
    with stub_process(bill_file=tmp_path / "bill.jsonl") as control:
        control.configure(accepted_keys=[KEY], min_b64_bytes=10_000)
        fault = Fault("status", status=500, billed=True)
        control.add_faults(Fault(hold=True), fault)
        assert control.armed_faults() == [Fault(hold=True), fault]
        async with AsyncOpenAI(api_key=KEY, base_url=control.base_url, max_retries=0) as client:
            task = asyncio.create_task(generate(client))
            await asyncio.to_thread(control.wait, held=1)
            assert control.release() == 1
            response = await task
            with pytest.raises(openai.InternalServerError):
                await generate(client)
        assert response.data is not None
        assert len(str(response.data[0].b64_json)) >= 10_000
        totals = control.wait(bill_lines=2, calls=2, idle=True)
        bill = control.bill()
        assert totals.cost_nano_usd == sum(line.cost_nano_usd for line in bill)
        assert [line.delivered for line in bill] == [True, False]
        assert control.bill(after_seq=1) == bill[1:]
        assert read_bill_file(tmp_path / "bill.jsonl") == bill
        assert [call.key for call in control.calls()] == [KEY, KEY]
        with pytest.raises(TimeoutError):
            control.wait(in_flight=1, timeout_seconds=0.01)
        with pytest.raises(StubControlError):
            control.configure(nonsense=1)
        control.add_faults(Fault("close_unread", times=None))
        control.reset()
        assert control.armed_faults() == []
        assert control.totals() == replace(
            totals, calls=0, image_calls=0, max_in_flight=0, bill_lines=0, cost_nano_usd=0
        )
