"""Files that are whole or absent, whatever happens: written beside, flushed, renamed, and the folder flushed.

POSIX promises the rename's atomicity to readers, but neither that the new file's content is on the disk before the new
name (hence the flush of the file), nor that the name is (hence the flush of the folder).
"""
from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """The file holds the old content or all of the new one, power cut included. Raises OSError. `mode`: its
    permissions, less what the umask takes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)      # one that a crash left may have other permissions
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(beside, path)


def rename_durably(source: Path, target: Path) -> None:
    """`source`'s content must be stable already. Raises OSError."""
    os.replace(source, target)
    sync_folder(target.parent)


def remove_durably(path: Path) -> None:
    """No error when it is not there."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
