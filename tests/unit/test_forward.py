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
    bytes([0x04, 0, 0, 0, 0, 0]),                             # FORMAT UNIT
    bytes([0x3B, 5]) + bytes(8), bytes([0x83]) + bytes(15),   # WRITE BUFFER, EXTENDED COPY
    bytes([0x3F]) + bytes(8), bytes([0x9F, 0x11]) + bytes(14),   # WRITE LONG
    bytes([0x07, 0, 0, 0, 0, 0]), bytes([0x7F]) + bytes(15), bytes([0xC1]) + bytes(15)])
def test_what_could_change_the_medium_is_refused(world, cdb):
    world.freeze()
    status, scsi_status, sense, _ = end(world, world.driver.command(cdb, data_in_max=0))
    assert (status, scsi_status) == (E_CHECK, CHECK)
    assert (sense[2] & 0x0F, sense[12], sense[13]) == INVALID_OPCODE
    assert not world.main.pending()


@pytest.mark.parametrize(("action", "length", "good"), [
    (0x1F, 0, True), (0x1F, 8, False), (0x01, 0, False), (0x02, 0, False), (0x03, 0, False), (0x00, 0, False)])
def test_nothing_is_sanitized_so_there_is_no_failure_to_leave(world, action, length, good):
    world.freeze()
    status, scsi_status, sense, _ = end(world, world.driver.command(
        bytes([0x48, action, 0, 0, 0, 0, 0, 0, length, 0]), data_in_max=0))
    assert (status, scsi_status) == ((0, GOOD) if good else (E_CHECK, CHECK))
    assert good or (sense[2] & 0x0F, sense[12], sense[13]) == (5, 0x24, 0)
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
    kept = [pair for pair in full if pair not in ((0x04, None), (0x7F, 0x09), (0x3B, None), (0x42, None), (0x9E, 0x12))]
    world.command(world.volume.set_offered({0x42: 1, 0x9E: 1 << 0x12, 0x12: 1 << 5}))
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


@pytest.mark.parametrize("opcode,action,supported", [(0x28, 0, True), (0x89, 0, True), (0x9E, 0x10, True),
                                                     (0x7F, 0x09, False), (0x42, 0, False), (0x48, 3, False),
                                                     (0x48, 0x1F, True)])
def test_one_command_asked_for(world, opcode, action, supported):
    world.freeze()
    world.command(world.volume.set_offered({0x42: 1}))
    number = world.driver.command(opcodes(3, opcode, action), data_in_max=64)
    world.turn()
    told = bytes([0, 0x03, 0, 10, opcode]) + bytes(9)
    scsi_answer(world.main, data_in=told)
    data = end(world, number)[3]
    assert data == told if supported else data == bytes([0, 1, 0, 0])


def test_the_list_is_the_same_before_the_freeze(world):
    """The target refuses the same commands in every phase."""
    number = world.driver.command(opcodes(), data_in_max=64)
    world.turn()
    scsi_answer(world.main, data_in=listing((0x04, None), (0x28, None)))
    assert end(world, number)[3] == listing((0x28, None))


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


# --- mode pages

CONTROL = bytes([0x0A, 10, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0])
CACHING = bytes([0x08, 18]) + bytes(18)


def with_bits(page, *bits):
    out = bytearray(page)
    for at, bit in bits:
        out[at] |= bit
    return bytes(out)


D_SENSE, SWP, WCE = (2, 0x04), (4, 0x08), (2, 0x04)


def mode_select(world, pages, *, ten=False, answer=None, host=0):
    data = (bytes(8) if ten else bytes(4)) + pages
    cdb = bytes([0x55, 0x10, 0, 0, 0, 0, 0, 0, len(data), 0]) if ten else bytes([0x15, 0x10, 0, 0, len(data), 0])
    number = world.driver.command(cdb, data, host=host)
    world.turn()
    sent = scsi_command(world.main)["data_out"]
    scsi_answer(world.main, **(answer or {}))
    assert end(world, number)[0] == (0 if answer is None else E_CHECK)
    return sent[8 if ten else 4:]


def mode_sense(world, pages, *, ten=False, control=0):
    data = (bytes(8) if ten else bytes(4)) + pages
    cdb = bytes([0x5A, 0, control | 0x3F, 0, 0, 0, 0, 1, 0, 0]) if ten else bytes([0x1A, 0, control | 0x3F, 0, 255, 0])
    number = world.driver.command(cdb, data_in_max=255, host=0)
    world.turn()
    scsi_answer(world.main, data_in=data)
    return end(world, number)[3]


