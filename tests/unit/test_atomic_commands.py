"""COMPARE AND WRITE, ORWRITE, WRITE ATOMIC: what each does, and that nothing of another host comes between."""
from __future__ import annotations

import random
import struct

import pytest

from detour.core.target import TargetHandle
from detour.core.volume import ARMED
from tests.support.medium_world import (
    BLOCK,
    BLOCKS,
    KINDS,
    DiskMedium,
    TightVolume,
    VolumeMedium,
    atomic_cdb,
    compare_cdb,
)
from tests.support.pdu_client import DATA_IN, R2T, RESPONSE, TASK_MANAGEMENT_RESPONSE, Host, cdb_rw

INVALID_FIELD, OUT_OF_RANGE, MISCOMPARE = 0x052400, 0x052100, 0x0E1D00


@pytest.fixture(params=sorted(KINDS))
def world(request):
    world = KINDS[request.param](7)
    yield world
    assert world.quiet()
    world.close()


@pytest.fixture
def host(world):
    return Host(world)


def hosts(world, count):
    return [Host(world, isid=bytes([0, 2, 0x3D, 0, 0, number])) for number in range(count)]


def information(result):
    pdu = result.pdus[-1]
    assert pdu.data[2] & 0x80, "the information field is not valid"
    return struct.unpack_from(">I", pdu.data, 5)[0]


# --- one at a time

def test_compare_and_write(host):
    old, new = b"a" * 3 * BLOCK, random.Random(1).randbytes(3 * BLOCK)
    assert host.write(20, old).status == 0
    assert host.command_out(compare_cdb(20, 3, 0x18), old + new).status == 0
    assert host.read(20, 3).data == new
    assert host.command_out(compare_cdb(20, 3), old + old).sense == MISCOMPARE
    assert host.read(20, 3).data == new


@pytest.mark.parametrize("at", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 27])
def test_where_it_differs_is_told(host, at):
    old = bytearray(b"b" * 2 * BLOCK)
    assert host.write(100, bytes(old)).status == 0
    old[at] ^= 0x55
    result = host.command_out(compare_cdb(100, 2), bytes(old) + bytes(2 * BLOCK))
    assert (result.sense, information(result)) == (MISCOMPARE, at)


def test_compare_and_write_of_what_was_never_written(host):
    assert host.command_out(compare_cdb(900, 1), bytes(BLOCK) + b"c" * BLOCK).status == 0
    assert host.read(900, 1).data == b"c" * BLOCK


def test_compare_and_write_of_most_blocks(host):
    noise = random.Random(2).randbytes(255 * BLOCK)
    assert host.command_out(compare_cdb(300, 255), bytes(255 * BLOCK) + noise).status == 0
    assert host.read(300, 255).data == noise


def test_what_compare_and_write_refuses(host):
    assert host.command_out(compare_cdb(BLOCKS - 1, 2), bytes(4 * BLOCK)).sense == OUT_OF_RANGE
    assert host.command_out(compare_cdb(0, 1), bytes(4 * BLOCK)).sense >> 16 == 5
    assert host.command_out(compare_cdb(0, 3), bytes(4 * BLOCK)).sense >> 16 == 5
    assert host.command_out(compare_cdb(0, 0), bytes(4 * BLOCK)).sense == INVALID_FIELD
    assert host.command(compare_cdb(0, 0)).status == 0
    assert host.command_out(compare_cdb(0, 1, 0x20), bytes(2 * BLOCK)).sense == INVALID_FIELD


def test_orwrite(host):
    rng = random.Random(3)
    old, new = rng.randbytes(700 * BLOCK), rng.randbytes(700 * BLOCK)
    assert host.write(40, old).status == 0
    assert host.write(40, new, 0x8B).status == 0
    assert host.read(40, 700).data == bytes(a | b for a, b in zip(old, new, strict=True))
    assert host.command(cdb_rw(0x8B, 0, 0)).status == 0
    assert host.command_out(cdb_rw(0x8B, BLOCKS, 1), bytes(BLOCK)).sense == OUT_OF_RANGE
    assert host.command_out(cdb_rw(0x8B, 0, 1, 0x40), bytes(BLOCK)).sense == INVALID_FIELD


