"""What a process holds, as the kernel tells it, and what lies in a folder."""
from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

KINDS = {"socket:": "sockets", "anon_inode:[eventfd]": "eventfds", "anon_inode:[eventpoll]": "epolls", "pipe:": "pipes"}
STATUS = {"RssAnon": "anonymous_bytes", "VmData": "data_bytes"}
ROLLUP = {"Rss": "resident_bytes", "Pss": "proportional_bytes"}


def kind_of(target: str) -> str:
    """Kind of a descriptor by what its link in /proc names."""
    return next((kind for start, kind in KINDS.items() if target.startswith(start)), "files")


def descriptors(pid: int) -> Counter[str]:
    """Open descriptors by kind."""
    found: Counter[str] = Counter()
    folder = Path(f"/proc/{pid}/fd")
    for name in os.listdir(folder):
        try:
            found[kind_of(os.readlink(folder / name))] += 1
        except FileNotFoundError:           # closed meanwhile
            continue
    return found


def sockets(pid: int) -> dict[str, str]:
    """What each open socket is, by its inode: addresses and state as the kernel's tables have them."""
    tables = {}
    for name, at, shown in (("tcp", 9, (1, 2, 3)), ("unix", 6, (4, 5, 7))):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            tables[words[at]] = " ".join([name, *(words[place] for place in shown if place < len(words))])
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
            if match:
                found[match[1]] = tables.get(match[1], "of another kind")
    return found


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _sizes(path: str, names: dict[str, str]) -> dict[str, int]:
    text = Path(path).read_text()
    return {given: 1024 * int(match[1]) for name, given in names.items()
            if (match := re.search(rf"^{name}:\s+(\d+) kB", text, re.M)) is not None}


def memory(pid: int) -> dict[str, int]:
    """Bytes: resident, its share of what is shared (proportional), anonymous, and the data segments."""
    return _sizes(f"/proc/{pid}/smaps_rollup", ROLLUP) | _sizes(f"/proc/{pid}/status", STATUS)


def folder_figures(folder: Path) -> dict[str, int]:
    """Files below a folder, and their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def process_figures(pid: int) -> dict[str, int]:
    """All of it for one process, descriptors as `fd_KIND` and `descriptors` in all."""
    kinds = descriptors(pid)
    return {**memory(pid), "threads": threads(pid), "descriptors": sum(kinds.values()),
            **{f"fd_{kind}": kinds[kind] for kind in sorted({*KINDS.values(), "files"})}}