@pytest.mark.parametrize("ten", [False, True])
def test_write_protection_is_kept_here(world, ten):
    """Main has to take what catch-up writes, and the host has to see what it has set."""
    world.driver.login(0, "iqn.one")
    world.freeze()
    assert mode_select(world, CACHING + with_bits(CONTROL, SWP, D_SENSE), ten=ten) == \
        CACHING + with_bits(CONTROL, D_SENSE)
    assert world.volume.software_protected
    told = mode_sense(world, CACHING + CONTROL, ten=ten)
    at = 8 if ten else 4
    assert told[at:] == CACHING + with_bits(CONTROL, SWP) and told[3 if ten else 2] == 0x80
    assert mode_sense(world, CONTROL, ten=ten, control=0x40)[at:] == CONTROL         # what can be changed: main's word
    mode_select(world, CONTROL, ten=ten)
    assert not world.volume.software_protected
    told = mode_sense(world, CONTROL, ten=ten)
    assert told[at:] == CONTROL and told[:at] == bytes(at)


def test_what_main_refuses_changes_nothing(world):
    world.driver.login(0, "iqn.one")
    world.freeze()
    sense = bytes.fromhex("700005000000000a0000000026000000000000")
    mode_select(world, with_bits(CONTROL, SWP), answer={"scsi_status": CHECK, "sense": sense, "status": E_CHECK})
    assert not world.volume.software_protected


def test_other_hosts_are_told_of_changed_modes(world):
    for host in range(3):
        world.driver.login(host, f"iqn.{host}")
        assert world.driver.admit(host, TEST_UNIT_READY) == (0x062900, CHECK)
    world.freeze()
    mode_select(world, CONTROL, host=1)
    assert [world.driver.admit(host, TEST_UNIT_READY) for host in range(3)] == \
        [(0x062A01, CHECK), (0, GOOD), (0x062A01, CHECK)]


def caching_world(fixed):
    """A volume with a volatile cache that its host may switch off, or (fixed) one that is as the configuration says."""
    world = VolumeWorld(1)
    become_scsi(world.main)
    world.command(world.volume.close())
    world.volume = type(world.volume)(world.reactor, 7, world.main, world.journal, False, fixed)
    world.driver = type(world.driver)(world.volume)
    world.freeze()
    return world


def test_a_cache_that_is_switched_off_makes_every_answer_wait():
    """Rule 3: what the caching mode page tells is true of the gateway too, unless the configuration says otherwise."""
    for fixed, waits in ((False, True), (True, False)):
        world = caching_world(fixed)
        mode_select(world, CACHING, host=-1)
        world.write(0, 8)
        world.turn(4)
        assert bool(world.open) is waits
        mode_select(world, with_bits(CACHING, WCE), host=-1)
        world.settle()
        world.write(0, 8)
        world.turn(4)
        assert not world.open


@pytest.mark.parametrize("fixed", [False, True])
def test_a_cache_that_is_switched_off_is_empty(fixed):
    """Rule 3: what was acknowledged while it was on is stable before the MODE SELECT is answered."""
    world = caching_world(fixed)
    world.write(0, 8)
    world.turn(4)
    assert not world.open
    mode_select(world, with_bits(CACHING, WCE), host=-1)
    data = bytes(4) + CACHING
    number = world.driver.command(bytes([0x15, 0x10, 0, 0, len(data), 0]), data)
    world.turn()
    scsi_answer(world.main)
    world.turn(4)
    answer = world.driver.take_command(number)
    assert (answer is None) is not fixed
    world.media.complete_all()
    assert fixed or end(world, number) == (0, GOOD, b"", b"")


@pytest.mark.parametrize("cut", range(0, 17))
def test_a_mode_page_that_is_cut_short_is_read_as_far_as_it_goes(world, cut):
    world.driver.login(0, "iqn.one")
    world.freeze()
    whole = with_bits(CONTROL, SWP) + bytes([0x4A, 1, 0xFF, 0xFF])
    sent = mode_select(world, whole[:cut], host=0)
    assert len(sent) == cut and world.volume.software_protected is (cut >= 12)
    mode_sense(world, whole[:cut])


# --- unit attentions of main, and START STOP UNIT

def attention(codes):
    return {"scsi_status": CHECK, "status": E_CHECK,
            "sense": bytes([0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0]) + codes + bytes(4)}


