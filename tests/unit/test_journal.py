"""The journal: its file, its rings, group commit, reclaim, superblock copies."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from detour.core._testing_journal import JournalHarness
from detour.core.crc32c import crc32c
from detour.core.fault_store import FaultStoreHandle
from detour.core.format import SUPERBLOCK_DTYPE, minimum_size, superblock_sealed
from detour.core.journal import JournalHandle
from detour.core.reactor import Reactor
from detour.errors import CorruptError, StorageError, UsageError

BLOCK = 512
VOLUME_BLOCKS = 1 << 16
SMALL = minimum_size(BLOCK, VOLUME_BLOCKS)  # 1024 header slots, 2 MiB of data
MIB = 1 << 20
OK, E_IO, E_RANGE, E_FULL, E_CLOSED, E_CORRUPT, E_INVALID = 0, -2, -3, -4, -7, -12, -15
LIVE, FLUSHED = 0x5A, 0xA5
IDLE, SETTLING, RETIRING = 0, 1, 2


@pytest.fixture
def reactor():
    return Reactor()


class Bench:
    """A small journal in memory whose flushes complete when told."""

    def __init__(self, reactor, image=None, size=SMALL):
        self.reactor = reactor
        self.media = FaultStoreHandle(reactor, 1 << 16)
        self.handle = JournalHandle.in_memory(reactor, size, BLOCK, VOLUME_BLOCKS, self.media, image)
        self.journal = JournalHarness(self.handle)

    def turn(self):
        self.reactor.turn()

    def flushing(self) -> bool:
        return bool(self.media.pending())

    def complete(self, status=0):
        self.media.complete(0, status)
        self.turn()
        self.turn()

    def flush(self):
        """A whole flush of what is there now."""
        number = self.journal.sync()
        self.turn()
        while self.journal.outcome(number) is None:
            self.complete()
        assert self.journal.outcome(number) == OK

    def state(self, seq) -> int:
        return int(self.handle.entries()["state"][seq % self.handle.stats["entry_slots"]])

    def slot(self, seq) -> int:
        return seq % self.handle.stats["entry_slots"]

    @property
    def stats(self):
        return self.handle.stats


@pytest.fixture
def bench(reactor):
    return Bench(reactor)


def run(reactor, ticket):
    """Turns until the ticket is answered; its status."""
    for _ in range(500):
        reactor.turn(10)
        for kind, number, status, _results, _data in reactor.drain():
            if kind == 0 and number == ticket:
                return status
    raise AssertionError("no answer")


# --- the file


def test_a_new_journal_is_preallocated_private_and_clean(tmp_path, reactor):
    path = tmp_path / "j"
    handle = JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS, b'{"volume": "db01"}')
    status = os.stat(path)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == 8 * MIB and status.st_blocks * 512 >= 8 * MIB
    assert handle.superblock["note"] == b'{"volume": "db01"}'
    assert handle.superblock["volume_blocks"] == VOLUME_BLOCKS
    assert not handle.needs_recovery and handle.used_bytes == 0 and handle.size_bytes == 8 * MIB


def test_two_openers_never_meet(tmp_path, reactor):
    path = tmp_path / "j"
    handle = JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)
    with pytest.raises(UsageError, match="in use"):
        JournalHandle.open(reactor, path)
    with pytest.raises(UsageError, match="in use"):
        JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)
    view = handle.entries()
    assert run(reactor, handle.close()) == OK
    again = JournalHandle.open(reactor, path)  # although a view still looks at the old mapping
    assert again.superblock["journal_id"] != bytes(16)
    assert view["seq"].sum() == 0
    with pytest.raises(ValueError, match="closed"):
        handle.superblock  # noqa: B018


def test_a_path_that_cannot_be_used_is_named(tmp_path, reactor):
    with pytest.raises(StorageError, match="no/where/j"):
        JournalHandle.create(reactor, tmp_path / "no/where/j", 8 * MIB, BLOCK, VOLUME_BLOCKS)
    with pytest.raises(UsageError, match="neither a regular file"):
        JournalHandle.create(reactor, "/dev/null", 8 * MIB, BLOCK, VOLUME_BLOCKS)
    with pytest.raises(StorageError, match="missing"):
        JournalHandle.open(reactor, tmp_path / "missing")


def test_no_room_is_an_error_and_leaves_no_file(tmp_path, reactor):
    path = tmp_path / "j"
    with pytest.raises(StorageError, match=f"{path} cannot take"):
        JournalHandle.create(reactor, path, 1 << 52, BLOCK, VOLUME_BLOCKS)
    assert not path.exists()
    with pytest.raises(UsageError, match="too small"):
        JournalHandle.create(reactor, path, MIB, BLOCK, VOLUME_BLOCKS)
    assert not path.exists()


def test_one_answer_tells_that_the_file_is_let_go_of(tmp_path, reactor):
    path = tmp_path / "j"
    handle = JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)
    ticket = handle.close()
    while not (answers := reactor.drain()):
        reactor.turn()
    reactor.turn()
    assert [(answer[1], answer[2]) for answer in [*answers, *reactor.drain()]] == [(ticket, OK)]
    descriptors = [os.path.realpath(entry.path) for entry in os.scandir("/proc/self/fd")]
    assert str(path) not in descriptors


def test_an_unfinished_journal_is_not_formatted_anew(tmp_path, reactor):
    path = tmp_path / "j"
    handle = JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)
    journal = JournalHarness(handle)
    assert journal.write(7, b"x" * BLOCK)[0] == OK
    run(reactor, handle.close())
    with pytest.raises(UsageError, match="not finished"):
        JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)
    reopened = JournalHandle.open(reactor, path)
    assert reopened.needs_recovery
    run(reactor, reopened.close())
    replaced = JournalHandle.create(reactor, path, 6 * MIB, BLOCK, VOLUME_BLOCKS, replace=True)
    assert not replaced.needs_recovery and not replaced.entries()["seq"].any()


def test_a_finished_journal_is_formatted_anew(tmp_path, reactor):
    path = tmp_path / "j"
    handle = JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS, b"old")
    run(reactor, handle.close())
    again = JournalHandle.create(reactor, path, 4 * MIB, BLOCK, VOLUME_BLOCKS, b"new")
    assert again.superblock["note"] == b"new" and again.size_bytes == 4 * MIB


def test_what_is_no_journal_is_told_from_what_is_damaged(tmp_path, reactor):
    path = tmp_path / "j"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="no journal"):
        JournalHandle.open(reactor, path)
    path.write_bytes(os.urandom(100000))
    with pytest.raises(UsageError, match="no journal"):
        JournalHandle.open(reactor, path)
    handle = JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)
    run(reactor, handle.close())
    whole = path.read_bytes()

    path.write_bytes(b"".join(whole[at:at + 100] + bytes([whole[at + 100] ^ 3]) + whole[at + 101:at + 4096]
                              for at in (0, 4096, 8192)) + whole[12288:])
    with pytest.raises(CorruptError, match="checksum"):
        JournalHandle.open(reactor, path)
    with pytest.raises(UsageError, match="not formatted anew"):
        JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)
    path.write_bytes(whole[: 4 * MIB])
    with pytest.raises(CorruptError, match="cut"):
        JournalHandle.open(reactor, path)

    block = np.frombuffer(bytearray(whole[:4096]), dtype=SUPERBLOCK_DTYPE).copy()
    block["version"] = 3
    path.write_bytes(b"".join(superblock_sealed(block.tobytes(), copy) for copy in range(3)) + whole[12288:])
    for _ in range(2):
        with pytest.raises(UsageError, match="another version"):
            JournalHandle.open(reactor, path)
        with pytest.raises(UsageError, match="another version"):
            JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS)


def test_the_note_is_kept_and_bounded(tmp_path, reactor):
    path = tmp_path / "j"
    handle = JournalHandle.create(reactor, path, 8 * MIB, BLOCK, VOLUME_BLOCKS, b"long" * 100)
    assert run(reactor, handle.set_note(b"short")) == OK
    with pytest.raises(UsageError, match="2048"):
        handle.set_note(bytes(2049))
    run(reactor, handle.close())
    assert JournalHandle.open(reactor, path).superblock["note"] == b"short"


def test_sync_and_close_on_a_real_file(tmp_path, reactor):
    handle = JournalHandle.create(reactor, tmp_path / "j", 8 * MIB, BLOCK, VOLUME_BLOCKS)
    journal = JournalHarness(handle)
    journal.write(0, b"a" * BLOCK * 10)
    assert run(reactor, handle.sync()) == OK
    assert handle.stats["stable_seq"] == 1
    assert run(reactor, handle.close()) == OK


def test_entries_can_be_read_as_a_table_and_not_written(bench):
    bench.journal.write(40, b"q" * BLOCK * 200)
    entries = bench.handle.entries()
    used = entries[entries["seq"] > 0]
    assert used["seq"].tolist() == [1, 2]
    assert used["lba"].tolist() == [40, 168] and used["blocks"].tolist() == [128, 72]
    assert used["flag"].tolist() == [255, 255] and used["state"].tolist() == [LIVE, LIVE]
    assert used["data_crc"].tolist() == [crc32c(b"q" * 65536), crc32c(b"q" * BLOCK * 72)]
    with pytest.raises(ValueError):
        entries["seq"][0] = 1
    assert len(bench.handle.chunks()) == VOLUME_BLOCKS * BLOCK // (256 << 10)


# --- rings


def test_a_place_is_contiguous_and_sealed_in_pieces_of_64_kib(bench):
    status, first = bench.journal.reserve(MIB)
    assert status == OK
    places = [bench.journal.place(first + i) for i in range(16)]
    assert places == [places[0] + i * 65536 for i in range(16)]
    assert bench.stats["open_entries"] == 16
    data = os.urandom(MIB)
    bench.journal.fill(first, data)
    assert bench.journal.seal(first, 0, MIB // BLOCK) == (OK, 1, 16)
    assert bench.stats["open_entries"] == 0
    assert bench.journal.data(bench.slot(16), MIB // BLOCK - 1, 1) == data[-BLOCK:]
    assert all(bench.journal.verify(bench.slot(seq)) == OK for seq in range(1, 17))


@pytest.mark.parametrize("length", [0, MIB + 1, 1 << 40])
def test_impossible_lengths_are_refused(bench, length):
    assert bench.journal.reserve(length)[0] == E_INVALID


def test_a_seal_outside_of_the_volume_or_of_another_length_is_refused(bench):
    _status, first = bench.journal.reserve(BLOCK * 8)
    assert bench.journal.seal(first, VOLUME_BLOCKS - 7, 8)[0] == E_RANGE
    assert bench.journal.seal(first, (1 << 64) - 1, 8)[0] == E_RANGE
    assert bench.journal.seal(first, 0, 0)[0] == E_RANGE
    assert bench.journal.seal(first, 0, 7)[0] == E_INVALID
    assert bench.journal.seal(first, 0, 8)[0] == OK
    assert bench.journal.seal(first, 0, 8)[0] == E_INVALID
    assert bench.journal.zero(VOLUME_BLOCKS, 1)[0] == E_RANGE


def test_sequence_numbers_are_given_at_the_seal(bench):
    _status, first = bench.journal.reserve(BLOCK)
    _status, second = bench.journal.reserve(BLOCK)
    assert bench.journal.seal(second, 1, 1) == (OK, 1, 1)
    assert bench.journal.seal(first, 0, 1) == (OK, 2, 2)


def test_a_piece_never_crosses_the_rings_end(bench):
    data_bytes = bench.stats["data_bytes"]
    data_at = bench.handle.superblock["data_at"]
    for turn_number in range(8):
        status, first = bench.journal.reserve(700 * 1024)
        assert status == OK, turn_number
        place = bench.journal.place(first) - data_at
        assert place + 700 * 1024 <= data_bytes
        bench.journal.abort(first, 700 * 1024)
        bench.journal.reclaim()
        bench.flush()
        bench.journal.reclaim()
        bench.flush()
    assert bench.stats["used_bytes"] == 0


def test_a_full_ring_says_so_and_has_room_again_when_its_entries_are_dead(bench):
    for lba in (0, 2048):
        assert bench.journal.write(lba, bytes(MIB))[0] == OK
    assert bench.journal.reserve(BLOCK)[0] == E_FULL
    bench.turn()
    assert not bench.flushing(), "nothing is dead: a flush would not help"
    for seq in range(1, 33):
        bench.journal.drop(bench.slot(seq), 128, True)
    assert bench.journal.reserve(BLOCK)[0] == E_FULL
    calls = bench.journal.room_calls
    bench.turn()
    while bench.flushing():  # flushes that the journal asks for by itself
        bench.complete()
    assert bench.journal.room_calls > calls
    assert bench.journal.reserve(MIB)[0] == OK


def test_a_full_table_says_so(bench):
    slots = bench.stats["entry_slots"]
    for i in range(slots - 1):
        assert bench.journal.zero(i, 1)[0] == OK
    status, first = bench.journal.reserve(BLOCK)  # takes the last header
    assert status == OK
    assert bench.journal.zero(0, 1)[0] == E_FULL
    assert bench.journal.reserve(BLOCK)[0] == E_FULL
    assert bench.journal.seal(first, 9000, 1)[0] == OK, "a reservation has its header promised"
    assert bench.stats["used_bytes"] == bench.stats["data_bytes"]


def test_zeros_have_no_data(bench):
    _status, seq = bench.journal.zero(5, 60000)
    assert bench.journal.data(bench.slot(seq), 5, 1) is None
    assert bench.journal.verify(bench.slot(seq)) == OK
    assert bench.stats["live_bytes"] == 0


def test_a_changed_byte_is_noticed(bench):
    bench.journal.write(3, os.urandom(BLOCK * 4))
    place = int(bench.handle.entries()["place"][1])
    before = bench.journal.image()[place + 700]
    bench.journal.poke(place + 700, bytes([before ^ 4]))
    assert bench.journal.verify(1) == E_CORRUPT


# --- commits


def test_one_flush_serves_who_came_before_it(bench):
    bench.journal.write(0, b"1" * BLOCK)
    first = [bench.journal.commit(1) for _ in range(3)]
    bench.turn()
    assert len(bench.media.pending()) == 1
    bench.journal.write(1, b"2" * BLOCK)
    late = bench.journal.commit(2)
    early = bench.journal.commit(1)
    bench.turn()
    assert len(bench.media.pending()) == 1, "one flush at a time"
    assert all(bench.journal.outcome(n) is None for n in [*first, late, early])
    bench.media.complete()
    bench.turn()
    assert [bench.journal.outcome(n) for n in [*first, early]] == [OK] * 4
    assert bench.journal.outcome(late) is None, "sealed after the flush had begun"
    bench.turn()
    bench.complete()
    assert bench.journal.outcome(late) == OK
    again = bench.journal.commit(1)
    assert bench.journal.outcome(again) is None, "never from inside the call"
    bench.turn()
    assert bench.journal.outcome(again) == OK and not bench.flushing()


def test_sync_waits_for_a_flush_of_its_own(bench):
    bench.journal.write(0, b"1" * BLOCK)
    bench.journal.commit(1)
    bench.turn()
    number = bench.journal.sync()
    bench.complete()
    assert bench.journal.outcome(number) is None
    bench.complete()
    assert bench.journal.outcome(number) == OK


def test_a_failed_flush_is_final(bench):
    bench.journal.write(0, b"1" * BLOCK)
    number = bench.journal.commit(1)
    bench.turn()
    bench.journal.write(1, b"2" * BLOCK)
    waiting = bench.journal.commit(2)
    bench.complete(status=E_IO)
    assert bench.journal.outcome(number) == E_IO and bench.journal.outcome(waiting) == E_IO
    later = bench.journal.commit(1)
    bench.turn()
    assert bench.journal.outcome(later) == E_IO and not bench.flushing()
    assert bench.stats["fault"] == E_IO and bench.stats["stable_seq"] == 0
    for seq in (1, 2):
        bench.journal.drop(bench.slot(seq), 1, True)
    won = sum(bench.journal.reclaim() for _ in range(3))
    assert won > 0 and bench.stats["stable_seq"] == 0, "room comes back, and promises nothing over a power cut"


def test_closing_ends_who_waits(bench):
    bench.journal.write(0, b"1" * BLOCK)
    number = bench.journal.commit(1)
    bench.turn()
    ticket = bench.handle.close()
    bench.turn()
    assert bench.journal.outcome(number) is None, "the flush in flight still uses the journal"
    bench.complete()
    assert bench.journal.outcome(number) == E_CLOSED
    assert ticket in [item[1] for item in bench.reactor.drain()]


# --- death and reclaim


def test_an_entry_flushed_as_a_whole_is_marked_at_once(bench):
    bench.journal.write(0, bytes(BLOCK * 4))
    bench.journal.drop(1, 3, True)
    assert bench.state(1) == LIVE
    bench.journal.drop(1, 1, True)
    assert bench.state(1) == FLUSHED


def test_an_entry_that_was_replaced_is_never_marked(bench):
    bench.journal.write(0, b"a" * BLOCK)
    bench.journal.write(0, b"b" * BLOCK)
    bench.flush()
    bench.journal.reclaim()
    bench.flush()
    assert bench.journal.live(1) == 0 and bench.state(1) == LIVE


def test_an_entry_flushed_in_part_is_marked_when_what_replaced_it_is_stable(bench):
    bench.journal.write(0, b"a" * BLOCK * 8)
    bench.journal.duplicate()
    bench.journal.flushed(0, 4)
    bench.journal.end_round()
    bench.journal.write(4, b"b" * BLOCK * 4)
    bench.journal.reclaim()
    assert bench.journal.live(1) == 0
    assert (bench.state(1), bench.journal.reclaim_step) == (LIVE, SETTLING)
    bench.flush()
    assert (bench.state(1), bench.journal.reclaim_step) == (FLUSHED, RETIRING)
    assert bench.stats["tail_seq"] == 2 and bench.stats["tail_stable_seq"] == 1
    assert bench.stats["used_bytes"] > 8 * BLOCK, "the mark is not stable yet: the room is not free"
    bench.flush()
    assert bench.journal.reclaim_step == IDLE
    assert bench.stats["tail_stable_seq"] == 2


def test_data_room_waits_for_the_mark_also_when_the_tail_stays(bench):
    bench.journal.zero(40000, 1)  # the oldest header stays needed
    status, first = bench.journal.reserve(BLOCK * 8)
    assert status == OK
    bench.journal.seal(first, 0, 8)
    bench.journal.drop(bench.slot(2), 4, True)
    bench.journal.drop(bench.slot(2), 4, False)
    bench.flush()
    bench.journal.reclaim()
    assert bench.journal.reclaim_step == RETIRING and bench.stats["tail_seq"] == 1
    bench.journal.reclaim()
    assert bench.journal.reclaim_step == RETIRING and bench.journal.room_coming_bytes == 8 * BLOCK
    bench.flush()
    assert bench.journal.reclaim_step == IDLE and bench.journal.room_coming_bytes == 0


def test_slots_wait_for_a_superblock_that_is_stable_whole(bench):
    bench.journal.write(0, bytes(BLOCK))
    bench.journal.drop(1, 1, True)
    bench.flush()
    bench.journal.reclaim()
    assert bench.journal.reclaim_step == RETIRING
    bench.journal.sync()
    bench.turn()
    bench.journal.write_super(phase=1)
    bench.journal.write_super(phase=2)  # over the copy that the flush is about to make stable
    bench.complete()
    assert bench.journal.reclaim_step == RETIRING and bench.stats["tail_stable_seq"] == 1
    bench.flush()
    assert bench.journal.reclaim_step == IDLE and bench.stats["tail_stable_seq"] == 2


def test_a_reservation_forgets_the_header_whose_slot_is_used_again(bench):
    """The entry died in part by a flush; its room waits behind a live one, its slot is long another's."""
    slots = bench.stats["entry_slots"]
    _status, stuck = bench.journal.reserve(BLOCK)  # stays open: the data ring cannot pass it
    _status, first = bench.journal.reserve(BLOCK * 2)
    bench.journal.seal(first, 0, 2)
    bench.journal.drop(1, 1, True)
    bench.journal.drop(1, 1, False)
    for _ in range(3):
        bench.flush()
        bench.journal.reclaim()
    for seq in range(2, slots + 1):
        assert bench.journal.zero(9, 1) == (OK, seq)
    for _ in range(3):
        bench.flush()
        bench.journal.reclaim()
    status, seq = bench.journal.zero(100, 2)
    assert (status, bench.slot(seq)) == (OK, 1), "the slot of the first entry"
    bench.journal.drop(1, 1, True)
    bench.journal.abort(stuck, BLOCK)
    for _ in range(3):
        bench.flush()
        bench.journal.reclaim()
    assert bench.stats["used_bytes"] < bench.stats["data_bytes"] // 100
    assert bench.state(seq) == LIVE


