"""Persistent reservations that outlive power (SPC-4 5.13.5, APTPL): one small file for each disk that keeps them.

The core gives every new state as bytes (docs/formats.md) and answers the host when they are stable; it checks them
again when a disk is made with them. A state that is not to outlive power takes the file away.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from detour.durable import remove_durably, write_durably
from detour.errors import CorruptError, StorageError, UsageError
from detour.urls import FileUrl, parse_url

if TYPE_CHECKING:
    from detour.core.disk import DiskHandle
    from detour.runtime import Runtime

EVENT_RESERVATIONS = 13         # EventKind in core/reactor.pxd
STATUS_OK, STATUS_IO = 0, -2    # Status in core/types.pxd
HEADER = struct.Struct("<8sIII")                # magic, checksum, version, flags
FLAG_APTPL = 1
FILE_BYTES_MAX = 65536
SUFFIX = ".reservations"

log = structlog.get_logger(__name__)

_kept_now: set[Path] = set()     # files of this process's disks: two disks in one file would undo each other's state


class ReservationFile:
    """The file of one disk, readable by its owner alone: keys are what hosts prove their right with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> bytes:
        """What was kept, b"" when nothing was. StorageError when it cannot be read."""
        try:
            with open(self.path, "rb") as file:
                return file.read(FILE_BYTES_MAX)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"{self.path}: the reservations cannot be read: {error.strerror or error}") from None

    def save(self, state: bytes) -> None:
        """Stable when it returns. OSError."""
        flags = HEADER.unpack_from(state)[3]
        if flags & FLAG_APTPL:
            write_durably(self.path, state, mode=0o600)
        else:
            remove_durably(self.path)

    def damaged(self) -> CorruptError:
        """What is raised when the core refuses what was kept."""
        return CorruptError(f"{self.path}: the reservations kept there are damaged, or of another version",
                            hint="Without the file the disk starts with no reservations: remove it when no host relies "
                                 "on them, or let the hosts register again at once.")


def reservations_file(url: str, wanted: str | None) -> ReservationFile | None:
    """Where the disk of this URL keeps its reservations: the wanted path, or beside an image file that exists where its
    folder can be written. None: nowhere, as for memory, devices, remote disks, and an image that another disk of this
    process serves; APTPL is then not offered. UsageError when the wanted file is another disk's."""
    if wanted:
        chosen = Path(wanted).resolve()
        if chosen in _kept_now:
            raise UsageError(f"{chosen}: another disk keeps its reservations there",
                             hint="Give each disk a file of its own.")
        return ReservationFile(chosen)
    parsed = parse_url(url)
    if not isinstance(parsed, FileUrl) or not os.path.isfile(parsed.path):
        return None
    image = Path(parsed.path).resolve()                 # links to one image are one disk
    path = image.with_name(image.name + SUFFIX)
    usable = path.exists() or os.access(image.parent, os.W_OK | os.X_OK)
    return ReservationFile(path) if usable and path not in _kept_now else None


class ReservationKeeper:
    """Stores what the disk with this id gives, one state after the other, and tells the disk what became of it."""

    def __init__(self, runtime: Runtime, disk_id: int, disk: DiskHandle, file: ReservationFile) -> None:
        self._runtime, self._disk_id, self._disk, self._file = runtime, disk_id, disk, file
        self._tasks: set[asyncio.Task[None]] = set()
        _kept_now.add(file.path)
        runtime.on_event(EVENT_RESERVATIONS, disk_id, self._arrived)

    def _arrived(self, _status: int, _results: tuple[int, ...], data: bytes | None) -> None:
        task = asyncio.get_running_loop().create_task(self._keep(data or b""))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, state: bytes) -> None:
        status = STATUS_IO
        try:
            await asyncio.to_thread(self._file.save, state)
            status = STATUS_OK
        except (OSError, struct.error) as error:
            log.error("reservations cannot be kept: the host's command fails", file=str(self._file.path),
                      error=str(error))
        finally:
            with contextlib.suppress(ValueError):       # the disk is closed
                await self._runtime.wait(self._disk.reservations_stored(status), check=False)

    async def close(self) -> None:
        """To be called when the disk's commands have ended."""
        self._runtime.off_event(EVENT_RESERVATIONS, self._disk_id)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        _kept_now.discard(self._file.path)
