"""The main job, whole: `detour demo` as a user starts it, in processes of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_SECONDS = 150
SECTIONS = ("before", "copy", "catch_up", "after")


def demo(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.run([sys.executable, "-m", "detour", "demo", *arguments], capture_output=True, text=True,
                          timeout=LIMIT_SECONDS, env=environment, check=False)


def processes_that_mention(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def check_document(document: dict, volume_bytes: int) -> None:
    assert document["ok"] is True, document
    assert document["volume_bytes"] == volume_bytes
    assert document["backup"]["matches_pit"] is True and document["main"]["matches_host"] is True
    assert document["backup"]["bytes"] == volume_bytes and document["backup"]["seconds"] > 0
    assert document["backup"]["compare"]["compared_bytes"] == volume_bytes
    assert document["main"]["compare"]["compared_bytes"] == volume_bytes
    host = document["host"]
    assert host["errors"] == 0 and host["mismatches"] == 0
    assert host["writes"] > 100 and host["reads"] > 100 and host["checked_bytes"] > 0
    assert 0 < host["longest_stall_ms"] < 30_000
    assert set(host["p99_ms"]) == set(host["iops"]) == set(SECTIONS)
    assert all(host["iops"][name] > 0 for name in ("before", "copy", "after"))
    assert document["catch_up"]["rounds"] >= 1 and document["catch_up"]["bytes"] > 0
    assert document["cutover"]["predicted_ms"] is not None and document["cutover"]["actual_ms"] > 0


def test_demo_proves_the_main_job(tmp_path):
    done = demo(tmp_path, "--size", "64MiB", "--seconds", "2", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    check_document(json.loads(done.stdout), 64 * 2**20)
    assert list(tmp_path.iterdir()) == []
    assert processes_that_mention(str(tmp_path)) == []


@pytest.mark.peer("mke2fs", "e2fsck")
def test_demo_of_a_file_system(tmp_path):
    source, image, kept = tmp_path / "tree", tmp_path / "disk.ext4", tmp_path / "kept"
    source.mkdir()
    for number in range(40):
        (source / f"file{number}").write_bytes(os.urandom(50_000))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(source), str(image), "64M"], check=True, timeout=60)
    before = image.read_bytes()
    done = demo(tmp_path, "--image", str(image), "--seconds", "2", "--keep", str(kept), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    check_document(json.loads(done.stdout), image.stat().st_size)
    assert image.read_bytes() == before, "the demo works on a copy"
    backup = kept / "backup.img"
    assert backup.read_bytes() == before, "nothing but the image itself was on main at the point in time"
    assert (kept / "main.img").read_bytes() != before, "afterwards the host has written"
    checked = subprocess.run(["e2fsck", "-fn", str(backup)], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_demo_sees_a_backup_that_is_wrong(tmp_path, monkeypatch):
    """One bit of the independent copy is turned: the demo must not call the backup the same."""
    from detour import demo as module

    honest = module.gateway_toml

    def spoiled(folder, *rest):
        flip = ("import sys; f = open(sys.argv[1], 'r+b'); f.seek(40_000_000); b = f.read(1)[0];"
                "f.seek(40_000_000); f.write(bytes([b ^ 4]))")
        hook = ["sh", "-c", f'cp "$1" "$2" && {sys.executable} -c "{flip}" "$2"', "sh", str(folder / "main.img"),
                str(folder / "pit.img")]
        lines = honest(folder, *rest).splitlines()
        return "\n".join(f"hooks = {{ frozen = {json.dumps(hook)} }}" if line.startswith("hooks") else line
                         for line in lines)

    monkeypatch.setattr(module, "gateway_toml", spoiled)
    options = module.DemoOptions(size_bytes=64 * 2**20, seconds=0.5, keep=tmp_path)
    document = asyncio.run(module.run_demo(options, lambda kind, text: None))
    assert document["ok"] is False and document["result"] == "done"
    assert document["backup"]["matches_pit"] is False
    assert document["backup"]["compare"]["first_difference"] == 40_000_000
    assert document["main"]["matches_host"] is True


@pytest.mark.parametrize("moment", ["a host works on main", "-> copying"])
def test_ctrl_c_leaves_nothing_behind(tmp_path, moment):
    process = subprocess.Popen([sys.executable, "-m", "detour", "demo", "--size", "64MiB", "--seconds", "4"],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        deadline = time.monotonic() + 60
        for line in process.stdout:
            if moment in line or time.monotonic() > deadline:
                break
        assert processes_that_mention(str(tmp_path)), "target and gateway run"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
    assert processes_that_mention(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
