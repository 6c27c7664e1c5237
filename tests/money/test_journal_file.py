"""The journal's file: writing, reading back, and file systems on which there is none."""

import resource
import shutil
import zlib
from pathlib import Path
from uuid import UUID

import pytest

from gateway.billing.journal import (
    HEADER_BYTES,
    MAX_RESTING_SLOTS,
    REST_NS,
    SLOT_BYTES,
    SLOTS_AT_ONCE,
    Journal,
    open_journal,
    taken,
)
from gateway.billing.settlement import Settlement
from gateway.db.identity import DatabaseIdentity
from gateway.domain import new_id
from gateway.errors import Unavailable
from gateway.file_systems import Mount
from gateway.image_models import AutoChoice
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome, Usage

HERE = DatabaseIdentity(system=7_713_374_756_031_322_907, timeline=3, database=5, reservations=9)


def test_a_slot_rests_for_a_while_and_the_journal_stays_bounded(tmp_path: Path) -> None:
    now = REST_NS
    journal = Journal(tmp_path, new_id(), HERE, clock=lambda: now)
    [path] = tmp_path.iterdir()
    assert path.stat().st_size == HEADER_BYTES + SLOTS_AT_ONCE * SLOT_BYTES
    settled = []
    for _ in range(10 * SLOTS_AT_ONCE):
        settled.append(new_id())
        journal.sent(settled[-1])
        journal.settled(settled[-1])
    content = path.read_bytes()
    assert all(call.bytes in content for call in settled)
    assert len(content) == HEADER_BYTES + 10 * SLOTS_AT_ONCE * SLOT_BYTES
    now += REST_NS
    for _ in range(20 * SLOTS_AT_ONCE):
        call = new_id()
        journal.sent(call)
        now += 1_000_000_000
        journal.settled(call)
    assert path.stat().st_size == len(content)
    for _ in range(2 * MAX_RESTING_SLOTS):
        call = new_id()
        journal.sent(call)
        journal.settled(call)
    assert path.stat().st_size <= HEADER_BYTES + (MAX_RESTING_SLOTS + SLOTS_AT_ONCE) * SLOT_BYTES
    under_way = MAX_RESTING_SLOTS + 2 * SLOTS_AT_ONCE
    for _ in range(under_way):
        journal.sent(new_id())
    assert path.stat().st_size <= HEADER_BYTES + (2 * under_way) * SLOT_BYTES
    journal.close()


def test_a_journal_is_read_back_only_after_its_worker_has_ended(
    tmp_path: Path,
) -> None:
    instance = new_id()
    journal = Journal(tmp_path, instance, HERE)
    [path] = tmp_path.iterdir()
    sent, lost, settled = new_id(), new_id(), new_id()
    told = Settlement(
        new_id(),
        Outcome.SUCCESS,
        NanoUsd(2**62),
        images=10,
        usage=Usage(1, 2, 3, 2**40),
        served=AutoChoice("xhigh", "3840x2160"),
    )
    refused = Settlement(new_id(), Outcome.SUCCESS_NO_USAGE, NanoUsd(7))
    for call in (sent, lost, told.id, refused.id, settled):
        journal.sent(call)
    for settlement in (told, refused, Settlement(lost, Outcome.AMBIGUOUS, NanoUsd(0))):
        journal.told(settlement)
    journal.settled(settled)
    with taken(path, now=0) as found:
        assert found is None
    journal.close()
    with taken(path, now=0) as found:
        assert found is not None
        assert (found.instance, found.is_complete) == (instance, True)
        assert found.sent == {sent, lost, settled}
        assert found.told == (told, refused)
        # While one gateway has it in hand, no other takes it.
        with taken(path, now=0) as second:
            assert second is None
    assert UUID(path.stem) == instance


def test_a_journal_that_cannot_be_written_is_taken_away_and_calls_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id(), HERE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SLOT_BYTES, hard))
    try:
        journal.sent(new_id())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    journal.sent(new_id())
    journal.told(Settlement(new_id(), Outcome.SUCCESS, NanoUsd(1)))
    journal.close()


def test_a_journal_that_cannot_be_begun_leaves_no_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SLOT_BYTES, hard))
    try:
        with pytest.raises(OSError, match="large"):
            Journal(tmp_path, new_id(), HERE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_call_is_not_sent_once_its_journal_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id(), HERE)
    journal.close()
    with pytest.raises(Unavailable):
        journal.sent(new_id())


@pytest.mark.parametrize(
    ("kind", "is_suitable"),
    [
        *(("ext4", True), ("xfs", True), ("overlay", True), ("tmpfs", True), ("apfs", True)),
        *(("fuse.fuse-overlayfs", True), ("nfs4", False), ("nfs", False), ("cifs", False)),
        *(("9p", False), ("fuse.sshfs", False), ("fuseblk", False), ("ceph", False)),
    ],
)
def test_no_journal_is_kept_where_a_lock_or_a_page_may_be_lost(
    tmp_path: Path, kind: str, *, is_suitable: bool
) -> None:
    """The kind of file system is that of the deepest mount, and of the last one there."""
    mounts = [
        Mount(Path("/"), "nfs" if is_suitable else "ext4"),
        Mount(tmp_path / "mounted", "autofs"),
        Mount(tmp_path / "mounted", kind),
        Mount(tmp_path / "mounted-elsewhere", "nfs"),
    ]
    folder = tmp_path / "mounted" / "journal"
    journal = open_journal(folder, new_id(), HERE, mounts=lambda: mounts)
    assert (journal is not None) == is_suitable
    if journal is not None:
        journal.close()


def test_a_copy_of_a_journal_does_not_show_which_calls_were_never_sent(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id(), HERE)
    [path] = tmp_path.iterdir()
    call = new_id()
    journal.sent(call)
    copy = shutil.copy(path, tmp_path / "copy.journal")
    with taken(Path(copy), now=0) as found:
        assert found is not None
        assert found.sent == {call}
        assert not found.is_complete
    journal.close()


def test_an_outcome_of_a_later_release_is_read_as_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, new_id(), HERE)
    [path] = tmp_path.iterdir()
    known, later = new_id(), new_id()
    for call in (known, later):
        journal.sent(call)
        journal.told(Settlement(call, Outcome.SUCCESS, NanoUsd(7)))
    journal.close()
    content = bytearray(path.read_bytes())
    start = content.index(later.bytes)
    content[start + 16 : start + 32] = b"of_a_later_age".ljust(16, b"\0")
    checked = bytes(content[start : start + SLOT_BYTES - 13])
    content[start + len(checked) : start + len(checked) + 4] = zlib.crc32(checked).to_bytes(
        4, "little"
    )
    path.write_bytes(content)
    with taken(path, now=0) as found:
        assert found is not None
        assert [settlement.id for settlement in found.told] == [known]
        assert not found.is_complete
