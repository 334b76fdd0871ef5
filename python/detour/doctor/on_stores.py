"""Checks of backup storage: room for a whole image, and its speed."""
from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from detour.backups import raw
from detour.doctor.findings import Case, Finding, ok, problem, said_by, speed, volume_of, warning
from detour.errors import DetourError
from detour.iscsi.session import open_socket
from detour.urls import FileUrl, IscsiUrl

TRY_BYTES = 32 * 2**20
TRY_S = 2.0                     # the speed is told from what was written by then
PART_BYTES = 2**20
SLOW_BYTES_S = 20e6


async def check_stores(case: Case) -> list[Finding]:
    """Each store that the volume's backups could go to."""
    if not case.config.store:
        return [problem("store", "the configuration has no store for backups", "Add a table [store.NAME] with a url.")]
    found: list[Finding] = []
    for name in case.config.store:
        found += await _check_store(case, name)
    return found


async def _check_store(case: Case, name: str) -> list[Finding]:
    url = case.config.store[name].url
    check = f"store {name}"
    try:
        place = raw.place_of(url, "doctor")
        if isinstance(place.url, IscsiUrl):
            (await open_socket(place.url.host, place.url.port, None, 3.0)).close()
            return [ok(check, f"{url} answers")]
        if place.final is None:
            return _check_device(check, place, case.size_bytes)
        folder = place.final.parent
        if not folder.exists() and folder.parent.is_dir():
            return [_check_folder_to_be(check, folder, case.size_bytes)]
        await asyncio.to_thread(raw.check_room, place, case.size_bytes)
        bytes_s = await asyncio.to_thread(_write_speed, folder)
    except (DetourError, OSError) as error:
        said, hint = said_by(error)
        return [problem(check, said, hint or f"Correct store.{name}.url, or make its folder.")]
    case.store_bytes_s = min(bytes_s, case.store_bytes_s or bytes_s)
    seconds = case.size_bytes / bytes_s
    told = f"room for an image at {speed(bytes_s)}, which is {seconds:.0f} s" if case.size_bytes else (
        f"it takes {speed(bytes_s)}; how large an image is, main does not say")
    if bytes_s < SLOW_BYTES_S:
        return [warning(check, told, "A slow store makes a long copy: give the journal room for what hosts write "
                        "meanwhile.", bytes_per_second=round(bytes_s))]
    return [ok(check, told, bytes_per_second=round(bytes_s))]


def _check_folder_to_be(check: str, folder: Path, size_bytes: int) -> Finding:
    """A folder that the first backup makes: the doctor makes nothing."""
    room = os.statvfs(folder.parent)
    free = room.f_bavail * room.f_frsize
    if not os.access(folder.parent, os.W_OK):
        return problem(check, f"{folder} is not there and cannot be made", "Make it, owned by the gateway's user.")
    if free < size_bytes:
        return problem(check, f"{folder.parent} has {volume_of(free)} of room, and the volume {volume_of(size_bytes)}",
                       "Make room, or use another store.")
    return ok(check, f"room for an image; {folder} is made by the first backup")


def _check_device(check: str, place: raw.Place, size_bytes: int) -> list[Finding]:
    if not isinstance(place.url, FileUrl):
        return [warning(check, f"{place.url} does not outlive the gateway", "Use a file, a folder, or a LUN.")]
    path = place.url.path
    try:
        with open(path, "rb") as device:
            room = device.seek(0, os.SEEK_END)
    except OSError as error:
        return [problem(check, f"{path} cannot be opened: {error.strerror}", "Correct the store's url.")]
    if room < size_bytes:
        return [problem(check, f"{path} has {volume_of(room)}, and the volume {volume_of(size_bytes)}",
                        "Use a larger device.")]
    return [ok(check, f"{path} has room for an image")]


def _write_speed(folder: Path) -> float:
    """Bytes a second of a small file that is made stable and goes away again."""
    part, done, begun = os.urandom(PART_BYTES), 0, time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".detour-doctor-") as file:
        while done < TRY_BYTES and time.monotonic() - begun < TRY_S:
            file.write(part)
            file.flush()
            os.fdatasync(file.fileno())
            done += PART_BYTES
    return max(1.0, done / (time.monotonic() - begun))
