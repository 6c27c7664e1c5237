"""The gateway's own secrets: which versions a worker knows, and the audit trail of each."""

from datetime import datetime, timedelta

from gateway.vault import gateway_secrets
from gateway.vault.gateway_secrets import GatewaySecrets
from tests.admin_helpers import JsonObject
from tests.harness import Served


async def changes(served: Served, action: str) -> dict[str, JsonObject]:
    """Return the entries of an action, one for each secret.

    From the table: an operator's key, whose pepper is retired here, may not be known any more.
    """
    entries = await served.owner_sql("SELECT action, object_id, after FROM audit")
    found = [entry for entry in entries if entry.action == action]
    by_secret = {entry.object_id: entry.after for entry in found}
    assert len(by_secret) == len(found)
    return by_secret


async def test_rolled_and_retired_secrets_are_in_the_audit_trail(served: Served) -> None:
    vault = served.gateway.core.vault
    async with served.gateway.database.operator() as session:
        await gateway_secrets.roll_pepper(session, vault)
        await gateway_secrets.roll_webhook_key(session, vault)
        _, signs_from = await gateway_secrets.roll_link_key(
            session, vault, lifetime=timedelta(days=1)
        )
    rolled = await changes(served, "gateway_secret.rolled")
    until = rolled["link_key"].pop("old_links_until")
    assert datetime.fromisoformat(until) > signs_from + timedelta(days=1)
    assert rolled == {key: {"version": 2} for key in ("pepper", "webhook_key", "link_key")}
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
    assert await changes(served, "gateway_secret.retired") == {
        "link_key": {"version": 1},
        "webhook_key": {"version": 1},
        "pepper": {"version": 1, "ended_keys": 3},
    }


async def test_a_pepper_that_no_key_needs_is_retired_without_ending_a_key(served: Served) -> None:
    vault = served.gateway.core.vault
    async with served.gateway.database.operator() as session:
        await gateway_secrets.roll_pepper(session, vault)
    await served.owner_sql(
        "UPDATE sealed_secret SET created_at = now() - interval '2 days' WHERE name = 'pepper.2'"
    )
    async with served.gateway.database.operator() as session:
        assert await gateway_secrets.retire_due(session, vault, is_pepper_unused=True) == [
            "pepper 1"
        ]
    retired = await changes(served, "gateway_secret.retired")
    assert retired == {"pepper": {"version": 1, "ended_keys": 0}}


async def test_a_new_link_key_signs_from_and_the_old_one_is_accepted_until_the_told_moment(
    served: Served,
) -> None:
    database, vault = served.gateway.database, served.gateway.core.vault
    async with database.operator() as session:
        _, signs_from = await gateway_secrets.roll_link_key(
            session, vault, lifetime=timedelta(days=1)
        )
        known = GatewaySecrets(vault, await gateway_secrets.list_versions(session, vault))
    rolled = await changes(served, "gateway_secret.rolled")
    until = datetime.fromisoformat(rolled["link_key"]["old_links_until"]).timestamp()
    at = signs_from.timestamp()
    new, old = known.link_keys(at)
    assert [known.signing_link_key(at - 1), known.signing_link_key(at)] == [old, new]
    assert [known.link_keys(until - 1), known.link_keys(until)] == [[new, old], [new]]


async def test_peppers_are_read_again_only_where_one_is_unknown(served: Served) -> None:
    database, vault = served.gateway.database, served.gateway.core.vault
    async with database.operator() as session:
        known = GatewaySecrets(vault, await gateway_secrets.list_versions(session, vault))
    assert await known.refresh_peppers(database) is False
    async with database.operator() as session:
        await gateway_secrets.roll_pepper(session, vault)
    assert [pepper.version for pepper in known.peppers] == [1]
    assert await known.refresh_peppers(database) is True
    assert [pepper.version for pepper in known.peppers] == [2, 1]
    assert await known.refresh_peppers(database) is False
