"""Postgres: connections, tables, migrations, and the server that comes with the gateway."""
