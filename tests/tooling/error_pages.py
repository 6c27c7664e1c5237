"""The table of `docs/errors.md`: every error code of the code, with its statuses.

The codes are those of the error classes, and those that a place that raises one gives by name.
"""

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import gateway
from gateway.errors import ContentRefused, Forbidden, GatewayError, InvalidRequest
from gateway.generation.input_images import OVERLAYS
from gateway.providers.openai.answers import MODERATION_CODES
from gateway.tenancy.tenants import not_active
from gateway.webhooks.targets import DeliveryFailure

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "errors.md"
MARKER = "<!-- `make generated` writes everything below from the errors in gateway/. -->\n"
HEAD = "| status | code | type | send it again unchanged |\n|---|---|---|---|\n"
RETRIED = {408, 409, 429}
"""The statuses below 500 that OpenAI's SDKs retry."""
INSIDE = {"not_configured", "provider_error", "incomplete_body"}
"""Codes of the record alone, or of a class of which every instance has another code."""
COMPOSED: dict[str, type[GatewayError]] = {
    **{
        f"invalid_{name}_image_{what}": InvalidRequest
        for name in OVERLAYS
        for what in ("format", "size")
    },
    **dict.fromkeys(MODERATION_CODES, ContentRefused),
    **dict.fromkeys(
        (DeliveryFailure.BAD_URL, DeliveryFailure.NOT_HTTPS, DeliveryFailure.PRIVATE_ADDRESS),
        InvalidRequest,
    ),
    **{
        not_active(state).code: Forbidden
        for state in ("suspended", "deleted", "user_disabled", "user_deleted")
    },
}
"""Codes that are put together or passed on, so that no call names them."""


@dataclass
class Code:
    """The statuses, types and retries with which a code is answered."""

    statuses: set[int] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    retries: set[bool | None] = field(default_factory=set)

    def add(self, error: type[GatewayError]) -> None:
        """Count one place that answers with the code."""
        self.statuses.add(error.status)
        self.types.add(error.type)
        self.retries.add(error.retry)


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {PAGE: f"{by_hand}{MARKER}\n{table()}"}


def table() -> str:
    """One line for each code, by status."""
    found = sorted(codes().items(), key=lambda item: (min(item[1].statuses), item[0]))
    return HEAD + "".join(f"| {' | '.join(_cells(name, code))} |\n" for name, code in found)


def _cells(name: str, code: Code) -> Iterator[str]:
    yield ", ".join(map(str, sorted(code.statuses)))
    yield f"[`{name}`](troubleshooting.md#{name})"
    yield ", ".join(f"`{one}`" for one in sorted(code.types))
    yield _again(code)


def _again(code: Code) -> str:
    if code.retries == {False}:
        return "no: `x-should-retry: false`"
    if all(status in RETRIED or status >= 500 for status in code.statuses):
        return "unless `x-should-retry: false`" if False in code.retries else "later; SDKs do so"
    return "after a change"


def codes() -> dict[str, Code]:
    """Every code that a client can get."""
    classes = {error.__name__: error for error in _classes()}
    found: dict[str, Code] = {}
    for error in (one for one in classes.values() if one is not GatewayError):
        found.setdefault(error.code, Code()).add(error)
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        for error, name in _named(ast.parse(path.read_text()), classes):
            found.setdefault(name, Code()).add(error)
    for name, error in COMPOSED.items():
        found.setdefault(name, Code()).add(error)
    # Raised as a 400, and answered with the framework's own status.
    found["method_not_allowed"].statuses = {405}
    return {name: code for name, code in found.items() if name not in INSIDE}


def _classes() -> Iterator[type[GatewayError]]:
    for module in pkgutil.walk_packages(gateway.__path__, "gateway."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    pending: list[type[GatewayError]] = [GatewayError]
    while pending:
        error = pending.pop()
        yield error
        pending += error.__subclasses__()


def _named(
    tree: ast.Module, classes: dict[str, type[GatewayError]]
) -> Iterator[tuple[type[GatewayError], str]]:
    """The codes that calls of error classes are given as text."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        error = classes.get(call.func.id if isinstance(call.func, ast.Name) else name)
        for keyword in call.keywords if error else ():
            plain = keyword.arg == "code" and not isinstance(keyword.value, ast.JoinedStr)
            for part in ast.walk(keyword.value) if plain else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and error:
                    yield error, part.value
