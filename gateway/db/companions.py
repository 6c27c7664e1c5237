"""The releases that may serve a schema: the one that wrote it, and older ones down to a limit.

Migrations first expand and contract a release later, so that both releases work side by side while
one replaces the other. An older gateway that starts then must leave the schema as it is: it would
put its own SQL functions back.
"""

import re

from gateway import __version__

OLDEST = "0.2.0"
"""The oldest release that works with the schema of this one."""
READ_NOTE = "SELECT obj_description('alembic_version'::regclass, 'pg_class')"
NOTE = f"Written by release {__version__}. Releases from {OLDEST} on may serve it."
"""The comment on the table of revisions, where an owner of the database sees it too."""
_FORM = re.compile(
    r"Written by release (\d+(?:\.\d+)*)\. Releases from (\d+(?:\.\d+)*) on may serve it\."
)


def is_newer(note: str | None) -> bool:
    """Tell if a release after this one wrote the schema with this note."""
    form = _FORM.fullmatch(note or "")
    return form is not None and _numbers(form[1]) > _numbers(__version__)


def may_serve(note: str | None) -> bool:
    """Tell if this release may serve a schema that a newer one wrote."""
    form = _FORM.fullmatch(note or "")
    return form is not None and _numbers(form[2]) <= _numbers(__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
