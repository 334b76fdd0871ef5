"""iscsi-test-cu (libiscsi) over any target: each family in a process of its own, bounded in time, counted test by test.

The tool counts a test that it passed over in part or in whole as passed. Here a test is `failed` when an assertion of
it failed or when it did not come to its end; else `skipped` when it printed a line with [SKIPPED], else `passed`. What
the tool says between two families (it looks for registrations left behind, and meets the unit attention of a reset that
the last test sent) is of no test.
"""
from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

TOOL = "iscsi-test-cu"
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
SECONDS = 60
INITIATOR = "iqn.2026-01.example:conformance-{}"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
_TEST = re.compile(r"^  Test: (\S+) \.\.\.", re.MULTILINE)
_END = re.compile(r"(passed|FAILED)(?=$|\s)")
_SUMMARY = "Run Summary:"
# What the tool prints before and behind a family, when it looks for registrations that were left behind.
_PREAMBLE = "PERSISTENT RESERVE IN is not implemented"


class Outcome(NamedTuple):
    """What became of one test. `reason` is what the tool said of a skip or of the first assertion that failed."""

    family: str
    test: str
    verdict: str
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.family}.{self.test}"


@cache
def suite() -> dict[str, tuple[str, ...]]:
    """Every family of the tool with its tests, in the tool's order."""
    tool = shutil.which(TOOL)
    assert tool is not None, f"{TOOL} is not installed"
    done = subprocess.run([tool, "--list"], timeout=SECONDS, text=True, check=False, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    names = [line.split(".") for line in done.stdout.splitlines() if line.startswith("ALL.")]
    tests = [(words[1], words[2]) for words in names if len(words) == 3]
    return {family: tuple(test for _, test in rows) for family, rows in groupby(tests, key=lambda row: row[0])}


def run_family(urls: Sequence[str], family: str, seconds: float = SECONDS) -> list[Outcome]:
    """Runs one family; a tool that hangs or dies fails the test it was in and those behind it."""
    tool = shutil.which(TOOL)
    assert tool is not None, f"{TOOL} is not installed"
    words = [tool, "--dataloss", "--allow-sanitize", "--verbose", "-i", INITIATOR.format(1), "-I", INITIATOR.format(2),
             "-t", f"ALL.{family}", *urls]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
            how = f"the tool ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            how = f"no end within {seconds:g} s"
    return parse(family, suite()[family], said.decode(errors="replace"), how)


def parse(family: str, tests: Iterable[str], said: str, how: str) -> list[Outcome]:
    """The outcomes of `tests` in what the tool said; `how` tells how it ended, for tests that are not to be found."""
    pieces = _TEST.split(said.partition(_SUMMARY)[0])
    found = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    last = said.strip().splitlines()[-1:] or [""]
    return [_outcome(family, test, found.get(test), f"{how}: {last[0].strip()}") for test in tests]


def _outcome(family: str, test: str, said: str | None, how: str) -> Outcome:
    if said is None:
        return Outcome(family, test, FAILED, how)
    ends = _END.findall(said)
    told = [line.strip() for line in said.splitlines() if re.match(r"\s+\d+\. ", line) or "[FAILED]" in line]
    if not ends or "FAILED" in ends:
        return Outcome(family, test, FAILED, "; ".join(told[:2]) if ends else how)
    skipped = [line.partition("[SKIPPED]")[2].strip(" .") for line in said.splitlines()
               if "[SKIPPED]" in line and _PREAMBLE not in line]
    if skipped:
        return Outcome(family, test, SKIPPED, skipped[0])
    return Outcome(family, test, PASSED)


def run(urls: Sequence[str], families: Iterable[str] | None = None, *, seconds: float = SECONDS) -> list[Outcome]:
    """Runs families (all of them unless told) one after the other: they share the disk."""
    return [outcome for family in (suite() if families is None else families)
            for outcome in run_family(urls, family, seconds)]


def run_side_by_side(targets: Mapping[str, Sequence[str]], families: Iterable[str] | None = None, *,
                     seconds: float = SECONDS) -> dict[str, list[Outcome]]:
    """The same families over several targets at once: name -> URLs, the second of which is a second path."""
    wanted = list(suite() if families is None else families)
    with ThreadPoolExecutor(len(targets)) as pool:
        jobs = {name: pool.submit(run, urls, wanted, seconds=seconds) for name, urls in targets.items()}
        return {name: job.result() for name, job in jobs.items()}


def failures(outcomes: Iterable[Outcome], alone: Iterable[Outcome] = ()) -> list[Outcome]:
    """What failed, and did not fail `alone` (on main without the gateway, say)."""
    known = {outcome.name for outcome in alone if outcome.verdict == FAILED}
    return [outcome for outcome in outcomes if outcome.verdict == FAILED and outcome.name not in known]


def skips(outcomes: Iterable[Outcome]) -> set[str]:
    """The names FAMILY.TEST of what was skipped."""
    return {outcome.name for outcome in outcomes if outcome.verdict == SKIPPED}


def counts(outcomes: Iterable[Outcome]) -> tuple[int, int, int]:
    """How many passed, failed and were skipped."""
    verdicts = [outcome.verdict for outcome in outcomes]
    return verdicts.count(PASSED), verdicts.count(FAILED), verdicts.count(SKIPPED)


def by_family(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    return {family: list(rows) for family, rows in groupby(outcomes, key=lambda outcome: outcome.family)}


def table(columns: Mapping[str, Sequence[Outcome]]) -> str:
    """Family by family: passed/failed/skipped of each column; below a family what did not pass, with the reason."""
    width = max([16, *(len(name) + 2 for name in columns)])
    sorted_rows = {name: by_family(outcomes) for name, outcomes in columns.items()}
    families = list(dict.fromkeys(family for rows in sorted_rows.values() for family in rows))
    lines = ["family".ljust(24) + "".join(name.rjust(width) for name in columns)]
    for family in families:
        cells = [rows.get(family, []) for rows in sorted_rows.values()]
        lines.append(_line(family, cells, width))
        told = dict.fromkeys(f"    {one.verdict} {one.test}: {one.reason}" for cell in cells for one in cell
                             if one.verdict != PASSED)
        lines += told
    lines.append(_line("all", list(columns.values()), width))
    return "\n".join(lines)


def _line(name: str, cells: Iterable[Sequence[Outcome]], width: int) -> str:
    return name.ljust(24) + "".join(("{}/{}/{}".format(*counts(cell)) if cell else "-").rjust(width) for cell in cells)


# --- what docs/conformance.md says

def document_table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its two head rows and without `code` marks."""
    text = DOCUMENT.read_text().partition(f"\n{heading}\n")[2]
    assert text, f"{DOCUMENT.name} has no heading {heading!r}"
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    assert len(rows) > 2, f"{DOCUMENT.name} has no table below {heading!r}"
    return rows[2:]
