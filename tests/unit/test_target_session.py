"""The target side over socketpairs: order of commands, NOP, Text, Logout, task management, hold and drain."""
from __future__ import annotations

import random
import struct

import pytest

from tests.support.pdu_client import (
    ASYNC,
    COMMAND,
    FINAL,
    IMMEDIATE,
    LOGIN,
    LOGOUT,
    LOGOUT_RESPONSE,
    NONE,
    NOP_IN,
    NOP_OUT,
    R2T,
    READ,
    REJECT,
    RESPONSE,
    SNACK,
    TEXT,
    TEXT_RESPONSE,
    WRITE,
    Host,
    World,
    cdb_rw,
)

BLOCK = 512
TASK_SET_FULL = 0x28
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


def begin_write(host, blocks, **more):
    return host.begin(cdb_rw(0x8A, 0, blocks), flags=WRITE, edtl=blocks * BLOCK, **more)


# --- command numbers

def test_commands_out_of_order_wait_for_their_turn(host, world):
    first = host.next_sn()
    second, third = host.next_sn(), host.next_sn()
    write = begin_write(host, 1, cmd_sn=third, data=b"3" * 512)
    read = host.begin(cdb_rw(0x88, 0, 1), flags=READ, edtl=512, cmd_sn=second)
    assert host.nothing_comes()
    assert host.ping() == b"" and host.exp_cmd_sn == first
    tur = host.begin(TUR, cmd_sn=first)
    assert host.finish(tur).status == 0
    assert host.finish(read, 512).data == bytes(512)
    assert host.finish(write).status == 0 and world.image[0] == ord("3")
    assert host.ping() == b"" and host.exp_cmd_sn == third + 1


def test_other_requests_out_of_order_wait_too(host):
    first, second, third = host.next_sn(), host.next_sn(), host.next_sn()
    echo = host.request(NOP_OUT, cmd_sn=third, w20=NONE, data=b"late")
    manage = host.request(2, FINAL | 1, cmd_sn=second, w20=0x7777)
    assert host.nothing_comes()
    tur = host.begin(TUR, cmd_sn=first)
    answers = {pdu.itt: pdu for pdu in (host.pdu() for _ in range(3))}
    assert answers[tur].opcode == RESPONSE and answers[manage].bhs[2] == 1
    assert (answers[echo].opcode, answers[echo].data) == (NOP_IN, b"late")


def test_commands_outside_the_window_and_twice_are_ignored(world):
    host = Host(world, queue_depth=8)
    assert host.ping() == b"" and host.max_cmd_sn == host.exp_cmd_sn + 7
    for sn in (host.cmd_sn - 1, host.cmd_sn + 8, host.cmd_sn + 0x7FFFFFFF):
        begin_write(host, 1, cmd_sn=sn, data=b"x" * 512)
        assert host.nothing_comes()
    ahead = host.cmd_sn + 2
    begin_write(host, 1, cmd_sn=ahead, data=b"x" * 512)
    begin_write(host, 1, cmd_sn=ahead, data=b"y" * 512)
    assert host.nothing_comes() and not any(world.image[:512])
    assert host.command(TUR).status == 0
    assert host.finish(host.begin(TUR)).status == 0
    pdu = host.pdu()
    assert pdu.opcode == RESPONSE and world.image[0] == ord("x") and host.nothing_comes()
    host.close()


def test_numbers_wrap(world):
    host = Host(world, cmd_sn=0xFFFFFFFE, eat_attention=False)
    for _ in range(5):
        itt = host.begin(TUR, cmd_sn=host.cmd_sn & 0xFFFFFFFF)
        host.cmd_sn += 1
        host.finish(itt)
    assert host.exp_cmd_sn == 3
    host.close()


def test_the_window_is_as_deep_as_the_queue(world):
    host = Host(world, queue_depth=4, initial_r2t=True, immediate_data=False)
    tags = [begin_write(host, 1) for _ in range(4)]
    r2ts = [host.pdu() for _ in tags]
    assert host.max_cmd_sn == host.exp_cmd_sn - 1
    begin_write(host, 1)
    assert host.nothing_comes()                             # above the window
    for r2t in r2ts:
        host.data_out(r2t.itt, bytes(512), 0, 0, ttt=r2t.word(20), final=True)
        assert host.pdu().opcode == RESPONSE
    assert host.max_cmd_sn == host.exp_cmd_sn + 3
    host.close()


