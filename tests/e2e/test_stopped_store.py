"""Backup storage that is stopped in mid copy, in short: how it ends. What the host feels of it is measured by
`python -m tests.e2e.stopped_store`, figures in docs/reliability.md."""
from __future__ import annotations

import asyncio

import pytest

from tests.e2e.stopped_store import one_run
from tests.support.slow_store import MIB
from tests.support.tgtd import needs_tgtd


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", ["detour", pytest.param("tgt", marks=needs_tgtd)])
def test_the_copy_is_given_up_and_the_host_goes_home(tmp_path, store):
    outcome = asyncio.run(one_run(tmp_path, store, 2.0, False, rate=300.0, size=96 * MIB, turns=1))
    assert not outcome.wrong, outcome
    assert len(outcome.turns) == 2
    assert "not gone on" in outcome.reason or "failed" in outcome.reason


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_journal_that_fills_is_waited_for_no_longer(tmp_path):
    """The patience is far longer than the journal can wait."""
    outcome = asyncio.run(one_run(tmp_path, "detour", 1.0, True, rate=1500.0, stall_limit_s=100.0, size=96 * MIB))
    assert not outcome.wrong, outcome
    assert outcome.stopped_s < 60
