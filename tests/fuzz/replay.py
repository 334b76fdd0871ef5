"""Traces of hostile sessions, played again: what the corpus holds, and what a failure is cut down to."""
from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

from tests.fuzz.framing import FuzzWorld, Witness
from tests.fuzz.trace import Step


class Player:
    """The steps of a trace, without a generator: what the target answers is read and thrown away."""

    def __init__(self, seed: int, gateway: bool) -> None:
        self.chance = random.Random(seed)
        self.world = FuzzWorld(self.chance, gateway)
        self.witness = Witness(self.world, self.chance)
        self.socks: dict[int, tuple[socket.socket, int]] = {}
        self.room = bytearray(1 << 17)

    def play(self, step: Step) -> None:
        doing: dict[str, Callable[..., None]] = {"open": self.open, "send": self.send, "turn": self.turn,
                                                 "calm": self.calm, "close": self.close, "disturb": self.disturb}
        doing[step[0]](*step[1:])

    def open(self, number: int, params: dict[str, Any], name: str, isid: str) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        status, results, _ = self.world.answer(
            self.world.target.adopt(theirs.detach(), params, name, bytes.fromhex(isid)))
        assert status == 0
        self.socks[number] = ours, results[0]

    def send(self, number: int, data: str) -> None:
        if number in self.socks:
            try:
                self.socks[number][0].send(bytes.fromhex(data))
            except OSError:
                self.close(number)

    def turn(self, times: int = 1) -> None:
        self.world.turn(times)
        self.hear()

    def hear(self) -> None:
        for sock, _ in self.socks.values():
            try:
                while sock.recv_into(self.room) == len(self.room):
                    pass
            except OSError:
                continue

    def calm(self) -> None:
        self.hear()
        self.world.calm()
        self.hear()
        self.witness.check()

    def close(self, number: int) -> None:
        if number in self.socks:
            self.socks.pop(number)[0].close()

    def disturb(self, what: int, number: int) -> None:
        target, session = self.world.target, self.socks.get(number, (None, 0))[1]
        if what == 1:
            target.drop(session)
        elif what in (2, 3):
            (target.hold if what == 2 else target.drain)()
            self.turn(2)
            target.resume()
        elif what == 4:
            target.async_message(session, 4)
        elif what == 5:
            self.world.wait_ms(2000)
        elif what == 7:
            for device in (None, self.world.disks[0]):
                target.set_lun(0, device)
                self.turn(2)
        elif what == 8 and self.world.gateway is not None:
            self.world.gateway.change()

    def end(self) -> None:
        self.calm()
        for number in list(self.socks):
            self.close(number)
        self.witness.close()
        self.world.calm()
        self.world.end()


def replay_trace(steps: list[Step]) -> None:
    """Plays all steps, then closes everything and looks for what is left. AssertionError as in a case."""
    assert steps and steps[0][0] == "world"
    player = Player(*steps[0][1:])
    for step in steps[1:]:
        player.play(step)
    player.end()
