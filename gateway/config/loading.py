"""Reading of settings: the environment, then `.env`, then the configuration file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import SettingsError

from gateway.config.config_file import ConfigFile, FileValue, read_config_file
from gateway.config.groups import NEVER_EMPTY, SETTINGS
from gateway.config.server import is_service_link
from gateway.config.settings import ENV_FILE, Settings
from gateway.errors import ConfigurationError


def load_settings(*, read_env_file: bool = True) -> Settings:
    """Read the environment, `.env` in the current directory, and `GATEWAY_CONFIG_FILE`.

    Raises:
        ConfigurationError: a setting cannot work; the message names it, never its value.
    """
    env_file = ENV_FILE if read_env_file else None
    given = _variables(env_file)
    _refuse_empty(given)
    path = given.get("GATEWAY_CONFIG_FILE")
    file = read_config_file(Path(path)) if path else None
    used = () if file is None else tuple(value for value in file.values if _counts(value, given))
    arguments = {value.setting.argument: value.value for value in used}
    try:
        return Settings(_env_file=env_file, **arguments)  # type: ignore[arg-type, call-arg]  # pydantic's own
    except ValidationError as error:
        raise ConfigurationError(_explain(error, file, used)) from None
    except SettingsError as error:
        raise ConfigurationError(f"A setting cannot be read: {error}") from None


def _variables(env_file: str | None) -> Mapping[str, str]:
    """The variables of the environment and of `.env`. The environment wins."""
    found = {**({} if env_file is None else dotenv_values(env_file)), **os.environ}
    return {name.upper(): value or "" for name, value in found.items()}


def _refuse_empty(given: Mapping[str, str]) -> None:
    """Refuse empty variables whose absence would change what is trusted.

    Any other empty variable counts as unset.
    """
    for name in NEVER_EMPTY:
        if name in given and not given[name].strip():
            raise ConfigurationError(
                f"{name} is set but empty. Give it a value, or remove it altogether."
            )


def _counts(value: FileValue, given: Mapping[str, str]) -> bool:
    """True if no variable sets what the file sets."""
    variables = (given.get(name, "") for name in value.setting.variables)
    return not any(variable and not is_service_link(variable) for variable in variables)


def _explain(error: ValidationError, file: ConfigFile | None, used: tuple[FileValue, ...]) -> str:
    """One line per wrong setting, with its place in the file if it comes from there.

    Inputs are left out: they may be secrets.
    """
    places = {} if file is None else {v.setting.name: f"{file.path}: {v.place}" for v in used}
    settings = {name: s for s in SETTINGS for name in (s.name, *s.variables)}
    lines = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        setting = settings.get(str(problem["loc"][0])) if problem["loc"] else None
        if setting is not None:
            lines.append(f"{places.get(setting.name, setting.variable)}: {message}")
            continue
        lines.append(message)
        named = {
            settings[word].name for word in re.findall(r"[A-Z_]{3,}", message) if word in settings
        }
        lines += [f"Set in {places[name]}." for name in sorted(named & places.keys())]
    return "\n".join(lines)


def export_to_workers(**variables: str) -> None:
    """Set variables for the processes that are started from here."""
    os.environ.update(variables)
