"""Persistent reservations of main as the gateway reads them (SPC-4 6.15): whose they are, and whether the gateway could
still write. Registrations without names (a main without READ FULL STATUS) cannot be taken over."""
from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from detour.errors import StorageError
from detour.iscsi.identity import Commander
from detour.iscsi.probe import KEY_UNIT_ATTENTION, sense_key

READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
ANSWER_BYTES_MAX = 65535
ATTENTIONS_MAX = 8
NOBODY = bytes(8)                   # READ FULL STATUS data without registrations
ISCSI = 5                           # protocol identifier of a TransportID
REGISTRANTS_TYPES = (5, 6, 7, 8)    # who is registered may write
READABLE_TYPES = (5, 7)             # of these: others may read, so that main can be looked at beforehand
DESCRIPTOR_BYTES = 24
RESERVATION_CONFLICT = 0x18


@dataclass(frozen=True)
class Registrant:
    """One descriptor; `kind` is the type of the reservation where it holds one, else 0."""

    name: str
    key: int
    kind: int
    isid: bytes = b""


async def ask(unit: Any, cdb: bytes, **more: Any) -> Any:
    """A command that is sent again for each unit attention: what others do to reservations is told that way."""
    for _ in range(ATTENTIONS_MAX):
        answer = await unit.command(cdb, check=False, **more)
        if answer.good or sense_key(answer.sense)[0] != KEY_UNIT_ATTENTION:
            break
    return answer


async def _read(unit: Commander, action: int) -> bytes | None:
    """None where main refuses."""
    cdb = struct.pack(">BB5xHB", 0x5E, action, ANSWER_BYTES_MAX, 0)
    answer = await ask(unit, cdb, data_in_bytes=ANSWER_BYTES_MAX)
    if answer.scsi_status == RESERVATION_CONFLICT:
        raise StorageError("main is reserved by another initiator with RESERVE, and would refuse what catch-up writes")
    return answer.data if answer.good and len(answer.data) >= 8 else None


async def read_is_durable(unit: Commander) -> bool:
    """PTPL_C of REPORT CAPABILITIES: registrations may outlive a power cut."""
    return bool((await _capabilities(unit))[2] & 0x01)


async def read_outlives_power(unit: Commander) -> bool:
    """PTPL_A: they do, as was asked at the last registration."""
    return bool((await _capabilities(unit))[3] & 0x01)


async def _capabilities(unit: Commander) -> bytes:
    cdb = struct.pack(">BB5xHB", 0x5E, REPORT_CAPABILITIES, 8, 0)
    answer = await ask(unit, cdb, data_in_bytes=8)
    return (answer.data if answer.good else b"").ljust(8, b"\0")


async def read_full_status(unit: Commander) -> bytes:
    """READ FULL STATUS data; NOBODY where there are no registrations. StorageError where main cannot tell whose they
    are, or is reserved by RESERVE."""
    status = await _read(unit, READ_FULL_STATUS)
    if status is not None:
        return status[:8 + int.from_bytes(status[4:8], "big")]
    for action in (READ_KEYS, READ_RESERVATION):
        data = await _read(unit, action)
        if data is not None and int.from_bytes(data[4:8], "big") > 0:
            raise StorageError("main has persistent reservations and cannot tell whose they are (READ FULL STATUS)",
                               hint="Let the hosts give them up for the time of the backup.")
    return NOBODY


async def read_keys(unit: Commander) -> list[int]:
    """Of all registrations, in order; none where main does not tell."""
    data = await _read(unit, READ_KEYS) or NOBODY
    whole = (len(data) - 8) // 8 * 8
    return sorted(key for key, in struct.iter_unpack(">Q", data[8:8 + whole]))


def descriptors(status: bytes) -> Iterator[bytes]:
    at, end = 8, min(8 + int.from_bytes(status[4:8], "big"), len(status))
    while at + DESCRIPTOR_BYTES <= end:
        length = DESCRIPTOR_BYTES + int.from_bytes(status[at + 20:at + 24], "big")
        yield status[at:at + length]
        at += length


def registrants(status: bytes) -> Iterator[Registrant]:
    """Of all complete descriptors."""
    for descriptor in descriptors(status):
        key, flags, kind = struct.unpack_from(">Q4xBB", descriptor)
        found = port_of(descriptor)
        yield Registrant(_name(descriptor[DESCRIPTOR_BYTES:]), key, kind & 0x0F if flags & 1 else 0,
                         found[1] if found is not None else b"")


def same_registrations(one: bytes, other: bytes) -> bool:
    """In any order; how often they were changed (PRGENERATION) does not matter."""
    return sorted(descriptors(one)) == sorted(descriptors(other))


def _text(transport_id: bytes) -> str:
    """What an iSCSI TransportID holds (SPC-4 7.6.4.6); empty for others."""
    if len(transport_id) < 4 or transport_id[0] & 0x0F != ISCSI:
        return ""
    return transport_id[4:].split(b"\0", 1)[0].decode("utf-8", "replace")


def _name(transport_id: bytes) -> str:
    return _text(transport_id).split(",i,0x", 1)[0]


def port_of(descriptor: bytes) -> tuple[str, bytes] | None:
    """Initiator name (lower case) and ISID; None where it names no port of iSCSI."""
    name, _, digits = _text(descriptor[DESCRIPTOR_BYTES:]).partition(",i,0x")
    try:
        isid = int(digits, 16).to_bytes(6, "big")
    except (ValueError, OverflowError):
        return None
    return (name.lower(), isid) if name else None


def check_writable(status: bytes, own_name: str, own_isid: bytes = b"", may_register: bool = True) -> None:
    """StorageError when a reservation keeps the gateway from writing to main what hosts have written here, even if it
    registers (where the type lets all registrants write, and others read). Hosts could not be held here to one that a
    port of another transport holds."""
    known = list(registrants(status))
    holder = next((one for one in known if one.kind), None)
    if holder is None:
        return
    if holder.name and holder.kind in READABLE_TYPES and may_register:
        return
    own = [one for one in known if one.name.lower() == own_name.lower()
           and (not own_isid or one.isid in (own_isid, b""))]
    if holder in own or (own and holder.kind in REGISTRANTS_TYPES):
        return
    raise StorageError(f"main is reserved by {holder.name or 'an initiator'} (persistent reservation of type "
                       f"{holder.kind}), and would refuse what the gateway has to write there",
                       hint="Release it for the time of the backup, or reserve with type 5 or 7 (write exclusive, of "
                       "registrants): there the gateway registers for the time.")