def test_a_reader_keeps_the_room(bench):
    bench.journal.write(0, b"a" * BLOCK)
    bench.journal.pin(1)
    bench.journal.write(0, b"b" * BLOCK)
    for _ in range(3):
        bench.journal.reclaim()
        bench.flush()
    assert bench.stats["tail_seq"] == 1 and bench.journal.data(1, 0, 1) == b"a" * BLOCK
    bench.journal.unpin(1)
    for _ in range(3):
        bench.journal.reclaim()
        bench.flush()
    assert bench.stats["tail_stable_seq"] == 2


def test_room_comes_back_oldest_first(bench):
    bench.journal.write(0, bytes(BLOCK * 8))
    bench.journal.write(100, bytes(BLOCK * 8))
    bench.journal.drop(2, 8, True)
    for _ in range(3):
        bench.journal.reclaim()
        bench.flush()
    assert bench.stats["tail_seq"] == 1
    bench.journal.drop(1, 8, True)
    for _ in range(3):
        bench.journal.reclaim()
        bench.flush()
    assert bench.stats["tail_seq"] == 3 and bench.stats["used_bytes"] == 0


# --- superblock


def test_writes_go_to_neither_the_newest_nor_the_stable_copy(bench):
    assert bench.journal.super_copies == (0, 0)
    seen = []
    for phase in range(6):
        before = bench.journal.super_copies
        bench.journal.write_super(phase=phase)
        newest, stable = bench.journal.super_copies
        assert newest not in before and stable == 0
        seen.append(newest)
    assert set(seen) == {1, 2}
    bench.flush()
    assert bench.journal.super_copies == (seen[-1], seen[-1])


