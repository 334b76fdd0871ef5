"""The fuzzers by name, the seeds of their cases, and running one of them.

Nothing of the product is imported before a case runs: who leads a campaign needs no core of its own.
"""
from __future__ import annotations

import ctypes
import gc
import hashlib
import os
from importlib import import_module
from typing import Any

from tests.fuzz.figures import Figures
from tests.fuzz.trace import Trace

# name: (module of its case, how many PDUs a case has, its share of a campaign in PDUs)
FUZZERS: dict[str, tuple[str, int, float]] = {
    "framing": ("framing", 8000, 12),
    "gateway": ("framing", 8000, 5),
    "main": ("hostile_main", 8000, 5),
    "login": ("login", 2000, 1),
    "images": ("images", 2000, 0.5),
    "texts": ("texts", 2000, 0.5),
}


def case_seed(campaign_seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{campaign_seed}:{number}".encode()).digest()[:6], "big")


def schedule(only: list[str]) -> list[str]:
    """Which fuzzer has which turn: each as often as its share of PDUs wants it."""
    turns = {name: max(1, round(FUZZERS[name][2] * 8000 / FUZZERS[name][1])) for name in only}
    order = [(place / count, name) for name, count in turns.items() for place in range(count)]
    return [name for _, name in sorted(order)]


def run_case(case: dict[str, Any]) -> Figures:
    """Runs one case to its end; AssertionError where something is not as it should be."""
    figures = Figures(cases=1)
    if case["fuzzer"] == "trace":
        import_module("tests.fuzz.replay").replay_trace(case["steps"])
        return figures
    kind = import_module(f"tests.fuzz.{FUZZERS[case['fuzzer']][0]}").Case
    more: dict[str, Any] = {"gateway": True} if case["fuzzer"] == "gateway" else {}
    if case.get("trace"):
        more["trace"] = Trace(case["trace"])
    kind(case["seed"], case["pdus"], figures, **more).run()
    return figures


def may_be_traced(fuzzer: str) -> bool:
    return FUZZERS[fuzzer][0] == "framing"


class Memory:
    """How much memory is taken, by the sanitizer's count where it is there, else by what is resident."""

    def __init__(self) -> None:
        try:
            # By getattr: two underscores before a name mean something else in a class.
            self._count = getattr(ctypes.CDLL(None), "__sanitizer_get_current_allocated_bytes")
            self._count.restype = ctypes.c_size_t
        except AttributeError:
            self._count = None

    @property
    def exact(self) -> bool:
        return self._count is not None

    def taken_bytes(self) -> int:
        gc.collect()
        if self._count is not None:
            return self._count()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
