"""A medium that comes and goes, write caching as hosts set it, and the map of mapped blocks, over a plain disk."""
from __future__ import annotations

import itertools
import os
import struct
from typing import Any

import pytest

from detour.core.disk import DiskHandle
from detour.core.fault_store import FaultStoreHandle
from detour.core.filestore import FileStoreHandle
from detour.core.target import TargetHandle
from tests.support.pdu_client import WRITE, Host, World, cdb_rw

NOT_PRESENT, CHANGED, PREVENTED, INVALID_FIELD = 0x023A00, 0x062800, 0x055302, 0x052400
OUT_OF_RANGE, LUN_RESET, READ_ERROR = 0x052100, 0x062903, 0x031100
EJECT, LOAD, START, STOP = 0x02, 0x03, 0x01, 0x00
MAPPED, DEALLOCATED = 0, 1
STORE_WRITE, STORE_FLUSH, STORE_MAP = 1, 2, 5
E_IO = -2


def host_of(world: World, number: int = 1, **more: Any) -> Host:
    return Host(world, name=f"iqn.2026-01.example:host{number}", isid=bytes([0, 2, 0x3D, 0, 0, number]), **more)


@pytest.fixture
def world():
    made = World(removable=True)
    yield made
    made.close()


def start_stop(host: Host, flags: int, immed: int = 0) -> Any:
    return host.command(bytes([0x1B, immed, 0, 0, flags, 0]))


def prevent(host: Host, value: int) -> Any:
    return host.command(bytes([0x1E, 0, 0, 0, value, 0]))


def ready(host: Host) -> int:
    return host.command(bytes(6)).sense


# ---- removable medium ------------------------------------------------------------------------------------------------

def test_what_is_ejected_is_gone_until_it_is_loaded(world):
    host, other = host_of(world), host_of(world, 2)
    host.write(5, b"x" * 512)
    assert start_stop(host, EJECT).status == 0 and start_stop(host, EJECT).status == 0
    refused = [bytes(6), cdb_rw(0x28, 0, 1), cdb_rw(0x2A, 0, 1), cdb_rw(0x35, 0, 0), cdb_rw(0x2F, 0, 1),
               cdb_rw(0x34, 0, 1), bytes([0x25]) + bytes(9), bytes([0x9E, 0x10]) + bytes(14),
               bytes([0x9E, 0x12]) + bytes(14), cdb_rw(0x93, 0, 1), cdb_rw(0x41, 0, 1), bytes([0x42]) + bytes(9),
               bytes([0x37]) + bytes(9), bytes([0xB7]) + bytes(11),
               bytes([0x1B, 0, 0, 0, START, 0]), bytes([0x1D, 4, 0, 0, 0, 0])]
    for cdb in refused:
        assert host.command(cdb).sense == NOT_PRESENT == other.command(cdb).sense, cdb.hex()
    for cdb in (bytes([0x12, 0, 0, 0, 96, 0]), bytes([0x1A, 8, 0x3F, 0, 96, 0]), bytes([0xA0]) + bytes(8) + b"\x60\0\0",
                bytes([0xA3, 0x0C]) + bytes(7) + b"\x60\0\0", bytes([0x4D, 0, 0x40, 0, 0, 0, 0, 0, 96, 0])):
        assert host.command(cdb, 96).status == 0, cdb.hex()
    sense = host.command(bytes([3, 0, 0, 0, 18, 0]), 18).data
    assert (sense[2], sense[12], sense[13]) == (2, 0x3A, 0)
    assert start_stop(host, LOAD).status == 0
    assert ready(host) == 0                                                     # who loaded it knows
    assert ready(other) == CHANGED and ready(other) == 0
    assert host.read(5, 1).data == b"x" * 512
    assert start_stop(host, LOAD).status == 0 and ready(other) == 0             # loaded already: nothing changed
    host.close()
    other.close()