def test_a_copy_written_over_during_the_flush_is_not_called_stable(bench):
    bench.journal.write_super(phase=1)
    bench.journal.sync()
    bench.turn()
    flushing = bench.journal.super_copies[0]
    bench.journal.write_super(phase=2)
    bench.journal.write_super(phase=3)
    assert bench.journal.super_copies[0] == flushing
    bench.complete()
    assert bench.journal.super_copies == (flushing, 0)


def test_a_torn_newest_copy_leads_to_the_one_before(bench, reactor):
    bench.journal.write_super(phase=1, clean=0)
    bench.journal.write_super(phase=2)
    newest = bench.journal.super_copies[0]
    image = bytearray(bench.journal.image())
    image[newest * 4096 + 3000] ^= 3
    assert Bench(reactor, bytes(image)).handle.superblock["phase"] == 1
    assert Bench(reactor, bench.journal.image()).handle.superblock["phase"] == 2


def test_the_first_entry_ends_the_clean_state(bench):
    assert bench.handle.superblock["clean"] == 1
    bench.journal.write(0, bytes(BLOCK))
    assert bench.handle.superblock["clean"] == 0


def test_what_may_be_read_beside_a_running_loop_is_what_the_superblock_says(bench):
    for _ in range(2):
        found = bench.handle.superblock
        for name in ("journal_id", "volume_blocks", "pit_ns", "generation"):
            assert getattr(bench.handle, name) == found[name], name
        assert len(found["journal_id"]) == 16 and found["volume_blocks"] == VOLUME_BLOCKS
        bench.journal.reset(found["generation"])