def test_immediate_commands_beside_the_window(world):
    host = Host(world, queue_depth=1, initial_r2t=True, immediate_data=False)
    begin_write(host, 1)
    assert host.pdu().opcode == R2T
    assert host.finish(host.begin(TUR, immediate=True)).status == 0
    for _ in range(40):
        begin_write(host, 1, immediate=True)
    kinds = [host.pdu() for _ in range(40)]
    rejects = [pdu for pdu in kinds if pdu.opcode == REJECT]
    assert rejects and all(pdu.bhs[2] == 6 for pdu in rejects)
    host.close()
    assert world.quiet()


def test_a_task_tag_in_use_is_rejected(world):
    host = Host(world, initial_r2t=True, immediate_data=False)
    itt = begin_write(host, 1)
    r2t = host.pdu()
    begin_write(host, 1, itt=itt)
    reject = host.pdu()
    assert (reject.opcode, reject.bhs[2]) == (REJECT, 7)
    host.data_out(itt, bytes(512), 0, 0, ttt=r2t.word(20), final=True)
    assert host.finish(itt).status == 0
    host.close()


# --- NOP, Text, Logout, what is not known

def test_echo(world):
    host = Host(world, send_data_bytes_max=512)
    assert host.ping() == b""
    assert host.ping(b"abc") == b"abc"
    assert host.ping(noise(5000)) == noise(5000)[:512]
    itt = host.request(NOP_OUT, w20=NONE, data=b"in order")
    assert host.pdu().itt == itt
    host.request(NOP_OUT, itt=NONE, immediate=True, w20=NONE)
    assert host.nothing_comes()
    host.close()
    assert world.quiet()


def test_a_silent_host_is_asked_and_then_closed():
    world = World(target={"nop_interval_ms": 1000, "nop_timeout_ms": 3000})
    world.reactor.set_clock(10**9)
    host, other = Host(world), Host(world, isid=b"\0\2\x3d\0\0\2")
    world.reactor.set_clock(2 * 10**9)
    ping = host.pdu()
    assert (ping.opcode, ping.itt) == (NOP_IN, NONE) and ping.word(20) != NONE
    host.request(NOP_OUT, itt=NONE, immediate=True, w20=ping.word(20))
    assert host.nothing_comes()
    for second in (3, 4, 5):
        world.reactor.set_clock(second * 10**9 - 10**6)
        host.pump()
        assert host.ping() == b""
        world.reactor.set_clock(second * 10**9)
        world.turn(3)
    assert other.closes() and host.ping() == b""
    host.close()
    world.close()


def test_text_requests_are_pythons(host, world):
    itt = host.request(TEXT, w20=NONE, data=b"SendTargets=\0")
    for _ in range(20):
        host.pump()
    (kind, sender, results, data), = [event for event in world.events if event[0] == 2]
    assert (kind, sender, results[0], data) == (2, host.session_id, itt, b"SendTargets=\0")
    assert world.ask(world.target.text_response(host.session_id, itt, b"TargetName=x\0")) == 0
    pdu = host.pdu()
    assert (pdu.opcode, pdu.itt, pdu.data, pdu.flags) == (TEXT_RESPONSE, itt, b"TargetName=x\0", FINAL)
    assert world.ask(world.target.text_response(host.session_id, itt, bytes(70000))) < 0
    assert world.ask(world.target.text_response(12345, itt, b"")) < 0


@pytest.mark.parametrize(("reason", "cid", "response", "ends"), [(0, 0, 0, True), (1, 9, 0, True), (1, 5, 1, False),
                                                                 (2, 9, 2, False)])
def test_logout(world, reason, cid, response, ends):
    host = Host(world, cid=9)
    itt = host.request(LOGOUT, FINAL | reason, w20=cid << 16, immediate=True)
    pdu = host.pdu()
    assert (pdu.opcode, pdu.itt, pdu.bhs[2]) == (LOGOUT_RESPONSE, itt, response)
    assert host.closes() == ends
    host.close()
    assert any(event[0] == 1 and event[1] == host.session_id for event in world.events)


