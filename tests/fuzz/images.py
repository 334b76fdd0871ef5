"""Journals as they may lie on a bad disk: superblocks, headers, chunk tables and data changed, then recovered and read.

Nothing may crash, and nothing wrong may be served: what a read answers for a block is a content that this block had.
"""
from __future__ import annotations

import copy
import random
from dataclasses import dataclass

from detour.core.volume import COPYING, PASS
from detour.errors import DetourError
from tests.fuzz.figures import Figures
from tests.support.volume_world import BLOCK, VolumeWorld

CHUNKS = 2
WRITES = 24
SUPERBLOCKS_BYTES = 16384


@dataclass
class Case:
    """One world is written to, then its journal is spoiled again and again: an image for each hundred of `pdus`."""

    seed: int
    pdus: int
    figures: Figures

    def run(self) -> None:
        self.chance = random.Random(self.seed)
        world = self.world()
        image, used = bytes(memoryview(world.journal.mapping)), world.journal.used_bytes
        for _ in range(max(1, self.pdus // 100)):
            self.figures.images += 1
            self.recover(world, self.spoil(image, used))

    def world(self) -> VolumeWorld:
        chance = self.chance
        world = VolumeWorld(chunks=CHUNKS, automatic=True, journal_bytes=2304 << 10)
        world.freeze()
        if chance.random() < 0.5:
            world.command(world.volume.copy_start(world.backup))
            world.finish_copy()
        if chance.random() < 0.5:
            world.command(world.volume.catch_up())
        for _ in range(chance.randrange(WRITES)):
            blocks = chance.choice([1, 2, 8, 100])
            lba = chance.randrange(world.blocks - blocks)
            if chance.random() < 0.8:
                world.write(lba, blocks, chance.random() < 0.3)
            else:
                world.unmap(lba, blocks)
            world.settle(6)
            if world.volume.phase != COPYING and chance.random() < 0.15:
                world.command(world.volume.round())
        return world

    def spoil(self, image: bytes, used: int) -> bytearray:
        chance, out = self.chance, bytearray(image)
        for _ in range(chance.choice([1, 1, 2, 6])):
            area = min(len(out), chance.choice([SUPERBLOCKS_BYTES, 262144, len(out)]))
            at = chance.randrange(area)
            what = chance.randrange(6)
            if what == 0:
                out[at] ^= 1 << chance.randrange(8)
            elif what == 1:
                length = chance.choice([2, 4, 8])
                at &= -length
                bits = 8 * length
                value = chance.choice([0, 1, (1 << bits) - 1, 1 << bits - 1, chance.getrandbits(bits)])
                out[at:at + length] = value.to_bytes(length, "little")
            elif what == 2:
                at &= -512
                out[at:at + 512] = bytes(512)
            elif what == 3:                     # a sector of another place
                at, other = at & -512, chance.randrange(area) & -512
                out[at:at + 512] = out[other:other + 512]
            elif what == 4:
                at &= -4096
                out[at:at + 4096] = chance.randbytes(4096)
            elif chance.random() < 0.1:
                del out[1 + chance.randrange(len(out)):]
        return out

    def recover(self, old: VolumeWorld, image: bytearray) -> None:
        world = copy.copy(old)
        for name, value in vars(old).items():
            if isinstance(value, list | dict) and name != "history":
                setattr(world, name, type(value)())
        try:
            world.build(image)
        except (DetourError, ValueError):
            return
        world.main.image[:] = old.main.image
        status, _ = world.ask(world.volume.recover(True))
        if status == 0 and world.volume.phase != PASS:
            self.read(old, world)
        world.settle(8)
        world.volume.close()
        world.journal.close()
        world.turn(8)
        assert world.reactor.buffers_taken_bytes == 0, "buffers are lost"

    def read(self, old: VolumeWorld, world: VolumeWorld) -> None:
        for _ in range(4):
            blocks = self.chance.choice([1, 8, 200])
            lba = self.chance.randrange(world.blocks - blocks)
            number = world.driver.read(lba, blocks)
            for _ in range(2000):
                world.reactor.turn(0)
                result = world.driver.take(number)
                if result is not None:
                    break
            else:
                raise AssertionError("a read never ends")
            if result[0] != 0:
                continue
            for index in range(blocks):
                content = result[1][index * BLOCK:(index + 1) * BLOCK]
                known = [version.content for version in old.history[lba + index]]
                assert content in known, f"block {lba + index} has {content[:16].hex()}, which it never had"
