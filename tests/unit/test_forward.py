"""Commands that are not data: what passes to main, what is refused, and the list of commands that is made to agree."""
import struct

import pytest

from detour.core._testing_volume import become_scsi, scsi_answer, scsi_command
from tests.support.volume_world import VolumeWorld

E_IO, E_CHECK = -2, -11
GOOD, CHECK, BUSY = 0x00, 0x02, 0x08
INVALID_OPCODE = (0x05, 0x20, 0x00)
INQUIRY = bytes([0x12, 0, 0, 0, 96, 0])
MODE_SELECT = bytes([0x15, 0x10, 0, 0, 12, 0])
TEST_UNIT_READY = bytes(6)


@pytest.fixture
def world():
    world = VolumeWorld(1)
    become_scsi(world.main)
    return world


def opcodes(options=0, opcode=0, action=0, length=4096):
    return bytes([0xA3, 0x0C, options, opcode]) + struct.pack(">HI", action, length) + bytes(2)


def listing(*commands, timeouts=False):
    """A list of (opcode, service action) as SPC-4 6.36 forms it."""
    body = b""
    for opcode, action in commands:
        flags = (2 if timeouts else 0) | (1 if action is not None else 0)
        body += struct.pack(">BBHBBH", opcode, 0, action or 0, 0, flags, 10)
        body += bytes([0, 10]) + bytes(10) if timeouts else b""
    return struct.pack(">I", len(body)) + body


def end(world, number):
    world.turn(2)
    answer = world.driver.take_command(number)
    assert answer is not None
    return answer


def test_data_in_comes_as_main_gave_it(world):
    world.freeze()
    number = world.driver.command(INQUIRY, data_in_max=96)
    world.turn()
    sent = scsi_command(world.main)
    assert sent["cdb"][:6] == INQUIRY and sent["lun"] == bytes(8)
    assert (sent["direction"], sent["room_bytes"]) == (1, 96)
    scsi_answer(world.main, data_in=bytes(range(96)))
    assert end(world, number) == (0, GOOD, b"", bytes(range(96)))
    assert world.reactor.buffers_taken_bytes == 0


def test_data_out_reaches_main(world):
    world.freeze()
    number = world.driver.command(MODE_SELECT, b"parameters!!")
    world.turn()
    assert scsi_command(world.main)["data_out"] == b"parameters!!"
    scsi_answer(world.main)
    assert end(world, number) == (0, GOOD, b"", b"")
    assert world.reactor.buffers_taken_bytes == 0


@pytest.mark.parametrize("answer", [
    {"scsi_status": CHECK, "sense": bytes.fromhex("700006000000000a000000002a0100000000")},
    {"scsi_status": BUSY}, {"scsi_status": 0x18}])
def test_status_and_sense_are_mains(world, answer):
    world.freeze()
    number = world.driver.command(TEST_UNIT_READY)
    world.turn()
    scsi_answer(world.main, status=E_CHECK, **answer)
    status, scsi_status, sense, _ = end(world, number)
    assert (status, scsi_status, sense) == (E_CHECK, answer["scsi_status"], answer.get("sense", b""))


def test_a_main_that_fails_is_a_check_condition(world):
    world.freeze()
    number = world.driver.command(INQUIRY, data_in_max=96)
    world.turn()
    scsi_answer(world.main, status=E_IO)
    status, scsi_status, sense, data = end(world, number)
    assert (status, scsi_status, data) == (E_CHECK, CHECK, b"")
    assert sense[2] & 0x0F in (3, 4)
    assert world.reactor.buffers_taken_bytes == 0


@pytest.mark.parametrize("cdb", [
    bytes([0x89]) + bytes(15),                              # COMPARE AND WRITE
    bytes([0x8B]) + bytes(15), bytes([0x9C]) + bytes(15),   # ORWRITE, WRITE ATOMIC
    bytes([0x04, 0, 0, 0, 0, 0]), bytes([0x48]) + bytes(9),   # FORMAT UNIT, SANITIZE
    bytes([0x3B, 5]) + bytes(8), bytes([0x83]) + bytes(15),   # WRITE BUFFER, EXTENDED COPY
    bytes([0x3F]) + bytes(8), bytes([0x9F, 0x11]) + bytes(14),   # WRITE LONG
    bytes([0x07, 0, 0, 0, 0, 0]), bytes([0x7F]) + bytes(15), bytes([0xC1]) + bytes(15)])
