"""The journal: which calls this worker sent, and what they cost, in a file that survives its end.

A file of slots with one for each call under way: written before the call goes out, and again once
its outcome is known. Written, not synced: it outlives `kill -9`, not a loss of power. A slot is
used again once Postgres has its call's outcome, so the file grows with the calls under way alone.
Whether a worker lives is told by a lock on its journal, which ends with it.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil  # type: ignore[import-untyped]  # ships without types
import structlog

from gateway import telemetry
from gateway.billing.reservations import Settlement
from gateway.domain import Outcome, Usage
from gateway.errors import Unavailable
from gateway.image_models import Choice
from gateway.money import NanoUsd

SUFFIX = ".journal"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MAGIC = b"IGWJ0002"
_HEADER = struct.Struct("<8s16s64s16sI")
_SLOT = struct.Struct("<16s16sqHB4q20s20s")
_CHECK = struct.Struct("<I")
HEADER_BYTES = 128
SLOT_BYTES = 128
SLOTS_AT_ONCE = 256
NO_OUTCOME = b""
log = structlog.get_logger(__name__)


def boot_id() -> str:
    """The name of this boot of the machine: what was written before it may be lost in part."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def open_journal(folder: Path, instance: UUID) -> "Journal | None":
    """The journal of a worker that starts; None where it cannot have one.

    Then a kill leaves calls of unknown outcome, as every call that it had held.
    """
    try:
        return Journal(folder, instance)
    except OSError as error:
        telemetry.alarms_total.labels("journal_failed").inc()
        log.warning("journal_unavailable", folder=str(folder), reason=str(error))
        return None


class Journal:
    """One worker's own. Once it cannot be written it is taken away, and proves nothing."""

    def __init__(self, folder: Path, instance: UUID) -> None:
        """Make the file. Raises `OSError` where it cannot be written."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / f"{instance}{SUFFIX}"
        self._slots: dict[UUID, int] = {}
        self._free: list[int] = []
        self._count = 0
        # Under its own name only once it is locked: an unlocked one is a dead worker's.
        new = self._path.with_suffix(".new")
        self._file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._is_open = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(0, _header(instance, _place(self._file)))
            self._grow()
            new.rename(self._path)
        except OSError:
            self._close()
            new.unlink(missing_ok=True)
            raise

    def sent(self, reservation_id: UUID) -> None:
        """Note that a call is about to go out.

        Raises:
            Unavailable: it cannot be noted, nor can the journal be taken away. The call must not
                be made: it would count as never sent.
        """
        if not self._is_open:
            return
        try:
            if not self._free:
                self._grow()
            slot = self._free.pop()
            self._slots[reservation_id] = slot
            self._write_slot(slot, reservation_id, None)
        except OSError as error:
            self._give_up(error)

    def told(self, settlement: Settlement) -> None:
        """Note how a call ended, before Postgres is told. Where that fails, it is only `sent`."""
        slot = self._slots.get(settlement.id)
        if slot is None or not self._is_open or settlement.outcome is Outcome.AMBIGUOUS:
            return
        try:
            self._write_slot(slot, settlement.id, settlement)
        except (OSError, struct.error) as error:
            telemetry.alarm("journal_failed", error=type(error).__name__)

    def settled(self, reservation_id: UUID) -> None:
        """Free the slot of a call whose outcome Postgres has. What stands in it does no harm."""
        slot = self._slots.pop(reservation_id, None)
        if slot is not None:
            self._free.append(slot)

    def close(self) -> None:
        """End the journal; it stays where calls are in it that Postgres was not told of."""
        if self._is_open:
            if not self._slots:
                self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        self._is_open = False
        os.close(self._file)

    def _give_up(self, error: OSError) -> None:
        """Go on without a journal: none of this worker's calls then counts as never sent."""
        telemetry.alarm("journal_failed", error=type(error).__name__)
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            raise Unavailable(
                "The gateway cannot write down what it buys right now. Nothing was bought; try "
                "again.",
                retry_after_seconds=10,
            ) from error
        self._slots.clear()
        self._close()

    def _grow(self) -> None:
        # Written in advance: a disk that fills up later still takes these slots.
        self._write(HEADER_BYTES + self._count * SLOT_BYTES, bytes(SLOTS_AT_ONCE * SLOT_BYTES))
        self._free.extend(range(self._count + SLOTS_AT_ONCE - 1, self._count - 1, -1))
        self._count += SLOTS_AT_ONCE

    def _write_slot(self, slot: int, reservation_id: UUID, settlement: Settlement | None) -> None:
        self._write(HEADER_BYTES + slot * SLOT_BYTES, _slot(reservation_id, settlement))

    def _write(self, offset: int, content: bytes) -> None:
        if os.pwrite(self._file, content, offset) != len(content):
            raise OSError("the disk of the journal takes no more")


def _header(instance: UUID, place: bytes) -> bytes:
    fields = MAGIC, instance.bytes, boot_id().encode()[:64], place
    return _HEADER.pack(*fields, zlib.crc32(b"".join(fields)))


def _place(file: int) -> bytes:
    """Which file this is. A copy of it (a backup, a cloned disk) misses what was sent later."""
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

    `is_complete`: what is not in it was never sent, as long as the worker's calls are still held.
    `sent` are calls of which it says no more than that; `told` are those whose end it knows.
    """

    path: Path
    instance: UUID
    is_complete: bool
    sent: frozenset[UUID]
    told: tuple[Settlement, ...]
    seconds_old: int


@contextmanager
def taken(path: Path, *, now: int) -> Iterator[DeadJournal | None]:
    """Read a dead worker's journal, and keep others from it meanwhile.

    None where the worker lives, another gateway has it in hand, or the file is no journal.
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


def _read(path: Path, content: bytes, place: bytes, *, seconds_old: int) -> DeadJournal | None:
    if len(content) < _HEADER.size:
        return None
    magic, instance, boot, written_at, check = _HEADER.unpack_from(content)
    boot = boot.rstrip(b"\0")
    if magic != MAGIC or zlib.crc32(magic + instance + boot + written_at) != check:
        return None
    sent, told, torn = set(), [], False
    for start in range(HEADER_BYTES, len(content), SLOT_BYTES):
        slot = content[start : start + _SLOT.size + _CHECK.size]
        if not any(slot):
            continue
        if len(slot) < _SLOT.size + _CHECK.size or _CHECK.unpack_from(slot, _SLOT.size)[0] != (
            zlib.crc32(slot[: _SLOT.size])
        ):
            torn = True  # which call this was of, nothing tells
            continue
        try:
            reservation_id, settlement = _call(slot)
        except ValueError:  # an outcome that a later release wrote
            torn = True
            continue
        if settlement is None:
            sent.add(reservation_id)
        else:
            told.append(settlement)
    return DeadJournal(
        path=path,
        instance=UUID(bytes=instance),
        is_complete=boot == boot_id().encode()[:64] and written_at == place and not torn,
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
        served=Choice(quality, size) if quality else None,
    )
