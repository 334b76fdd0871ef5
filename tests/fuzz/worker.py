"""The child of a campaign: takes cases as JSON lines on its standard input, tells what came of each."""
from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from dataclasses import asdict

from tests.fuzz.cases import Memory, run_case


def tell(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> int:
    faulthandler.enable()
    memory = Memory()
    for line in sys.stdin:
        case = json.loads(line)
        try:
            figures = run_case(case)
        except Exception:
            tell({"failed": traceback.format_exc()})
            return 1
        tell({"figures": asdict(figures), "taken_bytes": memory.taken_bytes(), "exact": memory.exact})
    return 0


if __name__ == "__main__":
    sys.exit(main())
