"""A journal under test beside a plain Python model of it, with two kinds of crash.

The model knows, for each block, its content and every content that a power cut may leave: the one that the last
completed flush made stable, and all later ones. kill -9 leaves the mapping as it is; a power cut leaves each sector in
any of the versions that it had since the last completed flush was submitted. Main storage is stable at once.
"""

from __future__ import annotations

import random

import numpy as np

from detour.core._testing_journal import JournalHarness
from detour.core.fault_store import FaultStoreHandle
from detour.core.format import minimum_size
from detour.core.journal import JournalHandle
from detour.core.reactor import Reactor

BLOCK_BYTES = 512
VOLUME_BLOCKS = 1024
SIZE_BYTES = minimum_size(BLOCK_BYTES, VOLUME_BLOCKS)
SECTOR_BYTES = 512
VERSIONS_MAX = 8
E_FULL = -4


def block_of(tag: int) -> bytes:
    """Content of a block that write `tag` put there; tag 0 is zeros."""
    return tag.to_bytes(8, "little") * (BLOCK_BYTES // 8)


class JournalWorld:
    """One volume's journal, its main storage, and what both must hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.reactor = Reactor()
        self.main = bytearray(VOLUME_BLOCKS * BLOCK_BYTES)
        self.tags = [0] * VOLUME_BLOCKS
        # of each block: (moment, tag), oldest first
        self.possible: list[list[tuple[int, int]]] = [[(0, 0)] for _ in range(VOLUME_BLOCKS)]
        self.moment = 0
        self.open_writes: list[tuple[int, int, int, int]] = []  # reservation, lba, blocks, tag
        self.pinned: list[tuple[int, int, int, bytes]] = []  # slot, lba, blocks, content
        self.round_open = False
        self.crashes = 0
        self.full = 0
        self.start(None)

    def start(self, image: bytes | None) -> None:
        self.media = FaultStoreHandle(self.reactor, 1 << 16)
        self.handle = JournalHandle.in_memory(self.reactor, SIZE_BYTES, BLOCK_BYTES, VOLUME_BLOCKS, self.media, image)
        self.harness = JournalHarness(self.handle)
        self.versions = [self.snapshot()]
        self.flush_versions: list[np.ndarray] | None = None
        self.flush_moment = 0
        self.open_writes = []
        self.pinned = []
        self.round_open = False

    def snapshot(self) -> np.ndarray:
        return np.frombuffer(self.harness.image(), dtype=np.uint8)

    # --- time

    def turn(self) -> None:
        """A turn of the loop; notes what a flush that begins in it will make stable."""
        before = self.media.pending()
        self.reactor.turn()
        if self.media.pending() and (not before or self.flush_versions is None):
            self.versions.append(self.snapshot())
            self.flush_versions = self.versions[-1:]
            self.flush_moment = self.moment

    def note_version(self) -> None:
        """What the media may hold by now, if it wrote everything back at this instant."""
        self.versions.append(self.snapshot())
        while len(self.versions) > VERSIONS_MAX:
            keep = {0, len(self.versions) - 1}
            if self.flush_versions is not None:
                keep |= {i for i, version in enumerate(self.versions) if version is self.flush_versions[0]}
            del self.versions[self.random.choice([i for i in range(len(self.versions)) if i not in keep])]

    def complete_flush(self) -> bool:
        if self.flush_versions is None:
            self.turn()
        if self.flush_versions is None:
            return False
        first = next(i for i, version in enumerate(self.versions) if version is self.flush_versions[0])
        self.versions = self.versions[first:]
        self.flush_versions = None
        for block, known in enumerate(self.possible):
            old = [i for i, (moment, _tag) in enumerate(known) if moment <= self.flush_moment]
            self.possible[block] = known[old[-1] :]
        self.media.complete()
        self.turn()
        self.turn()
        self.note_version()
        return True

    def commit(self) -> None:
        if self.handle.stats["next_seq"] > self.handle.stats["tail_seq"]:
            self.harness.commit(self.handle.stats["next_seq"] - 1)
        self.turn()

    # --- writes

    def record(self, lba: int, blocks: int, tag: int) -> None:
        self.moment += 1
        for block in range(lba, lba + blocks):
            self.tags[block] = tag
            self.possible[block].append((self.moment, tag))

    def write(self, lba: int, blocks: int) -> bool:
        tag = self.moment + 1
        status, _first, _last = self.harness.write(lba, block_of(tag) * blocks)
        if status == E_FULL:
            self.full += 1
            return False
        assert status == 0, status
        self.record(lba, blocks, tag)
        return True

    def zero(self, lba: int, blocks: int) -> bool:
        status, _seq = self.harness.zero(lba, blocks)
        if status == E_FULL:
            self.full += 1
            return False
        assert status == 0, status
        self.record(lba, blocks, 0)
        return True

    def open_write(self, lba: int, blocks: int) -> None:
        """A write that is received but not sealed yet."""
        self.moment += 1
        status, first = self.harness.reserve(blocks * BLOCK_BYTES)
        if status == 0:
            self.harness.fill(first, block_of(self.moment) * blocks)
            self.open_writes.append((first, lba, blocks, self.moment))

    def end_open_write(self, index: int, abort: bool) -> None:
        if not self.open_writes:
            return
        first, lba, blocks, tag = self.open_writes.pop(index % len(self.open_writes))
        if abort:
            self.harness.abort(first, blocks * BLOCK_BYTES)
            return
        status, seq_first, seq_last = self.harness.seal(first, lba, blocks)
        assert status == 0, status
        for seq in range(seq_first, seq_last + 1):
            self.harness.mark(seq)
        self.record(lba, blocks, tag)

    # --- flushes to main

    def to_main(self, slot: int, lba: int, blocks: int) -> None:
        data = self.harness.data(slot, lba, blocks)
        assert self.harness.verify(slot) == 0
        content = bytes(blocks * BLOCK_BYTES) if data is None else data
        self.main[lba * BLOCK_BYTES : (lba + blocks) * BLOCK_BYTES] = content

    def round_step(self, pieces: int) -> None:
        """Begins a round, or takes some of its extents (the last one in part) to main."""
        if not self.round_open:
            assert self.harness.duplicate() == 0
            self.round_open = True
        for lba, blocks, slot in self.harness.frozen()[:pieces]:
            part = self.random.randint(1, blocks)
            self.to_main(slot, lba, part)
            self.harness.flushed(lba, part)
        self.harness.reclaim()

    def round_end(self, whole: bool) -> None:
        if not self.round_open:
            return
        if whole:
            for lba, blocks, slot in self.harness.frozen():
                self.to_main(slot, lba, blocks)
                self.harness.flushed(lba, blocks)
        assert self.harness.end_round() == 0
        self.round_open = False
        self.harness.reclaim()

    def evict(self, index: int) -> None:
        """Takes one entry to main out of turn, as journal pressure during the copy does. Only without a round."""
        if self.round_open:
            return
        live = sorted({slot for _lba, _blocks, slot in self.harness.runs(0, VOLUME_BLOCKS) if slot >= 0})
        if not live:
            return
        chosen = live[index % len(live)]
        for lba, blocks, slot in self.harness.runs(0, VOLUME_BLOCKS):
            if slot == chosen:
                self.to_main(slot, lba, blocks)
        self.harness.flushed_entry(chosen)
        self.harness.reclaim()

    # --- readers

    def pin(self, index: int) -> None:
        runs = [run for run in self.harness.runs(0, VOLUME_BLOCKS) if run[2] >= 0]
        if not runs:
            return
        lba, blocks, slot = runs[index % len(runs)]
        data = self.harness.data(slot, lba, blocks)
        if data is not None:
            self.harness.pin(slot)
            self.pinned.append((slot, lba, blocks, data))

    def unpin(self, index: int) -> None:
        if self.pinned:
            slot, lba, blocks, data = self.pinned.pop(index % len(self.pinned))
            assert self.harness.data(slot, lba, blocks) == data, "a pinned place was written"
            self.harness.unpin(slot)

    # --- crashes and checks

    def kill(self) -> None:
        """kill -9: the mapping is whole. What was open is gone."""
        self.crashes += 1
        self.start(self.harness.image())
        report = self.harness.recover(check_data=True)
        assert report["status"] == 0 and not report["entries_corrupt"], report
        self.check()

    def power_cut(self, page_bytes: int = SECTOR_BYTES) -> None:
        """Each page (or sector) in any version since the last completed flush."""
        self.crashes += 1
        self.note_version()
        generator = np.random.default_rng(self.random.getrandbits(32))
        versions = np.stack(self.versions)
        pages = versions.reshape(len(self.versions), -1, page_bytes) if SIZE_BYTES % page_bytes == 0 else None
        assert pages is not None
        choice = generator.integers(0, len(self.versions), pages.shape[1])
        if self.random.random() < 0.3:  # only the areas before the data are old, or only the data
            table_pages = self.handle.superblock["data_at"] // page_bytes
            newest, oldest = len(self.versions) - 1, 0
            tables_new = self.random.random() < 0.5
            choice[:table_pages] = newest if tables_new else oldest
            choice[table_pages:] = oldest if tables_new else newest
        image = pages[choice, np.arange(pages.shape[1])].tobytes()
        self.start(image)
        if self.handle.needs_recovery:
            report = self.harness.recover(check_data=True)
            assert report["status"] == 0 and not report["entries_corrupt"], report
        content = self.harness.read(0, VOLUME_BLOCKS, self.main)
        for block, known in enumerate(self.possible):
            found = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            tag = int.from_bytes(found[:8], "little")
            assert found == block_of(tag), f"block {block} is a mix"
            assert tag in {tag for _moment, tag in known}, f"block {block}: found write {tag}, possible {known}"
            self.tags[block] = tag
            self.possible[block] = [(self.moment, tag)]

    def check(self) -> None:
        """Reads are right, and the live counts are those of the index."""
        content = self.harness.read(0, VOLUME_BLOCKS, self.main)
        expected = b"".join(block_of(tag) for tag in self.tags)
        if content != expected:
            wrong = [b for b in range(VOLUME_BLOCKS)
                     if content[b * BLOCK_BYTES : (b + 1) * BLOCK_BYTES] != block_of(self.tags[b])]
            raise AssertionError(f"blocks {wrong[:8]} of {len(wrong)} are wrong")

    def drain(self) -> None:
        """Everything to main; afterwards the rings are empty."""
        while self.open_writes:
            self.end_open_write(0, abort=True)
        while self.pinned:
            self.unpin(0)
        self.round_end(whole=True)
        self.round_step(0)
        self.round_end(whole=True)
        for _ in range(6):
            self.harness.reclaim()
            self.harness.sync()
            self.turn()
            self.complete_flush()
        stats = self.handle.stats
        assert stats["used_bytes"] == 0 and stats["live_bytes"] == 0, stats
        self.check()
        assert bytes(self.main) == b"".join(block_of(tag) for tag in self.tags)
