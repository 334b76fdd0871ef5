"""Where a disk keeps its reservations: which file, its permissions, what becomes of it."""
from __future__ import annotations

import asyncio
import os
import stat
import struct

import pytest

from detour import reservations
from detour.errors import StorageError, UsageError
from detour.reservations import ReservationFile, ReservationKeeper, reservations_file

KEPT, GONE = (struct.pack("<8sIII", b"DETOURR1", 0, 1, flags) + b"state" for flags in (1, 0))


class Events:
    """The part of a runtime that a keeper uses."""

    def on_event(self, *_: object) -> None:
        pass

    def off_event(self, *_: object) -> None:
        pass


def test_a_state_is_kept_until_one_is_not_to_be(tmp_path):
    file = ReservationFile(tmp_path / "kept")
    old = os.umask(0)
    try:
        assert file.load() == b""
        file.save(KEPT)
    finally:
        os.umask(old)
    assert file.load() == KEPT and stat.S_IMODE(file.path.stat().st_mode) == 0o600
    (tmp_path / ".kept.new").write_bytes(b"half")               # of a crash
    file.save(KEPT + b"more")
    assert file.load() == KEPT + b"more" and os.listdir(tmp_path) == ["kept"]
    file.save(GONE)
    file.save(GONE)
    assert file.load() == b"" and not os.listdir(tmp_path)


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        ReservationFile(tmp_path).load()


def test_beside_an_image_and_nowhere_else(tmp_path):
    image = tmp_path / "disk.img"
    assert reservations_file(str(image), None) is None          # there is no image
    image.write_bytes(b"")
    (tmp_path / "link").symlink_to(image)
    for url in (str(image), f"file://{image}", str(tmp_path / "link")):
        assert reservations_file(url, None).path == tmp_path / "disk.img.reservations"
    for url in ("mem:1MiB", "/dev/null", "iscsi://host/iqn.2026-01.example:x/0"):
        assert reservations_file(url, None) is None
        assert reservations_file(url, str(tmp_path / "wanted")).path == tmp_path / "wanted"


async def keep_two(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(b"")
    keepers = [ReservationKeeper(Events(), number, None, reservations_file(str(image), wanted))
               for number, wanted in enumerate((None, str(tmp_path / "wanted")))]
    assert reservations_file(str(image), None) is None
    with pytest.raises(UsageError, match="another disk"):
        reservations_file("mem:1MiB", str(tmp_path / "wanted"))
    for keeper in keepers:
        await keeper.close()
    assert reservations_file(str(image), None) and not reservations._kept_now


def test_two_disks_never_share_a_file(tmp_path):
    asyncio.run(keep_two(tmp_path))
