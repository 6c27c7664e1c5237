"""The journal: a file that records the calls a worker sent and their cost, and outlives it.

One slot per call in flight, written before the call is sent and again once its outcome is known.
Not synced: it survives `kill -9`, not a power failure. A slot is reused some minutes after Postgres
has its call's outcome, in case Postgres loses it again. A lock on the file shows that its worker
is alive.
"""

import fcntl
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil  # type: ignore[import-untyped]  # ships without types
import structlog

from gateway import telemetry
from gateway.billing.settlement import Settlement
from gateway.db.identity import IDENTITY_BYTES, DatabaseIdentity, identity_of
from gateway.errors import Unavailable
from gateway.file_systems import Mounts, mounts_of_machine, remote_kind
from gateway.image_models import AutoChoice
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome, Usage

SUFFIX = ".journal"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MAGIC = b"IGWJ0003"
OLD_MAGIC = b"IGWJ0002"
"""The previous release's format, without the database's identity; its slots are the same."""
_HEADER = struct.Struct(f"<8s16s64s16s{IDENTITY_BYTES}s")
_OLD_HEADER = struct.Struct("<8s16s64s16s")
_SLOT = struct.Struct("<16s16sqHB4q20s20s")
_CHECK = struct.Struct("<I")
HEADER_BYTES = 128
SLOT_BYTES = 128
SLOTS_AT_ONCE = 256
REST_NS = 300_000_000_000
"""Five minutes for which a settled call keeps its slot: a new primary may lack its outcome."""
MAX_RESTING_SLOTS = 16_384
"""Two mebibytes: the file is bounded and fast to read. Above 55 calls a second, slots are reused
sooner."""
NO_OUTCOME = b""
log = structlog.get_logger(__name__)


