"""First start: create an admin key and, with the embedded Postgres, a first tenant.

The keys are written to `quickstart.json`, readable by its owner only.
"""

import json
import os
from pathlib import Path

from gateway.config import Settings
from gateway.db.engine import OperatorSession, TenantSession
from gateway.domain import SecretText
from gateway.errors import ConfigurationError
from gateway.tenancy import admin_keys, api_keys, tenants
from gateway.vault import key_format
from gateway.vault.gateway_secrets import GatewaySecrets
from gateway.vault.key_format import Pepper

DEFAULT_TENANT = "default"


async def make_first_keys(
    session: OperatorSession, settings: Settings, secrets: GatewaySecrets
) -> SecretText | None:
    """Create the admin key and, with the embedded Postgres, a first tenant.

    Returns the admin key if it was created here, so that it can be shown once.
    """
    made, pepper = None, secrets.pepper
    if settings.admin_key is not None:
        admin_key = SecretText(settings.admin_key.get_secret_value().strip())
        if key_format.key_kind(admin_key.reveal()) != "admin":
            raise ConfigurationError(
                "GATEWAY_ADMIN_KEY does not have the form of an admin key (igw_admin_…). "
                "Leave it unset: the first start then creates one and shows it once."
            )
        await admin_keys.adopt_setting(
            session,
            admin_key,
            peppers=secrets.peppers,
            retired_peppers=secrets.retired_peppers,
        )
    elif not await admin_keys.was_any_made(session):
        issued = await admin_keys.create(
            session, admin_keys.FIRST_NAME, pepper=pepper, origin="first_start"
        )
        admin_key = made = issued.secret
    else:
        return None
    if settings.uses_embedded_postgres and not await tenants.has_any(session):
        quickstart = {"base_url": settings.public_url, "admin_key": admin_key.reveal()}
        quickstart |= await _default_tenant(session, pepper)
        _write_quickstart(settings.quickstart_file, quickstart)
    elif made is not None:
        quickstart = {"base_url": settings.public_url, "admin_key": made.reveal()}
        _write_quickstart(settings.quickstart_file, quickstart)
    return made


async def _default_tenant(session: OperatorSession, pepper: Pepper) -> dict[str, str]:
    tenant = await tenants.create(session, DEFAULT_TENANT)
    tenant_session = TenantSession(session)
    live = await api_keys.issue(tenant_session, tenant.id, pepper=pepper, livemode=True)
    test = await api_keys.issue(tenant_session, tenant.id, pepper=pepper, livemode=False)
    return {
        "tenant_id": str(tenant.id),
        "live_key": live.secret.reveal(),
        "test_key": test.secret.reveal(),
    }


def _write_quickstart(path: Path, content: dict[str, str]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(content, file, indent=2)
            file.write("\n")
    except OSError as error:
        raise ConfigurationError(
            f"The first keys cannot be written to {path}: {error.strerror}. Set GATEWAY_DATA_DIR "
            "to a writable directory, or GATEWAY_ADMIN_KEY to a key of your own."
        ) from error


def read_quickstart(settings: Settings) -> dict[str, str]:
    """Read the quick start's keys and current address; empty if there was no quick start.

    The file holds the address of the latest start, so that commands find the gateway.
    """
    path = settings.quickstart_file
    if not settings.uses_embedded_postgres or not path.exists():
        return {}
    content: dict[str, str] = json.loads(path.read_text())
    if content["base_url"] != settings.public_url:
        content["base_url"] = settings.public_url
        _write_quickstart(path, content)
    return content
