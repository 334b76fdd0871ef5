"""Hostile initiators against the target's sessions: framing, commands, Data-Out, task management, in one process.

A case is a target with a disk of memory, a read-only one, a gateway's volume in mid detour, and some sessions that send
what a HostFuzzer makes; an honest session on a LUN of its own writes and reads between them and checks its data. The
clock is virtual and the loop is turned by hand, so that a case follows from its seed alone.
"""
from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from detour.core._testing_host import HostFuzzer
from detour.core.disk import DiskHandle
from detour.core.reactor import Reactor
from detour.core.store import MemoryStore
from detour.core.target import TargetHandle
from detour.errors import DetourError
from tests.fuzz.figures import Figures
from tests.fuzz.gateway import Gateway
from tests.fuzz.mutate import bytes_of
from tests.fuzz.trace import Trace
from tests.support.pdu_client import ASYNC, Host, Pdu, World

WITNESS_LUN = 200
DISK_ID = 77
TICK_NS = 1_000_000
CALM_TURNS = 4
TURNS_MAX = 20_000
BATCH = 64
ADOPTED = {"header_digest": False, "data_digest": False, "recv_data_bytes_max": 8192, "send_data_bytes_max": 8192,
           "burst_bytes_max": 65536, "first_burst_bytes": 8192, "initial_r2t": False, "immediate_data": True,
           "outstanding_r2t_max": 1, "cmd_sn": 1, "stat_sn": 1, "cid": 0, "queue_depth": 32}


class FuzzWorld(World):
    """The devices behind one target. The clock goes on by a tick each turn."""

    def __init__(self, chance: random.Random, gateway: bool) -> None:
        self.clock_ns = 10**12
        self.chance = chance
        self.reactor = Reactor(buffer_bytes=chance.choice([2 << 20, 16 << 20, 64 << 20]))
        self.reactor.set_clock(self.clock_ns)
        self.block_bytes = chance.choice([512, 512, 4096])
        self.stores = [MemoryStore(self.reactor, size, block) for size, block in
                       ((1 << 20, self.block_bytes), (1 << 20, 512), (1 << 20, 512))]
        self.disks = [DiskHandle(self.reactor, self.stores[0], serial="fuzz0001", thin=chance.random() < 0.7,
                                 removable=chance.random() < 0.3, durable=chance.random() < 0.5, device_id=DISK_ID,
                                 atomic=chance.random() < 0.5, write_cache=chance.random() < 0.5),
                      DiskHandle(self.reactor, self.stores[1], serial="fuzz0002", read_only=True),
                      DiskHandle(self.reactor, self.stores[2], serial="witness1")]
        self.target = TargetHandle(self.reactor, 7, queue_depth_max=chance.choice([4, 32, 128]),
                                   nop_interval_ms=chance.choice([0, 1000]), nop_timeout_ms=5000,
                                   session_bytes_max=chance.choice([1 << 21, 1 << 26]))
        self.answers, self.events = {}, []
        self.gateway = Gateway(self.reactor, chance, self.turn) if gateway else None
        devices = {0: self.disks[0], 1: self.disks[1], WITNESS_LUN: self.disks[2]}
        if self.gateway is not None:
            devices[2] = self.gateway.volume
        self.luns = len(devices) - 1
        for lun, device in devices.items():
            assert self.ask(self.target.set_lun(lun, device)) == 0
        self.image = memoryview(self.stores[2])
        self.turn_events = 0

    def turn(self, times: int = 1) -> None:
        self.turn_events = 0
        for _ in range(times):
            self.clock_ns += TICK_NS
            self.reactor.set_clock(self.clock_ns)
            self.turn_events += self.reactor.turn(0)
            for kind, ticket, status, results, data in self.reactor.drain():
                if kind == 0:
                    self.answers[ticket] = (status, results, data)
                elif kind == 2:
                    self.answer_text(ticket, results, data)
                elif kind == 13:
                    self.store_reservations(ticket, data or b"")

    def answer_text(self, session_id: int, results: tuple[int, ...], _data: bytes | None) -> None:
        how = self.chance.random()
        if how < 0.9:
            length = self.chance.choice([0, 10, 100, 9000, 100000])
            self.target.text_response(session_id, results[0], b"TargetName=x\0"[:length].ljust(length, b"a"),
                                      self.chance.choice([0, 0, 512]))
        elif how < 0.95:
            self.target.text_reject(session_id, results[0], 0x09)

    def store_reservations(self, device_id: int, dump: bytes) -> None:
        """Says that they are stored, or cannot be; and a disk that finds them spoiled must bear it."""
        device = self.disks[0] if device_id == DISK_ID or self.gateway is None else self.gateway.volume
        device.reservations_stored(self.chance.choice([0, 0, 0, -2]))
        if self.chance.random() < 0.1:
            with contextlib.suppress(DetourError, ValueError):
                DiskHandle(self.reactor, self.stores[1], durable=True, reservations=bytes_of(dump, self.chance))

    def calm(self) -> None:
        """Turns until nothing happens any more; AssertionError when that never comes."""
        quiet = 0
        for number in range(TURNS_MAX):
            self.turn()
            moved = self.gateway is not None and self.gateway.go_on()
            if self.gateway is not None and number % 300 == 299:
                self.gateway.change()       # a write may wait for room that a round, or the copy, makes
            quiet = 0 if self.turn_events or moved else quiet + 1
            if quiet >= CALM_TURNS:
                return
        raise AssertionError("the loop never calms down")

    def wait_ms(self, milliseconds: int) -> None:
        self.clock_ns += milliseconds * 10**6
        self.turn(3)

    def end(self) -> None:
        """Everything is closed; nothing may be left."""
        ticket = self.target.close()
        for _ in range(200):
            self.wait_ms(100)
            if self.gateway is not None:
                self.gateway.go_on()
            if ticket in self.answers:
                break
        assert self.answers.pop(ticket, (None,))[0] == 0, "the target does not close: tasks are lost"
        stats = dict(zip(self.target.stats_names(), list(self.target.stats), strict=False))
        assert stats["tasks_open"] == 0 and stats["sessions"] == 0, stats
        self.image.release()
        if self.gateway is not None:
            self.gateway.end()
        assert self.reactor.buffers_taken_bytes == 0, f"{self.reactor.buffers_taken_bytes} bytes of buffers are lost"
        for store in self.stores:
            assert store.in_flight == 0, "a store has requests of nobody"


