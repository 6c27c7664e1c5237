"""Every roll and end of the gateway's own secrets is in the audit trail."""

from datetime import datetime, timedelta

from gateway.vault import gateway_secrets
from tests.admin_helpers import entries
from tests.harness import Served


async def test_rolled_and_retired_secrets_are_in_the_audit_trail(served: Served) -> None:
    vault = served.gateway.core.vault
    async with served.gateway.database.operator() as session:
        await gateway_secrets.roll_pepper(session, vault)
        await gateway_secrets.roll_webhook_key(session, vault)
        _, signs_from = await gateway_secrets.roll_link_key(
            session, vault, lifetime=timedelta(days=1)
        )
    rolled = await entries(served, action="gateway_secret.rolled")
    until = rolled[2]["after"].pop("old_links_until")
    assert datetime.fromisoformat(until) > signs_from + timedelta(days=1)
    assert [(entry["object_id"], entry["after"]) for entry in rolled] == [
        ("pepper", {"version": 2}),
        ("webhook_key", {"version": 2}),
        ("link_key", {"version": 2}),
    ]
    await served.owner_sql(
        "UPDATE sealed_secret SET accepted_until = now() - interval '1 second'"
        " WHERE name IN ('link_key', 'webhook_key')"
    )
    await served.owner_sql(
        "UPDATE sealed_secret SET created_at = now() - interval '2 minutes' WHERE name = 'pepper.2'"
    )
    async with served.gateway.database.operator() as session:
        await gateway_secrets.retire_due(session, vault, is_pepper_unused=False)
        await gateway_secrets.retire_peppers(session, vault, ended_keys=3)
    retired = await entries(served, action="gateway_secret.retired")
    assert [(entry["object_id"], entry["after"]) for entry in retired] == [
        ("link_key", {"version": 1}),
        ("webhook_key", {"version": 1}),
        ("pepper", {"version": 1, "ended_keys": 3}),
    ]
