"""A small initiator in full feature phase, in plain Python, over a socketpair: the other end of TargetHandle.adopt.

Everything runs in one thread: `World` turns an unstarted reactor by hand, so that tests are deterministic and may look
between any two PDUs. `Host` sends what it is told to, also what breaks the protocol; `Host.write` and `Host.read` do a
whole command as negotiated, and check what the target sends against RFC 7143 on the way.
"""
from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from detour.core.crc32c import crc32c
from detour.core.disk import DiskHandle
from detour.core.reactor import Reactor
from detour.core.store import MemoryStore
from detour.core.target import TargetHandle

NONE = 0xFFFFFFFF
TURNS_MAX = 3000
NOP_OUT, COMMAND, TASK_MANAGEMENT, LOGIN, TEXT, DATA_OUT, LOGOUT, SNACK = 0, 1, 2, 3, 4, 5, 6, 0x10
NOP_IN, RESPONSE, TASK_MANAGEMENT_RESPONSE, TEXT_RESPONSE = 0x20, 0x21, 0x22, 0x24
DATA_IN, LOGOUT_RESPONSE, R2T, ASYNC, REJECT = 0x25, 0x26, 0x31, 0x32, 0x3F
IMMEDIATE = 0x40
FINAL, READ, WRITE = 0x80, 0x40, 0x20
UNDERFLOW, OVERFLOW = 2, 4


class World:
    """A reactor, a memory store, a disk and a target, turned by hand."""

    def __init__(self, *, size_bytes: int = 4 << 20, block_bytes: int = 512, buffer_bytes: int = 64 << 20,
                 target: dict[str, Any] | None = None, **disk: Any) -> None:
        self.reactor = Reactor(buffer_bytes=buffer_bytes)
        self.store = MemoryStore(self.reactor, size_bytes, block_bytes)
        self.image = memoryview(self.store)
        self.block_bytes = block_bytes
        self.disk = DiskHandle(self.reactor, self.store, **{"serial": "test0001", **disk})
        self.target = TargetHandle(self.reactor, 7, **{"nop_interval_ms": 0, **(target or {})})
        self.answers: dict[int, tuple[int, tuple[int, ...], bytes | None]] = {}
        self.events: list[tuple[int, int, tuple[int, ...], bytes | None]] = []
        assert self.ask(self.target.set_lun(0, self.disk)) == 0

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.reactor.turn(0)
            for kind, ticket, status, results, data in self.reactor.drain():
                if kind == 0:
                    self.answers[ticket] = (status, results, data)
                else:
                    self.events.append((kind, ticket, results, data))

    def answer(self, ticket: int) -> tuple[int, tuple[int, ...], bytes | None]:
        """Status, results and data of a ticket; AssertionError if it never comes."""
        for _ in range(TURNS_MAX):
            if ticket in self.answers:
                return self.answers.pop(ticket)
            self.turn()
        raise AssertionError("the ticket is not answered")

    def ask(self, ticket: int) -> int:
        return self.answer(ticket)[0]

    def done(self, ticket: int, turns: int = 5) -> bool:
        """Whether a ticket is answered within a few turns."""
        self.turn(turns)
        return ticket in self.answers

    def quiet(self) -> bool:
        """Nothing is taken from the pool, no task is open: what was given out came back."""
        self.turn(5)
        names = self.target.stats_names()
        return self.reactor.buffers_taken_bytes == 0 and self.target.stats[names.index("tasks_open")] == 0

    def close(self) -> None:
        assert self.ask(self.target.close()) == 0
        assert self.reactor.buffers_taken_bytes == 0, "buffers leaked"
        self.image.release()


@dataclass
class Pdu:
    bhs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.bhs[0] & 0x3F

    @property
    def flags(self) -> int:
        return self.bhs[1]

    def word(self, at: int) -> int:
        return struct.unpack_from(">I", self.bhs, at)[0]

    @property
    def itt(self) -> int:
        return self.word(16)


@dataclass
class Result:
    """How a command ended."""

    status: int
    sense: int = 0                  # key << 16 | asc << 8 | ascq
    residual: int = 0               # below 0: underflow
    data: bytes = b""
    pdus: list[Pdu] = field(default_factory=list)