def test_a_reset_begins_another_life(bench, reactor):
    generation = bench.handle.superblock["generation"]
    for lba in range(0, 1600, 2):
        bench.journal.write(lba, bytes(BLOCK))
    next_seq = bench.stats["next_seq"]
    bench.journal.reset(generation)
    assert bench.handle.superblock["generation"] != generation
    assert bench.stats["next_seq"] == next_seq and bench.stats["live_bytes"] == 0
    room = [bench.journal.write(0, bytes(BLOCK))[0] for _ in range(bench.stats["entry_slots"])]
    assert room.count(OK) == bench.stats["entry_slots"] - 800, "the old life stays whole until the new one is stable"
    bench.flush()
    assert bench.journal.write(0, bytes(BLOCK))[0] == OK
    again = Bench(reactor, bench.journal.image())
    report = again.journal.recover()
    assert report["status"] == OK and report["entries_live"] == 1 and report["first_seq"] >= next_seq


def test_nothing_is_written_before_an_unfinished_journal_is_recovered(bench, reactor):
    bench.journal.write(0, b"k" * BLOCK)
    again = Bench(reactor, bench.journal.image())
    assert again.handle.needs_recovery
    assert again.journal.reserve(BLOCK)[0] == E_INVALID and again.journal.zero(0, 1)[0] == E_INVALID
    assert again.journal.recover()["status"] == OK
    assert not again.handle.needs_recovery
    assert again.journal.reserve(BLOCK)[0] == OK