def test_write_atomic(host):
    noise = random.Random(4).randbytes(100 * BLOCK)
    assert host.command_out(atomic_cdb(7, 100), noise).status == 0
    assert host.read(7, 100).data == noise
    assert host.command(atomic_cdb(0, 0)).status == 0
    assert host.command_out(atomic_cdb(BLOCKS - 1, 2), bytes(2 * BLOCK)).sense == OUT_OF_RANGE
    assert host.command_out(atomic_cdb(0, 8, boundary=4), bytes(8 * BLOCK)).sense == INVALID_FIELD
    assert host.command_out(atomic_cdb(0, 8), bytes(4 * BLOCK)).sense == 0x050E03, "a part of it is not it"
    assert host.read(7, 100).data == noise


# --- several at once

class Runner:
    """A host with one command open at a time; `ended` is called with its status and data."""

    def __init__(self, host, rng):
        self.host, self.rng = host, rng
        self.tag, self.out, self.ended, self.data = None, b"", None, b""

    def begin(self, cdb, data, ended, read_bytes=0):
        self.out, self.ended, self.data = data, ended, b""
        self.tag = self.host.send_command_out(cdb, data) if data else self.host.begin(
            cdb, flags=0x40, edtl=read_bytes)

    def hear(self):
        if self.host.closed:
            return
        try:
            pdu = self.host.pdu(1)
        except (TimeoutError, EOFError):
            return
        if pdu.itt != self.tag or pdu.opcode == TASK_MANAGEMENT_RESPONSE:
            return
        if pdu.opcode == R2T:
            self.host._solicited(self.tag, pdu, self.out)
            return
        self.data += pdu.data if pdu.opcode == DATA_IN else b""
        if pdu.opcode == RESPONSE or pdu.flags & 1:
            self.tag = None
            self.ended(pdu.bhs[3], self.data)


class Counter(Runner):
    """Reads two blocks, then compares and writes them with the number in both one higher."""

    lba = 30
    done = 0
    unknown = 0

    def step(self):
        if self.tag is None:
            self.begin(cdb_rw(0x88, self.lba, 2), b"", self.have_read, 2 * BLOCK)
        self.hear()

    def have_read(self, status, data):
        if status != 0:
            return
        assert data[:8] == data[BLOCK:BLOCK + 8], "a read shows a half of a COMPARE AND WRITE"
        fresh = struct.pack(">Q", int.from_bytes(data[:8], "big") + 1) + b"x" * (BLOCK - 8)
        self.begin(compare_cdb(self.lba, 2), data + fresh * 2, self.have_written)

    def have_written(self, status, _data):
        self.done += status == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("seed", range(4))
def test_counters_lose_nothing(kind, seed):
    world = KINDS[kind](seed)
    runners = [Counter(host, world.rng) for host in hosts(world, 3)]
    for _ in range(1500):
        world.rng.choice(runners).step()
    for runner in runners:
        for _ in range(500):
            if runner.tag is None:
                break
            runner.hear()
        assert runner.tag is None, "a command never ended"
    found = int.from_bytes(runners[0].host.read(30, 2).data[:8], "big")
    assert found == sum(runner.done for runner in runners) > 20
    assert world.quiet()
    world.close()


class History:
    """Values of one place, each written once: when it was begun, answered, and what COMPARE AND WRITE found before it.

    A COMPARE AND WRITE that found v and wrote n says that nothing came between v and n. So another write that began
    after v was answered came after n, and from its answer on nobody may see n.
    """

    def __init__(self):
        self.now = 0
        self.writes = {0: (-2, -1, None)}       # value -> begun, answered, what it replaced (COMPARE AND WRITE)
        self.reads = []                         # begun, value

    def tick(self):
        self.now += 1
        return self.now

    def check(self):
        replaced = [before for _, _, before in self.writes.values() if before is not None]
        assert len(replaced) == len(set(replaced)), "one value was compared with and replaced twice"
        for begun, value in self.reads:
            before = self.writes[value][2]
            if before is None or self.writes[before][1] is None:
                continue
            for other, (other_begun, other_answered, _) in self.writes.items():
                if other != value and other_begun > self.writes[before][1] and other_answered is not None:
                    lost = other_answered < begun and self.writes[value][0] <= other_answered
                    assert not lost or self.follows(other, value), f"{other} was lost between {before} and {value}"

    def follows(self, other, value):
        """Whether `value` came out of `other` by COMPARE AND WRITEs."""
        while value is not None and value != other:
            value = self.writes[value][2]
        return value == other


