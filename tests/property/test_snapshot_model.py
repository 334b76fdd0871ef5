"""Snapshot against dictionaries of blocks, with main's content beside it.

The model flushes as a catch-up round and the evictor do: main gets the content first, the index is told then. At every
step each block must read as its newest write, whatever generation holds it, and the journal's live counts must be what
the two dictionaries say.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.snapshots import new_snapshot

SPAN = 400
BASE = -1

lbas = st.one_of(st.integers(0, SPAN - 1), st.integers(0, 30))
counts = st.one_of(st.integers(1, 8), st.integers(1, 150))


class SnapshotAgainstDictionaries(RuleBasedStateMachine):
    @initialize(spread=st.sampled_from([0, 2]))
    def begin(self, spread: int) -> None:
        self.snapshot = new_snapshot()
        self.newest: dict[int, int] = {}  # block -> slot that wrote it last
        self.main: dict[int, int] = {}  # block -> slot whose data main holds
        self.active: dict[int, int] = {}
        self.frozen: dict[int, int] | None = None
        self.entries: dict[int, tuple[int, int]] = {}
        if spread:
            for lba in range(0, SPAN, spread):
                self.write(lba, 1)

    @rule(lba=lbas, count=counts)
    def write(self, lba: int, count: int) -> None:
        slot = self.snapshot.write(lba, count)
        assert slot >= 0
        self.entries[slot] = (lba, count)
        for block in range(lba, lba + count):
            self.newest[block] = self.active[block] = slot

    @rule()
    def duplicate(self) -> None:
        status = self.snapshot.duplicate()
        assert status == (0 if self.frozen is None else -14)
        if self.frozen is None:
            self.frozen, self.active = self.active, {}

    @precondition(lambda self: self.frozen is not None)
    @rule(lba=lbas, count=counts)
    def flush(self, lba: int, count: int) -> None:
        for block in range(lba, lba + count):
            if block in self.frozen:
                self.main[block] = self.frozen.pop(block)
        self.snapshot.flushed(lba, count)

    @precondition(lambda self: self.frozen is not None)
    @rule(finish=st.booleans())
    def end_round(self, finish: bool) -> None:
        if finish:
            self.flush(0, 2 * SPAN)
        assert self.snapshot.end_round() == 0
        self.active = self.frozen | self.active
        self.frozen = None

    @precondition(lambda self: self.entries)
    @rule(choice=st.integers(0, 10**6))
    def flush_entry(self, choice: int) -> None:
        slots = sorted(self.entries)
        slot = slots[choice % len(slots)]
        lba, count = self.entries[slot]
        frozen = self.frozen if self.frozen is not None else {}
        for block in range(lba, lba + count):
            if self.active.get(block) == slot:
                self.main[block] = self.active.pop(block)
                frozen.pop(block, None)
            elif frozen.get(block) == slot:
                self.main[block] = frozen.pop(block)
        self.snapshot.flushed_entry(slot)

    @rule(lba=lbas, count=counts)
    def covers_any(self, lba: int, count: int) -> None:
        covered = self.active.keys() | (self.frozen or {}).keys()
        assert self.snapshot.covers_any(lba, count) == any(block in covered for block in range(lba, lba + count))

    @rule(lba=lbas)
    def frozen_runs(self, lba: int) -> None:
        found = {}
        for start, count, slot in self.snapshot.frozen_runs(lba):
            found.update(dict.fromkeys(range(start, start + count), slot))
        assert found == {block: slot for block, slot in (self.frozen or {}).items() if block >= lba}

    @invariant()
    def every_block_reads_as_its_newest_write(self) -> None:
        if not hasattr(self, "snapshot"):
            return
        for lba, count, slot in self.snapshot.plan(0, 2 * SPAN):
            for block in range(lba, lba + count):
                read = self.main.get(block, BASE) if slot == BASE else slot
                assert read == self.newest.get(block, BASE), block

    @invariant()
    def live_counts_are_what_the_index_holds(self) -> None:
        if not hasattr(self, "snapshot"):
            return
        frozen = self.frozen or {}
        live = Counter(self.active.values()) + Counter(frozen.values())
        for slot in self.entries:
            assert self.snapshot.live(slot) == live[slot], slot
        assert self.snapshot.dirty_blocks == live.total()
        assert self.snapshot.active_blocks == len(self.active)
        assert self.snapshot.has_frozen == (self.frozen is not None)
        assert self.snapshot.check() == 0


TestSnapshotAgainstDictionaries = SnapshotAgainstDictionaries.TestCase
TestSnapshotAgainstDictionaries.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, derandomize=True
)
