"""Any CDB with any parameter data: a plain disk answers GOOD or CHECK CONDITION and keeps to the allocation length."""
from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detour.core import _testing_target
from tests.support.pdu_client import READ, WRITE, Host, World

GOOD, CHECK_CONDITION, RESERVATION_CONFLICT = 0x00, 0x02, 0x18
ROOM = 8192
SANITIZE = 0x48                             # has a clock of its own
DATA_IN, DATA_OUT = 1, 2

# What a disk answers by itself, so that most CDBs get beyond the first look.
OPCODES = [0x00, 0x03, 0x12, 0x15, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x25, 0x37, 0x4C, 0x4D, 0x55, 0x5A, 0x5E, 0x5F, 0x84,
           0x9E, 0xA0, 0xA3, 0xB7, 0x16, 0x17, 0x42, 0x83, 0x89]
small = st.sampled_from([0, 1, 4, 8, 24, 64, 255])
byte = st.one_of(st.sampled_from([0, 1, 2, 4, 8, 0x10, 0x0C, 0x12, 0x3F, 0x80, 0x83, 0xB0, 0xFF]), st.integers(0, 255))


@st.composite
def commands(draw) -> tuple[bytes, bytes]:
    opcode = draw(st.one_of(st.sampled_from(OPCODES), st.integers(0, 255).filter(lambda code: code != SANITIZE)))
    cdb = bytearray([opcode, *draw(st.lists(byte, min_size=15, max_size=15))])
    decoded = _testing_target.decode(bytes(cdb))
    if draw(st.booleans()) and decoded["cdb_bytes"]:
        cdb[decoded["cdb_bytes"] - 1] = 0                                       # control
    if draw(st.booleans()):
        at = {6: 4, 10: 8, 12: 9, 16: 13}.get(decoded["cdb_bytes"], 4)
        cdb[max(2, at - 3):at] = bytes(at - max(2, at - 3))
        cdb[at] = draw(small)
    return bytes(cdb), draw(st.binary(max_size=64))


@pytest.fixture(scope="module")
def worlds():
    made = [World(size_bytes=1 << 20), World(size_bytes=1 << 20, removable=True, thin=False, block_bytes=4096),
            World(size_bytes=1 << 20, read_only=True)]
    hosts = [Host(world) for world in made]
    yield hosts
    for host, world in zip(hosts, made, strict=True):
        host.close()
        assert world.quiet()
        world.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), command=commands())
def test_any_command_is_answered(worlds, which, command):
    host = worlds[which]
    cdb, data = command
    decoded = _testing_target.decode(cdb)
    direction, told = decoded["direction"], decoded["length_bytes"]
    block_bytes = host.world.block_bytes
    if decoded["blocks"] > 64:
        return                              # data commands are tested elsewhere
    if direction == DATA_OUT:
        data = data if told == 0 or decoded["blocks"] else data[:told].ljust(told, b"\0")[:4096]
        itt = host.begin(cdb, flags=WRITE if data else 0, edtl=len(data), data=data)
        result = host.finish(itt, 0, data)
    else:
        room = ROOM if direction == DATA_IN else 0
        itt = host.begin(cdb, flags=READ if room else 0, edtl=room)
        result = host.finish(itt, room)
    assert result.status in (GOOD, CHECK_CONDITION, RESERVATION_CONFLICT), (cdb.hex(), result)
    if result.status == CHECK_CONDITION:
        assert result.sense >> 16 in (2, 5, 6, 7, 0xA, 0xB, 0xE) and not result.data, (cdb.hex(), result)
    elif decoded["blocks"] == 0 and direction == DATA_IN and cdb[0] not in (0x25,):
        assert len(result.data) <= told, cdb.hex()
    else:
        assert len(result.data) <= max(decoded["blocks"] * block_bytes, 8), cdb.hex()


pages = st.sampled_from([0x01, 0x08, 0x0A, 0x1C, 0x3F, 0x02])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(page=pages, flips=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 7)), max_size=3), cut=st.integers(0, 2),
       ten=st.booleans())
def test_mode_select_does_what_mode_sense_then_tells(worlds, page, flips, cut, ten):
    """What is taken is what is told from then on, but for the bits that a host cannot set; else nothing changes."""
    host = worlds[0]
    head = 8 if ten else 4

    def sense(control: int = 0) -> bytes:
        cdb = struct.pack(">BBBBBBBHB", 0x5A, 8, control << 6 | 0x3F, 0, 0, 0, 0, 512, 0)
        return host.command(cdb, 512).data[8:]

    def split(data: bytes) -> dict[int, bytes]:
        found, at = {}, 0
        while at < len(data):
            found[data[at]] = data[at:at + 2 + data[at + 1]]
            at += 2 + data[at + 1]
        return found

    while host.command(bytes(6)).status:
        pass
    if split(sense())[0x0A][2] & 0x04:                      # D_SENSE: the client reads fixed format
        restore = bytearray(split(sense())[0x0A])
        restore[2] &= ~0x04 & 0xFF
        assert host.command_out(bytes([0x15, 0x10, 0, 0, 16, 0]), bytes(4) + bytes(restore)).status == 0
    before = split(sense())
    wanted = bytearray(bytes(head) + before.get(page, bytes([page, 0x0A]) + bytes(10)))
    for at, bit in flips:
        wanted[at % len(wanted)] ^= 1 << bit
    wanted = wanted[:len(wanted) - cut]
    cdb = struct.pack(">BB5sHB", 0x55, 0x10, bytes(5), len(wanted), 0) if ten \
        else bytes([0x15, 0x10, 0, 0, len(wanted), 0])
    result = host.command_out(cdb, bytes(wanted))
    after = split(sense())
    assert after.keys() == before.keys()
    if result.status == 0:
        taken = {code & 0x3F: bytes([code & 0x3F]) + value[1:] for code, value in split(bytes(wanted[head:])).items()}
        assert after == {**before, **taken}
    else:
        assert after == before and (result.sense in (0x052600, 0x051A00) or host.world.disk.read_only)