def test_data_that_come_after_the_medium_went_are_not_written(world):
    host, other = host_of(world, initial_r2t=True, immediate_data=False), host_of(world, 2)
    itt = host.begin(cdb_rw(0x2A, 3, 1), flags=WRITE, edtl=512)
    r2t = host.pdu()
    assert r2t.opcode == 0x31
    assert start_stop(other, EJECT).status == 0
    host.data_out(itt, b"z" * 512, 0, 0, ttt=r2t.word(20), final=True)
    host.r2ts[itt] = 1
    assert host.finish(itt).sense == NOT_PRESENT and not any(world.image[3 * 512:4 * 512])
    assert start_stop(other, LOAD).status == 0
    assert ready(host) == CHANGED
    host.close()
    other.close()


def test_any_nexus_prevents_for_all_and_only_allows_for_itself(world):
    host, other = host_of(world), host_of(world, 2)
    assert prevent(host, 1).status == 0 == prevent(other, 1).status
    assert start_stop(host, EJECT).sense == PREVENTED
    assert prevent(host, 0).status == 0
    assert start_stop(host, EJECT).sense == PREVENTED == start_stop(other, EJECT).sense
    assert ready(host) == 0
    other.close()
    world.turn(10)
    assert start_stop(host, EJECT).status == 0                                  # the lost nexus prevents no more
    assert prevent(host, 1).status == 0 and start_stop(host, LOAD).sense == PREVENTED
    assert prevent(host, 2).sense == INVALID_FIELD == prevent(host, 3).sense
    assert prevent(host, 0).status == 0 and start_stop(host, LOAD).status == 0
    host.close()


@pytest.mark.parametrize("function", [5, 6])
def test_a_reset_allows_removal_and_sets_modes_back(world, function):
    host, other = host_of(world), host_of(world, 2)
    prevent(other, 1)
    page = bytearray(host.command(bytes([0x1A, 8, 0x0A, 0, 64, 0]), 64).data[4:])
    page[4] |= 0x08                                                             # SWP
    assert host.command_out(bytes([0x15, 0x10, 0, 0, 16, 0]), bytes(4) + page).status == 0
    host.request(2, 0x80 | function, w20=0)
    assert host.pdu().bhs[2] == 0
    assert ready(host) in (LUN_RESET, 0x062902, 0x062900) and ready(host) == 0
    assert host.write(0, bytes(512)).status == 0 and start_stop(host, EJECT).status == 0
    host.close()
    other.close()


def test_a_fixed_disk_keeps_its_medium():
    world = World()
    host = host_of(world)
    assert start_stop(host, EJECT).sense == INVALID_FIELD == start_stop(host, LOAD).sense
    assert prevent(host, 1).status == 0 == prevent(host, 0).status
    for flags in (STOP, START, 0x10, 0x21, 0x30, 0x70, 0xA0, 0xB0, 0x04):
        assert start_stop(host, flags).status == 0 and ready(host) == 0
    host.close()
    world.close()


# ---- write caching ---------------------------------------------------------------------------------------------------

class SlowWorld(World):
    """A disk over a store that does nothing before it is told to."""

    def __init__(self, **disk: Any) -> None:
        super().__init__()
        self.slow = FaultStoreHandle(self.reactor, 1 << 20)
        self.disk = DiskHandle(self.reactor, self.slow, serial="slow", **disk)
        assert self.ask(self.target.set_lun(0, None)) == 0 == self.ask(self.target.set_lun(0, self.disk))


def pending_ops(world: SlowWorld) -> list[int]:
    return [op for op, *_ in world.slow.pending()]


def complete(world: SlowWorld, status: int = 0) -> None:
    world.turn(5)
    world.slow.complete(0, status)


def write_begun(host: Host, lba: int = 0, flags: int = 0) -> int:
    itt = host.begin(cdb_rw(0x2A, lba, 1, flags), flags=WRITE, edtl=512, data=b"d" * 512)
    assert host.nothing_comes()
    return itt


def set_cache(host: Host, on: bool) -> int:
    """Begins a MODE SELECT of WCE; answers its tag."""
    page = bytes([0x08, 0x12, 0x04 if on else 0]) + bytes(17)
    return host.begin(bytes([0x15, 0x10, 0, 0, 24, 0]), flags=WRITE, edtl=24, data=bytes(4) + page)


