"""What a plain disk answers, over a whole session: identity, capacity, mode pages, supported commands, attentions."""
from __future__ import annotations

import struct

import pytest

from detour.core.disk import DiskHandle
from detour.core.reactor import Reactor
from detour.core.store import MemoryStore
from tests.support.pdu_client import WRITE, Host, World, cdb_rw

INVALID_FIELD, INVALID_OPCODE, OUT_OF_RANGE, PROTECTED = 0x052400, 0x052000, 0x052100, 0x072700
MODE_CACHING = 0x08


@pytest.fixture
def world():
    made = World()
    yield made
    made.close()


@pytest.fixture
def host(world):
    made = Host(world)
    yield made
    made.close()


def inquiry(host, page=None, length=255):
    return host.command(struct.pack(">BBBHB", 0x12, 0 if page is None else 1, page or 0, length, 0), length)


def mode_sense(host, page, control=0, *, ten=False, flags=8, length=255):
    cdb = struct.pack(">BBBBBBBHB", 0x5A, flags, control << 6 | page, 0, 0, 0, 0, length, 0) if ten \
        else struct.pack(">BBBBBB", 0x1A, flags, control << 6 | page, 0, length, 0)
    return host.command(cdb, length)


def supported(host, options=0, opcode=0, action=0, rctd=False, length=4096):
    return host.command(struct.pack(">BBBBHIBB", 0xA3, 0x0C, options | (0x80 if rctd else 0), opcode, action, length, 0,
                                    0), length)


def test_standard_inquiry(host):
    data = inquiry(host).data
    assert data[0] == 0 and len(data) == 96 == data[4] + 5
    assert data[8:32] == b"DETOUR  VIRTUAL DISK    "
    assert inquiry(host, length=5).data == data[:5]
    assert host.command(bytes([0x12, 0, 0x80, 0, 255, 0]), 255).sense == INVALID_FIELD


def test_vital_product_data_pages(host, world):
    pages = inquiry(host, 0).data
    assert list(pages[4:]) == [0x00, 0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2]
    for page in pages[4:]:
        data = inquiry(host, page).data
        assert data[1] == page and len(data) == 4 + struct.unpack_from(">H", data, 2)[0]
    assert inquiry(host, 0x80).data[4:] == b"test0001"
    identification = inquiry(host, 0x83).data
    assert identification[4:8] == b"\x01\x03\x00\x08" and identification[8:16] == world.disk.naa
    assert identification[8] >> 4 == 3                                          # NAA: locally assigned
    assert inquiry(host, 0xC0).sense == INVALID_FIELD


def test_the_identifier_follows_the_serial():
    reactor = Reactor()
    store = MemoryStore(reactor, 1 << 20)
    first, again, other = (DiskHandle(reactor, store, serial=serial) for serial in ("a", "a", "b"))
    assert first.naa == again.naa != other.naa and first.serial == "a"


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_capacity(block_bytes):
    world = World(size_bytes=8 << 20, block_bytes=block_bytes)
    host = Host(world)
    last = (8 << 20) // block_bytes - 1
    assert host.command(bytes([0x25]) + bytes(9), 8).data == struct.pack(">II", last, block_bytes)
    data = host.command(struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0), 32).data
    assert struct.unpack_from(">QI", data) == (last, block_bytes) and data[14] == 0xC0
    assert host.command(struct.pack(">BBIBHB", 0x25, 0, 5, 0, 0, 0), 8).sense == INVALID_FIELD
    host.close()
    world.close()


@pytest.mark.parametrize("ten", [False, True])
def test_mode_pages(host, ten):
    data = mode_sense(host, 0x3F, ten=ten).data
    head = 8 if ten else 4
    assert (struct.unpack_from(">H", data)[0] + 2 if ten else data[0] + 1) == len(data)
    pages, at = [], head
    while at < len(data):
        pages.append(data[at])
        at += 2 + data[at + 1]
    assert pages == [0x01, 0x08, 0x0A, 0x1C] and at == len(data)
    assert mode_sense(host, MODE_CACHING, 2, ten=ten).data == mode_sense(host, MODE_CACHING, ten=ten).data
    assert mode_sense(host, MODE_CACHING, 3, ten=ten).sense == 0x053900
    assert mode_sense(host, 0x2F, ten=ten).sense == INVALID_FIELD
    descriptor = mode_sense(host, MODE_CACHING, ten=ten, flags=0).data[head:head + 8]
    assert struct.unpack(">II", descriptor) == (8192, 512)


