"""How the runs of iscsi-test-cu are counted: as issues count them, not as the tool does."""
from __future__ import annotations

import pytest

from tests.support.conformance import Outcome, counts, failures, parse, skips, table

SAID = """
    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

     CUnit - A unit testing framework for C - Version 2.1-3

Suite: Family
  Test: Good ...passed
  Test: Partly ...    [SKIPPED] LBPPB < 2. Skipping test
passed
  Test: Informed ...    [FAILED] WRITESAME10 command failed with status 2
passed    [SKIPPED] PERSISTENT RESERVE IN is not implemented.
  Test: Wrong ...    [FAILED] READ10 should have failed
FAILED
    1. test_read.c:38  - CU_ASSERT_EQUAL(_r,0)
  Test: Dirty ...passed    [FAILED] PRIN command: failed with sense.
  Test: Mixed ...    [SKIPPED] something
FAILED
    1. test_mixed.c:3  - CU_ASSERT(x)

Run Summary:    Type  Total    Ran Passed Failed Inactive
               tests      6      6      4      2        0
"""
TESTS = ["Good", "Partly", "Informed", "Wrong", "Dirty", "Mixed"]


def test_each_test_has_one_verdict():
    outcomes = parse("Family", TESTS, SAID, "the tool ended with 0")
    assert [one.verdict for one in outcomes] == ["passed", "skipped", "passed", "failed", "passed", "failed"]
    assert outcomes[1].reason == "LBPPB < 2. Skipping test" and "test_read.c:38" in outcomes[3].reason
    assert counts(outcomes) == (3, 2, 1) and skips(outcomes) == {"Family.Partly"}


@pytest.mark.parametrize("cut", ["  Test: Wrong ...", "  Test: Wrong ...    [SKIPPED] half a line"])
def test_a_tool_that_dies_fails_what_it_did_not_finish(cut):
    said = SAID.partition("  Test: Wrong ...")[0] + cut
    outcomes = parse("Family", TESTS, said, "no end within 60 s")
    assert [one.verdict for one in outcomes] == ["passed", "skipped", "passed", "failed", "failed", "failed"]
    assert all("no end within 60 s" in one.reason for one in outcomes[3:])
    assert [one.verdict for one in parse("Family", TESTS, "Failed to connect", "ended with 255")] == ["failed"] * 6


def test_only_new_failures_count_beside_main_alone():
    alone = [Outcome("F", "a", "failed"), Outcome("F", "b", "passed"), Outcome("F", "c", "skipped")]
    through = [Outcome("F", "a", "failed"), Outcome("F", "b", "failed"), Outcome("F", "c", "failed")]
    assert [one.test for one in failures(through, alone)] == ["b", "c"]


def test_the_table_names_what_did_not_pass():
    outcomes = parse("Family", TESTS, SAID, "")
    lines = table({"file": outcomes, "memory": outcomes[:1]}).splitlines()
    assert lines[1].split() == ["Family", "3/2/1", "1/0/0"] and lines[-1].split() == ["all", "3/2/1", "1/0/0"]
    assert sum("skipped Partly: LBPPB" in line for line in lines) == 1
