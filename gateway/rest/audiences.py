"""The parts of the API's description for one audience: its routes, and the components they name."""

from collections.abc import Iterator
from typing import Any

from gateway.web.routes import Access, find_route

Description = dict[str, Any]
"""A JSON object of OpenAPI 3.1. Its values have any type: programs read them."""
AUDIENCES = ("tenant", "operator")
NOTES = {
    "tenant": "Operators' routes are on [a page of their own](/docs/operators).",
    "operator": "Tenants' routes are on [a page of their own](/docs).",
}


def part_for(audience: str, whole: Description) -> Description:
    """Return the description for an audience; the whole is not changed."""
    is_operator = audience == "operator"
    paths = {
        path: operations
        for path, operations in whole["paths"].items()
        if (find_route(path).access is Access.OPERATOR) == is_operator
    }
    used = {tag for item in _operations(paths) for tag in item.get("tags", ())}
    scheme = "admin_key" if is_operator else "key"
    components = _named_by(paths, whole["components"])
    components["securitySchemes"] = {scheme: whole["components"]["securitySchemes"][scheme]}
    info = whole["info"]
    return whole | {
        "info": info | {"description": f"{info['description']}\n\n{NOTES[audience]}"},
        "security": [{scheme: []}],
        "paths": paths,
        "components": components,
        "tags": [tag for tag in whole["tags"] if tag["name"] in used],
    }


def _operations(paths: Description) -> Iterator[Description]:
    for operations in paths.values():
        yield from operations.values()


def _named_by(paths: Description, components: Description) -> Description:
    """Keep the components that the paths refer to, directly or through others."""
    kept: Description = {}
    waiting = list(_references(paths))
    while waiting:
        kind, _, name = waiting.pop().removeprefix("#/components/").partition("/")
        if name not in kept.setdefault(kind, {}):
            kept[kind][name] = components[kind][name]
            waiting += _references(components[kind][name])
    return kept


def _references(part: object) -> Iterator[str]:
    if isinstance(part, list):
        for item in part:
            yield from _references(item)
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for item in part.values():
            yield from _references(item)
