"""What a check of the doctor looks at, and what it answers."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from detour.backups.catalog import BackupRecord
from detour.config import Config, VolumeSection
from detour.errors import DetourError
from detour.redirect.base import Address, MainSession, RedirectDriver


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"         # a detour will work, but not as well as it could, or something is not known
    PROBLEM = "problem"         # a detour would be refused, fail, or harm the host


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and for what is wrong what to do about it. `figures` are for machines."""

    check: str
    state: State
    sentence: str
    fix: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def document(self, volume: str) -> dict[str, Any]:
        return {"volume": volume, "check": self.check, "state": self.state.value, "finding": self.sentence,
                "fix": self.fix or None, **({"figures": self.figures} if self.figures else {})}


def ok(check: str, sentence: str, **figures: Any) -> Finding:
    return Finding(check, State.OK, sentence, "", figures)


def warning(check: str, sentence: str, fix: str, **figures: Any) -> Finding:
    return Finding(check, State.WARNING, sentence, fix, figures)


def said_by(error: BaseException) -> tuple[str, str]:
    """What an error says, and its own hint: empty where it has none but that of its kind, which knows no place."""
    if isinstance(error, DetourError):
        return error.message, str(vars(error).get("hint", ""))
    return getattr(error, "strerror", None) or str(error) or type(error).__name__, ""


def speed(bytes_s: float) -> str:
    return f"{bytes_s / 2**20:.0f} MiB/s" if bytes_s >= 10 * 2**20 else f"{bytes_s / 2**10:.0f} KiB/s"


def volume_of(length_bytes: float) -> str:
    """For people: not to the byte."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if length_bytes >= 10 * factor:
            return f"{length_bytes / factor:.0f} {unit}"
    return f"{length_bytes:.0f} bytes"


def problem(check: str, sentence: str, fix: str, **figures: Any) -> Finding:
    return Finding(check, State.PROBLEM, sentence, fix, figures)


@dataclass
class Case:
    """One volume under examination. main: the open logical unit with `identity` and `command`, or None, and then
    `main_error` says why. serving: the gateway itself asks. in_detour: what the volume's run is doing, if there is one.
    Later checks use what earlier ones found."""

    name: str
    section: VolumeSection
    config: Config
    driver: RedirectDriver
    gateway: Address
    main: Any = None
    main_error: Exception | None = None
    serving: bool = False
    in_detour: str = ""
    history: Sequence[BackupRecord] = ()
    sessions: list[MainSession] = field(default_factory=list)
    actions_s: float = 0.0              # how long looking at main's redirect took
    size_bytes: int = 0
    store_bytes_s: float = 0.0          # what the slowest store takes; 0: not known

    @property
    def state(self) -> Path:
        return self.config.gateway.state


def worst(findings: Iterable[Finding]) -> State:
    order = list(State)
    return max((finding.state for finding in findings), key=order.index, default=State.OK)


def documents(volume: str, findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [finding.document(volume) for finding in findings]
