"""Whatever a target does to a session, short of lying about data, the initiator's store stays a disk (core/initiator).

A random run of reads, writes, unmaps and flushes meets a target that is busy, raises unit attentions, holds answers
back, answers out of order and drops connections. Each request is answered once, with the right data.
"""
from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from detour.core.initiator import InitiatorStore
from detour.core.reactor import Reactor
from tests.support.scripted_target import Negotiated, ScriptedTarget, Task, sense

BLOCK, BLOCKS = 512, 512
KINDS = ["read", "write", "write", "unmap", "flush"]
MS = 10**6


class Moody:
    """Decides about each command that is complete."""

    def __init__(self, target: ScriptedTarget, dice: random.Random, trouble: float) -> None:
        self.target, self.dice, self.trouble = target, dice, trouble
        self.held: list[Task] = []
        target.on_command = self.decide

    def decide(self, task: Task) -> bool:
        if self.dice.random() < self.trouble:
            self.held.append(task)
            return True
        if self.dice.random() < self.trouble:
            self.target.respond(task, *self.dice.choice([(8, b""), (0x28, b""), (2, sense(6, 0x29))]))
            return True
        self.go_on(task)
        return True

    def go_on(self, task: Task) -> None:
        if task.writing and len(task.data) < task.expected:
            length = min(self.target.negotiated.burst, task.expected - len(task.data))
            self.target.r2t(task, len(task.data), self.dice.randrange(1, length + 1), self.dice.randrange(1 << 31))
        else:
            self.target.do(task)

    def release(self) -> None:
        self.dice.shuffle(self.held)
        while self.held:
            task = self.held.pop()
            if self.target.tasks.get(task.itt) is task and self.target.sock is not None:
                self.go_on(task)


class Run:
    def __init__(self, dice: random.Random, negotiated: Negotiated, trouble: float) -> None:
        self.dice, self.trouble = dice, trouble
        self.reactor = Reactor()
        self.target = ScriptedTarget(BLOCK * BLOCKS, negotiated, window=dice.randrange(1, 20))
        self.moody = Moody(self.target, dice, trouble)
        self.store = InitiatorStore(self.reactor, 1, 0, BLOCK * BLOCKS, queue_depth=dice.randrange(1, 20),
                                    unmap=dice.random() < 0.5, transfer_bytes_max=dice.choice([BLOCK, 4096, 1 << 20]),
                                    retries_max=1000)
        self.now_ns = 1
        self.reactor.set_clock(self.now_ns)
        self.model = bytearray(BLOCK * BLOCKS)
        self.busy = [0] * BLOCKS            # 1: a request of ours is on this block
        self.open: dict[int, tuple[str, int, int]] = {}

    def submit(self) -> None:
        start = self.dice.randrange(BLOCKS)
        blocks = self.dice.randrange(1, min(64, BLOCKS - start) + 1)
        if any(self.busy[start:start + blocks]):
            return
        kind, offset, length = self.dice.choice(KINDS), start * BLOCK, blocks * BLOCK
        if kind == "read":
            ticket = self.store.submit_read(offset, length)
        elif kind == "write":
            data = self.dice.randbytes(length)
            self.model[offset:offset + length] = data
            ticket = self.store.submit_write(offset, data, self.dice.random() < 0.2)
        elif kind == "unmap":
            self.model[offset:offset + length] = bytes(length)
            ticket = self.store.submit_unmap(offset, length)
        else:
            self.open[self.store.submit_flush()] = (kind, 0, 0)
            return
        self.busy[start:start + blocks] = [1] * blocks
        self.open[ticket] = (kind, offset, length)

    def turn(self) -> None:
        self.now_ns += 5 * MS
        self.reactor.set_clock(self.now_ns)
        self.reactor.turn(0)
        self.target.poll()
        for kind, ticket, status, _, data in self.reactor.drain():
            if kind == 0 and ticket in self.open:
                what, offset, length = self.open.pop(ticket)
                assert status == 0, (what, status)
                if what == "read":
                    assert data == self.model[offset:offset + length]
                self.busy[offset // BLOCK:(offset + length) // BLOCK] = [0] * (length // BLOCK)

    def trouble_now(self) -> None:
        if self.dice.random() < self.trouble / 4:
            self.target.close()
        if self.dice.random() < 0.3:
            self.moody.release()
        if not self.store.attached:
            self.moody.held.clear()
            self.store.attach(*self.target.connect())

    def go(self, steps: int) -> None:
        for _ in range(steps):
            if self.dice.random() < 0.7:
                self.submit()
            self.trouble_now()
            self.turn()
        self.trouble = self.moody.trouble = 0.0
        for _ in range(3000):
            self.trouble_now()
            self.turn()
            if not self.open:
                break
        assert not self.open, "every request is answered"
        assert self.store.in_flight == 0
        assert self.target.image == self.model


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), initial_r2t=st.booleans(), immediate=st.booleans(),
       target_max=st.sampled_from([512, 1000, 8192]), initiator_max=st.sampled_from([512, 1000, 8192]),
       first=st.sampled_from([512, 4096]), trouble=st.sampled_from([0.0, 0.1, 0.4]))
def test_a_store_on_a_moody_target(seed: int, initial_r2t: bool, immediate: bool, target_max: int, initiator_max: int,
                                   first: int, trouble: float) -> None:
    negotiated = Negotiated(initial_r2t, immediate, first, max(first, 8192), target_max, initiator_max)
    Run(random.Random(seed), negotiated, trouble).go(150)
