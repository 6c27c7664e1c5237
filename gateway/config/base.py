"""The base of a group of settings, and the mark of those that an operator reads first."""

from pydantic import BaseModel, ConfigDict, JsonValue

FIRST: dict[str, JsonValue] = {"matters_first": True}
"""As `json_schema_extra` of a field: one of the dozen that lead `.env.example` and the page."""


class SettingsGroup(BaseModel):
    """The base of every group. Its docstring introduces the group on the generated page."""

    # Commands start quickly: only `Settings`, which has the fields of all groups, is built.
    model_config = ConfigDict(defer_build=True)
