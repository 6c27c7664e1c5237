"""Postgres: connections, tables, migrations, the audit trail, and the embedded server.

Every layer above may import it; fronts and providers write no SQL.
"""
