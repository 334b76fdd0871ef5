"""The target side over socketpairs: data transfer in every combination of values, residuals, broken rules."""
from __future__ import annotations

import itertools
import random
import struct

import pytest

from tests.support.pdu_client import (
    NONE,
    NOP_OUT,
    R2T,
    READ,
    REJECT,
    WRITE,
    Host,
    World,
    cdb_rw,
)

BLOCK = 512
INVALID_FIELD, OUT_OF_RANGE, NO_LUN = 0x052400, 0x052100, 0x052500
UNEXPECTED, AMOUNT, CRC, MISCOMPARE = 0x0B0C0C, 0x0B0C0D, 0x0B4705, 0x0E1D00
TUR = bytes(6)


def noise(length, seed=1):
    return random.Random(seed).randbytes(length)


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


# --- data transfer

COMBINATIONS = list(itertools.product(
    (False, True), (False, True), ((512, 512, 512), (4096, 16384, 8192), (65536, 262144, 65536), (1 << 20,) * 3),
    (1, 4), ((False, False), (True, True))))


@pytest.mark.parametrize(("initial_r2t", "immediate", "sizes", "outstanding", "digests"), COMBINATIONS)
def test_every_combination_of_negotiated_values(initial_r2t, immediate, sizes, outstanding, digests):
    mrdsl, burst, first = sizes
    world = World()
    host = Host(world, initial_r2t=initial_r2t, immediate_data=immediate, recv_data_bytes_max=mrdsl,
                send_data_bytes_max=mrdsl, burst_bytes_max=burst, first_burst_bytes=first,
                outstanding_r2t_max=outstanding, header_digest=digests[0], data_digest=digests[1])
    model = bytearray(4 << 20)
    lengths = (1, 17, 128) if mrdsl == 512 else (1, 17, 256, 5000)
    for seed, blocks in enumerate(lengths):
        lba, data = 3 + 7 * seed, noise(blocks * BLOCK, seed)
        assert host.write(lba, data).status == 0
        model[lba * BLOCK:lba * BLOCK + len(data)] = data
        result = host.read(lba, blocks)
        assert (result.status, result.residual) == (0, 0) and result.data == data
        assert result.pdus[-1].opcode == 0x25               # the status came with the last Data-In
    assert world.image == model
    host.close()
    assert world.quiet()
    world.close()


@pytest.mark.parametrize(("opcode", "blocks"), [
    (0x0A, 5), (0x2A, 9), (0xAA, 9), (0x8A, 9), (0x2E, 9), (0xAE, 9), (0x8E, 9)])
def test_every_form_of_write_and_read(host, world, opcode, blocks):
    data = noise(blocks * BLOCK)
    if opcode == 0x0A:
        assert host.command_out(bytes([0x0A, 0, 0, 7, blocks, 0]), data).status == 0
        assert host.command(bytes([0x08, 0, 0, 7, blocks, 0]), len(data)).data == data
        return
    assert host.write(7, data, opcode, 0x18 if opcode & 0x0F == 0x0A else 0x02).status == 0
    assert world.image[7 * BLOCK:16 * BLOCK] == data
    for read in (0x28, 0xA8, 0x88):
        assert host.read(7, blocks, read, 0x18).data == data


def test_six_byte_reads_of_256_blocks(host, world):
    world.image[:256 * BLOCK] = noise(256 * BLOCK)
    assert host.command(bytes([0x08, 0, 0, 0, 0, 0]), 256 * BLOCK).data == world.image[:256 * BLOCK]


@pytest.mark.parametrize("opcode", [0x28, 0x2A, 0x2E, 0x2F, 0x35, 0x34, 0x41, 0x88, 0x8A, 0x8E, 0x8F, 0x91, 0x90, 0x93])
def test_nothing_beyond_the_last_block(host, opcode):
    data = bytes(2 * BLOCK)
    one_block = opcode in (0x41, 0x93)
    for lba, blocks in ((8191, 2), (8193, 0), (0xFFFFFFFF, 1)):
        if opcode in (0x2A, 0x2E, 0x8A, 0x8E) or one_block:
            result = host.command_out(cdb_rw(opcode, lba, blocks), data[:BLOCK] if one_block else data[:blocks * BLOCK])
        else:
            result = host.command(cdb_rw(opcode, lba, blocks), blocks * BLOCK if opcode in (0x28, 0x88) else 0)
        assert (result.status, result.sense) == (2, OUT_OF_RANGE)
    assert host.command(cdb_rw(0x8F, 0xFFFFFFFFFFFFFFFF, 2)).sense == OUT_OF_RANGE


