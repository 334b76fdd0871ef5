"""Identity of a logical unit: what a host must find unchanged when it is sent from main to the gateway and back.

Standard INQUIRY data, VPD pages, capacity, caching mode page and the list of LUNs, read by SCSI commands through
anything that has `command` (an OpenStore, or a session before it is handed to the core), and compared in words.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from detour.errors import ProtocolError, StorageError

VPD_SERIAL, VPD_DEVICE_ID, VPD_BLOCK_LIMITS, VPD_PROVISIONING = 0x80, 0x83, 0xB0, 0xB2
VPD_CHARACTERISTICS = 0xB1
VPD_NAMES = {0x00: "supported pages", 0x80: "unit serial number", 0x83: "device identification",
             0x86: "extended INQUIRY data", 0x88: "SCSI ports", 0xB0: "block limits",
             0xB1: "block device characteristics", 0xB2: "logical block provisioning"}
VPD_BYTES_MAX = 4096
COMMAND_BYTES_MAX = 2**31       # more than this in one command is never asked for, whatever a disk says it bears
VPD_PAGES_MAX = 32
LUNS_BYTES_MAX = 8 + 8 * 256


class CommandAnswer(Protocol):
    """How a command ended: status byte, data that came in, sense data."""

    @property
    def scsi_status(self) -> int: ...

    @property
    def data(self) -> bytes: ...

    @property
    def good(self) -> bool: ...


class Commander(Protocol):
    """Something that sends CDBs to a logical unit."""

    async def command(self, cdb: bytes, *, data_in_bytes: int = 0, check: bool = True) -> CommandAnswer: ...


@dataclass(frozen=True)
class Identity:
    """What was read. `vpd` has whole pages with their headers; `caching` is the caching mode page, or empty."""

    inquiry: bytes
    vpd: dict[int, bytes]
    size_bytes: int
    block_bytes: int
    capacity: bytes             # READ CAPACITY (16) data, or empty where only (10) is offered
    caching: bytes
    write_protected: bool
    luns: tuple[bytes, ...] = field(default=())

    @property
    def vendor(self) -> str:
        return self.inquiry[8:16].decode("ascii", "replace").strip()

    @property
    def product(self) -> str:
        return self.inquiry[16:32].decode("ascii", "replace").strip()

    @property
    def revision(self) -> str:
        return self.inquiry[32:36].decode("ascii", "replace").strip()

    @property
    def serial(self) -> str:
        return self.vpd.get(VPD_SERIAL, b"")[4:].decode("ascii", "replace").strip(" \0")

    @property
    def names(self) -> tuple[bytes, ...]:
        """Designators of the logical unit itself (association 0 of VPD page 83h): type byte and designator."""
        return tuple(bytes([kind]) + body for association, kind, body in _designators(self.vpd.get(VPD_DEVICE_ID, b""))
                     if association == 0)

    @property
    def write_cache(self) -> bool:
        """WCE of the caching mode page; a disk that does not tell is taken to have a volatile cache."""
        return bool(self.caching[2] & 0x04) if len(self.caching) > 2 else True

    @property
    def unmap_by_write_same(self) -> bool:
        """WRITE SAME (16) with UNMAP is offered, and what is unmapped reads as zeros."""
        provisioning = self.vpd.get(VPD_PROVISIONING, b"")
        zeros = len(self.capacity) > 14 and self.capacity[14] & 0xC0 == 0xC0
        return zeros and len(provisioning) > 5 and bool(provisioning[5] & 0x40)

    @property
    def transfer_bytes_max(self) -> int | None:
        """Of one command (block limits VPD page); None without a limit."""
        limits = self.vpd.get(VPD_BLOCK_LIMITS, b"")
        blocks = int.from_bytes(limits[8:12], "big") if len(limits) >= 12 else 0
        return min(blocks * self.block_bytes, COMMAND_BYTES_MAX) or None

    @property
    def unmap_bytes_max(self) -> int | None:
        """Of one WRITE SAME; None without a limit."""
        limits = self.vpd.get(VPD_BLOCK_LIMITS, b"")
        blocks = int.from_bytes(limits[36:44], "big") if len(limits) >= 44 else 0
        return min(blocks * self.block_bytes, COMMAND_BYTES_MAX) or None


def _designators(page: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Association, type and body of each designator; ends at the first that does not fit."""
    at = 4
    while at + 4 <= len(page):
        end = at + 4 + page[at + 3]
        if end > len(page):
            return
        yield page[at + 1] >> 4 & 3, page[at + 1] & 0x0F, page[at + 4:end]
        at = end


def _cdb_inquiry(page: int | None, length_bytes: int) -> bytes:
    return struct.pack(">BBBHB", 0x12, 0 if page is None else 1, page or 0, length_bytes, 0)


async def _vpd(unit: Commander, page: int) -> bytes:
    """A VPD page, or nothing where it is not offered."""
    answer = await unit.command(_cdb_inquiry(page, VPD_BYTES_MAX), data_in_bytes=VPD_BYTES_MAX, check=False)
    data = answer.data
    if not answer.good or len(data) < 4 or data[1] != page:
        return b""
    return data[:4 + int.from_bytes(data[2:4], "big")]


