"""iscsi-test-cu (libiscsi), the whole suite, against `detour target`: over a file and over memory, with two paths, with
removable media, and on a read-only LUN. What passes and what is skipped is what docs/conformance.md says.

The gateway's part is in test_conformance_gateway.py. For any other target: python -m tests.interop.conformance URL...
"""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.conformance import (
    Outcome,
    by_family,
    counts,
    document_table,
    failures,
    run,
    run_side_by_side,
    suite,
    table,
)
from tests.support.conformance import skips as skips_of
from tests.support.processes import detour_ready

IQN = "iqn.2026-01.example:conformance"
SIZE = "128MiB"
PASSED_MIN = 210
KINDS = ("file", "memory")
FIXED_SKIPS = "### What is skipped on a fixed, writable disk"
BY_FAMILY = "## Family by family"

pytestmark = pytest.mark.peer("iscsi-test-cu")


class Served:
    """`detour target` with two portals, and what the suite made of it."""

    def __init__(self, url: str) -> None:
        words = ["target", url, "--size", SIZE, "--iqn", IQN, "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
        self.program, ready = detour_ready(*words)
        portals = dict(word.split("=", 1) for word in ready.split()[1:])["portal"].split(",")
        self.urls = [f"iscsi://{portal}/{IQN}/0" for portal in portals]

    def close(self) -> None:
        """The target has served all of it in one life, and ends in order."""
        assert self.program.running, self.program.said()
        assert self.program.stop() == 0, self.program.said()


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Outcome]]]:
    """The whole suite over two disks side by side."""
    image = tmp_path_factory.mktemp("conformance") / "disk.img"
    served: dict[str, Served] = {}
    try:
        for kind, url in zip(KINDS, (str(image), f"mem:{SIZE}"), strict=True):
            served[kind] = Served(url)
        outcomes = run_side_by_side({kind: one.urls for kind, one in served.items()})
        for one in served.values():
            one.close()
    finally:
        for one in served.values():
            one.program.kill()
    yield outcomes


def test_the_table(fixed: dict[str, list[Outcome]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + table(fixed))
    assert [len(outcomes) for outcomes in fixed.values()] == [sum(map(len, suite().values()))] * len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_fails_and_enough_passes(fixed: dict[str, list[Outcome]], kind: str) -> None:
    assert failures(fixed[kind]) == []
    assert counts(fixed[kind])[0] >= PASSED_MIN


@pytest.mark.parametrize("kind", KINDS)
def test_skips_are_those_of_the_document(fixed: dict[str, list[Outcome]], kind: str) -> None:
    rows = document_table(FIXED_SKIPS)
    assert all(len(row) == 2 and row[1] for row in rows), "each skip has its reason"
    assert skips_of(fixed[kind]) == {row[0] for row in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_has_the_numbers(fixed: dict[str, list[Outcome]], kind: str) -> None:
    """Columns: family, tests, then passed/failed/skipped of `detour target` and of others."""
    rows = {row[0]: row for row in document_table(BY_FAMILY)}
    told = {family: (int(row[1]), row[2]) for family, row in rows.items() if family != "all"}
    found = {family: (len(cell), "/".join(map(str, counts(cell)))) for family, cell in by_family(fixed[kind]).items()}
    assert told == found
    assert rows["all"][1:3] == [str(len(fixed[kind])), "/".join(map(str, counts(fixed[kind])))]


@pytest.mark.parametrize(
    ("options", "families"),
    [
        ("removable", ["NoMedia", "PreventAllow", "StartStopUnit", "TestUnitReady", "Inquiry", "Reserve6"]),
        ("physical-block=4KiB", ["CompareAndWrite", "WriteSame10", "WriteSame16", "ReadCapacity16", "Unmap"]),
        ("read-only", ["ReadOnly", "Read10", "Read16", "Inquiry", "ReadCapacity16", "ModeSense6"]),
    ],
)
def test_a_disk_of_another_kind(options: str, families: list[str]) -> None:
    """What a fixed, writable disk with small blocks cannot have: media that can be taken out, blocks that cannot be
    written, blocks in physical blocks."""
    served = Served(f"mem:{SIZE}?{options}")
    try:
        outcomes = run(served.urls, families)
        served.close()
    finally:
        served.program.kill()
    assert failures(outcomes) == [], table({options: outcomes})
    assert skips_of(outcomes) == set(), table({options: outcomes})
