"""A short run of every fuzzer on the build at hand, the corpus, and the harness itself.

The long run is a command (docs/conformance.md); a case that fails there is kept as a file, and one for each bug that
was found lies in `corpus`.
"""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.campaign import Campaign, Child, Failure, cut_down
from tests.fuzz.cases import FUZZERS, case_seed, run_case, schedule

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.json"))
SHORT = {"framing": 12, "gateway": 8, "main": 8, "login": 4, "images": 4, "texts": 2}


@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_a_short_run(fuzzer):
    for number in range(SHORT[fuzzer]):
        case = {"fuzzer": fuzzer, "seed": case_seed(2026, number), "pdus": FUZZERS[fuzzer][1] // 2}
        figures = run_case(case)
        assert figures.pdus or figures.images or figures.texts, case


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_corpus(path):
    case = json.loads(path.read_text())
    assert case["what"]
    run_case(case)


def test_a_case_follows_from_its_seed():
    case = {"fuzzer": "framing", "seed": 77, "pdus": 1500}
    assert run_case(case) == run_case(case)


def test_each_fuzzer_has_its_share_of_the_turns():
    turns = schedule(list(FUZZERS))
    shares = {name: turns.count(name) * FUZZERS[name][1] / FUZZERS[name][2] for name in FUZZERS}
    assert max(shares.values()) <= 1.5 * min(shares.values()), shares
    assert schedule(["login"]) == ["login"] * len(schedule(["login"]))


def test_a_campaign_in_a_child():
    figures = Campaign(5, ["login", "framing"], 6000, None).run()
    assert figures["pdus"] >= 6000 - figures["logins"] and figures["cases"] > 0 and figures["answers"] > 100


def test_a_failing_case_is_told_and_cut_down():
    """A step that no player knows stands for a bug that only it brings about."""
    steps = [["world", 1, False], *[["turn", 1]] * 6, ["no such step"], *[["turn", 1]] * 3]
    case = {"fuzzer": "trace", "seed": 1, "steps": steps}
    child = Child(None, 60)
    try:
        with pytest.raises(Failure, match="a case failed") as caught:
            child.run(case)
    finally:
        child.close()
    assert caught.value.case == case and "no such step" in caught.value.report
    assert cut_down({"fuzzer": "framing", "seed": 3, "pdus": 200}, None, 1)["fuzzer"] == "framing"


def test_a_crash_and_a_hang_are_told():
    child = Child(None, 60)
    child.process.kill()
    child.process.wait()
    with pytest.raises(Failure, match="the process ended with -9"):
        child.run({"fuzzer": "texts", "seed": 1, "pdus": 10})
    child.close()
    child = Child(None, 0.001)
    with pytest.raises(Failure, match="longer than"):
        child.run({"fuzzer": "framing", "seed": 1, "pdus": 100000})
    child.close()