def boot_id() -> str:
    """Return the id of the machine's current boot: older files may be partly lost."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def open_journal(
    folder: Path,
    instance: UUID,
    database: DatabaseIdentity | None,
    *,
    mounts: Mounts = mounts_of_machine,
) -> "Journal | None":
    """Open the journal of a starting worker; None if it cannot have one.

    Without a journal, a kill leaves every reserved call with an unknown outcome.
    """
    kind = remote_kind(folder, mounts)
    if kind is not None:
        telemetry.alarms_total.labels("journal_failed").inc()
        log.warning(
            "journal_unavailable",
            folder=str(folder),
            reason=f"its file system is {kind}, on which a kill or another machine can leave a "
            "journal wrong. Set GATEWAY_JOURNAL_DIR to a folder on a local disk",
        )
        return None
    if database is None:
        log.warning(
            "journal_without_database_identity",
            reason="Postgres does not tell its system identifier and timeline to the serving role. "
            "Calls that a kill left unsent become unknown. Grant EXECUTE on pg_control_system(), "
            "pg_walfile_name(pg_lsn) and pg_current_wal_lsn() to the role",
        )
    try:
        return Journal(folder, instance, database)
    except OSError as error:
        telemetry.alarms_total.labels("journal_failed").inc()
        log.warning("journal_unavailable", folder=str(folder), reason=str(error))
        return None


class Journal:
    """One worker's journal. If it cannot be written it is deleted, and proves nothing."""

    def __init__(
        self,
        folder: Path,
        instance: UUID,
        database: DatabaseIdentity | None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Create the file. Raises `OSError` if it cannot be written."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / f"{instance}{SUFFIX}"
        self._clock = clock
        self._slots: dict[UUID, int] = {}
        self._free: list[int] = []
        self._resting: deque[tuple[int, int]] = deque()
        self._count = 0
        # Renamed to its own name only once locked: an unlocked journal is a dead worker's.
        new = self._path.with_suffix(".new")
        self._file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._is_open = True
        self._is_given_up = False
        self._is_kept = False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(0, _header(instance, _place(self._file), database))
            self._grow()
            new.rename(self._path)
        except OSError:
            self._close()
            new.unlink(missing_ok=True)
            raise

    def sent(self, reservation_id: UUID) -> None:
        """Record that a call is about to be sent.

        Raises:
            Unavailable: it can be neither recorded nor the journal deleted, or it was closed. The
                call must not be made: it would count as never sent.
        """
        if not self._is_open:
            if self._is_given_up:
                return
            raise Unavailable(
                "This gateway is shutting down. Nothing was bought; try again.",
                retry_after_seconds=1,
            )
        try:
            # A reservation's next call takes the place of one that was not charged.
            slot = self._slots.get(reservation_id)
            if slot is None:
                slot = self._slots[reservation_id] = self._take_slot()
            self._write_slot(slot, reservation_id, None)
        except OSError as error:
            self._give_up(error)

    def told(self, settlement: Settlement) -> None:
        """Record a call's outcome before it goes to Postgres; on failure the call stays `sent`."""
        slot = self._slots.get(settlement.id)
        if slot is None or not self._is_open or settlement.outcome is Outcome.AMBIGUOUS:
            return
        try:
            self._write_slot(slot, settlement.id, settlement)
        except (OSError, struct.error) as error:
            telemetry.alarm("journal_failed", error=type(error).__name__)

    def settled(self, reservation_id: UUID) -> None:
        """Retire the slot of a call whose outcome Postgres has; it is reused later."""
        slot = self._slots.pop(reservation_id, None)
        if slot is not None:
            self._resting.append((slot, self._clock()))

    def keep(self) -> None:
        """Leave the file in place on close: a reservation is open whose call was never sent."""
        self._is_kept = True

    def close(self) -> None:
        """Close the journal; the file stays if any call has no outcome in Postgres, sent or not."""
        if self._is_open:
            if not self._slots and not self._is_kept:
                self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        self._is_open = False
        os.close(self._file)

    def _give_up(self, error: OSError) -> None:
        """Continue without a journal: none of this worker's calls then counts as never sent."""
        telemetry.alarm("journal_failed", error=type(error).__name__)
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            raise Unavailable(
                "The gateway cannot write its journal of paid calls right now. Nothing was bought; "
                "try again.",
                retry_after_seconds=10,
            ) from error
        self._slots.clear()
        self._is_given_up = True
        self._close()

    def _take_slot(self) -> int:
        resting = self._resting
        if resting and (
            len(resting) > MAX_RESTING_SLOTS or self._clock() - resting[0][1] >= REST_NS
        ):
            return resting.popleft()[0]
        if not self._free:
            self._grow()
        return self._free.pop()

    def _grow(self) -> None:
        # Written in advance, so that these slots exist even if the disk fills up later.
        self._write(HEADER_BYTES + self._count * SLOT_BYTES, bytes(SLOTS_AT_ONCE * SLOT_BYTES))
        self._free.extend(range(self._count + SLOTS_AT_ONCE - 1, self._count - 1, -1))
        self._count += SLOTS_AT_ONCE

    def _write_slot(self, slot: int, reservation_id: UUID, settlement: Settlement | None) -> None:
        self._write(HEADER_BYTES + slot * SLOT_BYTES, _slot(reservation_id, settlement))

    def _write(self, offset: int, content: bytes) -> None:
        if os.pwrite(self._file, content, offset) != len(content):
            raise OSError("the disk of the journal takes no more")


def _header(instance: UUID, place: bytes, database: DatabaseIdentity | None) -> bytes:
    known = bytes(IDENTITY_BYTES) if database is None else database.to_bytes()
    fields = MAGIC, instance.bytes, boot_id().encode()[:64], place, known
    return _HEADER.pack(*fields) + _CHECK.pack(zlib.crc32(b"".join(fields)))


def _place(file: int) -> bytes:
    """Identify the file itself, because a copy (backup, cloned disk) lacks later calls."""
    state = os.fstat(file)
    return struct.pack("<QQ", state.st_dev, state.st_ino)


def _slot(reservation_id: UUID, settlement: Settlement | None) -> bytes:
    usage = None if settlement is None else settlement.usage
    served = None if settlement is None else settlement.served
    content = _SLOT.pack(
        reservation_id.bytes,
        NO_OUTCOME if settlement is None else settlement.outcome.encode(),
        0 if settlement is None else settlement.amount_nano,
        0 if settlement is None else settlement.images,
        usage is not None,
        *(
            (0, 0, 0, 0)
            if usage is None
            else (
                usage.text_input_tokens,
                usage.image_input_tokens,
                usage.text_output_tokens,
                usage.image_output_tokens,
            )
        ),
        b"" if served is None else served.quality.encode(),
        b"" if served is None else served.size.encode(),
    )
    return content + _CHECK.pack(zlib.crc32(content))


@dataclass(frozen=True, slots=True)
class DeadJournal:
    """The journal of a worker that has ended.

    `is_complete`: a call that is not in it was never sent, provided that the worker's calls are
    still held and the database is still `database`, as when the worker began. `sent`: calls without
    a recorded outcome; `told`: calls with one.
    """

    path: Path
    instance: UUID
    is_complete: bool
    database: DatabaseIdentity | None
    sent: frozenset[UUID]
    told: tuple[Settlement, ...]
    seconds_old: int

    def proves_unsent(self, database: DatabaseIdentity | None) -> bool:
        """Tell if a held call missing from the journal was never sent.

        False if the database was restored to an earlier state since: settled calls are held there
        again, and their slots may have been reused.
        """
        return self.is_complete and database is not None and self.database == database


@contextmanager
def taken(path: Path, *, now: int) -> Iterator[DeadJournal | None]:
    """Read a dead worker's journal under its lock.

    None if the worker is alive, another gateway holds the lock, or the file is no journal.
    """
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        state = os.fstat(file)
        content = os.pread(file, state.st_size, 0) if state.st_nlink else b""
        yield _read(path, content, _place(file), seconds_old=now - int(state.st_mtime))
    finally:
        os.close(file)


@dataclass(frozen=True, slots=True)
class _Header:
    instance: UUID
    is_here: bool
    """Tell if the slots were written in this very file since the machine started."""
    database: DatabaseIdentity | None


def _read_header(content: bytes, place: bytes) -> _Header | None:
    if len(content) < HEADER_BYTES or not content.startswith((MAGIC, OLD_MAGIC)):
        return None
    form = _HEADER if content.startswith(MAGIC) else _OLD_HEADER
    magic, instance, boot, written_at, *known = form.unpack_from(content)
    boot = boot.rstrip(b"\0")
    check = zlib.crc32(b"".join((magic, instance, boot, written_at, *known)))
    if _CHECK.unpack_from(content, form.size)[0] != check:
        return None
    return _Header(
        instance=UUID(bytes=instance),
        is_here=boot == boot_id().encode()[:64] and written_at == place,
        database=identity_of(known[0]) if known else None,
    )


def _read(path: Path, content: bytes, place: bytes, *, seconds_old: int) -> DeadJournal | None:
    header = _read_header(content, place)
    if header is None:
        return None
    sent, told, torn = set(), [], False
    for start in range(HEADER_BYTES, len(content), SLOT_BYTES):
        slot = content[start : start + _SLOT.size + _CHECK.size]
        if not any(slot):
            continue
        if len(slot) < _SLOT.size + _CHECK.size or _CHECK.unpack_from(slot, _SLOT.size)[0] != (
            zlib.crc32(slot[: _SLOT.size])
        ):
            torn = True  # its call is unknown
            continue
        try:
            reservation_id, settlement = _call(slot)
        except ValueError:  # an outcome written by a later release
            torn = True
            continue
        if settlement is None:
            sent.add(reservation_id)
        else:
            told.append(settlement)
    return DeadJournal(
        path=path,
        instance=header.instance,
        is_complete=header.is_here and not torn,
        database=header.database,
        sent=frozenset(sent),
        told=tuple(told),
        seconds_old=seconds_old,
    )


def _call(slot: bytes) -> tuple[UUID, Settlement | None]:
    name, outcome, nano, images, has_usage, *rest = _SLOT.unpack_from(slot)
    reservation_id = UUID(bytes=name)
    if not outcome.rstrip(b"\0"):
        return reservation_id, None
    *tokens, quality, size = rest
    quality, size = (text.rstrip(b"\0").decode() for text in (quality, size))
    return reservation_id, Settlement(
        id=reservation_id,
        outcome=Outcome(outcome.rstrip(b"\0").decode()),
        amount_nano=NanoUsd(nano),
        images=images,
        usage=Usage(*tokens) if has_usage else None,
        served=AutoChoice(quality, size) if quality else None,
    )
