"""A hostile main storage against the core's initiator: mutated answers, lost connections, reconnects."""
from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from detour.core._testing_main import MainFuzzer
from detour.core.initiator import InitiatorStore
from detour.core.reactor import Reactor
from tests.fuzz.figures import Figures

SIZE_BYTES = 1 << 20
TICK_NS = 1_000_000
STORES = 3
E_CLOSED = -7
BATCH = 48


class Main:
    """One store of the initiator and the main that it talks to."""

    def __init__(self, case: Case, number: int) -> None:
        self.case, self.chance = case, case.chance
        self.store = InitiatorStore(
            case.reactor, 100 + number, self.chance.randrange(3), SIZE_BYTES,
            queue_depth=self.chance.choice([1, 8, 64]), unmap=self.chance.random() < 0.5,
            volatile=self.chance.random() < 0.5, transfer_bytes_max=self.chance.choice([4096, 65536, 1 << 20]),
            command_limit_ms=2000, nop_interval_ms=500, nop_timeout_ms=500, retries_max=self.chance.choice([1, 4, 16]))
        self.sock: socket.socket | None = None
        self.tickets: dict[int, int] = {}       # bytes that a read must have

    def connect(self) -> None:
        chance = self.chance
        cmd_sn = chance.choice([1, 0xFFFFFFF0, 0x7FFFFFF8])
        params: dict[str, Any] = {
            "header_digest": chance.random() < 0.25, "data_digest": chance.random() < 0.25,
            "recv_data_bytes_max": chance.choice([512, 8192, 262144]),
            "send_data_bytes_max": chance.choice([512, 8192, 262144]), "burst_bytes_max": chance.choice([4096, 65536]),
            "first_burst_bytes": chance.choice([512, 4096]), "initial_r2t": chance.random() < 0.5,
            "immediate_data": chance.random() < 0.5, "outstanding_r2t_max": 1, "cmd_sn": cmd_sn,
            "stat_sn": chance.choice([1, 0xFFFFFFF8]), "max_cmd_sn": (cmd_sn + chance.choice([0, 7, 31])) & 0xFFFFFFFF,
            "cid": 0, "isid": bytes(6)}
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        self.fuzzer = MainFuzzer(chance.getrandbits(63), params, chance.choice([0, 5, 30, 150]),
                                 chance.getrandbits(16) | chance.getrandbits(16))
        self.unsent = b""
        if self.case.ask(self.store.attach(theirs.detach(), params)) != 0:
            self.close()
        self.case.figures.sessions += 1

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def submit(self) -> None:
        """A few requests, as many as are sensible to have open."""
        chance, store = self.chance, self.store
        for _ in range(chance.randrange(1, 12)):
            if len(self.tickets) > 48:
                return
            what = chance.randrange(16)
            blocks = chance.choice([1, 2, 8, 8, 40, 200])
            offset, length = 512 * chance.randrange(SIZE_BYTES // 512 - blocks), 512 * blocks
            if what < 8:
                self.tickets[store.submit_read(offset, length)] = length
            elif what < 13:
                self.tickets[store.submit_write(offset, self.case.noise[:length], chance.random() < 0.2)] = -1
            elif what == 13:
                self.tickets[store.submit_flush()] = -1
            elif what == 14:
                self.tickets[store.submit_unmap(offset, length)] = -1
            else:
                self.tickets[store.submit_command(chance.randbytes(chance.choice([6, 10, 16])), b"",
                                                  chance.choice([0, 36, 255, 4096]))] = -1

    def exchange(self) -> None:
        if self.sock is None:
            return
        try:
            while count := self.sock.recv_into(self.case.room):
                self.case.figures.answers += self.fuzzer.consume(self.case.room, count)
                if count < len(self.case.room):
                    break
            if not count:
                self.close()
                return
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self.answer()

    def answer(self) -> None:
        assert self.sock is not None
        if not self.unsent and (self.fuzzer.waiting or self.chance.random() < 0.1):
            before = self.fuzzer.pdus
            self.unsent = self.fuzzer.generate(self.chance.randrange(1, 1 + min(BATCH, 2 * self.fuzzer.waiting + 2)))
            self.case.figures.pdus += self.fuzzer.pdus - before
        piece = self.unsent if self.chance.random() < 0.9 else self.unsent[:self.chance.randrange(1, 200)]
        try:
            self.unsent = self.unsent[self.sock.send(piece):] if piece else b""
        except BlockingIOError:
            pass
        except OSError:
            self.close()


@dataclass
class Case:
    """One loop with a few stores, each with a main of its own."""

    seed: int
    pdus: int
    figures: Figures

    def run(self) -> None:
        self.chance = random.Random(self.seed)
        self.room, self.noise = bytearray(1 << 17), self.chance.randbytes(1 << 17)
        self.clock_ns = 10**12
        self.reactor = Reactor(buffer_bytes=self.chance.choice([2 << 20, 64 << 20]))
        self.reactor.set_clock(self.clock_ns)
        self.answers: dict[int, int] = {}
        self.mains: list[Main] = []
        descriptors = len(os.listdir("/proc/self/fd"))
        self.mains = [Main(self, number) for number in range(STORES)]
        for number in self.rounds():
            self.step(number)
        self.end()
        left = len(os.listdir("/proc/self/fd"))
        assert left <= descriptors, f"{left - descriptors} descriptors are lost"

    def rounds(self) -> Iterator[int]:
        wanted, number = self.figures.pdus + self.pdus, 0
        while self.figures.pdus < wanted:
            yield number
            number += 1
            assert number < 100 * self.pdus, "main sends nothing"

    def step(self, number: int) -> None:
        for main in self.mains:
            if main.sock is None and self.chance.random() < 0.5:
                main.connect()
            main.submit()
        self.turn(2)
        for main in self.mains:
            main.exchange()
        self.turn(1)
        if number % 16 == 15:
            self.disturb(self.chance.choice(self.mains))

    def disturb(self, main: Main) -> None:
        what = self.chance.randrange(10)
        if what == 0:
            main.close()
        elif what == 1:
            main.store.detach()
        elif what == 2:
            main.store.fail()
        elif what == 3:
            main.store.logout()
        elif what == 4:
            self.clock_ns += self.chance.choice([10**8, 6 * 10**8, 3 * 10**9])

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.clock_ns += TICK_NS
            self.reactor.set_clock(self.clock_ns)
            self.reactor.turn(0)
            for kind, ticket, status, _results, data in self.reactor.drain():
                if kind == 0:
                    self.take(ticket, status, data)

    def take(self, ticket: int, status: int, data: bytes | None) -> None:
        for main in self.mains:
            wanted = main.tickets.pop(ticket, None)
            if wanted is not None:
                assert wanted < 0 or status < 0 or len(data or b"") == wanted, "a read has too few bytes"
                return
        assert ticket not in self.answers, "answered twice"
        self.answers[ticket] = status

    def ask(self, ticket: int) -> int:
        for _ in range(200):
            if ticket in self.answers:
                return self.answers.pop(ticket)
            self.turn(1)
        raise AssertionError("a call is not answered")

    def end(self) -> None:
        """Everything that was asked is answered, and nothing is left."""
        for main in self.mains:
            main.close()
        self.turn(4)
        for main in self.mains:
            self.ask(main.store.fail())
        for _ in range(100):
            self.turn(2)
            self.clock_ns += 10**8
        for main in self.mains:
            assert not main.tickets, f"{len(main.tickets)} requests are never answered"
            assert main.store.in_flight == 0
            self.ask(main.store.close())
        self.turn(4)
        assert self.reactor.buffers_taken_bytes == 0, f"{self.reactor.buffers_taken_bytes} bytes of buffers are lost"