def test_protection_bits_and_naca_are_refused(host):
    for opcode in (0x28, 0x2F, 0x88, 0xA8):
        assert host.command(cdb_rw(opcode, 0, 1, 0x20), BLOCK).sense == INVALID_FIELD
    for opcode in (0x2A, 0x8A, 0x2E, 0x41):
        assert host.command_out(cdb_rw(opcode, 0, 1, 0x20), bytes(BLOCK)).sense == INVALID_FIELD
    assert host.command(bytes([0, 0, 0, 0, 0, 4])).sense == INVALID_FIELD


def test_synchronize_and_prefetch(host):
    for opcode, blocks, flags in ((0x35, 0, 0), (0x91, 100, 0), (0x91, 100, 2), (0x34, 8, 0), (0x90, 8, 0)):
        assert host.command(cdb_rw(opcode, 5, blocks, flags)).status in (0, 4)


# --- residuals

@pytest.mark.parametrize(("blocks", "edtl", "moved"), [
    (1, 0, 0), (1, 100, 100), (1, 512, 512), (1, 1024, 512), (2, 512, 512), (2, 700, 700), (0, 512, 0),
    (3000, 1536, 1536)])
def test_residuals_of_reads(host, world, blocks, edtl, moved):
    world.image[:4096] = noise(4096)
    result = host.finish(host.begin(cdb_rw(0x88, 0, blocks), flags=READ, edtl=edtl), edtl)
    assert (result.status, result.residual) == (0, blocks * BLOCK - edtl)
    assert result.data == world.image[:moved]


@pytest.mark.parametrize(("blocks", "edtl", "written"), [
    (1, 0, 0), (1, 100, 0), (1, 512, 512), (1, 1024, 512), (2, 512, 512), (2, 700, 512), (0, 512, 0), (1, 70000, 512),
    (300, 70000, 69632)])
@pytest.mark.parametrize(("immediate", "initial_r2t"), [(True, False), (True, True), (False, False), (False, True)])
def test_residuals_of_writes(blocks, edtl, written, immediate, initial_r2t):
    world = World()
    host = Host(world, immediate_data=immediate, initial_r2t=initial_r2t, recv_data_bytes_max=4096,
                first_burst_bytes=16384)
    data = noise(edtl)
    result = host.command_out(cdb_rw(0x8A, 0, blocks), data)
    assert (result.status, result.residual) == (0, blocks * BLOCK - edtl)
    assert world.image[:written] == data[:written] and not any(world.image[written:written + 70000])
    host.close()
    world.close()


def test_residuals_of_information(host):
    result = host.command(bytes([0x12, 0, 0, 0, 255, 0]), 255)
    assert result.residual == 96 - 255
    result = host.finish(host.begin(bytes([0x12, 0, 0, 0, 255, 0]), flags=READ, edtl=10), 10)
    assert (result.residual, len(result.data)) == (86, 10)


def test_a_failed_command_moved_nothing(host):
    result = host.command(cdb_rw(0x28, 9000, 1), BLOCK)
    assert (result.sense, result.residual) == (OUT_OF_RANGE, -BLOCK)


def test_flags_that_do_not_fit_the_command(host):
    result = host.finish(host.begin(cdb_rw(0x28, 0, 1), flags=WRITE, edtl=BLOCK, data=bytes(BLOCK)), BLOCK)
    assert result.data == b""
    both = host.finish(host.begin(cdb_rw(0x28, 0, 1), flags=READ | WRITE, edtl=BLOCK), BLOCK)
    assert both.sense == INVALID_FIELD
    assert host.read(0, 1).status == 0