def test_logout_waits_for_the_device():
    world = World(delay_us=1000)
    world.reactor.set_clock(10**9)
    host = Host(world)
    begin_write(host, 1, data=b"w" * 512)
    host.request(LOGOUT, immediate=True)
    assert host.nothing_comes()
    world.reactor.set_clock(2 * 10**9)
    assert host.pdu().opcode == LOGOUT_RESPONSE and world.image[0] == ord("w")
    assert host.closes()
    world.close()


def test_what_is_not_known_is_rejected(host):
    for opcode, reason in ((SNACK, 3), (0x1C, 5), (0x3E, 5)):
        itt = host.request(opcode, immediate=True, data=b"junk")
        reject = host.pdu()
        assert (reject.opcode, reject.bhs[2], reject.itt) == (REJECT, reason, NONE)
        assert reject.data[16:20] == struct.pack(">I", itt)
    assert host.read(0, 1).status == 0


def test_login_and_the_reserved_tag_end_the_connection(world):
    for opcode, tag in ((LOGIN, 5), (COMMAND, NONE)):
        host = Host(world)
        host.request(opcode, itt=tag, immediate=True)
        assert host.closes()


def test_too_long_data_ends_the_connection(world):
    host = Host(world, recv_data_bytes_max=1024)
    host.request(NOP_OUT, immediate=True, w20=NONE, data=bytes(1025))
    assert host.closes()


@pytest.mark.parametrize("seed", range(40))
def test_noise_ends_one_connection_and_nothing_else(seed):
    world = World(buffer_bytes=8 << 20)
    random_bytes = random.Random(seed)
    host, other = Host(world), Host(world, isid=b"\0\2\x3d\0\0\2")
    for _ in range(12):
        bhs = bytearray(random_bytes.randbytes(48))
        bhs[0] = random_bytes.choice((0, 1, 2, 4, 5, 6, 0x10, 1, 1, 5)) | random_bytes.choice((0, IMMEDIATE))
        if bhs[0] & 0x3F == 2:
            bhs[1] = random_bytes.choice((1, 2, 3, 8, 77))      # a reset would be noticed by the other host
        bhs[4] = random_bytes.choice((0, 0, 0, 3))
        bhs[8:16] = bytes(8)
        bhs[24:28] = struct.pack(">I", host.cmd_sn + random_bytes.randrange(3))
        if random_bytes.random() < 0.5:
            bhs[32] = random_bytes.choice((0x28, 0x2A, 0x2F, 0x41, 0x42, 0x93, 0x12, 0x1A, 0x15, 0xA3, 0x8E, 0x9E))
            bhs[33:48] = bytes(random_bytes.choice((0, 0, 1, 2, 255)) for _ in range(15))
            bhs[20:24] = struct.pack(">I", random_bytes.choice((0, 100, 512, 4096)))
        host.out += bytes(bhs[:5]) + b"\0\0\x08" + bytes(bhs[8:]) + bytes(4 * bhs[4]) + random_bytes.randbytes(8)
        host.pump()
    world.turn(20)
    assert other.write(8000, noise(512)).status == 0 and other.read(8000, 1).data == noise(512)
    host.close()
    other.close()
    assert world.quiet()
    world.close()


# --- task management

def test_abort_of_a_task(world):
    host = Host(world, initial_r2t=True, immediate_data=False)
    itt = begin_write(host, 4)
    ttt = host.pdu().word(20)
    assert host.managed(host.manage(1, rtt=itt)) == 0
    host.data_out(itt, b"x" * 2048, 0, 0, ttt=ttt, final=True)     # late data
    assert host.ping() == b"" and not any(world.image[:2048])
    assert host.managed(host.manage(1, rtt=itt)) == 1
    assert world.quiet()
    host.close()


def test_abort_waits_for_the_device():
    world = World(delay_us=1000)
    world.reactor.set_clock(10**9)
    host = Host(world)
    itt = begin_write(host, 1, data=b"q" * 512)
    tag = host.manage(1, rtt=itt)
    assert host.nothing_comes()
    world.reactor.set_clock(2 * 10**9)
    assert host.managed(tag) == 0 and host.nothing_comes()
    assert world.image[0] == ord("q")                      # it was at the store already
    host.close()
    world.close()


