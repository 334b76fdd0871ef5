"""Limits of commands, what a device does not offer, EXTENDED COPY with its results, SANITIZE."""
from __future__ import annotations

import random
import struct
import time

import pytest

from detour.core.disk import DiskHandle
from detour.core.fault_store import FaultStoreHandle
from detour.core.reactor import Reactor
from detour.core.store import MemoryStore
from tests.support.medium_world import (
    BLOCK,
    BLOCKS,
    NAA,
    DiskMedium,
    VolumeMedium,
    atomic_cdb,
    compare_cdb,
    copy,
    copy_parameters,
    copy_results,
    unmap_parameters,
)
from tests.support.pdu_client import RESPONSE, Host, World, cdb_rw

INVALID_FIELD, INVALID_PARAMETER, LIST_LENGTH, INVALID_OPCODE = 0x052400, 0x052600, 0x051A00, 0x052000
UNREACHABLE, NO_DEVICE, DEVICE_FAILED, ABORTED, GRANULARITY = 0x0A0804, 0x0A0D02, 0x0A0D01, 0x0A0000, 0x0A260D
CONFLICT, BUSY = 0x18, 0x08
SANITIZING, SANITIZE_FAILED, WRITE_PROTECTED = 0x02041B, 0x033103, 0x072700
OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE = 1, 2, 0x1F


# --- limits, and what is not offered

@pytest.fixture
def volume():
    world = VolumeMedium(3)
    yield world
    assert world.quiet()
    world.close()


def unmap(host, *ranges):
    parameters = unmap_parameters(*ranges)
    return host.command_out(struct.pack(">BB5xHx", 0x42, 0, len(parameters)), parameters).sense


def test_write_same_keeps_to_its_limits(volume):
    host = Host(volume)
    limits = {"write_same_blocks_max": 100, "write_same_zero_refused": False}
    volume.world.command(volume.world.volume.set_limits(**limits))
    assert host.command_out(cdb_rw(0x93, 0, 100), bytes(BLOCK)).status == 0
    assert host.command_out(cdb_rw(0x93, 0, 101), bytes(BLOCK)).sense == INVALID_FIELD
    assert host.command_out(cdb_rw(0x41, BLOCKS - 100, 0), bytes(BLOCK)).status == 0
    assert host.command_out(cdb_rw(0x41, BLOCKS - 101, 0), bytes(BLOCK)).sense == INVALID_FIELD
    limits["write_same_zero_refused"] = True
    volume.world.command(volume.world.volume.set_limits(**limits))
    assert host.command_out(cdb_rw(0x41, BLOCKS - 1, 0), bytes(BLOCK)).sense == INVALID_FIELD
    assert host.command_out(cdb_rw(0x93, 0, 1, 0x10), bytes(BLOCK)).sense == INVALID_FIELD, "ANCHOR"
    assert host.command_out(cdb_rw(0x93, 0, 1, 0x18), bytes(BLOCK)).sense == INVALID_FIELD, "ANCHOR and UNMAP"


def test_unmap_keeps_to_its_limits(volume):
    host = Host(volume)
    volume.world.command(volume.world.volume.set_limits(unmap_blocks_max=50, unmap_descriptors_max=2))
    assert unmap(host, (0, 25), (100, 25)) == 0
    assert unmap(host, (0, 26), (100, 25)) == INVALID_PARAMETER
    assert unmap(host, (0, 1), (1, 1), (2, 1)) == INVALID_PARAMETER
    assert unmap(host, (0, 0), (5, 0)) == 0


def test_atomic_writes_keep_to_their_limits(volume):
    host = Host(volume)
    volume.world.command(volume.world.volume.set_limits(
        atomic_blocks_max=32, atomic_alignment_blocks=8, atomic_granularity_blocks=16))
    assert host.command_out(atomic_cdb(8, 16), bytes(16 * BLOCK)).status == 0
    assert host.command_out(atomic_cdb(4, 16), bytes(16 * BLOCK)).sense == INVALID_FIELD
    assert host.command_out(atomic_cdb(8, 8), bytes(8 * BLOCK)).sense == INVALID_FIELD
    assert host.command_out(atomic_cdb(8, 48), bytes(48 * BLOCK)).sense == INVALID_FIELD


