"""What a case did, step by step, in a file: it is complete also when the process is gone."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Step = list[Any]


class Trace:
    """A JSON line a step, written before the step is made."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "w")     # noqa: SIM115  it lives as long as the case

    def add(self, *what: Any) -> None:
        self.file.write(json.dumps(what) + "\n")
        self.file.flush()


def read_trace(path: Path) -> list[Step]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]
