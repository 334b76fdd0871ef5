"""What a fuzzing run counts."""
from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Figures:
    pdus: int = 0               # generated, towards the target or towards the initiator
    answers: int = 0            # PDUs that came back
    sessions: int = 0
    logins: int = 0
    images: int = 0             # journals, superblocks and other files
    texts: int = 0              # configurations, URLs, catalogues
    cases: int = 0

    def add(self, other: Figures) -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