def test_what_a_device_does_not_offer(volume):
    host = Host(volume)
    volume.world.command(volume.world.volume.set_limits())
    assert host.command_out(compare_cdb(0, 1), bytes(2 * BLOCK)).sense == INVALID_OPCODE
    assert host.command_out(atomic_cdb(0, 8), bytes(8 * BLOCK)).sense == INVALID_OPCODE
    volume.world.command(volume.world.volume.set_offered({0x8B: 1, 0x83: 0xFFFFFFFF, 0x84: 1 << 3}, naa=NAA))
    assert host.command_out(cdb_rw(0x8B, 0, 1), bytes(BLOCK)).sense == INVALID_OPCODE
    assert copy(host, copy_parameters([NAA], [])).sense == INVALID_OPCODE
    assert copy_results(host, 3).sense == INVALID_FIELD, "another service action is offered"
    assert host.read(0, 1).status == 0


def test_a_store_that_may_keep_a_part_promises_no_atomic_writes():
    world = DiskMedium(0)
    disk = DiskHandle(world.reactor, world.store, serial="file")
    assert world.ask(world.target.set_lun(1, disk)) == 0
    host = Host(world)
    assert host.command(bytes(6), lun=1).sense == 0x062900
    itt = host.send_command_out(atomic_cdb(0, 8), bytes(8 * BLOCK), lun=1)
    assert host.finish(itt, 8 * BLOCK, bytes(8 * BLOCK)).sense == INVALID_OPCODE
    world.close()


def test_where_the_medium_failed_is_told_when_it_is_known():
    world = DiskMedium(0)
    host = Host(world)
    world.store.fail_next(0)
    result = host.read(10, 1)
    assert (result.sense, struct.unpack_from(">BxxI", result.pdus[-1].data, 2)) == (0x031100, (0xF0, 10))
    world.store.fail_next(0)
    result = host.read(10, 2)
    assert (result.sense, result.pdus[-1].data[2]) == (0x031100, 0x70), "which of both it was is not known"
    world.close()


# --- EXTENDED COPY

class TwoDisks(World):
    """LUN 0 of 512-byte blocks, LUN 1 of 4096-byte blocks, LUN 2 read-only."""

    def __init__(self):
        super().__init__(size_bytes=8 << 20)
        self.large_store = MemoryStore(self.reactor, 8 << 20, 4096)
        self.large = DiskHandle(self.reactor, self.large_store, serial="large")
        self.fixed = DiskHandle(self.reactor, MemoryStore(self.reactor, 1 << 20), serial="fixed", read_only=True)
        self.large_image = memoryview(self.large_store)
        assert self.ask(self.target.set_lun(1, self.large)) == 0
        assert self.ask(self.target.set_lun(2, self.fixed)) == 0
        self.noise = random.Random(9).randbytes(8 << 20)
        self.image[:] = self.noise


@pytest.fixture
def disks():
    world = TwoDisks()
    yield world
    assert world.quiet()
    world.large_image.release()
    world.close()


def cscds(*parts, block_bytes=None):
    """A list of CSCD descriptors of disks, each with its own block length."""
    return b"".join(struct.pack(">BBHBBBB20sI", 0xE4, 0, 0, 1, 3, 0, 8, disk.naa, block_bytes or disk.block_bytes)
                    for disk in parts)


def listed(parts, *segments, list_id=5):
    body = b"".join(struct.pack(">BBHHHHHQQ", 2, dc << 1, 24, source, target, 0, blocks, lba, to)
                    for source, target, blocks, lba, to, dc in segments)
    return struct.pack(">BBH4xII", list_id, 0, len(parts), len(body), 0) + parts + body


def test_copies_between_disks_of_other_blocks(disks):
    host = Host(disks)
    assert copy(host, listed(cscds(disks.disk, disks.large), (0, 1, 8000, 16, 100, 0), (1, 0, 3, 200, 0, 0),
                             (0, 1, 2, 4000, 7, 1))).status == 0
    moved = disks.noise[16 * 512:(16 + 8000) * 512]
    assert bytes(disks.large_image[100 * 4096:100 * 4096 + len(moved)]) == moved
    assert bytes(disks.image[:3 * 4096]) == bytes(disks.large_image[200 * 4096:203 * 4096])
    assert bytes(disks.large_image[7 * 4096:9 * 4096]) == disks.noise[4000 * 512:4000 * 512 + 2 * 4096]
    status = copy_results(host, 0, 5)
    assert (status.data[4], struct.unpack_from(">H", status.data, 5)[0]) == (1, 3)
    assert struct.unpack_from(">I", status.data, 8)[0] == (8000 * 512 + 3 * 4096 + 2 * 4096) >> 10