# --- VERIFY, WRITE SAME, UNMAP

@pytest.mark.parametrize("opcode", [0x2F, 0xAF, 0x8F])
def test_verify(host, world, opcode):
    data = noise(2500 * BLOCK)
    world.image[:len(data)] = data
    assert host.command(cdb_rw(opcode, 0, 8192)).status == 0                   # BYTCHK 0: that it can be read
    assert host.write(0, data, opcode, 0x02).status == 0
    wrong = bytearray(data)
    wrong[-1] ^= 1
    assert host.write(0, bytes(wrong), opcode, 0x02).sense == MISCOMPARE
    world.image[:100 * BLOCK] = data[:BLOCK] * 100
    assert host.command_out(cdb_rw(opcode, 0, 100, 0x06), data[:BLOCK]).status == 0
    assert host.command_out(cdb_rw(opcode, 0, 101, 0x06), data[:BLOCK]).sense == MISCOMPARE
    assert host.command(cdb_rw(opcode, 0, 1, 0x04)).sense == INVALID_FIELD
    assert world.quiet()


def test_verifies_at_once_take_turns(host, world):
    data = noise(3000 * BLOCK)
    world.image[:len(data)] = data
    tags = [host.send_command_out(cdb_rw(0x8F, 0, 3000, 0x02), data) for _ in range(3)]
    statuses = {}
    while len(statuses) < 3:
        pdu = host.pdu()
        if pdu.opcode == R2T:
            host._solicited(pdu.itt, pdu, data)
        else:
            statuses[pdu.itt] = pdu.bhs[3]
    assert statuses == dict.fromkeys(tags, 0)


def test_write_and_verify_writes(host, world):
    data = noise(2500 * BLOCK)
    assert host.write(3, data, 0x8E, 0x02).status == 0
    assert world.image[3 * BLOCK:2503 * BLOCK] == data


@pytest.mark.parametrize("opcode", [0x41, 0x93])
def test_write_same(host, world, opcode):
    block = noise(BLOCK)
    assert host.command_out(cdb_rw(opcode, 10, 5000), block).status == 0
    assert world.image[10 * BLOCK:5010 * BLOCK] == block * 5000 and not any(world.image[5010 * BLOCK:])
    assert host.command_out(cdb_rw(opcode, 4000, 0), block).status == 0         # to the end
    assert world.image[4000 * BLOCK:] == block * 4192
    assert host.command_out(cdb_rw(opcode, 20, 10), bytes(BLOCK)).status == 0   # zeros
    assert host.command_out(cdb_rw(opcode, 40, 10, 0x08), bytes(BLOCK)).status == 0
    assert not any(world.image[20 * BLOCK:30 * BLOCK]) and not any(world.image[40 * BLOCK:50 * BLOCK])
    assert world.image[30 * BLOCK:40 * BLOCK] == block * 10
    for wrong in (b"", bytes(2 * BLOCK)):
        assert host.command_out(cdb_rw(opcode, 0, 10), wrong).sense == 0x050E03


def test_write_same_without_data(host, world):
    world.image[:100 * BLOCK] = b"x" * (100 * BLOCK)
    assert host.command(cdb_rw(0x93, 10, 20, 0x09)).status == 0
    assert not any(world.image[10 * BLOCK:30 * BLOCK]) and world.image[30 * BLOCK] == ord("x")


def unmap_list(*ranges, told=None):
    descriptors = b"".join(struct.pack(">QII", lba, blocks, 0) for lba, blocks in ranges)
    length = len(descriptors) if told is None else told
    return struct.pack(">HHI", length + 6, length, 0) + descriptors


def unmap(host, parameters):
    return host.command_out(struct.pack(">BBIBHB", 0x42, 0, 0, 0, len(parameters), 0), parameters)


