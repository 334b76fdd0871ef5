"""Drain, resume, abort and loss of the connection at random moments of many writes, against a model of the image.

What must hold: a write that was answered GOOD is there in whole; from the moment a drain is reported done until resume,
no byte of the image changes and no write is there in part; what was dropped with its connection after a drain was never
there at all; nothing leaks.
"""
from __future__ import annotations

import random

import pytest

from tests.support.pdu_client import NONE, NOP_IN, R2T, RESPONSE, Host, World, cdb_rw

BLOCK = 512
SLOT_BLOCKS = 4096          # 2 MiB: up to two parts at the device
SLOTS = 8
ATTRIBUTES = (1, 1, 1, 0, 2, 3)     # simple, untagged, ordered, head of queue
SIZES = (1, 3, 100, 512, 2048, 2049, 4000)


class Writer:
    """A host with writes under way, sent piece by piece."""

    def __init__(self, world, rng, number):
        self.rng = rng
        self.host = Host(world, isid=bytes([0, 2, 0x3D, 0, 0, number]), initial_r2t=rng.random() < 0.5,
                         immediate_data=rng.random() < 0.5, first_burst_bytes=rng.choice((512, 16384, 65536)),
                         recv_data_bytes_max=rng.choice((4096, 65536)), outstanding_r2t_max=rng.choice((1, 4)),
                         data_digest=rng.random() < 0.3)
        self.open = {}          # tag -> (slot, data)
        self.queue = []         # pieces to send, in order

    def begin(self, free):
        slot = self.rng.choice(free)
        data = self.rng.randbytes(self.rng.choice(SIZES) * BLOCK)
        before = len(self.host.out)
        tag = self.host.send_command_out(cdb_rw(0x8A, slot * SLOT_BLOCKS, len(data) // BLOCK), data,
                                         attribute=self.rng.choice(ATTRIBUTES))
        self.queue.append(bytes(self.host.out[before:]))
        del self.host.out[before:]
        self.open[tag] = (slot, data)

    def send(self):
        """Some of what is to be sent, cut anywhere."""
        if self.queue:
            piece = self.queue[0]
            cut = len(piece) if self.rng.random() < 0.5 else self.rng.randrange(1, len(piece) + 1)
            self.host.out += piece[:cut]
            self.queue[0] = piece[cut:]
            if not self.queue[0]:
                self.queue.pop(0)

    def hear(self, model):
        while True:
            try:
                pdu = self.host.pdu(4)
            except TimeoutError:
                return
            if pdu.opcode == R2T and pdu.itt in self.open:
                before = len(self.host.out)
                self.host._solicited(pdu.itt, pdu, self.open[pdu.itt][1])
                self.queue.append(bytes(self.host.out[before:]))
                del self.host.out[before:]
            elif pdu.opcode == RESPONSE:
                slot, data = self.open.pop(pdu.itt)
                assert pdu.bhs[3] in (0, 0x28)
                if pdu.bhs[3] == 0:
                    model[slot] = data + model[slot][len(data):]
            else:
                assert (pdu.opcode, pdu.itt) == (NOP_IN, NONE), pdu

    def busy(self):
        return [slot for slot, _ in self.open.values()]


def check_frozen(world, model):
    """No write under way is there, not even in part; answers that are on their way count as given."""
    for slot in range(SLOTS):
        start = slot * SLOT_BLOCKS * BLOCK
        assert bytes(world.image[start:start + SLOT_BLOCKS * BLOCK]) == model[slot], f"slot {slot}"


@pytest.mark.parametrize("seed", range(24))
def test_writes_meet_drains(seed):
    rng = random.Random(seed)
    world = World(size_bytes=SLOTS * SLOT_BLOCKS * BLOCK, buffer_bytes=rng.choice((4, 64)) << 20,
                  target={"session_bytes_max": rng.choice((1, 64)) << 20})
    model = [bytes(SLOT_BLOCKS * BLOCK)] * SLOTS
    writers = [Writer(world, rng, number) for number in range(2)]
    drained = None
    frozen = False
    for _ in range(120):
        writer = rng.choice(writers)
        action = rng.random()
        free = sorted(set(range(SLOTS)) - {slot for one in writers for slot in one.busy()})
        if action < 0.2 and free:
            writer.begin(free)
        elif action < 0.8:
            writer.send()
        elif action < 0.88 and drained is None:
            drained = world.target.drain()
        elif action < 0.96 and drained is not None:
            assert world.ask(world.target.resume()) == 0
            assert frozen or world.ask(drained) in (0, -8)
            drained, frozen = None, False
        for one in writers:
            one.hear(model)
        if drained is not None and not frozen and drained in world.answers:
            assert world.ask(drained) == 0
            frozen = True
            for one in writers:
                one.hear(model)
        if frozen:
            check_frozen(world, model)
    finish(world, rng, model, writers, drained, frozen)


def finish(world, rng, model, writers, drained, frozen):
    """Half of the runs go home after a drain, the others bring every write to its end."""
    home = rng.random() < 0.5
    if home and not frozen:
        drained = world.target.drain() if drained is None else drained
        for _ in range(400):
            for one in writers:
                one.send()
                one.hear(model)
            if drained in world.answers:
                break
        assert world.ask(drained) == 0
        for one in writers:
            one.hear(model)
    elif not home:
        assert world.ask(world.target.resume()) == 0
        while any(one.open for one in writers):
            for one in writers:
                one.send()
                one.hear(model)
    check_frozen(world, model)
    if home:
        assert world.ask(world.target.send_home(close_after_ms=0)) == 0
        check_frozen(world, model)
    for one in writers:
        one.host.close()
    assert world.quiet()
    world.close()
