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


async def test_each_audience_has_a_page_with_its_own_routes_alone(served: Served) -> None:
    async with served.http() as http:
        whole = (await http.get("/openapi.json")).json()
        found = {}
        for audience, path in (("tenant", "/docs"), ("operator", "/docs/operators")):
            page = (await http.get(path)).text
            assert f"/openapi.json?audience={audience}" in page
            found[audience] = (await http.get(f"/openapi.json?audience={audience}")).json()
        wrong = await http.get("/openapi.json?audience=all")
    tenants, operators = found["tenant"], found["operator"]
    assert {path for path in tenants["paths"] if path.startswith("/admin/")} == set()
    assert set(tenants["paths"]) | set(operators["paths"]) == set(whole["paths"])
    assert "admin" not in str(tenants["components"]["schemas"].keys()).lower()
    assert "igw_admin" not in str(tenants["components"])
    for one in (tenants, operators):
        for kind, name in re.findall(r"'#/components/(\w+)/([^']+)'", str(one)):
            assert name in one["components"][kind]
    assert wrong.status_code == 400


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