def test_what_could_change_the_medium_is_refused(world, cdb):
    world.freeze()
    status, scsi_status, sense, _ = end(world, world.driver.command(cdb, data_in_max=0))
    assert (status, scsi_status) == (E_CHECK, CHECK)
    assert (sense[2] & 0x0F, sense[12], sense[13]) == INVALID_OPCODE
    assert not world.main.pending()


def test_a_store_that_is_no_scsi_device_takes_no_command():
    world = VolumeWorld(1)
    world.freeze()
    assert end(world, world.driver.command(INQUIRY, data_in_max=96))[:2] == (E_CHECK, CHECK)


@pytest.mark.parametrize("timeouts", [False, True])
def test_the_list_of_commands_leaves_out_what_is_refused(world, timeouts):
    world.freeze()
    full = [(0x00, None), (0x12, None), (0x28, None), (0x89, None), (0x2A, None), (0x83, 0x00), (0x93, None),
            (0x9E, 0x10), (0x9E, 0x12), (0x04, None), (0xA3, 0x0C), (0x7F, 0x09), (0x42, None), (0x3B, None)]
    kept = [pair for pair in full if pair[0] not in (0x89, 0x83, 0x04, 0x7F, 0x3B)]
    number = world.driver.command(opcodes(0x80 if timeouts else 0), data_in_max=4096)
    world.turn()
    assert int.from_bytes(scsi_command(world.main)["cdb"][6:10], "big") == 16384      # all of it is asked for
    scsi_answer(world.main, data_in=listing(*full, timeouts=timeouts))
    assert end(world, number) == (0, GOOD, b"", listing(*kept, timeouts=timeouts))
    assert world.reactor.buffers_taken_bytes == 0


def test_the_list_keeps_to_the_room_that_the_host_gives(world):
    """Allocation length and room of the command may differ; the length told stays that of the whole list."""
    world.freeze()
    whole = listing((0x00, None), (0x12, None), (0x28, None))
    for length, room in ((12, 4096), (4096, 20), (4, 4)):
        number = world.driver.command(opcodes(length=length), data_in_max=room)
        world.turn()
        scsi_answer(world.main, data_in=whole)
        assert end(world, number)[3] == whole[:min(length, room)]


@pytest.mark.parametrize("cut", range(0, 30))
def test_a_list_that_is_cut_short_is_not_read_beyond_its_end(world, cut):
    world.freeze()
    number = world.driver.command(opcodes(0x80), data_in_max=4096)
    world.turn()
    scsi_answer(world.main, data_in=(b"\xff\xff\xff\xff" + listing((0x28, None), timeouts=True)[4:])[:cut])
    status, _, _, data = end(world, number)
    assert status == 0 and len(data) in (min(cut, 4), 24)


@pytest.mark.parametrize("opcode,action,supported", [(0x28, 0, True), (0x89, 0, False), (0x9E, 0x10, True),
                                                     (0x7F, 0x09, False), (0x42, 0, True)])
def test_one_command_asked_for(world, opcode, action, supported):
    world.freeze()
    number = world.driver.command(opcodes(3, opcode, action), data_in_max=64)
    world.turn()
    told = bytes([0, 0x03, 0, 10, opcode]) + bytes(9)
    scsi_answer(world.main, data_in=told)
    data = end(world, number)[3]
    assert data == told if supported else data == bytes([0, 1, 0, 0])


def test_before_the_freeze_the_list_is_mains_own(world):
    whole = listing((0x89, None), (0x28, None))
    number = world.driver.command(opcodes(), data_in_max=64)
    world.turn()
    scsi_answer(world.main, data_in=whole)
    assert end(world, number)[3] == whole


def test_commands_wait_for_memory_and_are_open_meanwhile():
    """A drain does not end before them, and the volume is not closed under them."""
    world = VolumeWorld(1, pool_bytes=1 << 20)
    become_scsi(world.main)
    world.freeze()
    blocker = world.driver.command(bytes([0x3C, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]), data_in_max=1 << 20)
    waiting = world.driver.command(INQUIRY, data_in_max=96)
    world.turn(2)
    assert len(world.main.pending()) == 1 and world.stat("requests_open") in (0, 2)
    drain = world.volume.drain()
    assert world.ask(world.volume.close(), settle=False)[0] == -14
    scsi_answer(world.main, data_in=b"x" * (1 << 20))
    end(world, blocker)
    world.turn(2)
    assert drain not in world.answers
    scsi_answer(world.main, data_in=bytes(96))
    assert end(world, waiting)[0] == 0
    world.turn(2)
    assert drain in world.answers
    assert world.reactor.buffers_taken_bytes == 0