def test_unmap(host, world):
    world.image[:] = b"x" * len(world.image)
    assert unmap(host, unmap_list((0, 3), (100, 5000), (8191, 1), (50, 0))).status == 0
    zeros = [lba for lba in range(8192) if not any(world.image[lba * BLOCK:(lba + 1) * BLOCK])]
    assert zeros == [0, 1, 2, *range(100, 5100), 8191]
    assert unmap(host, b"").status == 0
    assert unmap(host, unmap_list((8000, 193))).sense == OUT_OF_RANGE
    assert unmap(host, unmap_list((0, 1), (9000, 1))).sense == OUT_OF_RANGE
    assert unmap(host, bytes(4)).sense == 0x051A00
    assert unmap(host, unmap_list((4, 1), told=0xFF00)).status == 0             # told more than came: what came
    assert not any(world.image[4 * BLOCK:5 * BLOCK]) and any(world.image[3 * BLOCK:4 * BLOCK])


# --- LUNs

def test_luns(host, world):
    report = host.command(bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), 256).data
    assert report == struct.pack(">II", 8, 0) + bytes(8)
    assert host.command(bytes([0x12, 0, 0, 0, 255, 0]), 255, lun=3).data[0] == 0x7F
    assert host.command(bytes([3, 0, 0, 0, 18, 0]), 18, lun=3).data[12] == 0x25
    for cdb in (TUR, cdb_rw(0x28, 0, 1), bytes([0x12, 1, 0x80, 0, 255, 0])):
        assert host.command(cdb, 512, lun=3).sense == NO_LUN
    assert host.command(bytes([0xA0]) + bytes(11), 0).sense == INVALID_FIELD
    assert world.ask(world.target.set_lun(3, world.disk)) == 0
    assert host.command(TUR, lun=3).status == 0
    report = host.command(bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), 256).data
    assert report[8:] == bytes(8) + b"\0\3" + bytes(6)
    assert world.ask(world.target.set_lun(3, None)) == 0
    assert host.command(TUR, lun=3).sense == NO_LUN


def test_a_lun_is_gone_when_its_commands_are():
    world = World(delay_us=1000)
    world.reactor.set_clock(10**9)
    host = Host(world)
    itt = host.begin(cdb_rw(0x8A, 0, 1), flags=WRITE, edtl=BLOCK, data=b"z" * BLOCK)
    assert host.nothing_comes()
    ticket = world.target.set_lun(0, None)
    assert not world.done(ticket)
    world.reactor.set_clock(2 * 10**9)
    assert host.finish(itt, BLOCK).status == 0 and world.ask(ticket) == 0
    host.close()
    world.close()


# --- rules of Data-Out

def begin_write(host, blocks, **more):
    return host.begin(cdb_rw(0x8A, 0, blocks), flags=WRITE, edtl=blocks * BLOCK, **more)


def test_unexpected_data(world):
    host = Host(world, immediate_data=False, initial_r2t=True)
    itt = begin_write(host, 1, data=bytes(BLOCK))
    assert host.finish(itt, BLOCK).sense == UNEXPECTED
    itt = begin_write(host, 2, final=False)
    assert host.nothing_comes()                             # the answer waits for the data that were announced
    host.data_out(itt, bytes(2 * BLOCK), 0, 0, final=True)
    assert host.finish(itt).sense == UNEXPECTED
    assert host.finish(host.begin(TUR, data=b"abcd")).sense == UNEXPECTED
    assert host.write(0, noise(BLOCK)).status == 0
    host.close()


def test_too_much_or_too_little_unsolicited_data(world):
    host = Host(world, first_burst_bytes=1024, recv_data_bytes_max=4096)
    assert host.finish(begin_write(host, 8, data=bytes(2048))).sense == AMOUNT
    itt = begin_write(host, 8, data=bytes(BLOCK), final=False)
    host.data_out(itt, bytes(1024), BLOCK, 0, final=True)
    assert host.finish(itt).sense == AMOUNT
    itt = begin_write(host, 8, final=False)
    host.data_out(itt, bytes(512), 0, 0, final=True)
    assert host.finish(itt).sense == AMOUNT
    assert host.write(0, noise(8 * BLOCK)).status == 0
    assert world.quiet()
    host.close()