@pytest.mark.parametrize(("source", "target"), [(0, 1000), (1000, 0), (50, 50), (0, 6000)])
def test_copies_that_overlap(disks, source, target):
    host = Host(disks)
    assert copy(host, copy_parameters([disks.disk.naa], [(0, 0, 6000, source, target)])).status == 0
    expected = bytearray(disks.noise)
    expected[target * 512:(target + 6000) * 512] = disks.noise[source * 512:(source + 6000) * 512]
    assert bytes(disks.image) == expected


def test_what_a_copy_refuses(disks):
    host = Host(disks)
    one, both = cscds(disks.disk), cscds(disks.disk, disks.large)
    refused = {
        UNREACHABLE: listed(one, (0, 1, 1, 0, 0, 0)),
        NO_DEVICE: listed(one[:8] + b"12345678" + one[16:], (0, 0, 1, 0, 0, 0)),
        ABORTED: listed(one, (0, 0, 2, 0, disks.disk.blocks - 1, 0)),
        GRANULARITY: listed(both, (0, 1, 3, 0, 0, 0)),
        DEVICE_FAILED: listed(cscds(disks.disk, disks.fixed), (0, 1, 1, 0, 0, 0)),
        INVALID_PARAMETER: listed(cscds(disks.disk, block_bytes=4096), (0, 0, 1, 0, 0, 0)),
        0x0A0D03: listed(one[:1] + b"\x01" + one[2:], (0, 0, 1, 0, 0, 0)),
        0x052606: listed(one * 17, (0, 0, 1, 0, 0, 0)),
        0x052607: listed(b"\xE0" + one[1:], (0, 0, 1, 0, 0, 0)),
        0x052608: listed(one, *[(0, 0, 1, 0, 0, 0)] * 65),
        LIST_LENGTH: listed(one * 17, *[(0, 0, 1, 0, 0, 0)] * 65),
    }
    for sense, parameters in refused.items():
        assert copy(host, parameters).sense == sense, hex(sense)
    segment = listed(one, (0, 0, 1, 0, 1, 0))
    assert copy(host, segment[:-28] + b"\x03" + segment[-27:]).sense == 0x052609
    for cut in (1, 28, 29, 60):
        assert copy(host, segment[:-cut]).sense == LIST_LENGTH
    assert host.command(struct.pack(">BB8xIxx", 0x83, 0, 0)).status == 0
    assert bytes(disks.image) == disks.noise and not any(disks.large_image)


@pytest.mark.parametrize("seed", range(4))
def test_lists_made_of_dice(disks, seed):
    """Whatever a list says, the command ends, and nothing is left of it."""
    rng = random.Random(seed)
    host = Host(disks)
    both = cscds(disks.disk, disks.large)
    for _ in range(150):
        segments = [(rng.randrange(3), rng.randrange(3), rng.choice((0, 1, 8, 600, 65535)), rng.randrange(1 << 14),
                     rng.choice((0, 100, 1 << 14, 1 << 63)), rng.randrange(2)) for _ in range(rng.randrange(4))]
        parameters = bytearray(listed(both, *segments, list_id=rng.randrange(4)))
        for _ in range(rng.choice((0, 0, 1, 3))):
            parameters[rng.randrange(len(parameters))] = rng.randrange(256)
        assert copy(host, bytes(parameters[:rng.choice((len(parameters), rng.randrange(1, len(parameters))))])).status \
            in (0, 2)
        action, list_id = rng.randrange(6), rng.randrange(4)
        assert copy_results(host, action, list_id, rng.choice((0, 4, 11, 12, 512))).status in (0, 2)