def test_abort_of_a_command_that_never_comes(host):
    missing, later = host.next_sn(), host.next_sn()
    tur = host.begin(TUR, cmd_sn=later)
    assert host.nothing_comes()
    assert host.managed(host.manage(1, rtt=0x7777, ref_cmd_sn=missing)) == 0
    begun = host.manage(1, rtt=0x7777, ref_cmd_sn=missing)
    assert host.finish(tur).status == 0 if host.exp_cmd_sn <= later else True
    assert host.managed(begun) == 1


@pytest.mark.parametrize(("function", "others"), [(2, False), (4, True), (5, True), (6, True)])
def test_functions_about_many_tasks(world, function, others):
    host = Host(world, initial_r2t=True, immediate_data=False)
    other = Host(world, isid=b"\0\2\x3d\0\0\2", initial_r2t=True, immediate_data=False)
    for one in (host, other):
        begin_write(one, 1)
        assert one.pdu().opcode == R2T
    assert host.managed(host.manage(function)) == 0
    names = world.target.stats_names()
    assert world.target.stats[names.index("tasks_open")] == (0 if others else 1)
    told = {2: (0, 0), 4: (0, 0x062F00), 5: (0x062903,) * 2, 6: (0x062902,) * 2}
    for one, sense in zip((host, other), told[function], strict=True):
        assert one.command(TUR).sense == sense and one.command(TUR).sense == 0
        one.close()
    assert world.quiet()


def test_cold_reset_ends_all_sessions(world):
    host, other = Host(world), Host(world, isid=b"\0\2\x3d\0\0\2")
    assert host.managed(host.manage(7)) == 0
    assert host.closes() and other.closes()


def test_functions_that_are_refused(host):
    assert host.managed(host.manage(3)) == 5
    assert host.managed(host.manage(8)) == 4
    assert host.managed(host.manage(12)) == 5
    for function in (2, 4, 5):
        assert host.managed(host.manage(function, lun=9)) == 2


def test_a_reset_amid_a_pdu(world):
    host, other = Host(world), Host(world, isid=b"\0\2\x3d\0\0\2")
    begin_write(host, 4, data=b"x" * 2048)
    tail = bytes(host.out[-1000:])
    del host.out[-1000:]
    host.pump()
    host.pump()
    assert other.managed(other.manage(5)) == 0
    host.out += tail
    assert host.ping() == b"" and not any(world.image[:2048])
    host.close()
    other.close()
    assert world.quiet()


# --- memory

def test_more_reads_than_buffers():
    world = World(buffer_bytes=2 << 20)
    world.image[:] = noise(len(world.image))
    host = Host(world)
    tags = {host.begin(cdb_rw(0x88, 0, 4096), flags=READ, edtl=2 << 20): bytearray() for _ in range(6)}
    left = set(tags)
    while left:
        pdu = host.pdu()
        assert pdu.word(40) == len(tags[pdu.itt])
        tags[pdu.itt] += pdu.data
        if pdu.flags & 1:
            left.remove(pdu.itt)
    assert all(data == world.image[:2 << 20] for data in tags.values())
    host.close()
    assert world.quiet()
    world.close()


def test_more_writes_than_buffers():
    world = World(buffer_bytes=3 << 20)
    host = Host(world, queue_depth=16)
    data = {host.send_command_out(cdb_rw(0x8A, n * 512, 512), noise(262144, n)): n for n in range(15)}
    statuses = {}
    while len(statuses) < len(data):
        pdu = host.pdu()
        if pdu.opcode == R2T:
            host._solicited(pdu.itt, pdu, noise(262144, data[pdu.itt]))
        else:
            statuses[pdu.itt] = pdu.bhs[3]
    assert set(statuses.values()) <= {0, TASK_SET_FULL} and list(statuses.values()).count(0) >= 3
    for itt, status in statuses.items():
        at = data[itt] * 262144
        assert world.image[at:at + 262144] == (noise(262144, data[itt]) if status == 0 else bytes(262144))
    host.close()
    assert world.quiet()
    world.close()


