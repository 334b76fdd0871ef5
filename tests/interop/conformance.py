"""`python -m tests.interop.conformance URL [SECOND-PATH-URL] [--family F ...]`: iscsi-test-cu over any target.

Prints the table family by family. Writes over the whole medium. Ends with 1 when a test failed.
"""
from __future__ import annotations

import argparse
import sys

from tests.support.conformance import SECONDS, counts, run, suite, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.conformance", description=__doc__)
    parser.add_argument("urls", nargs="+", metavar="URL", help="iscsi://HOST:PORT/IQN/LUN, and a second path to it")
    parser.add_argument("--family", action="append", choices=list(suite()), metavar="NAME", help="only this family")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="bound for each family (default: %(default)s)")
    given = parser.parse_args()
    outcomes = run(given.urls, given.family, seconds=given.seconds)
    print("passed/failed/skipped")
    print(table({"tests": outcomes}))
    return 1 if counts(outcomes)[1] else 0


if __name__ == "__main__":
    sys.exit(main())