def test_an_unrecovered_journal_that_is_reset_has_room_only_after_the_flush(bench, reactor):
    bench.journal.write(0, b"k" * BLOCK)
    again = Bench(reactor, bench.journal.image())
    again.journal.reset(77)
    assert again.journal.reserve(BLOCK)[0] == E_FULL
    again.flush()
    assert again.journal.reserve(BLOCK)[0] == OK and again.stats["next_seq"] == 1 + again.stats["entry_slots"]


def test_a_clean_journal_opens_with_another_generation(bench, reactor):
    again = Bench(reactor, bench.journal.image())
    assert not again.handle.needs_recovery
    assert again.handle.superblock["generation"] != bench.handle.superblock["generation"]


# --- room and bookkeeping without a record for each entry


def test_a_write_sealed_late_holds_the_room_behind_its_place(bench):
    """Its place lies in front of those that were sealed before it: none of their room comes back into its own."""
    journal = bench.journal
    status, late = journal.reserve(BLOCK)
    assert status == OK
    for number in range(200):
        assert journal.write(number, bytes([number]) * BLOCK)[0] == OK
    journal.fill(late, b"late" * (BLOCK // 4))
    assert journal.seal(late, 500, 1)[:2] == (OK, 201)
    journal.mark(201)
    for number in range(200):
        journal.drop(bench.slot(number + 1), 1, True)
    for _ in range(4):
        journal.reclaim()
        bench.flush()
    assert bench.stats["tail_stable_seq"] == 201, "the headers go"
    assert bench.stats["used_bytes"] == 201 * BLOCK, "the room stays"
    assert journal.data(bench.slot(201), 500, 1) == b"late" * (BLOCK // 4)
    journal.drop(bench.slot(201), 1, True)
    for _ in range(4):
        journal.reclaim()
        bench.flush()
    assert bench.stats["used_bytes"] == 0


def test_an_old_open_write_lets_thousands_be_sealed_behind_it(reactor):
    bench = Bench(reactor, size=16 * MIB)
    journal = bench.journal
    status, old = journal.reserve(3 * BLOCK)
    firsts = []
    for _ in range(1500):
        status, first = journal.reserve(BLOCK)
        assert status == OK
        firsts.append(first)
    for number, first in enumerate(reversed(firsts)):
        journal.fill(first, number.to_bytes(4, "little") * (BLOCK // 4))
        assert journal.seal(first, number, 1)[:2] == (OK, number + 1)
    journal.fill(old, b"old!" * (3 * BLOCK // 4))
    assert journal.seal(old, 5000, 3)[0] == OK
    assert journal.data(bench.slot(1501), 5000, 3) == b"old!" * (3 * BLOCK // 4)
    for number in (0, 1, 700, 1499):
        assert journal.data(bench.slot(number + 1), number, 1) == number.to_bytes(4, "little") * (BLOCK // 4)
    for seq in range(1, 1502):
        journal.drop(bench.slot(seq), 3 if seq == 1501 else 1, True)
    for _ in range(6):
        journal.reclaim()
        bench.flush()
    assert bench.stats["used_bytes"] == 0


def test_an_aborted_write_gives_its_room_back_at_once_when_it_is_the_oldest(bench):
    journal = bench.journal
    _status, old = journal.reserve(65536)
    assert journal.write(0, b"x" * BLOCK)[0] == OK
    assert bench.stats["used_bytes"] == 65536 + BLOCK
    journal.abort(old, 65536)
    assert bench.stats["used_bytes"] < 65536


@pytest.mark.parametrize("blocks", [254, 255, 256, VOLUME_BLOCKS])
def test_live_blocks_of_long_ranges_of_zeros_are_counted(bench, blocks):
    journal = bench.journal
    assert journal.zero(0, blocks) == (OK, 1)
    slot = bench.slot(1)
    assert journal.live(slot) == blocks
    journal.drop(slot, blocks - 1, False)
    assert journal.live(slot) == 1
    assert bench.state(1) == LIVE
    journal.drop(slot, 1, True)
    assert journal.live(slot) == 0


def test_pins_are_counted_and_bounded(reactor):
    bench = Bench(reactor, size=32 * MIB)
    journal = bench.journal
    for number in range(3200):
        assert journal.write(number, bytes(BLOCK))[0] == OK
    pinned = [bench.slot(seq) for seq in range(1, 3201) if journal.pin(bench.slot(seq))]
    assert len(pinned) == 3072, "more at once are not kept apart"
    assert journal.pin(pinned[0]), "one that is pinned can be pinned again"
    for seq in range(1, 3201):
        journal.drop(bench.slot(seq), 1, True)
    journal.unpin(pinned[0])
    for slot in reversed(pinned[1:]):
        journal.unpin(slot)
    for _ in range(3):
        journal.reclaim()
        bench.flush()
    assert bench.stats["tail_stable_seq"] == 1, "the oldest is still pinned, once"
    journal.unpin(pinned[0])
    for _ in range(3):
        journal.reclaim()
        bench.flush()
    assert (bench.stats["tail_stable_seq"], bench.stats["used_bytes"]) == (3201, 0)


def dirty_kib(path) -> int:
    """Of the file's mapping in this process: pages that were made writable here."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and name in ("Shared_Dirty:", "Private_Dirty:"):
            found += int(rest.split()[0])
    return found


def test_the_pages_of_the_next_writes_are_there_before_them(reactor, tmp_path):
    handle = JournalHandle.create(reactor, tmp_path / "j", 8 * MIB, BLOCK, VOLUME_BLOCKS)
    journal = JournalHarness(handle)
    journal.write(0, bytes(4096))
    first = dirty_kib(tmp_path / "j")
    for number in range(1, 16):
        journal.write(number * 8, bytes(4096))
    assert dirty_kib(tmp_path / "j") == first >= 64, "a step of 64 KiB, and headers"
    data = [os.urandom(4096) for _ in range(4 * MIB // 4096)]
    for number, block in enumerate(data):
        status, seq, _ = journal.write(number * 8, block)
        assert status == OK
        assert journal.data(seq % handle.stats["entry_slots"], number * 8, 8) == block
    assert first + 4096 <= dirty_kib(tmp_path / "j") <= first + 4096 + 256
