"""Backups of a gateway with the embedded Postgres: one file with database, images and master key.

The command line makes and restores them (docs/backup.md).
"""
