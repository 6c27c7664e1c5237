"""The tool generate_image as a plain JSON call: the same result, purchase and refusals."""

from http import HTTPStatus

from gateway.domain import Scope
from gateway.vault import key_format
from tests.harness import GPT2, Served, error_of
from tests.image_helpers import download
from tests.mcp_helpers import call, content_of
from tests.stub_openai import Fault, Stub

ROUTE = "/mcp/v1/tools/generate_image"
MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}


async def test_a_plain_call_answers_with_the_data_of_the_tools_result(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    arguments = {**MAKE, "idempotency_key": "one"}
    async with served.http(key) as http, served.mcp(key) as client:
        answer = await http.post(ROUTE, json=arguments)
        # Bought once, whichever way it is asked for.
        again = content_of(await call(client, "generate_image", **arguments))
        by_header = await http.post(ROUTE, json=MAKE, headers={"Idempotency-Key": "one"})
        unset = {**MAKE, "idempotency_key": None}
        with_null = await http.post(ROUTE, json=unset, headers={"Idempotency-Key": "one"})
    made = answer.json()
    assert answer.status_code == HTTPStatus.OK
    assert again == {**made, "replayed": True} == by_header.json() == with_null.json()
    assert answer.headers["x-gateway-generation-id"] == made["generation_id"]
    assert answer.headers["x-gateway-cost-usd"] == made["cost_usd"]
    assert len(await download(served, made["url"])) == made["images"][0]["size_bytes"]
    assert len(stub.calls) == 1


async def test_a_plain_call_is_refused_as_rest_refuses(served: Served, stub: Stub) -> None:
    broke = await served.key()
    await served.budget("0.0001", api_key_id=broke.id)
    reader = await served.key(scopes=[Scope.IMAGES_READ])
    unknown = key_format.new_key("live").reveal()
    found = []
    for key, changes in (
        (unknown, {}),
        (broke, {}),
        (reader, {}),
        (await served.key(), {"qualty": "low"}),
        (await served.key(), {"partial_images": 1}),
        (await served.key(), {"full_image": True}),
        (await served.key(), {"size": "1000x1000"}),
        (await served.key(), {"idempotency_key": 3}),
    ):
        async with served.http(key) as http:
            answer = await http.post(ROUTE, json={**MAKE, **changes})
        found.append((answer.status_code, error_of(answer)["code"], error_of(answer)["param"]))
    assert found == [
        (401, "invalid_api_key", None),
        (402, "budget_exceeded", None),
        (403, "insufficient_scope", None),
        (400, "unknown_parameter", "qualty"),
        (400, "unknown_parameter", "partial_images"),
        (400, "unknown_parameter", "full_image"),
        (400, "invalid_value", "size"),
        (400, "invalid_type", "idempotency_key"),
    ]
    assert stub.calls == []


async def test_a_providers_refusal_is_reported_in_the_same_envelope(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("status", preset="moderation_blocked"))
    async with served.http(await served.key()) as http:
        answer = await http.post(ROUTE, json=MAKE)
        body = await http.post(ROUTE, content=b"{", headers={"Content-Type": "application/json"})
        method = await http.get(ROUTE)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "moderation_blocked")
    assert (body.status_code, error_of(body)["code"]) == (400, "invalid_json")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