@pytest.mark.parametrize(("data_sn", "offset", "sense"), [(1, 0, CRC), (0, 512, AMOUNT), (7, 0, CRC)])
def test_wrong_numbers_of_data_out(world, data_sn, offset, sense):
    host = Host(world, initial_r2t=True, immediate_data=False)
    itt = begin_write(host, 2)
    r2t = host.pdu()
    assert (r2t.opcode, r2t.word(40), r2t.word(44)) == (R2T, 0, 1024)
    host.data_out(itt, bytes(512), offset, data_sn, ttt=r2t.word(20))
    assert host.nothing_comes()
    host.data_out(itt, bytes(512), 512, 1, ttt=r2t.word(20), final=True)
    assert host.finish(itt).sense == sense
    assert not any(world.image[:1024])
    host.close()
    assert world.quiet()


def test_an_r2t_answered_short(world):
    host = Host(world, initial_r2t=True, immediate_data=False)
    itt = begin_write(host, 2)
    ttt = host.pdu().word(20)
    host.data_out(itt, bytes(512), 0, 0, ttt=ttt, final=True)
    assert host.finish(itt).sense == AMOUNT
    host.close()


def test_an_r2t_answered_beyond_its_end(world):
    host = Host(world, initial_r2t=True, immediate_data=False, burst_bytes_max=512, first_burst_bytes=512)
    itt = begin_write(host, 2)
    ttt = host.pdu().word(20)
    host.data_out(itt, bytes(1024), 0, 0, ttt=ttt, final=True)
    assert host.finish(itt).sense == AMOUNT
    host.close()


def test_a_sequence_without_end_ends_the_connection(world):
    host = Host(world, initial_r2t=True, immediate_data=False)
    other = Host(world, isid=b"\0\2\x3d\0\0\2")
    itt = begin_write(host, 1)
    host.data_out(itt, bytes(512), 0, 0, ttt=host.pdu().word(20))
    assert host.closes()
    assert other.read(0, 1).status == 0                     # nobody else notices
    other.close()


def test_a_wrong_transfer_tag_is_rejected(world):
    host = Host(world, initial_r2t=True, immediate_data=False)
    itt = begin_write(host, 1)
    ttt = host.pdu().word(20)
    host.data_out(itt, b"x" * 512, 0, 0, ttt=ttt + 5, final=True)
    reject = host.pdu()
    assert (reject.opcode, reject.bhs[2], len(reject.data)) == (REJECT, 9, 48)
    host.data_out(itt, b"y" * 512, 0, 0, ttt=ttt, final=True)
    assert host.finish(itt).status == 0 and world.image[0] == ord("y")
    host.close()


def test_data_of_no_task_are_discarded(host):
    host.data_out(0x9999, bytes(1000), 0, 0, ttt=5, final=True)
    host.data_out(0x9999, bytes(1000), 0, 0, final=True)
    assert host.ping(b"alive") == b"alive"


def test_unsolicited_data_after_the_end_of_the_burst(host):
    begin_write(host, 300, data=bytes(65536))
    assert host.pdu().opcode == R2T
    host.data_out(host.itt, bytes(512), 65536, 0, final=True)
    assert host.closes()


@pytest.mark.parametrize("where", ["immediate", "unsolicited", "solicited"])
def test_a_bad_data_digest(world, where):
    host = Host(world, data_digest=True, header_digest=True, immediate_data=where == "immediate",
                initial_r2t=where != "unsolicited")
    if where == "immediate":
        itt = begin_write(host, 1, data=b"x" * 512, spoil_data=True)
    else:
        itt = begin_write(host, 1, final=where == "solicited")
        ttt = host.pdu().word(20) if where == "solicited" else NONE
        host.data_out(itt, b"x" * 512, 0, 0, ttt=ttt, final=True, spoil_data=True)
    reject = host.pdu()
    assert (reject.opcode, reject.bhs[2]) == (REJECT, 2)
    assert host.finish(itt).sense == CRC and not any(world.image[:512])
    assert host.write(0, b"y" * 512).status == 0
    host.close()


def test_a_bad_header_digest_ends_the_connection(world):
    host = Host(world, header_digest=True)
    host.params["header_digest"] = False
    host.request(NOP_OUT, immediate=True, w20=NONE)
    host.out += bytes(4)
    assert host.closes()
