"""The identity of a database's history, which a failover or a restore changes."""

import struct
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.db.engine import OperatorSession, raise_if_lost

_FIELDS = struct.Struct("<qIII")
# The timeline in the WAL file's name is the current one; that of the control file is the last
# checkpoint's, which a promotion updates later. A restored dump creates its tables again, with new
# ids.
_IDENTITY = text("""
    SELECT s.system_identifier AS system,
        ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint AS timeline,
        d.oid::bigint AS database, 'reservation'::regclass::oid::bigint AS reservations
    FROM pg_control_system() s, pg_database d WHERE d.datname = current_database()
""")
IDENTITY_BYTES = _FIELDS.size


@dataclass(frozen=True, slots=True)
class DatabaseIdentity:
    """The server's identifier, its timeline, and the ids of the database and its reservations.

    If it is equal at two moments, no commit of the first was undone by a failover to a lagging
    standby, a point-in-time recovery, or a restored dump.
    """

    system: int
    timeline: int
    database: int
    reservations: int

    def to_bytes(self) -> bytes:
        """Encode as `IDENTITY_BYTES` bytes."""
        return _FIELDS.pack(self.system, self.timeline, self.database, self.reservations)


def identity_of(content: bytes) -> DatabaseIdentity | None:
    """Decode the bytes of `to_bytes`; None for zeros, which mean an unknown identity."""
    return DatabaseIdentity(*_FIELDS.unpack(content)) if any(content) else None


async def read_identity(session: OperatorSession) -> DatabaseIdentity | None:
    """Read the identity of the session's database; None if the server does not disclose it.

    Raises:
        DatabaseUnavailable: Postgres is away, or a standby.
    """
    try:
        async with session.begin_nested():
            row = (await session.execute(_IDENTITY)).one()
    except DBAPIError as error:
        raise_if_lost(error)
        return None
    return DatabaseIdentity(row.system, row.timeline, row.database, row.reservations)