@dataclass
class Peer:
    """A hostile session: its socket and its generator."""

    fuzzer: HostFuzzer
    sock: socket.socket
    session_id: int
    unsent: bytes = b""
    closed: bool = False
    deaf: bool = False          # reads nothing of what comes
    slow: bool = False          # reads a little of it
    cuts: bool = False          # sends in small pieces


@dataclass
class Case:
    """One world and what is done to it."""

    seed: int
    pdus: int
    figures: Figures
    gateway: bool = False
    trace: Trace | None = None
    peers: list[Peer] = field(default_factory=list)

    def run(self) -> None:
        self.chance = random.Random(self.seed)
        self.room = bytearray(1 << 17)
        self.note("world", self.seed, self.gateway)
        self.world = FuzzWorld(self.chance, self.gateway)
        descriptors = len(os.listdir("/proc/self/fd"))
        self.witness = Witness(self.world, self.chance)
        wanted = self.figures.pdus + self.pdus
        for round_number in self.rounds(wanted):
            self.step(round_number)
        self.witness.check()
        for peer in self.peers:
            peer.sock.close()
        self.witness.close()
        self.world.calm()
        self.world.end()
        left = len(os.listdir("/proc/self/fd"))
        assert left <= descriptors, f"{left - descriptors} descriptors are lost"

    def note(self, *what: Any) -> None:
        if self.trace is not None:
            self.trace.add(*what)

    def rounds(self, wanted: int) -> Iterator[int]:
        number = 0
        while self.figures.pdus < wanted:
            yield number
            number += 1
            assert number < 40 * self.pdus, "the generators send nothing"

    def step(self, number: int) -> None:
        while len(self.peers) < 3:
            self.peers.append(self.connect())
        for peer in self.peers:
            self.send(peer)
        self.world.turn(2)
        self.note("turn", 2)
        for peer in self.peers:
            self.receive(peer)
        if number % 16 == 15:
            self.disturb()
        if number % 8 == 7:
            self.note("calm")
            self.world.calm()
            self.witness.check()
        for gone in [one for one in self.peers if one.closed]:
            self.note("close", gone.session_id)
            gone.sock.close()
            self.peers.remove(gone)

    def connect(self) -> Peer:
        chance = self.chance
        params = {**ADOPTED, "header_digest": chance.random() < 0.25, "data_digest": chance.random() < 0.25,
                  "recv_data_bytes_max": chance.choice([512, 4096, 65536]),
                  "send_data_bytes_max": chance.choice([512, 8192, 262144]),
                  "first_burst_bytes": chance.choice([512, 8192, 65536]), "initial_r2t": chance.random() < 0.4,
                  "immediate_data": chance.random() < 0.7, "outstanding_r2t_max": chance.choice([1, 1, 4, 16]),
                  "cmd_sn": chance.choice([1, 0xFFFFFFF0, 0x7FFFFFF0]), "stat_sn": chance.choice([1, 0xFFFFFFF8])}
        seed, spoil = chance.getrandbits(63), chance.choice([0, 10, 60, 200])
        mood = chance.getrandbits(16) | chance.getrandbits(16)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        narrow = chance.random() < 0.2
        if narrow:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        name, isid = f"iqn.2026-01.example:hostile{chance.randrange(4)}", bytes([0, 2, 61, 0, 0, chance.randrange(4)])
        status, results, _ = self.world.answer(self.world.target.adopt(theirs.detach(), params, name, isid))
        assert status == 0, status
        self.note("open", results[0], params, name, isid.hex())
        self.figures.sessions += 1
        fuzzer = HostFuzzer(seed, params, (1 << 20) // self.world.block_bytes, self.world.block_bytes,
                            self.world.luns, spoil, mood)
        fuzzer.naa = self.world.disks[0].naa
        return Peer(fuzzer, ours, results[0], deaf=chance.random() < 0.03, slow=narrow, cuts=chance.random() < 0.15)

    def send(self, peer: Peer) -> None:
        if not peer.unsent:
            before = peer.fuzzer.pdus
            peer.unsent = peer.fuzzer.generate(1 + self.chance.randrange(BATCH))
            self.figures.pdus += peer.fuzzer.pdus - before
        piece = peer.unsent
        if peer.cuts:
            piece = piece[:1 + self.chance.randrange(200)]
        try:
            sent = peer.sock.send(piece)
            self.note("send", peer.session_id, piece[:sent].hex())
            peer.unsent = peer.unsent[sent:]
        except BlockingIOError:
            pass
        except OSError:
            peer.closed = True

    def receive(self, peer: Peer) -> None:
        if self.chance.random() < (0.98 if peer.deaf else 0.6 if peer.slow else 0):
            return
        wanted = 3000 if peer.slow else len(self.room)
        try:
            while count := peer.sock.recv_into(self.room, wanted):
                self.figures.answers += peer.fuzzer.consume(self.room, count)
                if count < len(self.room):
                    return
            peer.closed = True
        except BlockingIOError:
            pass
        except OSError:
            peer.closed = True

    def disturb(self) -> None:
        """What Python or the network does to sessions meanwhile."""
        chance, world = self.chance, self.world
        what = chance.randrange(14)
        peer = chance.choice(self.peers)
        self.note("disturb", what, peer.session_id)
        if what == 0:
            peer.closed = True
        elif what == 1:
            world.target.drop(peer.session_id)
        elif what == 2:
            world.target.hold()
            world.turn(2)
            world.target.resume()
        elif what == 3:
            world.target.drain()
            world.turn(chance.randrange(4))
            world.target.resume()
        elif what == 4:
            world.target.async_message(peer.session_id, chance.randrange(6))
        elif what == 5 and chance.random() < 0.2:
            world.wait_ms(chance.choice([100, 2000, 30000]))
        elif what == 6 and chance.random() < 0.1:
            world.ask(world.target.send_home(0, 0, 5))
        elif what == 7 and chance.random() < 0.3:
            lun = chance.randrange(2)
            world.target.set_lun(lun, None)
            world.turn(chance.randrange(3))
            world.target.set_lun(lun, world.disks[lun])
        elif what == 8 and world.gateway is not None:
            world.gateway.change()


