"""What every test shares: foreign programs as a marker, and a check that no test leaves a process behind."""
from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Where Debian puts tgtd, tgtadm, mke2fs: for the search for peers and for all that the tests start.
os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + os.pathsep.join(["/usr/sbin", "/sbin"])

NEED_ROOT = {"tgtd"}
CI = os.environ.get("CI") == "true"


def missing_peer(item: pytest.Item) -> str:
    """Why the foreign programs that a test names in `peer` marks cannot be run; "" when they can."""
    for mark in item.iter_markers("peer"):
        for name in mark.args:
            if shutil.which(name) is None:
                return f"{name} is not installed"
            if name in NEED_ROOT and os.geteuid() != 0:
                return f"{name} needs root"
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = missing_peer(item)
    if reason and CI:
        pytest.fail(f"{reason}, and CI runs everything", pytrace=False)
    if reason:
        pytest.skip(reason)


def children() -> set[int]:
    """Process ids of this process's children."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            pids.update(int(pid) for pid in (task / "children").read_text().split())
        except FileNotFoundError:       # a thread that ended meanwhile
            continue
    return pids


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fails a test that leaves a process behind, after ending it. Those of wider fixtures were there before."""
    before = children()
    yield
    left = {pid: command_of(pid) for pid in children() - before}
    left = {pid: command for pid, command in left.items() if "resource_tracker" not in command}
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue
    assert not left, f"processes left behind: {left}"
