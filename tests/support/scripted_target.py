"""A small iSCSI target in pure Python over a socket pair, after login, for tests of the initiator.

It checks the initiator against RFC 7143 (a breach is an AssertionError), keeps a disk image, and is told by the test to
answer otherwise: statuses ahead, a hook for commands, raw PDUs. It shares no code with the core.
"""
from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

NONE = 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _crc_table()


def crc32c(data: bytes) -> bytes:
    crc = NONE
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return struct.pack("<I", crc ^ NONE)


@dataclass
class Negotiated:
    """What login came to. `target_data_max` bounds the initiator's PDUs, `initiator_data_max` the target's."""

    initial_r2t: bool = False
    immediate_data: bool = True
    first_burst: int = 65536
    burst: int = 262144
    target_data_max: int = 65536
    initiator_data_max: int = 65536
    header_digest: bool = False
    data_digest: bool = False


@dataclass
class Received:
    """A PDU of the initiator."""

    header: bytes
    ahs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.header[0] & 0x3F

    @property
    def final(self) -> bool:
        return bool(self.header[1] & 0x80)

    def word(self, place: int) -> int:
        return int.from_bytes(self.header[place:place + 4], "big")


@dataclass
class Task:
    command: Received
    itt: int
    cdb: bytes
    expected: int
    writing: bool
    data: bytearray = field(default_factory=bytearray)
    unsolicited_end: int = 0
    sequence_end: int = 0       # of the Data-Out sequence that is awaited now
    data_sn: int = 0
    ttt: int = NONE
    r2ts: int = 0