def test_a_host_that_does_not_read_holds_little():
    world = World(buffer_bytes=32 << 20)
    host, other = Host(world, queue_depth=32), Host(world, isid=b"\0\2\x3d\0\0\2")
    for _ in range(32):
        host.begin(cdb_rw(0x88, 0, 8192), flags=READ, edtl=4 << 20)
    while host.out:
        host.sock.send(host.out)
        host.out.clear()
    world.turn(50)
    assert world.reactor.buffers_taken_bytes <= 32 << 20
    host.close()
    assert other.read(0, 8).status == 0
    other.close()
    assert world.quiet()
    world.close()


# --- hold, drain, resume, the way home

def test_hold_tells_the_window_at_once(host, world):
    assert world.ask(world.target.hold(True)) == 0
    pdu = host.pdu()
    assert (pdu.opcode, pdu.itt, pdu.word(20)) == (NOP_IN, NONE, NONE)
    assert host.max_cmd_sn == host.exp_cmd_sn - 1
    assert host.ping(b"still here") == b"still here"
    assert host.command(TUR).status == 0 and host.max_cmd_sn == host.exp_cmd_sn - 1    # the old window may be used
    assert world.ask(world.target.hold(False)) == 0
    assert host.pdu().opcode == NOP_IN and host.max_cmd_sn == host.exp_cmd_sn + 127


def test_drain_waits_for_what_is_begun_and_begins_nothing():
    world = World(delay_us=1000)
    world.reactor.set_clock(10**9)
    host = Host(world)
    begun = begin_write(host, 1, data=b"1" * 512)
    assert host.nothing_comes()
    ticket = world.target.drain()
    assert not world.done(ticket)
    kept = host.begin(cdb_rw(0x8A, 1, 1), flags=WRITE, edtl=512, data=b"2" * 512)
    read = host.begin(cdb_rw(0x88, 0, 2), flags=READ, edtl=1024)
    assert host.nothing_comes() and host.ping() == b""
    world.reactor.set_clock(2 * 10**9)
    assert host.finish(begun).status == 0 and world.ask(ticket) == 0
    assert host.nothing_comes() and world.image[512] == 0
    assert world.ask(world.target.resume()) == 0
    tags = set()
    for second in (3, 4):
        world.reactor.set_clock(second * 10**9)
        for _ in range(6):
            try:
                tags.add(host.pdu(20).itt)
            except TimeoutError:
                break
    assert {kept, read} <= tags and world.image[512] == ord("2")
    host.close()
    world.close()


@pytest.mark.parametrize("arrived", [0, 512, 1024, 1536])
@pytest.mark.parametrize("digest", [False, True])
def test_a_write_amid_its_data_is_parked_and_goes_on(arrived, digest):
    world = World()
    host = Host(world, initial_r2t=True, immediate_data=False, data_digest=digest)
    data = noise(2048)
    itt = begin_write(host, 4)
    ttt = host.pdu().word(20)
    if arrived:
        host.data_out(itt, data[:arrived], 0, 0, ttt=ttt)
        assert host.nothing_comes()
    assert world.ask(world.target.drain()) == 0
    world.turn(5)
    assert world.disk.device_id == 0 and not any(world.image[:2048])
    host.data_out(itt, data[arrived:], arrived, 1 if arrived else 0, ttt=ttt, final=True)
    assert host.nothing_comes() and not any(world.image[:2048])
    assert world.ask(world.target.resume()) == 0
    assert host.finish(itt).status == 0
    assert world.image[:2048] == data
    host.close()
    assert world.quiet()
    world.close()


@pytest.mark.parametrize("cut", [1, 300, 511, 513, 1500])
def test_a_write_amid_a_pdu_is_parked(cut):
    world = World()
    host = Host(world)
    data = noise(2048)
    itt = begin_write(host, 4, data=data)
    tail = bytes(host.out[-cut:])
    del host.out[-cut:]
    assert host.nothing_comes()
    assert world.ask(world.target.drain()) == 0
    host.out += tail
    assert host.nothing_comes() and not any(world.image[:2048])
    ticket = world.target.resume()
    assert host.pdu().itt in (itt, NONE) and world.ask(ticket) == 0
    world.turn(5)
    assert world.image[:2048] == data
    host.close()
    assert world.quiet()
    world.close()


