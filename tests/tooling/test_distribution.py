"""The schema can be distributed by tenant: what docs/scaling.md says is what the catalogue has."""

import re
from pathlib import Path

import pytest

from gateway.db.sql_files import read_sql_file
from tests.harness import run_sql
from tests.tooling.sql_statements import Named, named_rows

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
ROW = re.compile(r"^\| (`.+?`) \| (tenant|house|reference|local) \|", re.MULTILINE)
HOT_FILES = (
    "billing/sql/periods.sql",
    "billing/sql/alerts.sql",
    "billing/sql/claims.sql",
    "billing/sql/reserve.sql",
    "billing/sql/settle.sql",
    "billing/sql/unknown.sql",
    "tenancy/sql/access.sql",
)
SWEEPS = {"expire_reservations", "forget_idempotency_keys"}
"""Work of every few seconds, for all tenants."""
POINTING = (
    *("event", "webhook_endpoint"),
    *("console_person", "console_session", "console_invitation"),
)
"""Local tables that may refer to the tenant itself."""
KEY_OF_CLASS = {"tenant": "tenant_id", "house": "shard"}


def documented() -> dict[str, str]:
    """The class of each table in the document."""
    rows = ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    return {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}


async def test_the_document_has_every_table(database: str) -> None:
    rows = await run_sql(
        database,
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace = 'public'::regnamespace",
    )
    assert {row.relname for row in rows} == set(documented())


async def test_every_key_of_a_tenants_table_contains_the_tenant(database: str) -> None:
    keys = await run_sql(
        database,
        "SELECT i.indrelid::regclass::text AS name, array_agg(a.attname::text) AS columns"
        " FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
        " WHERE i.indisunique AND NOT c.relispartition"
        " AND c.relnamespace = 'public'::regnamespace GROUP BY i.indexrelid, 1",
    )
    tenants = {name for name, kind in documented().items() if kind == "tenant"} - {"tenant"}
    checked = [key for key in keys if key.name in tenants]
    assert {key.name for key in checked} == tenants
    assert [key for key in checked if "tenant_id" not in key.columns] == []


async def test_every_reference_between_tenants_tables_contains_the_tenant(database: str) -> None:
    keys = await run_sql(
        database,
        "SELECT k.conrelid::regclass::text AS name, k.confrelid::regclass::text AS target,"
        " array_agg(a.attname::text) AS columns FROM pg_constraint k"
        " JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)"
        " WHERE k.contype = 'f' AND k.conparentid = 0 GROUP BY k.oid, 1, 2",
    )
    classes = documented()
    owned = [key for key in keys if classes[key.name] == "tenant" and key.target != "tenant"]
    assert owned
    for key in owned:
        is_own = classes[key.target] == "tenant" and "tenant_id" in key.columns
        assert is_own or classes[key.target] == "reference", key
    # A table that is not a tenant's may not point at one that is, except at the tenant.
    assert {
        (key.name, key.target)
        for key in keys
        if classes[key.name] != "tenant" and classes[key.target] == "tenant"
    } <= {(name, "tenant") for name in POINTING}


async def test_a_tenants_rows_have_a_tenant(database: str) -> None:
    rows = await run_sql(
        database,
        "SELECT table_name FROM information_schema.columns WHERE column_name = 'tenant_id'"
        " AND is_nullable = 'YES' AND table_schema = 'public'",
    )
    classes = documented()
    assert [row.table_name for row in rows if classes.get(row.table_name) == "tenant"] == []


def statements() -> list[Named]:
    return [one for name in HOT_FILES for one in named_rows(read_sql_file(name))]


@pytest.mark.parametrize("kind", ["tenant", "house"])
def test_every_statement_of_a_call_names_its_tenant_or_shard(kind: str) -> None:
    tables = {name for name, of in documented().items() if of == kind} - {"tenant"}
    found = [one for one in statements() if one.table in tables]
    assert len({one.function for one in found}) >= 4
    assert [
        one for one in found if KEY_OF_CLASS[kind] not in one.columns and one.function not in SWEEPS
    ] == []


def test_a_statement_that_names_no_tenant_is_found() -> None:
    script = """
CREATE OR REPLACE FUNCTION f(p_tenant_id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_count int := (SELECT count(*) FROM ledger WHERE reservation_id IS NULL);
BEGIN
    UPDATE reservation SET state = 'void' WHERE tenant_id = p_tenant_id AND id = ANY (
        SELECT i.reservation_id FROM image i JOIN ledger l ON l.tenant_id = i.tenant_id);
    DELETE FROM budget WHERE tenant_id = p_tenant_id OR id = 1;
END $$;
"""
    assert {(one.table, "tenant_id" in one.columns) for one in named_rows(script)} == {
        ("ledger", False),
        ("reservation", True),
        ("image", True),
        ("ledger", True),
        ("budget", False),
    }