def test_results_of_copies(disks):
    host, other = Host(disks), Host(disks, isid=b"\0\2\x3d\0\0\2")
    one = cscds(disks.disk)
    assert copy_results(host, 0, 5).sense == INVALID_FIELD
    assert copy(host, listed(one, (0, 0, 1, 0, 9, 0), (0, 0, 9, 0, disks.disk.blocks, 0))).sense == ABORTED
    status = copy_results(host, 0, 5)
    assert (status.data[4], status.data[6]) == (2, 1)
    details = copy_results(host, 4, 5)
    assert details.data[56] == 2 and details.data[60 + 2] & 15 == 0x0A
    assert struct.unpack_from(">H", details.data, 60 + 16)[0] == 16 + 32 + 28, "it points at the segment"
    assert copy_results(host, 4, 5).sense == INVALID_FIELD
    assert copy_results(other, 0, 5).sense == INVALID_FIELD
    told = copy_results(host, 3).data
    assert struct.unpack_from(">HHII", told, 8) == (16, 64, 16 * 32 + 64 * 28, 0xFFFF * 4096)
    assert bytes(told[44:46]) == b"\x02\xe4"
    for list_id in range(20):
        assert copy(host, listed(one, (0, 0, 1, 0, 9, 0), list_id=list_id)).status == 0
    assert [copy_results(host, 0, list_id).status for list_id in range(20)] == [2] * 12 + [0] * 8
    assert copy_results(host, 1, 19).sense == INVALID_FIELD


def test_a_reservation_keeps_a_copy_away(disks):
    host, other = Host(disks), Host(disks, isid=b"\0\2\x3d\0\0\2")
    assert other.command(bytes(6), lun=1).sense == 0x062900
    assert other.command(b"\x16" + bytes(5), lun=1).status == 0
    for segment in ((0, 1, 8, 0, 0, 0), (1, 0, 1, 0, 0, 0)):
        assert copy(host, listed(cscds(disks.disk, disks.large), segment)).status == CONFLICT
    assert copy(other, listed(cscds(disks.disk, disks.large), (0, 1, 8, 0, 0, 0))).status == 0


def test_a_reservation_of_a_volume_keeps_a_copy_away(volume):
    """The volume is not the unit that the command goes to: its reservation is asked for by itself."""
    disk = DiskHandle(volume.reactor, MemoryStore(volume.reactor, BLOCKS * BLOCK), serial="beside")
    assert volume.ask(volume.target.set_lun(1, disk)) == 0
    host, other = Host(volume), Host(volume, isid=b"\0\2\x3d\0\0\2")
    assert host.command(bytes(6), lun=1).sense == 0x062900
    volume.world.command(volume.world.volume.set_offered({}, naa=NAA))
    parameters = copy_parameters([NAA, disk.naa], [(1, 0, 8, 0, 40)])
    cdb = struct.pack(">BB8xIxx", 0x83, 0, len(parameters))
    assert host.finish(host.send_command_out(cdb, parameters, lun=1)).status == 0
    assert other.command(b"\x16" + bytes(5)).status == 0
    assert host.finish(host.send_command_out(cdb, parameters, lun=1)).status == CONFLICT


def test_a_drain_ends_a_copy_between_two_steps():
    world = DiskMedium(0)
    world.pace = 0
    host = Host(world)
    tag = host.send_command_out(struct.pack(">BB8xIxx", 0x83, 0, 16 + 32 + 2 * 28), copy_parameters(
        [world.naa()], [(0, 0, 200, 0, 800), (0, 0, 200, 300, 1100)]))
    for _ in range(30):
        host.pump()
    assert len(world.store.pending()) == 1
    drained = world.target.drain()
    world.pace = 1
    assert world.ask(drained) == 0
    assert host.finish(tag).status == BUSY
    assert world.quiet()
    world.close()


# --- SANITIZE

class Slow(DiskMedium):
    """What is at the store completes when the test says so."""

    def __init__(self, thin=True, read_only=False):
        self.options = {"thin": thin, "read_only": read_only}
        super().__init__(0)
        self.pace = 0
        self.store.image[:] = b"s" * (BLOCKS * BLOCK)

    def build(self):
        self.reactor = Reactor(buffer_bytes=16 << 20)
        self.store = FaultStoreHandle(self.reactor, BLOCKS * BLOCK, BLOCK)
        self.disk = DiskHandle(self.reactor, self.store, serial="slow", **self.options)

    def finish(self):
        self.pace = 1
        self.turn(60)

    def content(self):
        return bytes(self.store.image)


