"""A volume with a model host: stores complete when told, the loop is turned by hand, every answer is checked.

The model knows, for each block, every version that was ever begun, and which of them a read may no longer show: a
version is out when one that began after it was acknowledged has itself been acknowledged, or when a read that began
after its acknowledgement saw another one.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass, field

from detour.core._testing_volume import DeviceDriver
from detour.core.fault_store import FaultStoreHandle
from detour.core.journal import JournalHandle
from detour.core.reactor import Reactor
from detour.core.volume import VolumeHandle

BLOCK = 512
CHUNK = 262144
CHUNK_BLOCKS = CHUNK // BLOCK
ZERO = bytes(BLOCK)
FOREVER = 1 << 60


def stamp(block: int, version: int) -> bytes:
    return struct.pack("<QQ", block + 1, version + 1) * (BLOCK // 16)


@dataclass
class Version:
    content: bytes
    begun: int
    acknowledged: int = FOREVER
    out: int = FOREVER              # reads that begin then or later must not show it
    failed: bool = False


@dataclass
class Shot:
    number: int
    kind: str
    lba: int
    blocks: int
    begun: int
    versions: dict[int, Version] = field(default_factory=dict)


class VolumeWorld:
    """`chunks` chunks of 256 KiB; main and backup are fault stores; the journal is in memory."""

    def __init__(self, chunks: int = 3, journal_bytes: int = 3 << 20, sync_always: bool = False,
                 automatic: bool = False, tail_blocks: int = 0, turn_ns: int = 0):
        self.blocks = chunks * CHUNK_BLOCKS + tail_blocks
        self.journal_bytes = journal_bytes
        self.sync_always = sync_always
        self.automatic = automatic
        self.turn_ns = turn_ns              # how far a virtual clock goes each turn; 0: the real one
        self.clock_ns = 10**12
        self.build(None)
        self.time = 1
        self.version = 0
        self.history: list[list[Version]] = []
        image = self.main.image
        for block in range(self.blocks):
            image[block * BLOCK:(block + 1) * BLOCK] = stamp(block, 0)
            self.history.append([Version(stamp(block, 0), 0, 0)])
        self.open: list[Shot] = []
        self.answers: dict[int, tuple[int, tuple]] = {}
        self.events: list[tuple[int, int, tuple]] = []
        self.pit: bytes | None = None

    def build(self, journal_image: bytes | None) -> None:
        size = self.blocks * BLOCK
        self.reactor = Reactor(buffer_bytes=64 << 20)
        if self.turn_ns:
            self.reactor.set_clock(self.clock_ns)
        self.main = FaultStoreHandle(self.reactor, size, BLOCK, self.automatic)
        self.backup = FaultStoreHandle(self.reactor, size, BLOCK, self.automatic)
        self.media = FaultStoreHandle(self.reactor, 4096, BLOCK, self.automatic)
        self.stores = {"main": self.main, "backup": self.backup, "media": self.media}
        self.journal = JournalHandle.in_memory(self.reactor, self.journal_bytes, BLOCK, self.blocks, self.media,
                                               image=journal_image)
        self.volume = VolumeHandle(self.reactor, 7, self.main, self.journal, self.sync_always)
        self.driver = DeviceDriver(self.volume)

    def kill(self, landed: int = 0) -> int:
        """kill -9 and a restart: the mapping stays as it is; bit n of `landed` tells whether the n-th Io that was under
        way at main or backup still arrived there. Answers the phase found. What was in flight may show or not."""
        for store in (self.main, self.backup):
            for index in reversed(range(len(store.pending()))):
                if landed >> index & 1:
                    store.complete(index)
        old_main, old_backup = bytes(self.main.image), bytes(self.backup.image)
        image = bytes(memoryview(self.journal.mapping))
        self.build(image)
        self.main.image[:] = old_main
        self.backup.image[:] = old_backup
        self.open.clear()
        self.answers.clear()
        self.events.clear()
        results = self.command(self.volume.recover(True))
        assert results[3] == 0, "entries found corrupt after a kill"
        return self.volume.phase

    # --- turning

    def turn(self, turns: int = 1) -> None:
        for _ in range(turns):
            if self.turn_ns:
                self.clock_ns += self.turn_ns
                self.reactor.set_clock(self.clock_ns)
            self.reactor.turn(0)
        for kind, ticket, status, results, _data in self.reactor.drain():
            if kind == 0:
                self.answers[ticket] = (status, results)
            else:
                self.events.append((kind, status, results))
        self.collect()

    def settle(self, rounds: int = 400) -> None:
        """Everything pending completes, oldest first, until all is quiet."""
        for _ in range(rounds):
            self.turn(2)
            self.clock_ns += 10 * self.turn_ns
            if not sum(store.complete_all() for store in self.stores.values()) and not self.open:
                break
        self.turn(2)

    def ask(self, ticket: int, settle: bool = True) -> tuple[int, tuple]:
        """The answer to a ticket; the stores are driven until it is there."""
        for _ in range(2000):
            self.turn()
            if ticket in self.answers:
                return self.answers.pop(ticket)
            if settle:
                for store in self.stores.values():
                    store.complete_all()
        raise AssertionError("no answer")

    def command(self, ticket: int) -> tuple:
        status, results = self.ask(ticket)
        assert status >= 0, f"status {status}"
        return results

    # --- the host

    def next_content(self, lba: int, blocks: int, zero: bool) -> dict[int, Version]:
        self.version += 1
        return {block: Version(ZERO if zero else stamp(block, self.version), self.time)
                for block in range(lba, lba + blocks)}

    def begin(self, kind: str, lba: int, versions: dict[int, Version], number: int) -> None:
        for block, version in versions.items():
            self.history[block].append(version)
        self.open.append(Shot(number, kind, lba, len(versions), self.time, versions))

    def write(self, lba: int, blocks: int, fua: bool = False) -> None:
        self.time += 1
        versions = self.next_content(lba, blocks, False)
        data = b"".join(version.content for version in versions.values())
        self.begin("write", lba, versions, self.driver.write(lba, data, fua))

    def unmap(self, lba: int, blocks: int) -> None:
        self.time += 1
        versions = self.next_content(lba, blocks, True)
        self.begin("unmap", lba, versions, self.driver.unmap(lba, blocks))

    def read(self, lba: int, blocks: int) -> None:
        self.time += 1
        number = self.driver.read(lba, blocks)
        self.open.append(Shot(number, "read", lba, blocks, self.time))

    def flush(self) -> None:
        self.time += 1
        self.open.append(Shot(self.driver.flush(), "flush", 0, 0, self.time))

    def collect(self) -> None:
        for shot in list(self.open):
            result = self.driver.take(shot.number)
            if result is None:
                continue
            self.time += 1
            self.open.remove(shot)
            status, data = result
            if shot.kind == "read":
                assert status == 0, f"read of {shot.lba}+{shot.blocks}: status {status}"
                self.check_read(shot, data)
            elif status == 0:
                self.acknowledge(shot)
            else:
                for version in shot.versions.values():
                    version.failed = True

    def acknowledge(self, shot: Shot) -> None:
        for block, version in shot.versions.items():
            version.acknowledged = self.time
            for other in self.history[block]:
                if other is not version and other.acknowledged < version.begun and other.out == FOREVER:
                    other.out = self.time

    def check_read(self, shot: Shot, data: bytes) -> None:
        """Rule 4: the newest acknowledged content, or one in flight, never a mix, never older than seen before."""
        for index in range(shot.blocks):
            block = shot.lba + index
            content = data[index * BLOCK:(index + 1) * BLOCK]
            allowed = [v for v in self.history[block] if v.content == content and v.out >= shot.begun]
            assert allowed, f"block {block}: {content[:16].hex()} is not what a read begun at {shot.begun} may show"
            if len(allowed) == 1:
                for other in self.history[block]:
                    if other is not allowed[0] and other.acknowledged < shot.begun and other.out == FOREVER:
                        other.out = self.time

    # --- the rules

    def check_pit_kept(self) -> None:
        """Rule 2: what main no longer holds of the PIT, the backup holds."""
        if self.pit is None:
            return
        main, backup = bytes(self.main.image), bytes(self.backup.image)
        if main == self.pit:
            return
        for block in range(self.blocks):
            where = slice(block * BLOCK, (block + 1) * BLOCK)
            if main[where] != self.pit[where]:
                assert backup[where] == self.pit[where], f"the PIT content of block {block} is lost"

    def check_main(self) -> None:
        """Rule 5: main is what the host wrote."""
        image = bytes(self.main.image)
        for block in range(self.blocks):
            content = image[block * BLOCK:(block + 1) * BLOCK]
            allowed = [v for v in self.history[block] if v.content == content and v.out > self.time]
            assert allowed, f"main ends wrong at block {block}: {content[:16].hex()}"

    # --- a detour, step by step

    def freeze(self) -> None:
        self.command(self.volume.freeze(b"p" * 16))
        self.pit = bytes(self.main.image)

    def finish_copy(self) -> None:
        for _ in range(3000):
            self.turn()
            if any(kind == 5 for kind, _, _ in self.events):
                return
            self.backup.complete_all()
            self.main.complete_all()
            self.media.complete_all()
        raise AssertionError("the copy does not end")

    def catch_up_all(self) -> None:
        """Rounds until nothing is dirty and nobody waits (for room, say)."""
        self.settle()
        for _ in range(20):
            self.command(self.volume.round())
            self.settle()
            if self.stat("dirty_blocks") == 0 and not self.open:
                return
        raise AssertionError(f"rounds do not end: {[shot.kind for shot in self.open]} are open")

    def go_home(self) -> None:
        self.catch_up_all()
        self.command(self.volume.hold())
        self.command(self.volume.drain())
        self.command(self.volume.round())
        self.command(self.volume.release())

    def stat(self, name: str) -> int:
        return self.volume.stats[self.volume.stats_names().index(name)]
