"""Rendering of the sign-in's own pages."""

from http import HTTPStatus
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(name: str, *, status: int = HTTPStatus.OK, **values: object) -> HTMLResponse:
    """Render the template `sign_in/{name}.html`."""
    text = _ENVIRONMENT.get_template(f"sign_in/{name}.html").render(values)
    return HTMLResponse(text, status_code=status)