@pytest.fixture(params=[True, False], ids=["thin", "thick"])
def slow(request):
    world = Slow(thin=request.param)
    yield world
    assert world.quiet()
    world.close()


@pytest.fixture
def thick():
    world = Slow(thin=False)
    yield world
    assert world.quiet()
    world.close()


def pair(world):
    return Host(world), Host(world, isid=b"\0\2\x3d\0\0\2")


def sanitize_cdb(action, length=0, flags=0):
    return struct.pack(">BB5xHx", 0x48, flags | action, length)


def pattern(*, count=1, invert=0, text=b"\xC3\x3C"):
    return struct.pack(">BBH", invert << 7 | count, 0, len(text)) + text


def overwrite(host, parameters=None, flags=0):
    parameters = pattern() if parameters is None else parameters
    return host.send_command_out(sanitize_cdb(OVERWRITE, len(parameters), flags), parameters)


def start(world, host, flags=0):
    """SANITIZE as this disk offers it; what it will leave, and the tag."""
    if world.options["thin"]:
        tag, left = host.begin(sanitize_cdb(BLOCK_ERASE, flags=flags)), bytes(BLOCKS * BLOCK)
    else:
        tag, left = overwrite(host, flags=flags), b"\xC3\x3C" * (BLOCKS * BLOCK // 2)
    if flags & 0x80:
        assert host.finish(tag).status == 0
    else:
        for _ in range(8):
            host.pump()
    world.turn(5)
    return left


def wait_for(world, host):
    for _ in range(200):
        world.turn()
        if host.command(bytes(6)).status == 0:
            return
    raise AssertionError("it never ends")


def test_sanitize(slow):
    host = Host(slow)
    slow.pace = 1
    if slow.options["thin"]:
        assert host.command(sanitize_cdb(BLOCK_ERASE)).status == 0
        assert not any(slow.content())
    else:
        assert host.finish(overwrite(host), 6, pattern()).status == 0
        assert slow.content() == b"\xC3\x3C" * (BLOCKS * BLOCK // 2)
    assert host.read(0, 1).status == 0


def test_it_goes_on_in_the_background(slow):
    host, other = pair(slow)
    left = start(slow, host, 0x80)
    for result in (host.read(0, 1), other.write(0, bytes(512)), other.command(bytes(6))):
        assert result.sense == SANITIZING
        assert result.pdus[-1].data[2 + 15] & 0x80, "with progress"
    assert host.command(b"\x12\0\0\0\x60\0", 96).status == 0, "INQUIRY passes"
    slow.pace = 1
    wait_for(slow, host)
    assert slow.content() == left


def test_overwriting_twice_inverts_and_tells_how_far_it_is(thick):
    host = Host(thick)
    assert host.finish(overwrite(host, pattern(count=2, invert=1), 0x80), 6, pattern(count=2)).status == 0
    seen = []
    for _ in range(3):                                          # a step, its flush, a step of the second pass
        thick.turn(20)
        seen.append(struct.unpack_from(">H", host.read(0, 1).pdus[-1].data, 2 + 16)[0])
        thick.store.complete_all()
    assert seen == [0, 32767, 32767]
    thick.pace = 1
    wait_for(thick, host)
    assert thick.content() == b"\x3C\xC3" * (BLOCKS * BLOCK // 2)


def test_a_pattern_begins_anew_in_each_block(thick):
    host = Host(thick)
    thick.pace = 1
    assert host.finish(overwrite(host, pattern(text=b"abc"))).status == 0
    assert thick.content() == (b"abc" * 200)[:512] * BLOCKS


def test_aborts_and_resets_do_not_end_it(slow):
    host = Host(slow)
    left = start(slow, host)
    assert host.managed(host.manage(1, rtt=host.itt)) == 0
    assert host.managed(host.manage(5)) == 0
    while (sense := host.command(bytes(6)).sense) >> 16 == 6:
        pass
    assert sense == SANITIZING
    host.close()
    slow.finish()
    host = Host(slow, isid=b"\0\2\x3d\0\0\3")
    assert host.read(0, 1).status == 0 and slow.content() == left


def test_a_host_that_goes_does_not_end_it(slow):
    host = Host(slow)
    left = start(slow, host)
    host.close()
    slow.finish()
    assert slow.content() == left


def test_what_sanitize_refuses(slow):
    host = Host(slow)
    offered = (BLOCK_ERASE if slow.options["thin"] else OVERWRITE, EXIT_FAILURE_MODE)
    for action in range(0x20):
        if action not in offered:
            assert host.command(sanitize_cdb(action)).sense == INVALID_FIELD, hex(action)
    for at in (1, 2, 3, 4, 5, 6):
        cdb = bytearray(sanitize_cdb(offered[0], 6))
        cdb[at] |= 0x40
        assert host.command_out(bytes(cdb), pattern()).sense == INVALID_FIELD
    for bad in (pattern(count=0), pattern(text=b""), pattern(text=b"x" * 513), b"\x01\0\0\x09abc", pattern()[:3]):
        assert host.finish(overwrite(host, bad)).sense in (INVALID_FIELD, INVALID_PARAMETER)
    assert host.command_out(sanitize_cdb(BLOCK_ERASE, 8), bytes(8)).sense == INVALID_FIELD
    assert host.command(sanitize_cdb(EXIT_FAILURE_MODE)).status == 0
    assert slow.content() == b"s" * (BLOCKS * BLOCK)


def test_reservations_and_write_protection_hold_for_sanitize():
    world = Slow()
    host, other = pair(world)
    other.command(bytes(6))
    assert other.command(b"\x16" + bytes(5)).status == 0
    assert host.command(sanitize_cdb(BLOCK_ERASE)).status == CONFLICT
    world.close()
    world = Slow(read_only=True)
    assert Host(world).command(sanitize_cdb(BLOCK_ERASE)).sense == WRITE_PROTECTED
    world.close()


def test_a_sanitize_that_failed():
    world = Slow()
    world.pace = 1
    host = Host(world)
    world.store.fail_next(3)
    assert host.command(sanitize_cdb(BLOCK_ERASE)).sense == SANITIZE_FAILED
    assert host.read(0, 1).sense == SANITIZE_FAILED
    assert host.command(sanitize_cdb(EXIT_FAILURE_MODE)).sense == INVALID_FIELD, "AUSE was not set"
    assert host.command(sanitize_cdb(BLOCK_ERASE)).status == 0
    assert host.read(0, 1).status == 0
    world.store.fail_next(3)
    assert host.command(sanitize_cdb(BLOCK_ERASE, flags=0x20)).sense == SANITIZE_FAILED
    assert host.command(sanitize_cdb(EXIT_FAILURE_MODE)).status == 0
    assert host.read(0, 1).status == 0
    world.close()


def test_a_write_on_its_way_never_lands_behind(slow):
    """Its data come when the erasing has begun."""
    host, other = Host(slow, initial_r2t=True, immediate_data=False), Host(slow, isid=b"\0\2\x3d\0\0\2")
    tag = host.begin(cdb_rw(0x8A, 0, 1), flags=0x20, edtl=512)
    r2t = host.pdu()
    left = start(slow, other, 0x80)
    host._solicited(tag, r2t, b"W" * 512)
    pdu = host.pdu()
    assert (pdu.opcode, pdu.itt, pdu.bhs[3]) == (RESPONSE, tag, 2)
    slow.finish()
    assert slow.content() == left


def test_it_waits_for_writes_at_the_store(slow):
    host, other = pair(slow)
    tag = host.send_command_out(cdb_rw(0x8A, 0, 1), b"W" * 512)
    for _ in range(5):
        host.pump()
    assert len(slow.store.pending()) == 1
    left = start(slow, other, 0x80)
    assert len(slow.store.pending()) == 1, "the write is still there, and nothing else"
    slow.finish()
    assert host.finish(tag).status == 0
    time.sleep(0.002)                                           # it looks again after a millisecond
    slow.finish()
    assert slow.content() == left


def test_a_disk_closes_while_it_is_sanitized(slow):
    host = Host(slow)
    start(slow, host, 0x80)
    assert slow.ask(slow.target.set_lun(0, None)) == 0
    closing = slow.disk.close()
    slow.turn(5)
    assert closing not in slow.tickets, "its last step is still under way"
    slow.pace = 1
    assert slow.ask(closing) == 0
    host.close()
