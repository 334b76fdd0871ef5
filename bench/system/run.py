"""Runs scenarios one after the other, each with folders of its own, and bounded in time."""
from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.system.scenario import Bench, Outcome, Scenario

MEMORY = Path("/dev/shm")
ROUNDS = 3                          # a pass with digests has one: its loss is shown, not judged
OVERTIME_FACTOR, OVERTIME_SECONDS = 4.0, 120.0
FULL_FACTOR = 20.0


def _memory_parent() -> str | None:
    return str(MEMORY) if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None


async def run_one(scenario: Scenario, *, quick: bool = False, digests: bool = False, full: bool = False,
                  peers: Mapping[str, str] | None = None,
                  folder: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Outcome:
    """One scenario. What goes wrong in it is in the outcome's `error`, and the others go on."""
    begun = time.monotonic()
    outcome = Outcome()
    overtime = OVERTIME_FACTOR * (FULL_FACTOR if full else 1.0)
    with tempfile.TemporaryDirectory(prefix="detour-bench-", dir=folder) as disk, \
            tempfile.TemporaryDirectory(prefix="detour-bench-", dir=_memory_parent()) as memory:
        bench = Bench(Path(disk), Path(memory), quick, digests, dict(peers or {}), 1 if quick or digests else ROUNDS,
                      0.05 if quick else 1.0, say, full=full)
        try:
            async with asyncio.timeout(scenario.seconds * overtime + OVERTIME_SECONDS), \
                    contextlib.AsyncExitStack() as stack:
                bench.stack = stack
                outcome = await scenario.run(bench)
        except TimeoutError as error:
            outcome.error = f"it did not end in time: {error}"
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
            if quick:
                raise
    if quick:
        for check in outcome.checks:
            check.bound = None          # figures of a moment are nothing to judge by
    outcome.seconds = round(time.monotonic() - begun, 1)
    return outcome
