"""The identity of a database and of its history: a failover or a restore changes it."""

import struct
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.db.engine import OperatorSession, raise_if_lost

_FIELDS = struct.Struct("<qIII")
# The timeline of a WAL file's name is the one that is written now; that of the control file is the
# last checkpoint's, which a promotion changes only later. A dump that is restored makes its tables
# anew, so that they get other ids.
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

    Equal at two moments: what was committed at the first one was not taken back by a failover to a
    standby that lagged behind, a recovery to a point in time, or a restored dump.
    """

    system: int
    timeline: int
    database: int
    reservations: int

    def to_bytes(self) -> bytes:
        """`IDENTITY_BYTES` bytes."""
        return _FIELDS.pack(self.system, self.timeline, self.database, self.reservations)


def identity_of(content: bytes) -> DatabaseIdentity | None:
    """The identity that `to_bytes` wrote; None for zeros, which stand for an unknown one."""
    return DatabaseIdentity(*_FIELDS.unpack(content)) if any(content) else None


async def read_identity(session: OperatorSession) -> DatabaseIdentity | None:
    """The database behind this session; None where its server does not tell.

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
