"""iscsi-test-cu (libiscsi) against the project's own target, family by family, each in its own process and bounded.

`conform(url, family)` is for any target: the gateway's tests call it with the gateway's URL.
"""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.processes import Program

IQN = "iqn.2026-01.example:conformance"
SECONDS = 60
# Every family but those that need several paths or removable media.
FAMILIES = [
    "CompareAndWrite", "GetLBAStatus", "Inquiry", "Mandatory", "ModeSense6", "OrWrite", "Prefetch10", "Prefetch16",
    "PreventAllow", "Read6", "Read10", "Read12", "Read16", "ReadCapacity10", "ReadCapacity16", "ReadDefectData10",
    "ReadDefectData12", "ReadOnly", "ReportSupportedOpcodes", "StartStopUnit", "TestUnitReady", "Unmap", "Verify10",
    "Verify12", "Verify16", "Write10", "Write12", "Write16", "WriteAtomic16", "WriteSame10", "WriteSame16",
    "WriteVerify10", "WriteVerify12", "WriteVerify16", "iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF",
]
# Of these no test may be passed over: a target that refuses everything would "pass" otherwise.
WHOLE = {
    "Read6", "Read10", "Read12", "Read16", "Write10", "Write12", "Write16", "WriteVerify10", "WriteVerify12",
    "WriteVerify16", "Verify10", "Verify12", "Verify16", "Inquiry", "ReadCapacity10", "ReadCapacity16", "TestUnitReady",
    "Unmap", "iSCSIcmdsn", "iSCSIResiduals",
}
# The tool asks for persistent reservations before each family, and says so when there are none.
PREAMBLE = "PERSISTENT RESERVE IN is not implemented"


def conform(url: str, family: str, seconds: float = SECONDS) -> tuple[int, int, int]:
    """Runs a family; answers how many tests ran, passed and were passed over. AssertionError with the report if any
    failed, if none ran or if it hung."""
    tool = shutil.which("iscsi-test-cu")
    assert tool is not None
    done = subprocess.run([tool, "--dataloss", "-t", f"ALL.{family}", url], timeout=seconds, text=True, check=False,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found = re.search(r"^\s+tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", done.stdout, re.MULTILINE)
    assert found is not None and done.returncode == 0, done.stdout
    total, ran, passed, failed = (int(number) for number in found.groups())
    assert ran == total == passed and failed == 0 and ran > 0, done.stdout
    skipped = [line for line in done.stdout.splitlines() if "[SKIPPED]" in line and PREAMBLE not in line]
    return ran, passed, len(skipped)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    words = [sys.executable, "-m", "detour", "target", "mem:128MiB", "--listen", "127.0.0.1:0", "--iqn", IQN]
    with Program(words) as program:
        ready = program.wait_line("ready ")
        portal = dict(word.split("=", 1) for word in ready.split()[1:])["portal"]
        yield f"iscsi://{portal}/{IQN}/0"


@pytest.mark.peer("iscsi-test-cu")
@pytest.mark.parametrize("family", FAMILIES)
def test_family(url: str, family: str) -> None:
    _, _, skipped = conform(url, family)
    assert skipped == 0 or family not in WHOLE, f"{skipped} tests of {family} were passed over"