class ScriptedTarget:
    def __init__(self, size_bytes: int, negotiated: Negotiated | None = None, *, block_bytes: int = 512,
                 window: int = 32) -> None:
        self.image = bytearray(size_bytes)
        self.negotiated = negotiated or Negotiated()
        self.block_bytes = block_bytes
        self.window = window
        self.statuses: deque[tuple[int, bytes]] = deque()       # for the next commands, instead of doing them
        self.on_command: Callable[[Task], bool] | None = None   # True: the test has taken the command
        self.log: list[Received] = []                           # of all connections
        self.tasks: dict[int, Task] = {}
        self.sock: socket.socket | None = None
        self.connections = 0
        self.flushes = 0

    # -- connection

    def connect(self) -> tuple[int, dict[str, object]]:
        """A new connection with a new session: the initiator's descriptor and its attach() parameters."""
        if self.sock is not None:
            self.sock.close()
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        self.connections += 1
        self.buffer = bytearray()
        self.unsent = bytearray()
        self.tasks.clear()
        self.exp_cmd_sn = 0xFFFFFFFE + self.connections         # numbers wrap early
        self.exp_cmd_sn &= NONE
        self.stat_sn = (0xFFFFFFF0 + self.connections) & NONE
        agreed = self.negotiated
        params = {name: value for name, value in asdict(agreed).items()
                  if name in ("initial_r2t", "immediate_data", "header_digest", "data_digest")}
        params |= {"first_burst_bytes": agreed.first_burst, "burst_bytes_max": agreed.burst,
                   "send_data_bytes_max": agreed.target_data_max, "recv_data_bytes_max": agreed.initiator_data_max,
                   "outstanding_r2t_max": 1, "cmd_sn": self.exp_cmd_sn, "stat_sn": self.stat_sn,
                   "max_cmd_sn": self.max_cmd_sn, "cid": 7, "isid": bytes(6)}
        return theirs.detach(), params

    @property
    def max_cmd_sn(self) -> int:
        return (self.exp_cmd_sn + self.window - 1) & NONE

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def poll(self) -> None:
        """Reads what is there, answers, writes what goes."""
        if self.sock is None:
            return
        try:
            while piece := self.sock.recv(1 << 20):
                self.buffer += piece
            self.close()
            return
        except (BlockingIOError, ConnectionError):
            pass
        while self.sock is not None and (pdu := self._cut()):
            self.log.append(pdu)
            self._handle(pdu)
        self.flush_out()

    def flush_out(self) -> None:
        if self.sock is None:
            return
        try:
            while self.unsent:
                del self.unsent[:self.sock.send(self.unsent)]
        except (BlockingIOError, ConnectionError):
            pass

    def _cut(self) -> Received | None:
        if len(self.buffer) < 48:
            return None
        ahs_bytes, length = self.buffer[4] * 4, int.from_bytes(self.buffer[5:8], "big")
        assert length <= self.negotiated.target_data_max, "a data segment over the target's limit"
        end = 48 + ahs_bytes
        header_end = end + 4 * self.negotiated.header_digest
        padded = length + -length % 4
        total = header_end + padded + (4 if self.negotiated.data_digest and length else 0)
        if len(self.buffer) < total:
            return None
        raw = bytes(self.buffer[:total])
        del self.buffer[:total]
        if self.negotiated.header_digest:
            assert raw[end:header_end] == crc32c(raw[:end]), "header digest"
        data = raw[header_end:header_end + padded]
        if self.negotiated.data_digest and length:
            assert raw[-4:] == crc32c(data), "data digest"
        return Received(raw[:48], raw[48:end], data[:length])

    # -- sending

    def header(self, opcode: int, flags: int, itt: int = NONE, *, counts: bool = True, **fields: int) -> bytearray:
        """A BHS with sequence numbers; fields by place: at20=…, at40=…"""
        out = bytearray(48)
        out[0], out[1] = opcode, flags
        struct.pack_into(">III", out, 24, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn)
        struct.pack_into(">I", out, 16, itt)
        if counts:
            self.stat_sn = (self.stat_sn + 1) & NONE
        for name, value in fields.items():
            struct.pack_into(">I", out, int(name[2:]), value)
        return out

    def send(self, header: bytes, data: bytes = b"", *, break_data_digest: bool = False) -> None:
        out = bytearray(header)
        out[5:8] = len(data).to_bytes(3, "big")
        if self.negotiated.header_digest:
            out += crc32c(bytes(out))
        padded = data + bytes(-len(data) % 4)
        out += padded
        if self.negotiated.data_digest and data:
            digest = crc32c(padded)
            out += bytes(4) if break_data_digest else digest
        self.unsent += out
        self.flush_out()

    def respond(self, task: Task, status: int = 0, sense: bytes = b"", residual: int = 0, flags: int = 0,
                response: int = 0) -> None:
        data = struct.pack(">H", len(sense)) + sense if sense else b""
        out = self.header(0x21, 0x80 | flags, task.itt, at44=residual)
        out[2], out[3] = response, status
        self.tasks.pop(task.itt, None)
        self.send(out, data)

    def data_in(self, itt: int, offset: int, data: bytes, *, status: int | None = None, number: int = 0,
                final: bool = True, **kwargs: bool) -> None:
        flags = (0x80 if final else 0) | (0x01 if status is not None else 0)
        out = self.header(0x25, flags, itt, counts=status is not None, at20=NONE, at36=number, at40=offset)
        out[3] = status or 0
        self.send(out, data, **kwargs)

    def read_data(self, task: Task, data: bytes, phase_collapse: bool = True) -> None:
        step = self.negotiated.initiator_data_max
        pieces = [(start, data[start:start + step]) for start in range(0, len(data), step)]
        for number, (start, piece) in enumerate(pieces):
            last = number == len(pieces) - 1
            self.data_in(task.itt, start, piece, number=number, final=last,
                         status=0 if last and phase_collapse else None)
        if phase_collapse:
            self.tasks.pop(task.itt, None)
        else:
            self.respond(task)

    def r2t(self, task: Task, offset: int, length: int, ttt: int = 0x1234) -> None:
        task.ttt, task.data_sn, task.sequence_end = ttt, 0, offset + length
        self.send(self.header(0x31, 0x80, task.itt, counts=False, at20=ttt, at36=task.r2ts, at40=offset, at44=length))
        task.r2ts += 1

    def async_message(self, event: int, p1: int = 0, p2: int = 0, p3: int = 0, data: bytes = b"") -> None:
        out = self.header(0x32, 0x80)
        out[36] = event
        struct.pack_into(">HHH", out, 38, p1, p2, p3)
        self.send(out, data)

    # -- receiving

    def _handle(self, pdu: Received) -> None:
        if pdu.opcode == 0x01:
            self._command(pdu)
        elif pdu.opcode == 0x05:
            self._data_out(pdu)
        elif pdu.opcode == 0x00:
            if pdu.word(16) != NONE:
                self.send(self.header(0x20, 0x80, pdu.word(16), at20=NONE))
        elif pdu.opcode == 0x06:
            assert pdu.header[20:22] == b"\0\7", "the Logout's CID"
            self.send(self.header(0x26, 0x80, pdu.word(16)))
        else:
            raise AssertionError(f"opcode {pdu.opcode:#x} of the initiator")

    def _command(self, pdu: Received) -> None:
        assert pdu.word(24) == self.exp_cmd_sn, "CmdSN in order"
        assert (self.max_cmd_sn - pdu.word(24)) & NONE < 1 << 31, "CmdSN inside the window"
        self.exp_cmd_sn = (self.exp_cmd_sn + 1) & NONE
        cdb = pdu.header[32:48]
        if pdu.ahs:
            assert pdu.ahs[2] == 1
            cdb += pdu.ahs[4:4 + int.from_bytes(pdu.ahs[:2], "big") - 1]
        task = Task(pdu, pdu.word(16), cdb, pdu.word(20), bool(pdu.header[1] & 0x20))
        assert task.itt not in self.tasks and task.itt != NONE
        self.tasks[task.itt] = task
        self._check_unsolicited(task, pdu)
        if task.writing and task.unsolicited_end > len(task.data):
            return                      # Data-Out follows unasked
        self._run(task)

    def _check_unsolicited(self, task: Task, pdu: Received) -> None:
        agreed = self.negotiated
        if not task.writing:
            assert not pdu.data and pdu.final
            return
        first = min(task.expected, agreed.first_burst)
        if agreed.immediate_data:
            assert len(pdu.data) == min(first, agreed.target_data_max), "immediate data"
        else:
            assert not pdu.data, "no immediate data was agreed"
        task.data += pdu.data
        task.unsolicited_end = len(pdu.data) if agreed.initial_r2t else first
        task.sequence_end = task.unsolicited_end
        assert pdu.final == (task.unsolicited_end == len(pdu.data)), "F bit of the command"

    def _data_out(self, pdu: Received) -> None:
        task = self.tasks.get(pdu.word(16))
        if task is None:
            return
        assert pdu.word(20) == task.ttt, "target transfer tag"
        assert pdu.word(36) == task.data_sn, "DataSN"
        assert pdu.word(40) == len(task.data), "offset"
        if task.ttt != NONE:
            assert pdu.header[8:16] == task.command.header[8:16], "the LUN goes with a target transfer tag"
        task.data_sn += 1
        task.data += pdu.data
        assert len(task.data) <= task.sequence_end, "no more data than was asked for"
        assert pdu.final == (len(task.data) == task.sequence_end), "F bit of Data-Out"
        if not pdu.final:
            assert len(pdu.data) == self.negotiated.target_data_max, "full PDUs but for the last"
            return
        self._run(task)

    def _run(self, task: Task) -> None:
        if task.writing and len(task.data) < task.expected and not (self.statuses or self.on_command):
            self.r2t(task, len(task.data), min(self.negotiated.burst, task.expected - len(task.data)))
            return
        if self.on_command is not None and self.on_command(task):
            return
        if self.statuses:
            status, sense = self.statuses.popleft()
            self.respond(task, status, sense)
            return
        if task.writing and len(task.data) < task.expected:
            self.r2t(task, len(task.data), min(self.negotiated.burst, task.expected - len(task.data)))
            return
        self.do(task)

    def do(self, task: Task) -> None:
        """What a disk does."""
        code, cdb = task.cdb[0], task.cdb
        if code in (0x28, 0x2A):
            lba, blocks = struct.unpack(">I", cdb[2:6])[0], struct.unpack(">H", cdb[7:9])[0]
        else:
            lba, blocks = struct.unpack(">QI", cdb[2:14])
        start, length = lba * self.block_bytes, blocks * self.block_bytes
        if code in (0x28, 0x88):
            assert task.expected == length
            self.read_data(task, bytes(self.image[start:start + length]), phase_collapse=lba % 2 == 0)
        elif code in (0x2A, 0x8A):
            assert task.expected == length == len(task.data)
            self.image[start:start + length] = task.data
            self.respond(task)
        elif code == 0x93:
            assert cdb[1] == 0x08 and len(task.data) == self.block_bytes
            self.image[start:start + length] = bytes(task.data) * blocks
            self.respond(task)
        elif code == 0x35:
            self.flushes += 1
            self.respond(task)
        else:
            self.respond(task, 2, sense(5, 0x20))


def sense(key: int, asc: int, ascq: int = 0) -> bytes:
    """Fixed-format sense data."""
    return bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0])
