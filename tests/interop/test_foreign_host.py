"""A host and a main storage that are not ours, detoured ten times under load. See foreign_host.py."""
from __future__ import annotations

import pytest

from tests.interop import foreign_host
from tests.support.processes import Program

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


@pytest.mark.peer("fio")
@pytest.mark.parametrize(("spoil", "seen"), [(None, False), ("older", True), ("zeroed", True), ("moved", True)])
def test_the_last_check_sees_what_it_is_for(tmp_path, spoil, seen):
    """The medium is checked for the last pass: content of an earlier one at the same place is a lost write."""
    image = tmp_path / "image"
    image.write_bytes(bytes(2 << 20))
    lane = foreign_host.Lane(0, tmp_path / "no-socket", 1 << 20, 1 << 20, tmp_path)
    contents = []
    for _ in range(2):
        lane.seed += 1
        with Program([*lane.words(), "--ioengine=psync", f"--filename={image}"], cwd=tmp_path) as fio:
            assert fio.wait(60) == 0
        contents.append(image.read_bytes())
    place = (1 << 20) + 40960
    wrong = {"older": contents[0][place:place + 4096], "zeroed": bytes(4096),
             "moved": contents[1][place + 4096:place + 8192], None: contents[1][place:place + 4096]}[spoil]
    with open(image, "r+b") as file:
        file.seek(place)
        file.write(wrong)
    assert bool(lane.check_medium(image)) is seen
