"""A target over a device whose store completes in any order: a plain disk, or a volume that is being copied.

Both look like pdu_client.World to its Host. What is at the stores completes turn by turn, one at a time, picked by a
seeded generator, so that commands of several hosts meet in many orders and every run can be repeated.
"""
from __future__ import annotations

import random
import struct
from abc import ABC, abstractmethod

from detour.core.disk import DiskHandle
from detour.core.fault_store import FaultStoreHandle
from detour.core.reactor import Reactor
from detour.core.target import TargetHandle
from tests.support.pdu_client import TURNS_MAX, Host
from tests.support.volume_world import VolumeWorld

BLOCK = 512
BLOCKS = 1536
NAA = bytes.fromhex("3000000000000001")


class MediumWorld(ABC):
    """What both kinds have: turns, tickets, the target with LUN 0."""

    reactor: Reactor
    block_bytes = BLOCK
    blocks = BLOCKS
    atomic_blocks_max = 0

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pace = (0.7, 0.2)[seed % 2]        # how soon what is at the stores ends
        self.build()
        self.target = TargetHandle(self.reactor, 9, nop_interval_ms=0)
        self.tickets: dict[int, tuple[int, tuple[int, ...], bytes | None]] = {}
        assert self.ask(self.target.set_lun(0, self.device())) == 0

    @abstractmethod
    def build(self) -> None:
        """The reactor, and what is below the target."""

    @abstractmethod
    def device(self) -> DiskHandle:
        """LUN 0."""

    @abstractmethod
    def stores(self) -> list[FaultStoreHandle]:
        """Whose requests complete when a turn says so."""

    def complete_some(self) -> None:
        for store in self.stores():
            count = len(store.pending())
            if count and self.rng.random() < self.pace:
                store.complete(self.rng.randrange(count))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.reactor.turn(0)
            self.drain()
            self.complete_some()

    def drain(self) -> None:
        for kind, ticket, status, results, data in self.reactor.drain():
            if kind == 0:
                self.tickets[ticket] = (status, results, data)

    def answer(self, ticket: int) -> tuple[int, tuple[int, ...], bytes | None]:
        for _ in range(TURNS_MAX):
            if ticket in self.tickets:
                return self.tickets.pop(ticket)
            self.turn()
        raise AssertionError("the ticket is not answered")

    def ask(self, ticket: int) -> int:
        return self.answer(ticket)[0]

    def quiet(self) -> bool:
        """No task is open, and nothing is taken from the pool."""
        self.turn(60)
        names = self.target.stats_names()
        return self.reactor.buffers_taken_bytes == 0 and self.target.stats[names.index("tasks_open")] == 0

    def close(self) -> None:
        assert self.ask(self.target.close()) == 0
        assert self.reactor.buffers_taken_bytes == 0, "buffers leaked"


class DiskMedium(MediumWorld):
    atomic_blocks_max = (1 << 20) // BLOCK

    def build(self) -> None:
        self.reactor = Reactor(buffer_bytes=64 << 20)
        self.store = FaultStoreHandle(self.reactor, BLOCKS * BLOCK, BLOCK)
        self.disk = DiskHandle(self.reactor, self.store, serial="medium", atomic=True)

    def device(self) -> DiskHandle:
        return self.disk

    def stores(self) -> list[FaultStoreHandle]:
        return [self.store]

    def naa(self) -> bytes:
        return self.disk.naa


class VolumeMedium(MediumWorld):
    """In phase COPYING, with half of the blocks in the overlay already; or in phase PASS."""

    atomic_blocks_max = 128
    journal_bytes = 8 << 20
    pool_bytes = 64 << 20

    def __init__(self, seed: int, frozen: bool = True) -> None:
        self.frozen = frozen
        super().__init__(seed)

    def build(self) -> None:
        self.world = VolumeWorld(chunks=3, journal_bytes=self.journal_bytes, pool_bytes=self.pool_bytes)
        self.reactor = self.world.reactor
        self.world.main.image[:] = bytes(BLOCKS * BLOCK)
        if self.frozen:
            self.world.freeze()
            self.fill_overlay()
        self.world.command(self.world.volume.set_limits(
            compare_blocks_max=255, atomic_blocks_max=self.atomic_blocks_max, unmap_blocks_max=4096,
            unmap_descriptors_max=16))
        self.world.command(self.world.volume.set_offered({0x48: 0xFFFFFFFF}, naa=NAA))

    def fill_overlay(self) -> None:
        for lba in range(0, BLOCKS, 24):                # of each 24 blocks: zeros without data, zeros as data, main's
            self.world.unmap(lba, 5)
            self.world.settle()
            number = self.world.driver.write(lba + 8, bytes(7 * BLOCK))
            self.world.settle()
            assert self.world.driver.take(number) == (0, None)

    def device(self) -> DiskHandle:
        return self.world.volume        # type: ignore[return-value]

    def stores(self) -> list[FaultStoreHandle]:
        return [self.world.main, self.world.backup, self.world.media]

    def naa(self) -> bytes:
        return NAA


class TightVolume(VolumeMedium):
    """A journal that fills, a pool of 4 MiB, a copy that makes room, a clock that every turn moves."""

    journal_bytes = 3 << 20
    pool_bytes = 4 << 20
    clock_ns = 10**12

    def fill_overlay(self) -> None:
        self.world.command(self.world.volume.copy_start(self.world.backup, window=2))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock_ns += 2_000_000
            self.reactor.set_clock(self.clock_ns)
            super().turn()


KINDS = {"disk": DiskMedium, "volume": VolumeMedium}


# --- commands

def compare_cdb(lba: int, blocks: int, flags: int = 0) -> bytes:
    return struct.pack(">BBQ3xBxx", 0x89, flags, lba, blocks)


def atomic_cdb(lba: int, blocks: int, boundary: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">BBQHHxx", 0x9C, flags, lba, boundary, blocks)


def unmap_parameters(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack(">QI4x", lba, blocks) for lba, blocks in ranges)
    return struct.pack(">HH4x", 6 + len(body), len(body)) + body


def copy_parameters(naas: list[bytes], segments: list[tuple[int, int, int, int, int]], *, list_id: int = 1,
                    usage: int = 0, block_bytes: int = BLOCK, cscd_type: int = 0xE4, dc: int = 0) -> bytes:
    """segments: (source index, destination index, blocks, source LBA, destination LBA)."""
    cscds = b"".join(struct.pack(">BBHBBBB20sI", cscd_type, 0, 0, 1, 3, 0, len(naa), naa, block_bytes) for naa in naas)
    body = b"".join(struct.pack(">BBHHHHHQQ", 2, dc << 1, 24, source, target, 0, blocks, lba, to)
                    for source, target, blocks, lba, to in segments)
    return struct.pack(">BBH4xII", list_id, usage << 3, len(cscds), len(body), 0) + cscds + body


def copy(host: Host, parameters: bytes, length: int | None = None):
    cdb = struct.pack(">BB8xIxx", 0x83, 0, len(parameters) if length is None else length)
    return host.command_out(cdb, parameters)


def copy_results(host: Host, action: int, list_id: int = 0, room: int = 512):
    return host.command(struct.pack(">BBB7xIxx", 0x84, action, list_id, room), room)
