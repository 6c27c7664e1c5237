"""Other spellings of the tools' arguments, as clients of other image servers send them.

They are brought to the tools' own before anything else is done: the same purchase in another
spelling has the same idempotency claim.
"""

from collections.abc import Collection, Mapping
from typing import Any

from gateway.errors import InvalidRequest

RAW_PREFIX = "data:image/png;base64,"
"""The bytes decide the format, whichever a data: URL says."""
SAME = {"num_inference_steps": "steps"}
RAW_IMAGES = {"image_data": "image", "mask_data": "mask"}
"""Base64, with or without the head of a data: URL."""
EDGES = ("width", "height")
EDGE_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "width": {"type": "integer", "description": "In pixels, with height; instead of size."},
    "height": {"type": "integer", "description": "In pixels, with width; instead of size."},
}


def own_arguments(
    tool: str, arguments: Mapping[str, object], known: Collection[str]
) -> Mapping[str, object]:
    """Return the arguments in the tool's own spelling; `known` are the names that it takes.

    Raises:
        InvalidRequest: an argument is unknown, or given in two spellings.
    """
    for name in arguments:
        if (SAME | RAW_IMAGES).get(name, name) not in known:
            raise InvalidRequest(
                f"Unknown parameter: '{name[:80]}'. {tool} takes: {', '.join(known)}.",
                code="unknown_parameter",
                param=name,
            )
    if not arguments.keys() & {*SAME, *RAW_IMAGES, *EDGES}:
        return arguments
    own = {name: value for name, value in arguments.items() if name not in EDGES}
    for name, spelling in (SAME | RAW_IMAGES).items():
        value = own.pop(name, None)
        if value is not None:
            _refuse_twice(own, spelling, name)
            own[spelling] = _data_urls(value) if name in RAW_IMAGES else value
    size = _size(arguments)
    if size is not None:
        _refuse_twice(own, "size", "width")
        own["size"] = size
    return own


def _size(arguments: Mapping[str, object]) -> str | None:
    """Return width and height as a size; None if neither is given."""
    edges = {name: arguments.get(name) for name in EDGES}
    given = {name: value for name, value in edges.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidRequest(
                f"Invalid '{name}': width and height are both a number of pixels.",
                code="invalid_type",
                param=name,
            )
    if not given:
        return None
    for name in edges.keys() - given.keys():
        raise InvalidRequest(
            f"Missing '{name}': width and height go together.",
            code="missing_required_parameter",
            param=name,
        )
    return f"{edges['width']}x{edges['height']}"


def _data_urls(value: object) -> object:
    """Return base64 as a data: URL; anything else is refused later, by name."""
    if isinstance(value, list):
        return [_data_urls(one) for one in value]
    if not isinstance(value, str) or value.startswith("data:"):
        return value
    return RAW_PREFIX + value


def _refuse_twice(own: Mapping[str, object], spelling: str, name: str) -> None:
    if own.get(spelling) is not None:
        raise InvalidRequest(
            f"'{name}' and '{spelling}' say the same. Send one of them.", param=name
        )
