"""A host and a main storage that are not ours, detoured ten times under load. See foreign_host.py."""
from __future__ import annotations

import pytest

from tests.interop import foreign_host

DETOURS = 10


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.peer("tgtd", "qemu-nbd", "fio")
def test_there_and_back_with_foreign_programs_at_both_ends(tmp_path):
    report = foreign_host.run(tmp_path, DETOURS, 32 << 20)
    assert report.ok, "\n".join(report.faults)
    assert report.detours == report.backups_equal == DETOURS
    assert report.host_errors == 0
    assert report.host_writes > 2 * DETOURS and report.passes >= foreign_host.LANES
