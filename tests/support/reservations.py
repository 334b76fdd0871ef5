"""Reservation commands as a host sends them, and an independent model of SPC-4's rules for persistent reservations."""
from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.support.pdu_client import Host, Result

CONFLICT = 0x18
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, REGISTER_AND_MOVE = range(8)
READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
WRITE_EXCLUSIVE, EXCLUSIVE, WRITE_REGISTRANTS, EXCLUSIVE_REGISTRANTS, WRITE_ALL, EXCLUSIVE_ALL = 1, 3, 5, 6, 7, 8
TYPES = (1, 3, 5, 6, 7, 8)
SPEC_I_PT, ALL_TG_PT, APTPL = 8, 4, 1
INVALID_FIELD, INVALID_PARAMETER, LIST_LENGTH = 0x052400, 0x052600, 0x051A00
INVALID_RELEASE, REGISTRATIONS_FULL, HARDWARE_FAILURE = 0x052604, 0x055504, 0x044400
RESERVATIONS_PREEMPTED, RESERVATIONS_RELEASED, REGISTRATIONS_PREEMPTED = 0x062A03, 0x062A04, 0x062A05


def transport_id(name: str, isid: bytes | None) -> bytes:
    """SPC-4 7.6.4.6: an initiator port, or without ISID a device."""
    text = (name if isid is None else f"{name},i,0x{isid.hex()}").encode() + b"\0"
    text += bytes(-len(text) % 4)
    text = text.ljust(20, b"\0")
    return struct.pack(">BBH", 5 if isid is None else 0x45, 0, len(text)) + text


def parameters(key: int, action_key: int, flags: int = 0, more: bytes = b"") -> bytes:
    return struct.pack(">QQIB3x", key, action_key, 0, flags) + more


def out(host: Host, action: int, key: int = 0, action_key: int = 0, *, kind: int = 0, scope: int = 0, flags: int = 0,
        more: bytes = b"", length: int | None = None) -> Result:
    data = parameters(key, action_key, flags, more)
    return out_raw(host, action, data, kind=kind, scope=scope, length=length)


def out_cdb(action: int, length: int, kind: int = 0, scope: int = 0) -> bytes:
    return struct.pack(">BBBBBIB", 0x5F, action, scope << 4 | kind, 0, 0, length, 0)


def out_raw(host: Host, action: int, data: bytes, *, kind: int = 0, scope: int = 0,
            length: int | None = None) -> Result:
    return host.command_out(out_cdb(action, len(data) if length is None else length, kind, scope), data)


def listed(host: Host, key: int, action_key: int, ids: list[bytes], flags: int = 0) -> Result:
    """REGISTER with SPEC_I_PT."""
    joined = b"".join(ids)
    return out(host, REGISTER, key, action_key, flags=SPEC_I_PT | flags, more=struct.pack(">I", len(joined)) + joined)


def move(host: Host, key: int, action_key: int, to: bytes, *, unregister: bool = False, aptpl: bool = False,
         port: int = 1) -> Result:
    head = struct.pack(">QQBBHI", key, action_key, 0, (2 if unregister else 0) | (1 if aptpl else 0), port, len(to))
    return out_raw(host, REGISTER_AND_MOVE, head + to)


def read_in(host: Host, action: int, length: int = 8192) -> Result:
    return host.command(struct.pack(">BBIBHB", 0x5E, action, 0, 0, length, 0), length)


def keys(host: Host) -> list[int]:
    data = read_in(host, READ_KEYS).data
    assert struct.unpack_from(">I", data, 4)[0] == len(data) - 8
    return [key for (key,) in struct.iter_unpack(">Q", data[8:])]


def generation(host: Host) -> int:
    return struct.unpack_from(">I", read_in(host, READ_KEYS).data)[0]


def reservation(host: Host) -> tuple[int, int] | None:
    """(key of the holder, type), or None."""
    data = read_in(host, READ_RESERVATION).data
    if struct.unpack_from(">I", data, 4)[0] == 0:
        assert len(data) == 8
        return None
    assert len(data) == 24 and data[21] >> 4 == 0
    return struct.unpack_from(">Q", data, 8)[0], data[21] & 15


@dataclass(frozen=True)
class Status:
    """One descriptor of READ FULL STATUS."""

    key: int
    holder: bool
    all_ports: bool
    kind: int
    port: int
    name: str
    isid: bytes


def full_status(host: Host) -> list[Status]:
    data = read_in(host, READ_FULL_STATUS, 65535).data
    assert struct.unpack_from(">I", data, 4)[0] == len(data) - 8
    rows, at = [], 8
    while at < len(data):
        key, flags, kind = struct.unpack_from(">Q4xBB", data, at)
        port, length = struct.unpack_from(">HI", data, at + 18)
        identity = data[at + 24:at + 24 + length]
        assert identity[0] == 0x45 and struct.unpack_from(">H", identity, 2)[0] == length - 4 and length % 4 == 0
        name, isid = identity[4:].split(b"\0")[0].decode().split(",i,0x")
        rows.append(Status(key, bool(flags & 1), bool(flags & 2), kind, port, name, bytes.fromhex(isid)))
        at += 24 + length
    return rows


