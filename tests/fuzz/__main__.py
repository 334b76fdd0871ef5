"""Fuzzing by command.

    python -m tests.fuzz --count 1000000 --seed 1                 so many PDUs and logins, by turns of all fuzzers
    python -m tests.fuzz --seconds 60 --only framing,login        for so long, some of them
    python -m tests.fuzz --count 10000000 --seed 1 --sanitize     in the sanitizer build (made first, in its own folder)
    python -m tests.fuzz --replay FILE [--sanitize]               one case again, exactly

A case follows from its fuzzer and its seed. It runs in a child process, so that a crash, a report of a sanitizer and a
hang are seen from outside and name their case; the file that --replay takes is kept.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz.campaign import Campaign, Failure, replay
from tests.fuzz.cases import FUZZERS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz target, initiator and files.")
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--count", type=int, help="PDUs and logins in all")
    bound.add_argument("--seconds", type=float)
    bound.add_argument("--replay", type=Path, metavar="FILE", help="a case that failed before")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(FUZZERS), help=f"of {','.join(FUZZERS)}")
    parser.add_argument("--sanitize", action="store_true", help="run in the sanitizer build")
    parser.add_argument("--committed", action="store_true", help="with --sanitize: build the last commit")
    parser.add_argument("--watchdog", type=float, default=120, help="seconds after which a case hangs")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for cases that failed")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document, too")
    asked = parser.parse_args()
    unknown = set(asked.only.split(",")) - set(FUZZERS)
    if unknown:
        parser.error(f"there is no fuzzer {', '.join(sorted(unknown))}")
    return asked


def main() -> int:
    asked = arguments()
    try:
        if asked.replay:
            replay(asked.replay, asked.sanitize, asked.watchdog)
            print("the case ends as it should")
            return 0
        campaign = Campaign(asked.seed, asked.only.split(","), asked.count, asked.seconds, sanitize=asked.sanitize,
                            committed=asked.committed, watchdog_seconds=asked.watchdog)
        figures = campaign.run()
    except Failure as failure:
        print(failure.report, file=sys.stderr)
        if failure.case:
            asked.keep.mkdir(parents=True, exist_ok=True)
            path = asked.keep / f"{failure.case['fuzzer']}-{failure.case['seed']:x}.json"
            path.write_text(json.dumps(failure.case))
            print(f"{failure.sentence}\nseed {failure.case['seed']}, kept in {path}; again by: "
                  f"python -m tests.fuzz --replay {path}{' --sanitize' if asked.sanitize else ''}", file=sys.stderr)
        return 1
    print(campaign.summary(figures))
    if asked.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