DEFAULTS: dict[str, Any] = {
    "header_digest": False, "data_digest": False, "recv_data_bytes_max": 65536, "send_data_bytes_max": 65536,
    "burst_bytes_max": 262144, "first_burst_bytes": 65536, "initial_r2t": False, "immediate_data": True,
    "outstanding_r2t_max": 1, "cmd_sn": 1, "stat_sn": 1, "cid": 0, "queue_depth": 0,
}


def cdb_rw(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    """READ/WRITE/VERIFY/WRITE SAME and the like in their 10-, 12- or 16-byte form."""
    if opcode & 0xE0 == 0x80:
        return struct.pack(">BBQIBB", opcode, flags, lba, blocks, 0, 0)
    if opcode & 0xE0 == 0xA0:
        return struct.pack(">BBIIBB", opcode, flags, lba, blocks, 0, 0)
    return struct.pack(">BBIBHB", opcode, flags, lba, 0, blocks, 0)


class Host:
    """One session. `params` as TargetHandle.adopt takes them (recv is the target's limit, send is ours)."""

    def __init__(self, world: World, *, name: str = "iqn.2026-01.example:host", isid: bytes = b"\0\2\x3d\0\0\1",
                 eat_attention: bool = True, **params: Any) -> None:
        self.world = world
        self.params = {**DEFAULTS, **params}
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        status, results, _ = world.answer(world.target.adopt(theirs.detach(), self.params, name, isid))
        assert status == 0, status
        self.session_id = results[0]
        self.cmd_sn = self.params["cmd_sn"]
        self.stat_sn = self.params["stat_sn"]
        self.max_cmd_sn = NONE
        self.exp_cmd_sn = self.cmd_sn
        self.itt = 0x100
        self.r2ts: dict[int, int] = {}          # R2Ts seen of each task
        self.out = bytearray()
        self.incoming = bytearray()
        self.closed = False
        if eat_attention:
            assert self.command(bytes(6)).sense == 0x062900

    # --- bytes

    def pump(self) -> None:
        if self.out and not self.closed:
            with contextlib.suppress(BlockingIOError):
                try:
                    del self.out[:self.sock.send(self.out)]
                except (BrokenPipeError, ConnectionResetError):
                    self.closed = True
        self.world.turn()
        with contextlib.suppress(BlockingIOError):
            try:
                got = self.sock.recv(1 << 16)
                self.closed = self.closed or not got
                self.incoming += got
            except ConnectionResetError:
                self.closed = True

    def send(self, bhs: bytes, data: bytes = b"", spoil_data: bool = False) -> None:
        """Queues one PDU (its DataSegmentLength is filled in); `spoil_data` breaks its data digest."""
        head = bytearray(bhs)
        assert len(head) == 48
        head[5:8] = len(data).to_bytes(3, "big")
        self.out += head
        if self.params["header_digest"]:
            self.out += struct.pack("<I", crc32c(bytes(head)))
        padded = data + bytes(-len(data) % 4)
        self.out += padded
        if data and self.params["data_digest"]:
            self.out += struct.pack("<I", crc32c(padded) ^ (1 if spoil_data else 0))

    def _parse(self) -> Pdu | None:
        head = 48 + (4 if self.params["header_digest"] else 0)
        if len(self.incoming) < head:
            return None
        length = int.from_bytes(self.incoming[5:8], "big")
        padded = length + (-length % 4)
        total = head + padded + (4 if length and self.params["data_digest"] else 0)
        if len(self.incoming) < total:
            return None
        raw = bytes(self.incoming[:total])
        del self.incoming[:total]
        if self.params["header_digest"]:
            assert struct.unpack_from("<I", raw, 48)[0] == crc32c(raw[:48]), "header digest"
        if length and self.params["data_digest"]:
            assert struct.unpack_from("<I", raw, head + padded)[0] == crc32c(raw[head:head + padded]), "data digest"
        assert length <= self.params["send_data_bytes_max"], "above our MaxRecvDataSegmentLength"
        return Pdu(raw[:48], raw[head:head + length])

    def pdu(self, turns: int = TURNS_MAX) -> Pdu:
        """The next PDU; EOFError when the target closed, TimeoutError when nothing comes."""
        for _ in range(turns):
            pdu = self._parse()
            if pdu is not None:
                self._account(pdu)
                return pdu
            if self.closed:
                raise EOFError("closed by the target")
            self.pump()
        raise TimeoutError("nothing comes")

    def _account(self, pdu: Pdu) -> None:
        """Checks the sequence numbers that every PDU carries."""
        self.exp_cmd_sn, told = pdu.word(28), pdu.word(32)
        self.max_cmd_sn = told
        if pdu.opcode == R2T:
            assert pdu.word(36) == self.r2ts.get(pdu.itt, 0), "R2TSN"
            self.r2ts[pdu.itt] = pdu.word(36) + 1
        status = pdu.opcode in (RESPONSE, TASK_MANAGEMENT_RESPONSE, TEXT_RESPONSE, LOGOUT_RESPONSE, ASYNC, REJECT) \
            or (pdu.opcode == NOP_IN and pdu.itt != NONE) or (pdu.opcode == DATA_IN and pdu.flags & 1)
        if status:
            assert pdu.word(24) == self.stat_sn, "StatSN"
            self.stat_sn += 1

    def nothing_comes(self, turns: int = 20) -> bool:
        try:
            self.pdu(turns)
        except TimeoutError:
            return True
        return False

    def closes(self) -> bool:
        """Whether the target ends the connection (what it still sends is thrown away)."""
        try:
            for _ in range(TURNS_MAX):
                self.pdu(50)
        except EOFError:
            return True
        except TimeoutError:
            return False
        return False

    # --- PDUs

    def next_sn(self, immediate: bool = False) -> int:
        sn = self.cmd_sn
        if not immediate:
            self.cmd_sn += 1
        return sn

    def next_itt(self) -> int:
        self.itt += 1
        return self.itt

    def request(self, opcode: int, flags: int = FINAL, *, lun: int = 0, w20: int = 0, cmd_sn: int | None = None,
                itt: int | None = None, immediate: bool = False, tail: bytes = b"", data: bytes = b"",
                spoil_data: bool = False) -> int:
        """Sends a request PDU; answers its tag."""
        itt = self.next_itt() if itt is None else itt
        sn = self.next_sn(immediate) if cmd_sn is None else cmd_sn
        bhs = struct.pack(">BBHI8sIIII", opcode | (IMMEDIATE if immediate else 0), flags, 0, 0,
                          bytes([0, lun]) + bytes(6), itt, w20, sn, self.stat_sn) + tail.ljust(16, b"\0")
        self.send(bhs, data, spoil_data)
        return itt

    def begin(self, cdb: bytes, *, flags: int = 0, edtl: int = 0, data: bytes = b"", final: bool = True,
              attribute: int = 1, **more: Any) -> int:
        """Sends a SCSI Command PDU with `data` as immediate data."""
        return self.request(COMMAND, (FINAL if final else 0) | flags | attribute, w20=edtl, tail=cdb, data=data, **more)

    def data_out(self, itt: int, data: bytes, offset: int, data_sn: int, *, ttt: int = NONE, final: bool = False,
                 spoil_data: bool = False) -> None:
        bhs = struct.pack(">BBHI8sIIIIIII", DATA_OUT, FINAL if final else 0, 0, 0, bytes(8), itt, ttt, 0, self.stat_sn,
                          0, data_sn, offset) + bytes(4)
        self.send(bhs, data, spoil_data)

    # --- whole commands

    def _result(self, pdu: Pdu) -> Result:
        sense = 0
        if pdu.opcode == RESPONSE and pdu.data:
            assert struct.unpack_from(">H", pdu.data)[0] == len(pdu.data) - 2
            sense = (pdu.data[4] & 15) << 16 | pdu.data[14] << 8 | pdu.data[15]
        residual = pdu.word(44) if pdu.flags & OVERFLOW else -pdu.word(44) if pdu.flags & UNDERFLOW else 0
        return Result(pdu.bhs[3], sense, residual)

    def finish(self, itt: int, edtl: int = 0, source: bytes = b"") -> Result:
        """Answers R2Ts from `source`, collects Data-In, until the status of `itt` comes."""
        received, pdus = bytearray(), []
        data_sn = sequence = 0
        while True:
            pdu = self.pdu()
            if (pdu.opcode, pdu.itt) == (NOP_IN, NONE):
                continue
            assert pdu.itt == itt, f"a PDU of another task: {pdu}"
            pdus.append(pdu)
            if pdu.opcode == R2T:
                self._solicited(itt, pdu, source)
                continue
            if pdu.opcode == DATA_IN:
                assert (pdu.word(36), pdu.word(40)) == (data_sn, len(received)) and pdu.data
                data_sn += 1
                received += pdu.data
                sequence += len(pdu.data)
                assert sequence <= self.params["burst_bytes_max"]
                if pdu.flags & FINAL:
                    sequence = 0
                else:
                    assert not pdu.flags & 1
                if not pdu.flags & 1:
                    continue
            else:
                assert pdu.opcode == RESPONSE and pdu.word(36) in (data_sn, self.r2ts.pop(itt, 0)), pdu
            assert len(received) <= edtl
            result = self._result(pdu)
            result.data, result.pdus = bytes(received), pdus
            return result

    def _solicited(self, itt: int, r2t: Pdu, source: bytes) -> None:
        ttt, offset, length = r2t.word(20), r2t.word(40), r2t.word(44)
        assert 0 < length <= self.params["burst_bytes_max"] and offset + length <= len(source)
        self.sequence(itt, source, offset, offset + length, ttt)

    def sequence(self, itt: int, source: bytes, start: int, end: int, ttt: int = NONE) -> None:
        """A whole Data-Out sequence of source[start:end]."""
        step, data_sn = self.params["recv_data_bytes_max"], 0
        while start < end:
            stop = min(start + step, end)
            self.data_out(itt, source[start:stop], start, data_sn, ttt=ttt, final=stop == end)
            start, data_sn = stop, data_sn + 1

    def send_command_out(self, cdb: bytes, data: bytes, **more: Any) -> int:
        """Sends a command with data-out and what of it is unsolicited, as negotiated."""
        first = min(self.params["first_burst_bytes"], len(data))
        immediate = min(first, self.params["recv_data_bytes_max"]) if self.params["immediate_data"] else 0
        unsolicited = not self.params["initial_r2t"] and immediate < first
        itt = self.begin(cdb, flags=WRITE, edtl=len(data), data=data[:immediate], final=not unsolicited, **more)
        if unsolicited:
            self.sequence(itt, data, immediate, first)
        return itt

    def command_out(self, cdb: bytes, data: bytes, **more: Any) -> Result:
        return self.finish(self.send_command_out(cdb, data, **more), len(data), data)

    def command(self, cdb: bytes, edtl: int = 0, **more: Any) -> Result:
        """A command without data, or with at most `edtl` bytes of data-in."""
        return self.finish(self.begin(cdb, flags=READ if edtl else 0, edtl=edtl, **more), edtl)

    def write(self, lba: int, data: bytes, opcode: int = 0x8A, flags: int = 0) -> Result:
        return self.command_out(cdb_rw(opcode, lba, len(data) // self.world.block_bytes, flags), data)

    def read(self, lba: int, blocks: int, opcode: int = 0x88, flags: int = 0) -> Result:
        return self.command(cdb_rw(opcode, lba, blocks, flags), blocks * self.world.block_bytes)

    def manage(self, function: int, *, rtt: int = NONE, ref_cmd_sn: int = 0, lun: int = 0,
               immediate: bool = True) -> int:
        """Sends a task management function; answers its tag."""
        return self.request(TASK_MANAGEMENT, FINAL | function, lun=lun, w20=rtt, immediate=immediate,
                            tail=struct.pack(">II", ref_cmd_sn, 0))

    def managed(self, itt: int) -> int:
        """The response code to a task management function."""
        pdu = self.pdu()
        assert (pdu.opcode, pdu.itt) == (TASK_MANAGEMENT_RESPONSE, itt), pdu
        return pdu.bhs[2]

    def ping(self, data: bytes = b"") -> bytes:
        itt = self.request(NOP_OUT, immediate=True, w20=NONE, data=data)
        pdu = self.pdu()
        while (pdu.opcode, pdu.itt) == (NOP_IN, NONE):          # the target asks, or tells its window
            pdu = self.pdu()
        assert (pdu.opcode, pdu.itt, pdu.word(20)) == (NOP_IN, itt, NONE), pdu
        return pdu.data

    def close(self) -> None:
        self.sock.close()
        self.closed = True
        self.world.turn(3)