def test_a_parked_write_is_dropped_with_its_connection(world):
    host = Host(world, initial_r2t=True, immediate_data=False)
    itt = begin_write(host, 4)
    host.data_out(itt, b"x" * 1024, 0, 0, ttt=host.pdu().word(20))
    assert host.nothing_comes()
    assert world.ask(world.target.drain()) == 0
    host.begin(cdb_rw(0x8A, 8, 1), flags=WRITE, edtl=512)
    assert host.nothing_comes()
    ticket = world.target.send_home(close_after_ms=0)
    message = host.pdu()
    assert (message.opcode, message.bhs[36], message.itt) == (ASYNC, 3, NONE)
    assert struct.unpack_from(">HHH", message.bhs, 38) == (0, 0, 0)
    assert host.closes()
    status, results, _ = world.answer(ticket)
    assert (status, results[0]) == (0, 1)
    assert not any(world.image[:8192]) and world.quiet()
    names = world.target.stats_names()
    assert world.target.stats[names.index("held")] == 2


def test_a_write_of_many_parts_that_is_begun_is_finished(world):
    host = Host(world, initial_r2t=True, immediate_data=False, burst_bytes_max=1 << 20, recv_data_bytes_max=1 << 20)
    data = noise(3 << 20)
    itt = host.begin(cdb_rw(0x8A, 0, 6144), flags=WRITE, edtl=len(data))
    host._solicited(itt, host.pdu(), data)
    second = host.pdu()
    assert second.opcode == R2T
    ticket = world.target.drain()
    assert not world.done(ticket)
    host._solicited(itt, second, data)
    assert host.finish(itt, 0, data).status == 0
    assert world.ask(ticket) == 0 and world.image[:3 << 20] == data
    host.close()


def test_resume_answers_a_drain_that_was_given_up():
    world = World(delay_us=1000)
    world.reactor.set_clock(10**9)
    host = Host(world)
    begin_write(host, 1, data=bytes(512))
    assert host.nothing_comes()
    ticket = world.target.drain()
    assert not world.done(ticket)
    assert world.ask(world.target.resume()) == 0 and world.ask(ticket) == -8
    host.close()
    world.reactor.set_clock(2 * 10**9)
    world.close()


def sent_home(world, host, **more):
    """The ticket, and the ping behind the Async Message."""
    ticket = world.target.send_home(**more)
    message, ping = host.pdu(), host.pdu()
    assert (message.opcode, message.bhs[36], message.itt) == (ASYNC, 3, NONE)
    assert (ping.opcode, ping.itt) == (NOP_IN, NONE) and ping.word(20) != NONE
    return ticket, ping.word(20)


@pytest.mark.parametrize("held", [False, True])
def test_who_answers_the_ping_behind_the_message_is_closed_at_once(held):
    world = World()
    world.reactor.set_clock(10**9)
    host, silent = Host(world), Host(world, isid=b"\0\2\x3d\0\0\2")
    if held:
        assert world.ask(world.target.hold()) == 0 and host.pdu().opcode == silent.pdu().opcode == NOP_IN
        assert world.ask(world.target.drain()) == 0
    ticket, ttt = sent_home(world, host)
    assert silent.pdu().opcode == ASYNC
    host.request(NOP_OUT, itt=NONE, immediate=True, w20=ttt, data=b"echo")
    assert host.nothing_comes()
    world.reactor.set_clock(10**9 + 1000)
    assert host.closes() and not world.done(ticket)
    assert silent.pdu().opcode == NOP_IN and silent.nothing_comes()
    world.reactor.set_clock(10**9 + 50 * 10**6)
    assert silent.closes()
    status, results, _ = world.answer(ticket)
    assert (status, results[0]) == (0, 2) and world.quiet()
    world.close()


