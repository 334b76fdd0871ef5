"""An initiator's store and a scripted target, turned by hand on one loop."""
from __future__ import annotations

from collections.abc import Callable

from detour.core.initiator import InitiatorStore
from detour.core.reactor import Reactor
from tests.support.scripted_target import Negotiated, ScriptedTarget, Task

KIB = 1024
SIZE = 4 * 1024 * KIB
E_IO, E_PROTOCOL, E_DIGEST, E_CLOSED, E_ABORTED, E_TIMEOUT = -2, -5, -6, -7, -8, -9
E_CHECK, E_MISCOMPARE, E_BUSY = -11, -13, -14
LOST, ASYNC = 3, 4
MS = 10**6


class World:
    """Store and target, turned by hand."""

    def __init__(self, negotiated: Negotiated | None = None, *, window: int = 32, size: int = SIZE,
                 **options: object) -> None:
        self.reactor = Reactor()
        self.target = ScriptedTarget(min(size, SIZE), negotiated, window=window)
        self.store = InitiatorStore(self.reactor, 77, 1, size, **options)
        self.answers: dict[int, tuple[int, tuple[int, ...], bytes | None]] = {}
        self.events: list[tuple[int, tuple[int, ...], bytes | None]] = []

    def attach(self, **more: object) -> None:
        fd, params = self.target.connect()
        assert self.wait(self.store.attach(fd, {**params, **more}))[0] == 0

    def turn(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.reactor.turn(0)
            self.target.poll()
            for kind, ticket, status, results, data in self.reactor.drain():
                if kind == 0:
                    assert ticket not in self.answers, "answered once"
                    self.answers[ticket] = (status, results, data)
                else:
                    assert ticket == 77
                    self.events.append((kind, results, data))

    def until(self, reached: Callable[[], bool]) -> None:
        for _ in range(20000):
            if reached():
                return
            self.turn()
        raise AssertionError("never came about")

    def wait(self, ticket: int) -> tuple[int, tuple[int, ...], bytes | None]:
        self.until(lambda: ticket in self.answers)
        return self.answers[ticket]

    def status(self, ticket: int) -> int:
        return self.wait(ticket)[0]

    def lost(self) -> list[tuple[int, ...]]:
        return [results for kind, results, _ in self.events if kind == LOST]


def hold(world: World) -> list[Task]:
    """Commands that come from now on are kept, unanswered."""
    held: list[Task] = []

    def keep(task: Task) -> bool:
        held.append(task)
        return True

    world.target.on_command = keep
    return held


def opcodes(world: World) -> list[int]:
    return [pdu.opcode for pdu in world.target.log]
