"""Every command that touches the medium, in any order, against a disk in plain Python: status, sense and each byte.

The same commands go to a plain disk and to a volume that is being copied, whose overlay has a part of the blocks.
"""
from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.medium_world import (
    BLOCK,
    BLOCKS,
    KINDS,
    atomic_cdb,
    compare_cdb,
    copy,
    copy_parameters,
    unmap_parameters,
)
from tests.support.pdu_client import Host, cdb_rw

OUT_OF_RANGE, MISCOMPARE, INVALID_FIELD, COPY_ABORTED = 0x052100, 0x0E1D00, 0x052400, 0x0A0000
WRITES = (0x2A, 0x8A, 0xAA, 0x2E, 0x8E, 0xAE)
FILLS = st.sampled_from((0, 1, 0x80, 0xA5, 0xFF))
PLACES = st.one_of(st.integers(0, 64), st.integers(0, BLOCKS - 1), st.integers(BLOCKS - 3, BLOCKS))
LENGTHS = st.one_of(st.integers(1, 20), st.just(300))
COMMANDS = st.lists(st.tuples(
    st.sampled_from(("write", "same", "same-unmap", "same-nothing", "unmap", "compare", "compare-wrong", "orwrite",
                     "atomic", "verify", "verify-wrong", "verify-same", "copy", "read", "flush", "prefetch")),
    PLACES, LENGTHS, FILLS, st.integers(0, BLOCKS - 1), st.sampled_from(WRITES)), min_size=1, max_size=14)


class Model:
    """The disk in plain Python; each command answers the sense that it should end with."""

    def __init__(self, host, naa):
        self.host, self.naa, self.image = host, naa, bytearray(BLOCKS * BLOCK)

    def at(self, lba, blocks):
        return bytes(self.image[lba * BLOCK:(lba + blocks) * BLOCK])

    def put(self, lba, data):
        self.image[lba * BLOCK:lba * BLOCK + len(data)] = data

    def run(self, kind, lba, blocks, fill, other, opcode):
        inside = lba + blocks <= BLOCKS
        data = bytes([fill]) * BLOCK * blocks
        method = getattr(self, kind.replace("-", "_"))
        sense = method(lba, blocks, data, other if kind == "copy" else opcode, inside)
        assert sense in (None, 0 if inside else OUT_OF_RANGE), (kind, lba, blocks, hex(sense))

    def write(self, lba, blocks, data, opcode, inside):
        if inside:
            self.put(lba, data)
        return self.host.write(lba, data, opcode).sense

    def same(self, lba, blocks, data, _opcode, inside, flags=0):
        if inside:
            self.put(lba, bytes(len(data)) if flags & 8 else data)
        return self.host.command_out(cdb_rw(0x93 if flags & 1 else 0x41, lba, blocks, flags), data[:BLOCK]).sense

    def same_unmap(self, lba, blocks, data, opcode, inside):
        return self.same(lba, blocks, data, opcode, inside, 0x08)

    def same_nothing(self, lba, blocks, data, _opcode, inside):
        if inside:
            self.put(lba, bytes(len(data)))
        return self.host.command(cdb_rw(0x93, lba, blocks, 0x01)).sense

    def unmap(self, lba, blocks, data, _opcode, inside):
        if inside:
            self.put(lba, bytes(len(data)))
            self.put(0, bytes(BLOCK))
        parameters = unmap_parameters((lba, blocks), (0, 1))
        return self.host.command_out(struct.pack(">BB5xHx", 0x42, 0, len(parameters)), parameters).sense

    def compare(self, lba, blocks, data, _opcode, inside):
        blocks = min(blocks, 255)
        found = self.at(lba, blocks).ljust(blocks * BLOCK, b"\0")
        inside = lba + blocks <= BLOCKS
        sense = self.host.command_out(compare_cdb(lba, blocks), found + data[:blocks * BLOCK]).sense
        if inside:
            self.put(lba, data[:blocks * BLOCK])
        assert sense == (0 if inside else OUT_OF_RANGE)

    def compare_wrong(self, lba, blocks, data, _opcode, _inside):
        blocks = min(blocks, 255)
        found = bytearray(self.at(lba, blocks).ljust(blocks * BLOCK, b"\0"))
        found[len(data) % len(found) - 1] ^= 1
        sense = self.host.command_out(compare_cdb(lba, blocks), bytes(found) + data[:blocks * BLOCK]).sense
        assert sense == (MISCOMPARE if lba + blocks <= BLOCKS else OUT_OF_RANGE)

    def orwrite(self, lba, _blocks, data, _opcode, inside):
        if inside:
            found = self.at(lba, len(data) // BLOCK)
            self.put(lba, bytes(a | b for a, b in zip(found, data, strict=True)))
        return self.host.write(lba, data, 0x8B).sense

    def atomic(self, lba, blocks, data, _opcode, inside):
        longest = self.host.world.atomic_blocks_max
        if inside and blocks <= longest:
            self.put(lba, data)
        sense = self.host.command_out(atomic_cdb(lba, blocks), data).sense
        assert sense == (OUT_OF_RANGE if not inside else INVALID_FIELD if blocks > longest else 0)

    def verify(self, lba, blocks, _data, _opcode, inside, spoil=0):
        found = bytearray(self.at(lba, blocks).ljust(blocks * BLOCK, b"\0"))
        found[-1] ^= spoil
        return self.host.command_out(cdb_rw(0x8F, lba, blocks, 0x02), bytes(found)).sense

    def verify_wrong(self, lba, blocks, data, opcode, inside):
        assert self.verify(lba, blocks, data, opcode, inside, 1) == (MISCOMPARE if inside else OUT_OF_RANGE)

    def verify_same(self, lba, blocks, data, _opcode, inside):
        equal = self.at(lba, blocks) == data
        sense = self.host.command_out(cdb_rw(0x2F, lba, blocks, 0x06), data[:BLOCK]).sense
        assert sense == (OUT_OF_RANGE if not inside else 0 if equal else MISCOMPARE)

    def copy(self, lba, blocks, _data, source, inside):
        inside = inside and source + blocks <= BLOCKS
        if inside:
            self.put(lba, self.at(source, blocks))
        sense = copy(self.host, copy_parameters([self.naa], [(0, 0, blocks, source, lba)])).sense
        assert sense == (0 if inside else COPY_ABORTED)

    def read(self, lba, blocks, _data, _opcode, inside):
        result = self.host.read(lba, blocks)
        if inside:
            assert result.data == self.at(lba, blocks), f"read of {lba}+{blocks}"
        return result.sense

    def flush(self, lba, blocks, _data, _opcode, _inside):
        return self.host.command(cdb_rw(0x91, lba, blocks)).sense

    def prefetch(self, lba, blocks, _data, _opcode, _inside):
        return self.host.command(cdb_rw(0x90, lba, blocks)).sense


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=40, deadline=None)
@given(commands=COMMANDS, seed=st.integers(0, 1))
def test_commands_do_what_the_model_does(kind, commands, seed):
    world = KINDS[kind](seed)
    host = Host(world)
    model = Model(host, world.naa())
    for command in commands:
        model.run(*command)
    for lba in range(0, BLOCKS, 512):
        assert host.read(lba, 512).data == model.at(lba, 512), f"blocks from {lba} on differ"
    assert world.quiet()
    world.close()
