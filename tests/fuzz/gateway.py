"""A gateway's volume for the fuzzer: a detour in all its phases over stores of memory, pushed on as commands come."""
from __future__ import annotations

import random
from collections.abc import Callable

from detour.core.fault_store import FaultStoreHandle
from detour.core.journal import JournalHandle
from detour.core.reactor import Reactor
from detour.core.volume import CATCHING_UP, COPYING, HOLDING, PASS, VolumeHandle

VOLUME_BYTES = 1 << 20
JOURNAL_BYTES = 3 << 20
BLOCK = 512


class Gateway:
    """`change` takes the next step of a detour; nothing is expected of its answer but that it comes."""

    def __init__(self, reactor: Reactor, chance: random.Random, turn: Callable[[int], None]) -> None:
        self.chance, self.turn = chance, turn
        self.main = FaultStoreHandle(reactor, VOLUME_BYTES, BLOCK, True)
        self.backup = FaultStoreHandle(reactor, VOLUME_BYTES, BLOCK, True)
        self.media = FaultStoreHandle(reactor, 4096, BLOCK, True)
        self.journal = JournalHandle.in_memory(reactor, JOURNAL_BYTES, BLOCK, VOLUME_BYTES // BLOCK, self.media)
        self.volume = VolumeHandle(reactor, 9, self.main, self.journal, chance.random() < 0.3)
        self.copying = False
        for _ in range(chance.randrange(5)):
            self.change()
            turn(20)

    def change(self) -> None:
        phase, roll = self.volume.phase, self.chance.random()
        if phase == PASS:
            self.volume.freeze(self.chance.randbytes(16))
            self.copying = False
        elif phase == COPYING and not self.copying:
            self.volume.copy_start(self.backup)
            self.copying = True
        elif phase == COPYING:
            self.volume.catch_up(roll < 0.5)
        elif phase == CATCHING_UP and roll < 0.7:
            self.volume.round()
        elif phase == CATCHING_UP:
            self.volume.hold()
        elif phase == HOLDING:
            self.go_home()

    def go_home(self) -> None:
        self.volume.drain()
        self.turn(3)
        self.volume.round()
        self.turn(20)
        if self.chance.random() < 0.3:
            self.volume.unhold()
        else:
            self.volume.release()
        self.turn(3)

    def go_on(self) -> bool:
        """Completes what the stores have under way; a held volume is not held for ever."""
        if self.volume.phase == HOLDING:
            self.go_home()
            self.volume.unhold()
        return bool(sum(store.complete_all() for store in (self.main, self.backup, self.media)))

    def end(self) -> None:
        """The device is of no target any more: it closes, and its stores have nothing under way."""
        self.volume.copy_stop()
        for _ in range(200):
            self.turn(2)
            self.go_on()
        self.volume.close()
        self.turn(20)
        for store in (self.main, self.backup, self.media):
            assert store.in_flight == 0 and not store.pending(), "the volume left requests behind"
        self.journal.close()
        self.turn(5)
