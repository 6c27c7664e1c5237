"""The API's documentation is served by the gateway alone: no host but its own is named in it."""

import re
from urllib.parse import urlsplit

from tests.harness import Served

ELSEWHERE = re.compile(r"(?:https?:)?//[\w.-]+\.\w+")
CSS_URL = re.compile(r"url\(\s*['\"]?([^)'\"]*)")
MAKING = {"images", "simple", "mcp"}
SOURCE = re.compile(r'(?:src|href)="([^"]+)"')


async def test_the_documentation_loads_nothing_from_elsewhere(served: Served) -> None:
    async with served.http() as http:
        page = await http.get("/docs")
        sources = SOURCE.findall(page.text)
        assert len(sources) >= 3
        assert {urlsplit(source).netloc for source in sources} == {""}
        for source in sources:
            assert (await http.get(source)).status_code == 200, source


async def test_the_documentation_names_no_other_host(served: Served) -> None:
    async with served.http() as http:
        page = (await http.get("/docs")).text
        style = (await http.get("/docs-assets/swagger-ui.css")).text
    assert ELSEWHERE.findall(page) == []
    assert '"validatorUrl": null' in page
    assert '"persistAuthorization": false' in page  # a key stays in the page that it was typed into
    assert {url for url in CSS_URL.findall(style) if not url.startswith("data:")} == set()
    assert "@import" not in style


async def test_the_documentation_page_and_the_schema_are_small(served: Served) -> None:
    async with served.http() as http:
        page = await http.get("/docs")
        schema = await http.get("/openapi.json")
    assert len(page.content) < 10_000
    # Some 3.7 KB a path for 76 of them.
    assert len(schema.content) < 320_000


async def test_the_schema_shows_every_way_to_make_images(served: Served) -> None:
    async with served.http() as http:
        schema = (await http.get("/openapi.json")).json()
    bodies = {
        path: sorted(operations["post"]["requestBody"]["content"])
        for path, operations in schema["paths"].items()
        if not MAKING.isdisjoint(operations.get("post", {}).get("tags", ()))
    }
    form, as_json = "multipart/form-data", "application/json"
    assert bodies == {
        "/v1/images/generations": [as_json],
        "/v1/images/edits": [as_json, form],
        "/v1/images/variations": [form],
        "/v1/images/quotes": [as_json],
        "/generate_image": [as_json],
        "/edit_image": [form],
        "/mcp/v1/tools/generate_image": [as_json],
    }
