"""Checks of backup storage: room for a whole image, and its speed."""
from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from detour.backups import raw
from detour.doctor.findings import Case, Finding, ok, problem, warning
from detour.errors import DetourError
from detour.iscsi.session import open_socket
from detour.urls import FileUrl, IscsiUrl, format_size

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
        await asyncio.to_thread(raw.check_room, place, case.size_bytes)
    except DetourError as error:
        return [problem(check, error.message, error.hint or f"Correct store.{name}.url, or make room.")]
    assert place.final is not None
    speed = await asyncio.to_thread(_write_speed, place.final.parent)
    seconds = case.size_bytes / speed
    told = f"room for an image; it takes {format_size(int(speed))}/s, an image about {seconds:.0f} s"
    if speed < SLOW_BYTES_S:
        return [warning(check, told, "A slow store makes a long copy: give the journal room for what hosts write "
                        "meanwhile.", bytes_per_second=round(speed))]
    return [ok(check, told, bytes_per_second=round(speed))]


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
        return [problem(check, f"{path} has {format_size(room)}, and the volume {format_size(size_bytes)}",
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
