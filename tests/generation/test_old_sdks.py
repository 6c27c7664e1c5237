"""Unchanged programs of 2023: SDKs that know only DALL·E, with their keys and addresses."""

from typing import Any

import httpx2
import pytest

from gateway.config import Settings
from gateway.generation.old_sdks import is_older_than_gpt_images
from tests.harness import Served, error_of, secret_of, served_gateway
from tests.image_helpers import expect_books_to_agree
from tests.stub_openai import Stub

PATH = "/v1/images/generations"
EXAMPLE = {"prompt": "a white siamese cat", "n": 1, "size": "1024x1024"}
"""Of OpenAI's own guide of the time: `openai.Image.create(…)["data"][0]["url"]`."""
OLD = [
    "OpenAI/v1 PythonBindings/0.28.1",
    "OpenAI/v1 PythonBindings/0.27.0 my-app/1.0",
    "OpenAI/Python 1.0.0",
    "OpenAI/Python 1.75.0",
    "AsyncOpenAI/Python 1.3.5",
    "OpenAI/JS 4.95.1",
    "OpenAI/NodeJS/3.3.0",
]
NEW = [
    "OpenAI/Python 1.76.0",
    "AsyncOpenAI/Python 3.52.0",
    "OpenAI/JS 4.96.0",
    "OpenAI/JS 7.12.1",
    "OpenAI/Go 0.1.0",
    "python-httpx2/2.16",
    "my OpenAI/Python 1.0.0",
    "",
]


def headers_of_0_28(key: str) -> dict[str, str]:
    """The headers that version 0.28.1 of OpenAI's Python package sends, through `requests`."""
    return {
        "User-Agent": "OpenAI/v1 PythonBindings/0.28.1",
        "X-OpenAI-Client-User-Agent": '{"bindings_version": "0.28.1", "lang": "python"}',
        "Accept": "*/*",
        "Accept-Encoding": "gzip, deflate",
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
    }


def model_of(response: httpx2.Response) -> str:
    """The model that the request was counted as."""
    assert response.status_code == 200, response.text
    return response.headers["x-gateway-requested-model"]


def test_sdks_are_told_by_their_user_agents() -> None:
    assert [agent for agent in (*OLD, *NEW) if is_older_than_gpt_images(agent)] == OLD


async def test_openais_example_of_2023_gets_its_link(served: Served, stub: Stub) -> None:
    key = await served.key()
    async with served.http() as http:
        headers = headers_of_0_28(secret_of(key))
        response = await http.post(PATH, json=EXAMPLE, headers=headers)
        link = response.json()["data"][0]["url"]
        image = await http.get(link.removeprefix(served.gateway.settings.public_url))
    assert model_of(response) == "dall-e-2"
    assert image.headers["content-type"] == "image/png"
    await expect_books_to_agree(served, stub, key, images=1)


@pytest.mark.parametrize(
    "changes", [{"quality": "high"}, {"size": "1536x1024"}, {"style": "vivid"}]
)
async def test_a_request_with_newer_fields_is_not_treated_as_an_old_one(
    served: Served, changes: dict[str, Any]
) -> None:
    async with served.http(await served.key()) as http:
        agent = {"User-Agent": OLD[0]}
        response = await http.post("/v1/images/quotes", json=EXAMPLE | changes, headers=agent)
    assert response.json()["model"] == served.gateway.settings.default_model


async def test_a_model_that_is_named_is_taken_and_newer_sdks_get_the_default(
    served: Served,
) -> None:
    async with served.http(await served.key()) as http:
        quoted = [
            (await http.post("/v1/images/quotes", json=body, headers={"User-Agent": agent})).json()
            for body, agent in [
                (EXAMPLE | {"model": "gpt-image-2"}, OLD[0]),
                (EXAMPLE, NEW[0]),
                (EXAMPLE, OLD[3]),
            ]
        ]
    default = served.gateway.settings.default_model
    assert [quote["model"] for quote in quoted] == ["gpt-image-2", default, "dall-e-2"]


async def test_the_operator_can_give_old_sdks_the_default_model(settings: Settings) -> None:
    settings = settings.model_copy(update={"dall_e_2_for_old_sdks": False})
    async with served_gateway(settings) as served, served.http(await served.key()) as http:
        agent = {"User-Agent": OLD[0]}
        response = await http.post("/v1/images/quotes", json=EXAMPLE, headers=agent)
    assert response.json()["model"] == settings.default_model


async def test_a_base_url_without_its_version_is_refused_with_advice(served: Served) -> None:
    async with served.http(await served.key()) as http:
        answers = [
            await http.post("/images/generations", json=EXAMPLE),
            await http.post("/images/edits", json=EXAMPLE),
            await http.get("/models"),
            await http.post("/v1/v1/images/generations", json=EXAMPLE),
            await http.post("/nowhere", json=EXAMPLE),
        ]
    for answer in answers:
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    told = [
        served.gateway.settings.public_url + "/v1." in a.json()["error"]["message"] for a in answers
    ]
    assert told == [True, True, True, True, False]


async def test_a_key_in_an_api_key_header_is_a_key(served: Served) -> None:
    key, other = secret_of(await served.key()), secret_of(await served.key())
    async with served.http() as http:

        async def listed(*headers: tuple[str, str]) -> tuple[int, str | None]:
            answer = await http.get("/v1/models", headers=list(headers))
            return answer.status_code, None if answer.is_success else error_of(answer)["code"]

        assert await listed(("api-key", key)) == (200, None)
        assert await listed(("api-key", key), ("Authorization", f"Bearer {key}")) == (200, None)
        for headers in [
            [("api-key", key), ("Authorization", f"Bearer {other}")],
            [("api-key", key), ("Authorization", "Basic YTpi")],
            [("api-key", key), ("api-key", other)],
        ]:
            assert await listed(*headers) == (400, "invalid_request")
        misspelt = key[:-1] + ("1" if key.endswith("0") else "0")
        for wrong in ("", "sk-key", misspelt, "Bearer " + key):
            assert await listed(("api-key", wrong)) == (401, "invalid_api_key")


@pytest.mark.parametrize("second", ["same", "other"])
async def test_several_idempotency_keys_are_none(served: Served, stub: Stub, second: str) -> None:
    headers = [("Idempotency-Key", "same"), ("Idempotency-Key", second)]
    async with served.http(await served.key()) as http:
        for path in (PATH, "/generate_image"):
            body = {"prompt": "a red circle"}
            answer = await http.post(path, json=body, headers=headers)
            error = error_of(answer)
            assert (answer.status_code, error["code"]) == (400, "invalid_idempotency_key")
            assert error["param"] == "idempotency_key"
    assert stub.calls == []