@pytest.mark.parametrize("write_cache", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_mode_pages_tell_cache_and_protection(write_cache, read_only):
    world = World(write_cache=write_cache, read_only=read_only)
    host = Host(world)
    data = mode_sense(host, MODE_CACHING).data
    assert bool(data[4 + 2] & 4) == write_cache and bool(data[2] & 0x80) == read_only
    assert host.write(0, bytes(512)).sense == (PROTECTED if read_only else 0)
    host.close()
    world.close()


def test_supported_commands_agree_with_what_is_done(host):
    data = supported(host).data
    listed = [(data[at], struct.unpack_from(">H", data, at + 2)[0], data[at + 5] & 1,
               struct.unpack_from(">H", data, at + 6)[0]) for at in range(4, len(data), 8)]
    assert struct.unpack_from(">I", data)[0] == len(data) - 4 and len(listed) > 30
    for opcode, action, has_action, cdb_bytes in listed:
        one = supported(host, 2 if has_action else 1, opcode, action).data
        assert one[1] & 7 == 3 and struct.unpack_from(">H", one, 2)[0] == cdb_bytes == len(one) - 4
        assert one[4] == opcode
        cdb = bytes([opcode, action if has_action else 0]) + bytes(cdb_bytes - 2)
        assert host.command(cdb, 255).sense != INVALID_OPCODE, hex(opcode)
        wrong = supported(host, 1 if has_action else 2, opcode, action)
        assert wrong.sense == INVALID_FIELD and wrong.pdus[-1].data[17:20] == b"\xc0\0\x02"
    known = {opcode for opcode, *_ in listed}
    for opcode in (0x04, 0x07, 0x3B, 0x3F, 0x7F, 0xC1):
        assert opcode not in known and supported(host, 3, opcode).data[1] & 7 == 1
        assert host.command(bytes([opcode]) + bytes(15)).sense == INVALID_OPCODE
    assert supported(host, 4).sense == INVALID_FIELD
    timed = supported(host, rctd=True).data
    assert len(timed) == 4 + len(listed) * 20 and timed[4 + 8:4 + 10] == b"\0\x0a"


def test_a_thick_disk_has_no_unmap():
    world = World(thin=False)
    host = Host(world)
    assert inquiry(host, 0xB2).data[5] == 0 and supported(host, 1, 0x42).data[1] & 7 == 1
    assert host.command_out(struct.pack(">BBIBHB", 0x42, 0, 0, 0, 24, 0), bytes(24)).sense == INVALID_OPCODE
    assert host.command_out(cdb_rw(0x93, 0, 8, 0x08), bytes(512)).sense == INVALID_FIELD
    assert host.command_out(cdb_rw(0x93, 0, 8), bytes(512)).status == 0
    host.close()
    world.close()


def test_small_commands(host):
    for cdb in (bytes(6), bytes([0x1B, 0, 0, 0, 1, 0]), bytes([0x1E, 0, 0, 0, 1, 0]), bytes([0x1D, 4, 0, 0, 0, 0])):
        assert host.command(cdb).status == 0
    assert host.command(bytes([0xA3, 0x0D]) + bytes(6) + bytes([0, 16, 0, 0]), 16).data[0] & 0xD8 == 0xD8


def test_the_attention_of_a_new_nexus_is_told_once(world):
    host = Host(world, eat_attention=False)
    assert inquiry(host).status == 0                                            # INQUIRY passes it
    assert host.command(bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), 256).status == 0
    assert host.command(bytes(6)).sense == 0x062900
    assert host.command(bytes(6)).status == 0
    host.close()
    host = Host(world, eat_attention=False)
    data = host.command(bytes([3, 0, 0, 0, 18, 0]), 18).data                    # REQUEST SENSE tells it as data
    assert (data[2], data[12]) == (6, 0x29)
    assert host.command(bytes(6)).status == 0
    assert host.command(bytes([3, 1, 0, 0, 18, 0]), 18).data[:2] == b"\x72\0"
    host.close()


def test_writes_with_a_delay_reach_the_store_later():
    world = World(delay_us=20000)
    world.reactor.set_clock(10**9)
    host = Host(world)
    itt = host.begin(cdb_rw(0x8A, 0, 1), flags=WRITE, edtl=512, data=b"d" * 512)
    assert host.nothing_comes() and bytes(world.image[:1]) == b"\0"
    world.reactor.set_clock(10**9 + 30 * 10**6)
    assert host.finish(itt, 512).status == 0 and bytes(world.image[:1]) == b"d"
    host.close()
    world.close()


def test_a_disk_with_a_write_rate_takes_no_more():
    world = World(write_bytes_s=51200)                      # a block in 10 ms
    world.reactor.set_clock(10**9)
    host = Host(world)
    tags = [host.begin(cdb_rw(0x8A, lba, 1), flags=WRITE, edtl=512, data=b"d" * 512) for lba in range(5)]
    assert host.nothing_comes()
    for count in range(6):
        world.reactor.set_clock(10**9 + count * 10_000_000 + 1_000_000)
        world.turn(3)
        assert bytes(world.image[:2560:512]) == b"d" * count + bytes(5 - count)
    assert [host.finish(tag).status for tag in tags] == [0] * 5
    host.close()
    world.close()


def test_a_disk_lives_on_its_stores_reactor():
    reactor = Reactor()
    store = MemoryStore(reactor, 1 << 20)
    with pytest.raises(ValueError, match="another reactor"):
        DiskHandle(Reactor(), store)
    disk = DiskHandle(reactor, store)
    assert (disk.blocks, disk.block_bytes, disk.size_bytes, disk.read_only) == (2048, 512, 1 << 20, False)
    ticket = disk.close()
    reactor.turn()
    assert [(item[1], item[2]) for item in reactor.drain()] == [(ticket, 0)]
    with pytest.raises(ValueError, match="closed"):
        disk.close()
