"""The whole volume through all phases against a model host: rules 2 to 6 of the design after every step.

Stores complete late and in any order; reads and writes have any alignment and overlap; the journal is small enough to
be full at times.
"""
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.volume_world import CHUNK_BLOCKS, VolumeWorld

CHUNKS = 3
BLOCKS = CHUNKS * CHUNK_BLOCKS

# Places near a chunk's border and at both ends collide often.
places = st.one_of(st.integers(0, 40), st.integers(CHUNK_BLOCKS - 20, CHUNK_BLOCKS + 20),
                   st.integers(BLOCKS - 40, BLOCKS - 1))
lengths = st.one_of(st.integers(1, 8), st.integers(1, 200), st.integers(600, 1500))


class VolumeMachine(RuleBasedStateMachine):
    @initialize(sync_always=st.booleans(), journal_kib=st.sampled_from([2150, 4096]))
    def begin(self, sync_always, journal_kib):
        self.world = VolumeWorld(CHUNKS, journal_kib << 10, sync_always, turn_ns=1_000_000)
        self.phase = "pass"
        self.copying = False

    def bounded(self, lba, blocks):
        return min(blocks, BLOCKS - lba)

    def can_ask(self):
        return len(self.world.open) < 40

    @rule(lba=places, blocks=lengths, fua=st.booleans())
    def write(self, lba, blocks, fua):
        if self.can_ask():
            self.world.write(lba, self.bounded(lba, blocks), fua)

    @rule(lba=places, blocks=lengths)
    def read(self, lba, blocks):
        if self.can_ask():
            self.world.read(lba, self.bounded(lba, blocks))

    @rule(lba=places, blocks=lengths)
    def unmap(self, lba, blocks):
        if self.can_ask():
            self.world.unmap(lba, self.bounded(lba, blocks))

    @rule()
    def flush(self):
        if self.can_ask():
            self.world.flush()

    @rule(turns=st.integers(1, 3))
    def turn(self, turns):
        self.world.turn(turns)

    @rule(name=st.sampled_from(["main", "backup", "media"]), index=st.integers(0, 30))
    def complete(self, name, index):
        store = self.world.stores[name]
        pending = len(store.pending())
        if pending:
            store.complete(index % pending)
            self.world.turn()

    @rule()
    def settle(self):
        self.world.settle(30)

    @precondition(lambda self: self.phase == "pass")
    @rule()
    def freeze(self):
        self.world.settle()
        self.world.freeze()
        self.phase = "copying"

    @precondition(lambda self: self.phase == "copying" and not self.copying)
    @rule()
    def start_copy(self):
        self.world.events.clear()
        self.world.command(self.world.volume.copy_start(self.world.backup, window=3))
        self.copying = True

    @precondition(lambda self: self.copying)
    @rule(backup_reads=st.booleans())
    def catch_up(self, backup_reads):
        self.world.finish_copy()
        assert bytes(self.world.backup.image) == self.world.pit                 # rule 6
        self.world.command(self.world.volume.catch_up(backup_reads))
        self.phase = "catching-up"
        self.copying = False

    @precondition(lambda self: self.phase == "catching-up")
    @rule()
    def start_round(self):
        self.world.volume.round()
        self.world.turn()

    @precondition(lambda self: self.phase == "catching-up")
    @rule()
    def hold_and_give_up(self):
        self.world.command(self.world.volume.hold())
        self.world.command(self.world.volume.unhold())

    @precondition(lambda self: self.phase == "catching-up")
    @rule()
    def home(self):
        self.world.go_home()
        self.world.check_main()
        assert self.world.pit is not None and bytes(self.world.backup.image) == self.world.pit
        self.phase, self.world.pit = "pass", None

    @rule(landed=st.integers(0, 255))
    def kill(self, landed):
        """Rule 3: a kill at any moment; the restarted gateway goes on where it was."""
        found = self.world.kill(landed)
        assert found == {"pass": 0, "copying": 2, "catching-up": 3}[self.phase]
        self.copying = False
        self.world.read(0, 60)

    @invariant()
    def pit_is_kept(self):
        if hasattr(self, "world"):
            self.world.check_pit_kept()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        if self.phase == "copying":
            if not self.copying:
                self.start_copy()
            self.catch_up(False)
        if self.phase == "catching-up":
            self.home()
        self.world.settle()
        assert not self.world.open, [shot.kind for shot in self.world.open]
        assert self.world.reactor.buffers_taken_bytes == 0


VolumeMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("DETOUR_EXAMPLES", "40")), stateful_step_count=60, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
TestVolume = pytest.mark.timeout(280)(VolumeMachine.TestCase)