def test_without_a_write_cache_every_write_is_stable_before_its_answer():
    world = SlowWorld()
    host = host_of(world)
    itt = write_begun(host)
    complete(world)
    assert host.finish(itt).status == 0 and bytes(world.slow.stable[:1]) == b"\0"
    itt = set_cache(host, False)
    assert host.nothing_comes() and pending_ops(world) == [STORE_FLUSH]         # what the cache held goes first
    complete(world)
    assert host.finish(itt).status == 0 and bytes(world.slow.stable[:1]) == b"d"
    itt = write_begun(host, 3)
    complete(world)
    assert host.finish(itt).status == 0 and bytes(world.slow.stable[1536:1537]) == b"d"
    itt = host.begin(cdb_rw(0x93, 0, 1, 8), flags=WRITE, edtl=512, data=bytes(512))     # unmapped: flushed behind it
    assert host.nothing_comes()
    complete(world)
    assert host.nothing_comes() and pending_ops(world) == [STORE_FLUSH]
    complete(world)
    assert host.finish(itt).status == 0 and bytes(world.slow.stable[:1]) == b"\0"
    assert host.finish(set_cache(host, True)).status == 0                       # nothing to flush
    itt = write_begun(host, 7)
    complete(world)
    assert host.finish(itt).status == 0 and bytes(world.slow.stable[3584:3585]) == b"\0"
    host.close()
    world.close()


def test_a_write_on_its_way_when_the_cache_goes_off_is_stable_too():
    world = SlowWorld()
    host = host_of(world)
    writing, setting = write_begun(host), set_cache(host, False)
    assert host.nothing_comes() and pending_ops(world) == [STORE_WRITE, STORE_FLUSH]
    world.slow.complete(1)
    assert host.finish(setting).status == 0
    complete(world)
    assert host.nothing_comes() and pending_ops(world) == [STORE_FLUSH]
    complete(world)
    assert host.finish(writing).status == 0 and bytes(world.slow.stable[:1]) == b"d"
    host.close()
    world.close()


def test_a_store_that_fails_is_counted_in_the_log():
    world = SlowWorld()
    host = host_of(world)
    itt = write_begun(host)
    complete(world, E_IO)
    assert host.finish(itt).sense >> 16 == 3
    itt = host.begin(cdb_rw(0x28, 0, 1), flags=0x40, edtl=512)
    assert host.nothing_comes()
    complete(world, E_IO)
    assert host.finish(itt, 512).sense == READ_ERROR
    for page in (2, 3):
        data = host.command(bytes([0x4D, 0, 0x40 | page, 0, 0, 0, 6, 0, 64, 0]), 64).data
        assert data[4:] == b"\0\6\x20\x08" + struct.pack(">Q", 1)               # total uncorrected errors
    host.close()
    world.close()


# ---- the map ---------------------------------------------------------------------------------------------------------

def status_of(host: Host, lba: int, length: int = 4096) -> Any:
    return host.command(struct.pack(">BBQIBB", 0x9E, 0x12, lba, length, 0, 0), length)


def runs(data: bytes) -> list[tuple[int, int, int]]:
    """(LBA, blocks, provisioning status) of each descriptor; they follow one another."""
    assert struct.unpack_from(">I", data)[0] == len(data) - 4 and data[4:8] == bytes(4)
    found = [struct.unpack_from(">QIB", data, at) for at in range(8, len(data), 16)]
    for at in range(8, len(data), 16):
        assert data[at + 13:at + 16] == bytes(3)
    for (lba, blocks, status), (following, _, other) in itertools.pairwise(found):
        assert lba + blocks == following and status != other
    return found