class HonestHost(Host):
    """Lets Async Messages pass: what they announce is seen when it comes."""

    def pdu(self, turns: int = 400) -> Pdu:
        while True:
            pdu = super().pdu(turns)
            if pdu.opcode != ASYNC:
                return pdu


class Witness:
    """An honest session: its data must be right and its commands answered, whatever the others do."""

    def __init__(self, world: FuzzWorld, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.host: HonestHost | None = None
        self.version = 0

    def login(self) -> HonestHost:
        if self.host is None or self.host.closed:
            self.close()
            self.host = HonestHost(self.world, name="iqn.2026-01.example:witness", eat_attention=False,
                             header_digest=True, data_digest=True, first_burst_bytes=1024,
                             recv_data_bytes_max=4096)
        return self.host

    def attempt(self, cdb: bytes, data: bytes | None, edtl: int) -> bytes:
        """A command, again after a unit attention and in a new session after a reset."""
        for _ in range(12):
            host = self.login()
            try:
                got = host.command_out(cdb, data, lun=WITNESS_LUN) if data is not None \
                    else host.command(cdb, edtl, lun=WITNESS_LUN)
            except EOFError:
                continue
            except TimeoutError:
                host.closed = True      # its command was aborted by a reset and is not answered
                continue
            if got.status == 0:
                return got.data
            assert got.sense >> 16 == 6 or got.status in (0x08, 0x28, 0x40), f"status {got.status}, {got.sense:#x}"
        raise AssertionError("an honest session is not served")

    def check(self) -> None:
        self.version += 1
        lba, blocks = self.chance.randrange(1024), self.chance.randrange(1, 12)
        content = struct.pack("<QQ", lba, self.version) * 32 * blocks
        tail = struct.pack(">IBHB", lba, 0, blocks, 0)
        cdb = bytes(9)
        self.attempt(b"\x2a\0" + tail, content, 0)
        cdb = b"\x28\0" + tail
        assert self.attempt(cdb, None, len(content)) == content, "an honest session reads other data than it wrote"
        place = lba * 512
        assert bytes(self.world.image[place:place + len(content)]) == content

    def close(self) -> None:
        if self.host is not None:
            self.host.sock.close()
            self.host = None