def attentions(host: Host) -> list[int]:
    """What is pending for the host, taken by TEST UNIT READY until nothing is left."""
    found = []
    while sense := host.command(bytes(6)).sense:
        found.append(sense)
    return found


# --- the model

@dataclass
class Model:
    """Persistent reservations by SPC-4 5.13, of hosts that are numbers. Every method answers (status, sense)."""

    keys: dict[int, int] = field(default_factory=dict)              # host -> key, in the order of registration
    kind: int = 0
    holder: int | None = None                                       # None with an all registrants type
    generation: int = 0
    told: list[tuple[int, int]] = field(default_factory=list)       # (host, sense) of unit attentions

    GOOD = (0, 0)
    IN_CONFLICT = (CONFLICT, 0)

    def holds(self, host: int) -> bool:
        if self.kind in (WRITE_ALL, EXCLUSIVE_ALL):
            return host in self.keys
        return bool(self.kind) and self.holder == host

    def may(self, host: int, writes: bool) -> bool:
        if self.kind == 0 or (not writes and self.kind in (WRITE_EXCLUSIVE, WRITE_REGISTRANTS, WRITE_ALL)):
            return True
        return self.holds(host) if self.kind in (WRITE_EXCLUSIVE, EXCLUSIVE) else host in self.keys

    def do(self, host: int, action: int, key: int, action_key: int, kind: int) -> tuple[int, int]:
        self.told = []
        if action in (REGISTER, REGISTER_AND_IGNORE):
            answer = self.register(host, key, action_key, action == REGISTER_AND_IGNORE)
        elif self.keys.get(host, -1) != key:
            return self.IN_CONFLICT
        else:
            answer = {RESERVE: self.reserve, RELEASE: self.release, CLEAR: self.clear,
                      PREEMPT: self.preempt, PREEMPT_AND_ABORT: self.preempt}[action](host, action_key, kind)
        if answer == self.GOOD and action not in (RESERVE, RELEASE):
            self.generation += 1
        return answer

    def tell(self, but: int, sense: int, hosts: list[int] | None = None) -> None:
        self.told += [(one, sense) for one in (list(self.keys) if hosts is None else hosts) if one != but]

    def free(self) -> None:
        self.kind, self.holder = 0, None

    def take(self, host: int, kind: int) -> None:
        self.kind, self.holder = kind, None if kind in (WRITE_ALL, EXCLUSIVE_ALL) else host

    def register(self, host: int, key: int, action_key: int, ignore: bool) -> tuple[int, int]:
        if not ignore and key != self.keys.get(host, 0):
            return self.IN_CONFLICT
        if action_key:
            self.keys[host] = action_key
        elif host in self.keys:
            del self.keys[host]
            if self.holder == host:
                if self.kind in (WRITE_REGISTRANTS, EXCLUSIVE_REGISTRANTS):
                    self.tell(host, RESERVATIONS_RELEASED)
                self.free()
            elif not self.keys:
                self.free()
        return self.GOOD

    def reserve(self, host: int, action_key: int, kind: int) -> tuple[int, int]:
        if kind not in TYPES:
            return (2, INVALID_FIELD)
        if self.kind == 0:
            self.take(host, kind)
        elif not self.holds(host) or kind != self.kind:
            return self.IN_CONFLICT
        return self.GOOD

    def release(self, host: int, action_key: int, kind: int) -> tuple[int, int]:
        if not self.holds(host):
            return self.GOOD
        if kind != self.kind:
            return (2, INVALID_RELEASE)
        if self.kind not in (WRITE_EXCLUSIVE, EXCLUSIVE):
            self.tell(host, RESERVATIONS_RELEASED)
        self.free()
        return self.GOOD

    def clear(self, host: int, action_key: int, kind: int) -> tuple[int, int]:
        self.tell(host, RESERVATIONS_PREEMPTED)
        self.keys = {}
        self.free()
        return self.GOOD

    def preempt(self, host: int, action_key: int, kind: int) -> tuple[int, int]:
        shared = self.kind in (WRITE_ALL, EXCLUSIVE_ALL)
        of_holder = action_key == 0 if shared else self.holder is not None and self.keys[self.holder] == action_key
        if of_holder:
            if kind not in TYPES:
                return (2, INVALID_FIELD)
            gone = [one for one, key in self.keys.items() if one != host and (shared or key == action_key)]
            self.keys = {one: key for one, key in self.keys.items() if one not in gone}
            if kind != self.kind:
                self.tell(host, RESERVATIONS_RELEASED)
            self.tell(host, REGISTRATIONS_PREEMPTED, gone)
            self.take(host, kind)
            return self.GOOD
        if action_key == 0:
            return (2, INVALID_PARAMETER)
        gone = [one for one, key in self.keys.items() if key == action_key]
        if not gone:
            return self.IN_CONFLICT
        self.keys = {one: key for one, key in self.keys.items() if one not in gone}
        self.tell(host, REGISTRATIONS_PREEMPTED, gone)
        if not self.keys:
            self.free()
        return self.GOOD