async def read_capacity(unit: Commander) -> tuple[int, int, bytes]:
    """Size in bytes, block size, and READ CAPACITY (16) data where it is offered."""
    cdb = struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0)
    answer = await unit.command(cdb, data_in_bytes=32, check=False)
    if answer.good and len(answer.data) >= 12:
        last, block_bytes = struct.unpack_from(">QI", answer.data)
        capacity = answer.data
    else:
        answer = await unit.command(bytes([0x25]) + bytes(9), data_in_bytes=8)
        if len(answer.data) < 8:
            raise ProtocolError("READ CAPACITY answered too little data")
        last, block_bytes = struct.unpack_from(">II", answer.data)
        capacity = b""
    if block_bytes < 512 or block_bytes > 65536 or block_bytes & (block_bytes - 1):
        raise StorageError(f"the disk has blocks of {block_bytes} bytes, which are not supported")
    return (last + 1) * block_bytes, block_bytes, capacity


async def _caching(unit: Commander) -> tuple[bytes, bool]:
    """The caching mode page and whether the medium is write protected."""
    answer = await unit.command(bytes([0x1A, 0x08, 0x08, 0, 0xFF, 0]), data_in_bytes=255, check=False)
    if not answer.good or len(answer.data) < 4:
        return b"", False
    page = answer.data[4 + answer.data[3]:]
    known = len(page) >= 3 and page[0] & 0x3F == 0x08
    return page[:2 + page[1]] if known else b"", bool(answer.data[2] & 0x80)


async def _luns(unit: Commander) -> tuple[bytes, ...]:
    cdb = struct.pack(">B5xIxx", 0xA0, LUNS_BYTES_MAX)
    answer = await unit.command(cdb, data_in_bytes=LUNS_BYTES_MAX, check=False)
    if not answer.good or len(answer.data) < 8:
        return ()
    told = answer.data[8:8 + int.from_bytes(answer.data[:4], "big")]
    return tuple(sorted(told[at:at + 8] for at in range(0, len(told) - 7, 8)))


async def read_identity(unit: Commander) -> Identity:
    """Reads all of it. StorageError when there is no disk behind the LUN."""
    answer = await unit.command(_cdb_inquiry(None, 255), data_in_bytes=255)
    inquiry = answer.data
    if len(inquiry) < 36 or inquiry[0] & 0x1F != 0 or inquiry[0] >> 5 != 0:
        raise StorageError("there is no disk at this LUN", hint="`detour ls` shows the LUNs of a target.")
    supported = await _vpd(unit, 0)
    pages = {page: await _vpd(unit, page) for page in supported[4:4 + VPD_PAGES_MAX]}
    size_bytes, block_bytes, capacity = await read_capacity(unit)
    caching, write_protected = await _caching(unit)
    return Identity(inquiry, {page: data for page, data in pages.items() if data}, size_bytes, block_bytes, capacity,
                    caching, write_protected, await _luns(unit))


def _told(identity: Identity, page: int) -> bytes:
    """Without what depends on SANITIZE (WABEREQ, WACEREQ), which a gateway does not offer."""
    data = identity.vpd[page]
    return data[:7] + bytes([data[7] & 0x0F]) + data[8:] if page == VPD_CHARACTERISTICS and len(data) > 7 else data


def differences(one: Identity, other: Identity) -> list[str]:
    """What a host would notice, one sentence each; empty when both look the same."""
    found = same_medium_differences(one, other)
    for what, a, b in (("vendor", one.vendor, other.vendor), ("product", one.product, other.product),
                       ("revision", one.revision, other.revision), ("write cache", one.write_cache, other.write_cache),
                       ("write protection", one.write_protected, other.write_protected)):
        if a != b:
            found.append(f"{what} is {a!r} on one side and {b!r} on the other")
    if not found and one.inquiry[:8] != other.inquiry[:8]:
        found.append("the INQUIRY flags differ")
    for page in sorted(one.vpd.keys() | other.vpd.keys()):
        name = f"VPD page {page:02X}h ({VPD_NAMES.get(page, 'unnamed')})"
        if page not in one.vpd or page not in other.vpd:
            found.append(f"{name} is there on one side only")
        elif _told(one, page) != _told(other, page) and page not in (VPD_SERIAL, VPD_DEVICE_ID, 0x88):
            found.append(f"{name} differs")
    if one.luns != other.luns:
        found.append(f"{len(one.luns)} LUNs are on one side and {len(other.luns)} or others on the other")
    return found


def same_medium_differences(one: Identity, other: Identity) -> list[str]:
    """What tells that it is not the same medium at all: size, block size, serial number, names of the logical unit."""
    found = []
    for what, a, b in (("size", one.size_bytes, other.size_bytes), ("block size", one.block_bytes, other.block_bytes),
                       ("serial number", one.serial, other.serial)):
        if a != b:
            found.append(f"{what} is {a!r} on one side and {b!r} on the other")
    if one.names != other.names:
        found.append("the names of the logical unit (VPD page 83h) differ")
    return found
