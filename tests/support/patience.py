"""How much longer things take in this build: limits that only tell "too long" grow by it, what is checked stays."""
from __future__ import annotations

import os

# The environment of tests/sanitize. Such a build computes several times as slowly, and starts in seconds.
SANITIZED = not {"ASAN_OPTIONS", "TSAN_OPTIONS"}.isdisjoint(os.environ)
SLOWER = 4 if SANITIZED else 1
