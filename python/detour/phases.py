"""The states of one detour run, and the edges between them.

    IDLE ──▶ PREPARING ──▶ REDIRECTING ──▶ FROZEN ──▶ COPYING ──▶ CATCHING_UP ◀──▶ HOLDING
     │           │               │            │          │          ▲    │             │
     │           │               ▼            ▼          ▼          │    │ (nothing    │
     │           │           ABANDONING ◀─────┴──────────┘          │    │  left)      │
     │           │            │      └──────────────────────────────┘    ▼             ▼
     │           │            └─────────────────────────────────────▶ GOING_HOME ◀─────┘
     │           ▼                                                       │   ▲
     │          HOME ◀───────────────────────────────────────────────────┘   │
     └──(restart: COPYING, CATCHING_UP or GOING_HOME, as the journal says)───┘

IDLE          nothing has been done
PREPARING     checks; nothing on main or on the host's path has been changed
REDIRECTING   main redirects (S101-S104); hosts arrive at the gateway and their commands wait
FROZEN        main's content is the point in time; the hook `frozen` runs
COPYING       main goes to backup storage (S201-S202), writes go to the journal (S301-S305)
ABANDONING    the backup is given up; what was begun is being ended
CATCHING_UP   rounds bring main up to date (S501-S514)
HOLDING       commands wait; the last round runs (S601-S604, S701-S704)
GOING_HOME    main is right; its redirect is cleared and the host is sent back
HOME          the end, with a result

Each edge names who may take it. `Phases.move` is the only function that changes a state.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

from detour.errors import DetourError


class Phase(StrEnum):
    IDLE = "idle"
    PREPARING = "preparing"
    REDIRECTING = "redirecting"
    FROZEN = "frozen"
    COPYING = "copying"
    ABANDONING = "abandoning"
    CATCHING_UP = "catching-up"
    HOLDING = "holding"
    GOING_HOME = "going-home"
    HOME = "home"


class Trigger(StrEnum):
    DRIVER = "driver"           # the run itself, in its normal course
    OPERATOR = "operator"       # a cancel
    FAULT = "fault"             # something failed, or a limit was met
    RECOVERY = "recovery"       # the gateway was started again


class Result(StrEnum):
    DONE = "done"
    ABANDONED = "abandoned"     # the host is home, the backup was given up
    FAILED = "failed"           # refused or failed before anything was changed
    CANCELLED = "cancelled"


EXIT_CODES = {Result.DONE: 0, Result.FAILED: 1, Result.ABANDONED: 3, Result.CANCELLED: 3}

_GIVE_UP = frozenset({Trigger.FAULT, Trigger.OPERATOR})
_DRIVER = frozenset({Trigger.DRIVER})
_RECOVERY = frozenset({Trigger.RECOVERY})

EDGES: dict[tuple[Phase, Phase], frozenset[Trigger]] = {
    (Phase.IDLE, Phase.PREPARING): _DRIVER,
    (Phase.IDLE, Phase.COPYING): _RECOVERY,
    (Phase.IDLE, Phase.CATCHING_UP): _RECOVERY,
    (Phase.IDLE, Phase.GOING_HOME): _RECOVERY,
    (Phase.PREPARING, Phase.REDIRECTING): _DRIVER,
    (Phase.PREPARING, Phase.HOME): _GIVE_UP,
    (Phase.REDIRECTING, Phase.FROZEN): _DRIVER,
    (Phase.REDIRECTING, Phase.ABANDONING): _GIVE_UP,
    (Phase.FROZEN, Phase.COPYING): _DRIVER,
    (Phase.FROZEN, Phase.ABANDONING): _GIVE_UP,
    (Phase.COPYING, Phase.CATCHING_UP): _DRIVER,
    (Phase.COPYING, Phase.ABANDONING): _GIVE_UP,
    (Phase.ABANDONING, Phase.CATCHING_UP): _DRIVER,      # given up behind the freeze: main has to be caught up
    (Phase.ABANDONING, Phase.GOING_HOME): _DRIVER,       # given up before it: main is right as it is
    (Phase.CATCHING_UP, Phase.HOLDING): _DRIVER,
    (Phase.HOLDING, Phase.CATCHING_UP): frozenset({Trigger.FAULT}),
    (Phase.HOLDING, Phase.GOING_HOME): _DRIVER,
    (Phase.GOING_HOME, Phase.HOME): _DRIVER,
}

# A cancel or a fault that arrives here is remembered as the result's reason, but the way is the same: home.
HOMEWARD = frozenset({Phase.ABANDONING, Phase.CATCHING_UP, Phase.HOLDING, Phase.GOING_HOME, Phase.HOME})


class PhaseError(DetourError):
    """A state change that the table does not allow: a mistake in the program, never of the user."""


class Phases:
    """State of one run. `on_move(old, new, trigger)` is called after each change."""

    def __init__(self, on_move: Callable[[Phase, Phase, Trigger], None] | None = None) -> None:
        self.now = Phase.IDLE
        self.entered_at: dict[Phase, float] = {Phase.IDLE: time.time()}     # wall clock, s, newest entry of each
        self._on_move = on_move

    def may(self, to: Phase, trigger: Trigger) -> bool:
        return trigger in EDGES.get((self.now, to), frozenset())

    def move(self, to: Phase, trigger: Trigger = Trigger.DRIVER) -> None:
        """Takes the edge to `to`. Raises PhaseError when there is none, or not for this trigger."""
        if not self.may(to, trigger):
            raise PhaseError(f"a detour may not go from {self.now.value} to {to.value} by {trigger.value}")
        old, self.now = self.now, to
        self.entered_at[to] = time.time()
        if self._on_move is not None:
            self._on_move(old, to, trigger)

    @property
    def over(self) -> bool:
        return self.now is Phase.HOME

    @property
    def homeward(self) -> bool:
        """Whether the run is on its way home already, so that giving up changes nothing but the result."""
        return self.now in HOMEWARD