def test_other_answers_are_no_sign_that_a_host_has_the_message():
    world = World(target={"nop_interval_ms": 1000, "nop_timeout_ms": 3000})
    world.reactor.set_clock(10**9)
    host = Host(world)
    world.reactor.set_clock(2 * 10**9)
    earlier = host.pdu().word(20)               # a ping of the watch, whose answer is late
    ticket, ttt = sent_home(world, host, close_after_ms=40)
    assert ttt != earlier
    for other in (earlier, (ttt + 1) & 0xFFFFFFFF):
        host.request(NOP_OUT, itt=NONE, immediate=True, w20=other)
    assert host.ping(b"its own") == b"its own"
    world.reactor.set_clock(2 * 10**9 + 39 * 10**6)
    assert host.nothing_comes() and not world.done(ticket)
    world.reactor.set_clock(2 * 10**9 + 40 * 10**6)
    assert host.closes() and world.ask(ticket) == 0
    world.close()


def test_an_answer_to_nothing_does_not_close():
    world = World()
    world.reactor.set_clock(10**9)
    host = Host(world)
    for ttt in (0, 1):                          # 0 is what a session has that was not sent home
        host.request(NOP_OUT, itt=NONE, immediate=True, w20=ttt)
    assert host.nothing_comes()
    world.reactor.set_clock(10**9 + 1000)
    assert host.ping() == b""
    host.close()
    world.close()


def test_send_home_with_no_sessions(world):
    status, results, _ = world.answer(world.target.send_home())
    assert (status, results[0]) == (0, 0)


def test_drop_is_a_barrier():
    world = World(delay_us=1000)
    world.reactor.set_clock(10**9)
    host = Host(world)
    begin_write(host, 1, data=b"s" * 512)
    assert host.nothing_comes()
    ticket = world.target.drop(host.session_id)
    assert host.closes() and not world.done(ticket)
    rows = world.answer(world.target.sessions())[2]
    assert struct.unpack_from("<QQ", rows) == (host.session_id, 1)
    assert not any(event[0] == 1 for event in world.events)
    world.reactor.set_clock(2 * 10**9)
    assert world.ask(ticket) == 0 and world.image[0] == ord("s")
    assert [event[1] for event in world.events if event[0] == 1] == [host.session_id]
    assert world.answer(world.target.sessions())[2] == b""
    assert world.ask(world.target.drop(host.session_id)) == 0
    world.close()


def test_async_messages(host, world):
    assert world.ask(world.target.async_message(host.session_id, 1, 2, 3, 4)) == 0
    pdu = host.pdu()
    assert (pdu.opcode, pdu.bhs[36]) == (ASYNC, 1) and struct.unpack_from(">HHH", pdu.bhs, 38) == (2, 3, 4)


# --- the handle

def test_bad_parameters_are_refused(world):
    with pytest.raises(ValueError, match="unknown connection parameters: mrdsl"):
        world.target.adopt(-1, {"mrdsl": 1}, "iqn.x", bytes(6))
    with pytest.raises(ValueError, match="ISID"):
        world.target.adopt(-1, {}, "iqn.x", bytes(5))
    with pytest.raises(ValueError, match="223"):
        world.target.adopt(-1, {}, "i" * 224, bytes(6))
    with pytest.raises(ValueError, match="LUN 256"):
        world.target.set_lun(256, world.disk)
    for params in ({"first_burst_bytes": 2 << 20, "burst_bytes_max": 4 << 20}, {"first_burst_bytes": 262145},
                   {"recv_data_bytes_max": 511}, {"outstanding_r2t_max": 0}):
        assert world.ask(world.target.adopt(world.reactor.event_fd + 10000, params, "iqn.x", bytes(6))) < 0


def test_counters(host, world):
    host.write(0, bytes(1024))
    host.read(0, 4)
    host.read(9000, 1)
    stats = dict(zip(world.target.stats_names(), world.target.stats, strict=False))
    assert stats["sessions"] == 1 and stats["commands"] == 4 and stats["errors"] == 0
    assert (stats["read_commands"], stats["read_bytes"]) == (2, 2048)
    assert (stats["write_commands"], stats["write_bytes"]) == (1, 1024)


def test_a_closed_target_refuses_calls():
    world = World()
    host = Host(world)
    world.close()
    assert host.closes()
    with pytest.raises(ValueError, match="closed"):
        world.target.drain()