def test_memory_tells_what_is_mapped(world):
    host = host_of(world)
    blocks = world.disk.blocks
    assert runs(status_of(host, 0).data) == [(0, blocks, DEALLOCATED)]
    for lba in (8, 9, 100):
        host.write(lba, b"x" * 512)
    whole = [(0, 8, DEALLOCATED), (8, 2, MAPPED), (10, 90, DEALLOCATED), (100, 1, MAPPED),
             (101, blocks - 101, DEALLOCATED)]
    assert runs(status_of(host, 0).data) == whole
    assert runs(status_of(host, 9).data) == [(9, 1, MAPPED), *whole[2:]]
    assert runs(status_of(host, blocks - 1).data) == [(blocks - 1, 1, DEALLOCATED)]
    for length in (24, 39, 40, 56, 4096):
        assert runs(status_of(host, 0, length).data)[:(length - 8) // 16] == whole[:(length - 8) // 16]
    assert len(status_of(host, 0, 39).data) == 24
    whole_24 = status_of(host, 0, 24).data
    for length in (0, 4, 8, 23):
        assert status_of(host, 0, length).data == whole_24[:length]
    assert status_of(host, blocks).sense == OUT_OF_RANGE == status_of(host, 1 << 63).sense
    unmap = struct.pack(">HHIQII", 22, 16, 0, 8, 2, 0)
    assert host.command_out(struct.pack(">BB5sHB", 0x42, 0, bytes(5), 24, 0), unmap).status == 0
    assert runs(status_of(host, 0).data)[0] == (0, 100, DEALLOCATED)
    host.close()


def test_more_runs_than_an_answer_has_room_for(world):
    host = host_of(world)
    for lba in range(0, 1024, 2):
        world.image[lba * 512] = 1
    found, lba = [], 0
    while lba < 1024:
        found += runs(status_of(host, lba).data)
        lba = found[-1][0] + found[-1][1]
    assert found[:1024] == [(lba, 1, DEALLOCATED if lba % 2 else MAPPED) for lba in range(1023)] + [
        (1023, world.disk.blocks - 1023, DEALLOCATED)]
    host.close()


def test_a_failing_map_is_a_read_error():
    world = SlowWorld()
    host = host_of(world)
    itt = host.begin(struct.pack(">BBQIBB", 0x9E, 0x12, 0, 64, 0, 0), flags=0x40, edtl=64)
    assert host.nothing_comes() and pending_ops(world) == [STORE_MAP]
    complete(world, E_IO)
    assert host.finish(itt, 64).sense == READ_ERROR
    host.close()
    world.close()


class FileWorld(World):
    """A disk over a sparse file; the workers are threads, so turns may take a moment."""

    def __init__(self, path, **file: Any) -> None:
        super().__init__()
        self.block_bytes = file.get("block_bytes", 512)
        self.file = FileStoreHandle(self.reactor, path, 8 << 20, create=True, **file)
        self.disk = DiskHandle(self.reactor, self.file, serial="file")
        self.target = TargetHandle(self.reactor, 8, nop_interval_ms=0)
        assert self.ask(self.target.set_lun(0, self.disk)) == 0

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            super().turn()
            if self.disk is not None and hasattr(self, "file") and self.file.in_flight:
                self.reactor.turn(20)


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_a_file_with_holes(tmp_path, block_bytes):
    path = tmp_path / "image"
    world = FileWorld(path, block_bytes=block_bytes)
    host = host_of(world)
    per_page, blocks = 4096 // block_bytes, (8 << 20) // block_bytes
    assert runs(status_of(host, 0).data) == [(0, blocks, DEALLOCATED)]
    with path.open("r+b") as image:
        for page in (1, 2, 500, 2047):
            image.seek(page * 4096)
            image.write(b"x" * 4096)
        os.fsync(image.fileno())
    told = runs(status_of(host, 0).data)
    mapped = [(lba, count) for lba, count, status in told if status == MAPPED]
    assert sum(count for *_, count, _ in told) == blocks
    for page in (1, 2, 500, 2047):
        assert any(lba <= page * per_page and (page + 1) * per_page <= lba + count for lba, count in mapped)
    assert runs(status_of(host, 2047 * per_page).data) == [(2047 * per_page, per_page, MAPPED)]
    before = path.stat().st_blocks
    unmap = struct.pack(">HHIQII", 22, 16, 0, 0, 1000 * per_page, 0)
    assert host.command_out(struct.pack(">BB5sHB", 0x42, 0, bytes(5), 24, 0), unmap).status == 0
    assert path.stat().st_blocks < before                                       # the room is the file system's again
    assert runs(status_of(host, 0).data)[0][2] == DEALLOCATED
    assert host.read(per_page, per_page).data == bytes(4096)
    host.close()
    assert world.ask(world.target.close()) == 0
