"""The Linux kernel's initiator at the project's target: CHAP of every kind, digests, discovery with credentials."""
from __future__ import annotations

import pytest

from tests.interop.foreign_targets import MUTUAL_SECRET, MUTUAL_USER, SECRET, USER
from tests.support import lio
from tests.support.processes import Program, detour_ready

IQN = "iqn.2026-01.example:kernel"
SEEK_USER, SEEK_SECRET = "seek1", "seek1-secret-56"
CHECKS = 8


@pytest.mark.slow
@pytest.mark.skipif(bool(lio.missing()), reason=lio.missing() or "there")
def test_open_iscsi(tmp_path):
    paths = {}
    for name, secret in (("host", SECRET), ("main", MUTUAL_SECRET), ("seek", SEEK_SECRET)):
        paths[name] = tmp_path / name
        paths[name].write_text(secret + "\n")
        paths[name].chmod(0o600)
    target, ready = detour_ready(
        "target", "mem:32MiB", "--iqn", IQN, "--listen", "127.0.0.1:0", "--chap-user", USER, "--chap-secret-file",
        paths["host"], "--mutual-user", MUTUAL_USER, "--mutual-secret-file", paths["main"], "--discovery-user",
        SEEK_USER, "--discovery-secret-file", paths["seek"])
    settings = {"PORTAL": ready.split("portal=")[1].split()[0], "TARGET": IQN, "USER": USER, "SECRET": SECRET,
                "MUTUAL_USER": MUTUAL_USER, "MUTUAL_SECRET": MUTUAL_SECRET, "SEEK_USER": SEEK_USER,
                "SEEK_SECRET": SEEK_SECRET}
    words = [str(lio.bench_folder() / "run-guest"), "--timeout", "200"]
    for name, value in settings.items():
        words += ["--env", f"{name}={value}"]
    with target, Program([*words, str(lio.ROOT / "tests/interop/open_iscsi.sh")]) as guest:
        assert guest.wait(220) == 0, guest.said()
        passed = [line for line in guest.output if line.startswith("PASSED ")]
        assert len(passed) == CHECKS, guest.said()
