"""The sweep of write rates in short: an idle host, one at half of main's speed, one faster than main. The figures of
the whole sweep are in docs/operations.md; here a prediction may be wrong by half, because the machine may be busy."""
from __future__ import annotations

import asyncio

import pytest

from tests.e2e.cutover_sweep import check, sweep

MIB = 1 << 20
SMALL_MS = 30.0         # a fraction of the limit: a prediction of a short pause may be wrong by more than half of it


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_pauses_are_within_the_limit_and_foretold(tmp_path):
    runs = asyncio.run(sweep(tmp_path, 24 * MIB, "1s", (0.0, 0.5, 1.2), 1))
    assert [line for line in check(runs, 1000) if "predictions" not in line] == []
    assert all(abs(run.predicted - run.actual) <= max(0.5 * run.actual, SMALL_MS) for run in runs), runs
    idle, half, faster = runs
    assert idle.throttle == half.throttle == 0
    assert 0 < faster.throttle < 24 * MIB and faster.tries == 1
    assert faster.slowest < 1000, "a throttled host's commands are slowed, not stalled"
