"""Atomic writes of files: what stands in the redo file, what is put in place after a crash, and what is passed over."""
from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from detour.core.crc32c import crc32c
from detour.embedded import DiskOptions, EmbeddedTarget
from detour.errors import CorruptError
from detour.iscsi.initiator import connect
from detour.redo import HEADER, MAGIC, pending, redo_path_of, replay
from detour.runtime import Runtime
from detour.stores import open_store
from detour.urls import IscsiUrl, parse_endpoint

IQN = "iqn.2026-01.example:atomic"
SIZE = 4 << 20
DATA = bytes(range(256)) * 16


def write_atomic(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQHHBB", 0x9C, 0, lba, 0, blocks, 0, 0)


def redo_of(image: Path, offset_bytes: int = 8192, data: bytes = DATA, **changes: int) -> bytes:
    """A redo file's content, with fields changed before its checksum is made."""
    known = os.stat(image)
    fields = {"version": 1, "offset_bytes": offset_bytes, "length_bytes": len(data), "file_bytes": known.st_size,
              "inode": known.st_ino} | changes
    checked = MAGIC + struct.pack("<IIQQQQ", fields["version"], 0, fields["offset_bytes"], fields["length_bytes"],
                                  fields["file_bytes"], fields["inode"])
    return checked + struct.pack("<I12x", crc32c(data, crc32c(checked))) + data


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\x11" * SIZE)
    return path


def test_a_pending_write_is_put_in_place_when_the_file_is_opened(image):
    redo = Path(redo_path_of(image))
    redo.write_bytes(redo_of(image))

    async def main() -> None:
        async with Runtime() as runtime:
            with pytest.raises(CorruptError):
                await open_store(runtime, str(image), read_only=True)
            async with await open_store(runtime, str(image)) as store:
                assert await store.read(8192, 4096) == DATA

    asyncio.run(main())
    assert image.read_bytes() == b"\x11" * 8192 + DATA + b"\x11" * (SIZE - 8192 - 4096)
    assert pending(redo, image) is None and redo.read_bytes()[:HEADER.size] == bytes(HEADER.size)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: b"",
        lambda image: redo_of(image)[:40],
        lambda image: bytes(64) + DATA,
        lambda image: redo_of(image)[:-1],
        lambda image: redo_of(image)[:-1] + b"\x77",
        lambda image: redo_of(image)[:20] + b"\x77" + redo_of(image)[21:],
        lambda image: redo_of(image, version=2),
        lambda image: redo_of(image, inode=1),
        lambda image: redo_of(image, file_bytes=SIZE + 512),
        lambda image: redo_of(image, offset_bytes=SIZE - 512),
        lambda image: redo_of(image, length_bytes=2**63),
    ],
)
def test_what_is_not_whole_or_of_another_file_is_passed_over(image, spoil):
    redo = Path(redo_path_of(image))
    redo.write_bytes(spoil(image))
    replay(redo, image)
    assert image.read_bytes() == b"\x11" * SIZE


def test_no_redo_file_is_nothing_to_do(image):
    replay(Path(redo_path_of(image)), image)
    assert sorted(path.name for path in image.parent.iterdir()) == ["disk.img"]


def test_atomic_writes_of_a_file(image):
    """The target offers them, and leaves nothing to do behind them."""
    async def main() -> None:
        async with asyncio.timeout(30), Runtime() as runtime:
            target = EmbeddedTarget(runtime, IQN)
            await target.add_disk(str(image), DiskOptions())
            portal = await target.listen("127.0.0.1:0")
            host = await connect(runtime, IscsiUrl(*parse_endpoint(portal), IQN, 0), initiator_name=f"{IQN}-host")
            limits = await host.command(bytes([0x12, 1, 0xB0, 0, 64, 0]), data_in_bytes=64)
            assert struct.unpack_from(">I", limits.data, 44)[0] == 2**20 // 512
            writes = [(lba, bytes([lba % 251]) * 512 * blocks) for lba, blocks in ((0, 1), (7, 9), (512, 2048), (8, 8))]
            for lba, data in writes:
                await host.command(write_atomic(lba, len(data) // 512), data_out=data)
            await asyncio.gather(*(host.command(write_atomic(lba, len(data) // 512), data_out=data)
                                   for lba, data in writes[:3]))
            await host.command(write_atomic(8, 8), data_out=writes[3][1])
            await host.close()
            await target.close()

    asyncio.run(main())
    expected = bytearray(b"\x11" * SIZE)
    for lba, data in ((0, b"\0" * 512), (7, b"\7" * 512 * 9), (512, bytes([512 % 251]) * 2**20), (8, b"\10" * 4096)):
        expected[lba * 512:lba * 512 + len(data)] = data
    assert image.read_bytes() == bytes(expected)
    redo = Path(redo_path_of(image))
    assert pending(redo, image) is None and redo.stat().st_mode & 0o077 == 0