def test_a_reset_of_the_gateways_session_is_not_the_hosts_business(world):
    world.freeze()
    number = world.driver.command(MODE_SELECT, bytes(4) + CONTROL[:8])
    for code in (b"\x29\x00", b"\x29\x07", b"\x2a\x03", b"\x2a\x09"):
        world.turn()
        assert scsi_command(world.main)["data_out"] == bytes(4) + CONTROL[:8]
        scsi_answer(world.main, **attention(code))
        world.turn()
    scsi_answer(world.main)
    assert end(world, number) == (0, GOOD, b"", b"")
    assert world.reactor.buffers_taken_bytes == 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("more,shown", [(0, 0), (8, 0), (-8, -8)])
def test_a_main_that_grows_is_shown_as_it_was(world, more, shown, frozen):
    if frozen:
        world.freeze()
    last, told = world.blocks - 1 + more, world.blocks - 1 + shown
    long = bytes([0x9E, 0x10]) + bytes(11) + bytes([32, 0, 0])
    for cdb, form, room in ((bytes([0x25]) + bytes(9), ">I", 8), (long, ">Q", 32)):
        number = world.driver.command(cdb, data_in_max=room)
        world.turn()
        rest = bytes([0, 0, 2, 0]) + bytes(room - 4 - struct.calcsize(form))
        scsi_answer(world.main, data_in=struct.pack(form, last) + rest)
        assert end(world, number) == (0, GOOD, b"", struct.pack(form, told) + rest)
    number = world.driver.command(bytes([0x25]) + bytes(9), data_in_max=8)
    world.turn()
    scsi_answer(world.main, data_in=b"\xff\xff\xff")
    assert end(world, number)[3] == b"\xff\xff\xff"


def test_a_main_that_is_reset_all_the_time_is_told(world):
    world.freeze()
    number = world.driver.command(TEST_UNIT_READY)
    for _ in range(5):
        world.turn()
        scsi_answer(world.main, **attention(b"\x29\x00"))
        world.turn()
    assert end(world, number)[2][12:14] == b"\x29\x00"


def test_every_host_is_told_of_what_main_reports_once(world):
    for host in range(2):
        world.driver.login(host, f"iqn.{host}")
        world.driver.admit(host, TEST_UNIT_READY)
    world.freeze()
    number = world.driver.command(TEST_UNIT_READY, host=0)
    world.turn()
    scsi_answer(world.main, **attention(b"\x2a\x01"))
    assert end(world, number)[2][12:14] == b"\x2a\x01"
    assert [world.driver.admit(host, TEST_UNIT_READY)[0] for host in range(2)] == [0, 0x062A01]


def test_request_sense_tells_what_waits(world):
    world.driver.login(0, "iqn.one")
    world.freeze()
    for description, code in ((0, 0x70), (1, 0x72)):
        data = end(world, world.driver.command(bytes([3, description, 0, 0, 252, 0]), data_in_max=252, host=0))[3]
        if description == 0:
            assert (data[0], data[2], data[12], data[13]) == (code, 6, 0x29, 0)
            world.driver.login(0, "iqn.one")
        else:
            assert (data[0], data[1], data[2], data[3]) == (code, 6, 0x29, 0)
    assert not world.main.pending()
    number = world.driver.command(bytes([3, 0, 0, 0, 252, 0]), data_in_max=252, host=0)
    world.turn()
    scsi_answer(world.main, data_in=b"main's own")
    assert end(world, number)[3] == b"main's own"
    assert world.reactor.buffers_taken_bytes == 0


def test_a_stop_makes_stable_and_leaves_main_alone(world):
    world.freeze()
    world.write(0, 8)
    number = world.driver.command(bytes([0x1B, 0, 0, 0, 0, 0]))
    world.turn(3)
    assert world.driver.take_command(number) is None and world.media.pending()
    world.settle()
    assert end(world, number)[:2] == (0, GOOD)
    for byte, codes in ((0x02, (0x53, 0x02)), (0x10, (0x24, 0x00))):
        sense = end(world, world.driver.command(bytes([0x1B, 0, 0, 0, byte, 0])))[2]
        assert (sense[12], sense[13]) == codes
    assert not world.main.pending()


def test_what_a_page_says_of_sanitize_is_not_told(world):
    """All else of INQUIRY is main's, bit for bit."""
    for page, told in ((0xB1, 0x02), (0xB0, 0xF2)):
        number = world.driver.command(bytes([0x12, 1, page, 0, 64, 0]), data_in_max=64)
        world.turn()
        scsi_answer(world.main, data_in=bytes([0, page, 0, 60, 1, 2, 3, 0xF2]) + bytes(56))
        assert end(world, number)[3] == bytes([0, page, 0, 60, 1, 2, 3, told]) + bytes(56)
