"""The tests that run on a sanitizer's build, and what came of them."""
from __future__ import annotations

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.sanitize.build import Build
from tests.sanitize.reports import collect

LADDER = ("tests/unit", "tests/property", "tests/simulation", "tests/fault", "tests/fuzz", "tests/e2e", "tests/interop")
TEST_SECONDS = 900
ALWAYS = {
    "tests/e2e/test_cimport.py": "builds a module against the core with plain flags",
}
OTHER_USER = {
    "tests/unit/test_security.py::test_another_user_of_this_machine_is_refused_and_a_member_of_the_group_is_not":
        "runs processes as another user, who may not write reports",
}
EXCLUDED: dict[str, dict[str, str]] = {
    "asan": {
        **ALWAYS,
        **OTHER_USER,
        "tests/unit/test_pool.py": "looks into slots and buffers that it does not have, which this build forbids",
        "tests/unit/test_filestore.py::test_threads_and_descriptors_are_given_back":
            "drops a store with a write under way, whose request stays in memory",
        "tests/unit/test_copier.py::test_one_that_is_dropped_is_not_freed_below_its_stores":
            "drops a copy under way, which stays in memory",
        "tests/unit/test_runtime.py::test_leaving_the_interpreter_is_silent":
            "ends processes with requests under way, which stay in memory",
    },
    "tsan": {
        **ALWAYS,
        **OTHER_USER,
        "tests/unit/test_store.py::test_a_sparse_store_may_be_larger_than_memory":
            "maps 4 TiB, and the sanitizer's shadow leaves no such room",
        "tests/unit/test_volume_harm.py::test_an_unmap_of_more_blocks_than_an_entry_counts":
            "maps 2 TiB, likewise",
    },
}


@dataclass
class Outcome:
    """`counts`: tests by how they ended; `reports`: findings and how often each came; `folder`: where they are kept."""

    code: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    reports: Counter[str] = field(default_factory=Counter)
    folder: Path | None = None

    @property
    def clean(self) -> bool:
        return self.code == 0 and not self.reports

    def summary(self) -> str:
        lines = [f"{times} x {report}" for report, times in self.reports.most_common()]
        if lines and self.folder is not None:
            lines.append(f"the reports are in {self.folder}")
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items()) or "pytest did not end"
        lines.append(f"{counts}; {sum(self.reports.values())} reports, {len(self.reports)} different; pytest's exit "
                     f"code {self.code}; {self.seconds:.0f} s: {'clean' if self.clean else 'NOT CLEAN'}")
        return "\n".join(lines)


def counts_of(path: Path) -> dict[str, int]:
    """Tests by how they ended, from pytest's XML; {} when there is none, because the process died."""
    if not path.exists():
        return {}
    suite = ElementTree.parse(path).getroot().find("testsuite")
    if suite is None:
        return {}
    told = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = told["failures"] + told["errors"]
    return {"passed": told["tests"] - bad - told["skipped"], "failed": bad, "skipped": told["skipped"]}


def run(build: Build, arguments: Sequence[str], keep: Path | None = None, *, cwd: Path | None = None) -> Outcome:
    """pytest with these arguments on a build; the whole ladder where they name no test."""
    folder = Path(tempfile.mkdtemp(prefix=f"detour-{build.sanitizer.name}-")) if keep is None else keep
    logs = folder / "reports"
    logs.mkdir(parents=True, exist_ok=True)
    cwd = cwd or build.tree
    named = any((cwd / argument.partition("::")[0]).exists() for argument in arguments if not argument.startswith("-"))
    excluded = [word for name in EXCLUDED[build.sanitizer.name] for word in ("--deselect", name)]
    tests = [] if named else [name for name in LADDER if any((cwd / name).glob("test_*.py"))]
    # pytest parses the sources of a failure, which CPython 3.11 refuses at times (a mismatch of depths): that
    # would end the run. Tracebacks of the interpreter need no parser.
    words = [str(build.python), "-m", "pytest", "-q", "--tb=native", f"--timeout={TEST_SECONDS}",
             f"--junitxml={folder / 'tests.xml'}", *tests, *excluded, *arguments]
    begun = time.monotonic()
    environment = build.sanitizer.environment(logs / "report", stop=False)
    with build.in_use():
        ended = subprocess.run(words, cwd=cwd, env=environment, check=False)
    return Outcome(ended.returncode, time.monotonic() - begun, counts_of(folder / "tests.xml"), collect(logs), folder)
