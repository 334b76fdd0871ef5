"""Persistent reservations of main as the gateway reads them (SPC-4 6.15): whose they are, and whether the gateway could
still write. Registrations without names (a main without READ FULL STATUS) cannot be taken over."""
from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from detour.errors import StorageError
from detour.iscsi.identity import Commander

READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
ANSWER_BYTES_MAX = 65535
NOBODY = bytes(8)                   # READ FULL STATUS data without registrations
ISCSI = 5                           # protocol identifier of a TransportID
REGISTRANTS_TYPES = (5, 6, 7, 8)    # who is registered may write
DESCRIPTOR_BYTES = 24
RESERVATION_CONFLICT = 0x18


@dataclass(frozen=True)
class Registrant:
    """One descriptor; `kind` is the type of the reservation where it holds one, else 0."""

    name: str
    key: int
    kind: int


async def _read(unit: Commander, action: int) -> bytes | None:
    """None where main refuses."""
    cdb = struct.pack(">BB5xHB", 0x5E, action, ANSWER_BYTES_MAX, 0)
    answer = await unit.command(cdb, data_in_bytes=ANSWER_BYTES_MAX, check=False)
    if answer.scsi_status == RESERVATION_CONFLICT:
        raise StorageError("main is reserved by another initiator with RESERVE, and would refuse what catch-up writes")
    return answer.data if answer.good and len(answer.data) >= 8 else None


async def read_is_durable(unit: Commander) -> bool:
    """PTPL_C of REPORT CAPABILITIES: registrations may outlive a power cut."""
    cdb = struct.pack(">BB5xHB", 0x5E, REPORT_CAPABILITIES, 8, 0)
    answer = await unit.command(cdb, data_in_bytes=8, check=False)
    return answer.good and len(answer.data) > 2 and bool(answer.data[2] & 0x01)


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


def _descriptors(status: bytes) -> Iterator[bytes]:
    at, end = 8, min(8 + int.from_bytes(status[4:8], "big"), len(status))
    while at + DESCRIPTOR_BYTES <= end:
        length = DESCRIPTOR_BYTES + int.from_bytes(status[at + 20:at + 24], "big")
        yield status[at:at + length]
        at += length


def registrants(status: bytes) -> Iterator[Registrant]:
    """Of all complete descriptors."""
    for descriptor in _descriptors(status):
        key, flags, kind = struct.unpack_from(">Q4xBB", descriptor)
        yield Registrant(_name(descriptor[DESCRIPTOR_BYTES:]), key, kind & 0x0F if flags & 1 else 0)


def same_registrations(one: bytes, other: bytes) -> bool:
    """In any order; how often they were changed (PRGENERATION) does not matter."""
    return sorted(_descriptors(one)) == sorted(_descriptors(other))


def _name(transport_id: bytes) -> str:
    """Initiator name of an iSCSI TransportID (SPC-4 7.6.4.6); empty for others."""
    if len(transport_id) < 4 or transport_id[0] & 0x0F != ISCSI:
        return ""
    text = transport_id[4:].split(b"\0", 1)[0].decode("utf-8", "replace")
    return text.split(",i,0x", 1)[0]


def check_writable(status: bytes, own_name: str) -> None:
    """StorageError when a reservation keeps the gateway from writing to main what hosts have written here."""
    known = list(registrants(status))
    holder = next((one for one in known if one.kind), None)
    if holder is None:
        return
    own = [one for one in known if one.name.lower() == own_name.lower()]
    if holder in own or (own and holder.kind in REGISTRANTS_TYPES):
        return
    raise StorageError(f"main is reserved by {holder.name or 'an initiator'} (persistent reservation of type "
                       f"{holder.kind}), and would refuse what the gateway has to write there",
                       hint="Release it for the time of the backup, or register the gateway's initiator name too.")