class Rival(Runner):
    """Writes fresh values into one block, by WRITE and by COMPARE AND WRITE of what it read before."""

    lba = 90

    def __init__(self, host, rng, history):
        super().__init__(host, rng)
        self.history, self.begun, self.value, self.before = history, 0, 0, None

    def step(self):
        if self.tag is None:
            self.begun = self.history.tick()
            if self.rng.random() < 0.3:
                self.write(cdb_rw(0x8A, self.lba, 1), b"", None)
            else:
                self.begin(cdb_rw(0x88, self.lba, 1), b"", self.have_read, BLOCK)
        self.hear()

    def have_read(self, status, data):
        assert status == 0 and len(set(data[at:at + 8] for at in range(0, BLOCK, 8))) == 1
        before = int.from_bytes(data[:8], "big")
        self.history.reads.append((self.begun, before))
        self.begun = self.history.tick()
        self.write(compare_cdb(self.lba, 1), data, before)

    def write(self, cdb, compared, before):
        self.value, self.before = self.history.tick(), before
        self.history.writes[self.value] = (self.begun, None, None)
        self.begin(cdb, compared + self.value.to_bytes(8, "big") * (BLOCK // 8), self.written)

    def written(self, status, _data):
        if status == 0:
            self.history.writes[self.value] = (self.begun, self.history.tick(), self.before)
        else:
            del self.history.writes[self.value]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("seed", range(8))
def test_nothing_comes_between_compare_and_write(kind, seed):
    world = KINDS[kind](300 + seed)
    history = History()
    runners = [Rival(host, world.rng, history) for host in hosts(world, 4)]
    for _ in range(900):
        world.rng.choice(runners).step()
    for runner in runners:
        for _ in range(500):
            if runner.tag is not None:
                runner.hear()
        assert runner.tag is None, "a command never ended"
    begun = history.tick()
    history.reads.append((begun, int.from_bytes(runners[0].host.read(90, 1).data[:8], "big")))
    history.check()
    assert world.quiet()
    world.close()


@pytest.mark.parametrize("seed", range(4))
def test_nor_does_a_host_of_another_target(seed):
    world = DiskMedium(400 + seed)
    history = History()
    runners = [Rival(host, world.rng, history) for host in hosts(world, 2)]
    first, world.target = world.target, TargetHandle(world.reactor, 11, nop_interval_ms=0)
    assert world.ask(world.target.set_lun(3, world.disk)) == 0
    assert world.ask(world.target.set_lun(0, world.disk)) == 0
    runners += [Rival(host, world.rng, history) for host in hosts(world, 2)]
    for _ in range(900):
        world.rng.choice(runners).step()
    for runner in runners:
        for _ in range(500):
            if runner.tag is not None:
                runner.hear()
        assert runner.tag is None, "a command never ended"
    history.reads.append((history.tick(), int.from_bytes(runners[0].host.read(90, 1).data[:8], "big")))
    history.check()
    assert world.quiet() and world.ask(world.target.close()) == 0
    world.target = first
    assert world.quiet()
    world.close()


def test_a_freeze_waits_for_what_compares_and_writes():
    """Armed, main is not frozen yet: what has its place goes on there, with what it reads first."""
    world = VolumeMedium(1, frozen=False)
    world.pace = 0
    one, two = hosts(world, 2)
    tag = one.send_command_out(compare_cdb(5, 1), bytes(BLOCK) + b"n" * BLOCK)
    late = two.send_command_out(compare_cdb(5, 1), b"n" * BLOCK + b"w" * BLOCK)
    for _ in range(10):
        one.pump()
        two.pump()
    assert [(op, at) for op, at, _ in world.world.main.pending()] == [(0, 5 * BLOCK)], "it reads, the other waits"
    arming = world.world.volume.set_phase(ARMED)
    world.turn(5)
    assert arming in world.tickets
    world.pace = 1
    assert one.finish(tag).status == 0 and two.finish(late).status == 0
    assert world.ask(world.world.volume.freeze(b"p" * 16)) == 0
    assert bytes(world.world.main.image[5 * BLOCK:6 * BLOCK]) == b"w" * BLOCK
    assert one.command_out(compare_cdb(5, 1), b"w" * BLOCK + b"o" * BLOCK).status == 0
    assert bytes(world.world.main.image[5 * BLOCK:6 * BLOCK]) == b"w" * BLOCK, "main is frozen"
    assert two.read(5, 1).data == b"o" * BLOCK
    assert world.quiet()
    world.close()


class Stamper(Runner):
    """WRITE ATOMIC of eight blocks with one stamp, READs of them, plain WRITEs beside them, ORWRITEs of one bit."""

    lba = 63

    def __init__(self, host, rng, number):
        super().__init__(host, rng)
        self.number, self.bits = number, 0

    def step(self):
        if self.tag is None:
            action = self.rng.randrange(4)
            if action == 0:
                self.begin(atomic_cdb(self.lba, 8), bytes([self.rng.randrange(1, 256)]) * 8 * BLOCK, self.wrote)
            elif action == 1:
                self.begin(cdb_rw(0x88, self.lba, 8), b"", self.read, 8 * BLOCK)
            elif action == 2:
                self.begin(cdb_rw(0x8A, self.lba + 8, 4), self.rng.randbytes(4 * BLOCK), self.wrote)
            else:
                self.bits |= 1 << (self.number * 8 + self.rng.randrange(8))
                bits = self.bits.to_bytes(8, "little")
                self.begin(cdb_rw(0x8B, self.lba - 1, 1), bits.ljust(BLOCK, b"\0"), self.wrote)
        self.hear()

    def wrote(self, status, _data):
        assert status == 0

    def read(self, status, data):
        assert status == 0 and len(set(data)) == 1, "a read shows a part of a WRITE ATOMIC"


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("seed", range(4))
def test_atomic_writes_are_seen_whole_and_no_bit_is_lost(kind, seed):
    world = KINDS[kind](100 + seed)
    runners = [Stamper(host, world.rng, number) for number, host in enumerate(hosts(world, 3))]
    for _ in range(1200):
        world.rng.choice(runners).step()
    for runner in runners:
        for _ in range(500):
            if runner.tag is not None:
                runner.hear()
        assert runner.tag is None, "a command never ended"
    bits = int.from_bytes(runners[0].host.read(62, 1).data[:8], "little")
    assert bits == runners[0].bits | runners[1].bits | runners[2].bits
    assert world.quiet()
    world.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("seed", range(6))
def test_aborts_resets_lost_hosts_and_drains_between(kind, seed):
    """What was answered GOOD counts once; what was aborted counts at most once; nothing hangs, nothing leaks."""
    world = KINDS[kind](200 + seed)
    rng = world.rng
    runners = [Counter(host, rng) for host in hosts(world, 3)]
    aborted = done = 0
    for _ in range(1200):
        runner = rng.choice(runners)
        runner.step()
        if rng.random() > 0.02:
            continue
        aborted += sum(other.tag is not None for other in runners)
        action = rng.randrange(4)
        if action == 0:
            drained = world.target.drain()
            assert world.ask(drained) == 0, "a drain never ends"
            assert world.ask(world.target.resume()) == 0
        elif action == 1:
            done += runner.done
            runner.host.close()
            runners[runners.index(runner)] = Counter(Host(world, isid=runner_isid(rng)), rng)
        else:
            runner.host.manage(2 if action == 2 else 5)
            for _ in range(150):
                for other in runners:
                    other.hear()
            for other in runners:
                other.tag = None
    for runner in runners:
        for _ in range(500):
            if runner.tag is not None:
                runner.hear()
    done += sum(runner.done for runner in runners)
    assert world.quiet(), "something of an aborted command is left"
    reader = Host(world, isid=runner_isid(rng))
    found = int.from_bytes(reader.read(30, 2).data[:8], "big")
    assert done <= found <= done + aborted
    again = reader.command_out(compare_cdb(30, 2), reader.read(30, 2).data + bytes(2 * BLOCK))
    assert again.status == 0, "the blocks are still guarded"
    world.close()


def runner_isid(rng):
    return bytes([0, 2, 0x3D]) + rng.randbytes(3)


class Glutton(Runner):
    """Long commands of every kind, anywhere."""

    def step(self):
        if self.tag is None:
            blocks, lba = self.rng.randrange(1, 600), self.rng.randrange(900)
            action = self.rng.randrange(4)
            if action == 0:
                self.begin(cdb_rw(0x88, lba, blocks), b"", self.ended_well, blocks * BLOCK)
            elif action == 1:
                blocks = min(blocks, 255)
                self.begin(compare_cdb(lba, blocks), bytes(2 * blocks * BLOCK), self.ended_well)
            else:
                self.begin(cdb_rw((0x8A, 0x8B)[action & 1], lba, blocks), self.rng.randbytes(blocks * BLOCK),
                           self.ended_well)
        self.hear()

    def ended_well(self, status, _data):
        assert status in (0, 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_tight_journal_and_little_memory_hold_nobody_up(seed):
    world = TightVolume(seed)
    runners = [Glutton(host, world.rng) for host in hosts(world, 6)]
    for _ in range(1200):
        world.rng.choice(runners).step()
    world.pace = 0.9
    for runner in runners:
        for _ in range(3000):
            if runner.tag is None:
                break
            runner.hear()
        assert runner.tag is None, "a command never ended"
    assert world.quiet()
    world.close()
