"""When to send the host home: a pure decision over the figures of the catch-up rounds.

The patent's update completion unit (106) compares the time that the unreflected data still needs, their bytes divided
by the average write speed towards main, with a limit (S601-S603), and only then holds the host's commands, drains, and
ends the detour (S604; S701-S704 for the last difference under the hold). Here:

    pause = overhead + unreflected bytes / speed to main        is compared with `max-pause`

`overhead` is what a pause costs besides data: drain, flush, clearing and verifying the redirect; it is measured.

A round of R bytes takes R / speed seconds, in which the host writes up to rate * R / speed new bytes. What is left
therefore shrinks by about rate / speed a round. When it does not shrink fast enough, the host's write rate is bounded
to a share of the speed (smoothly: it is told by the device, nothing fails), and to a smaller share each further time.
So the rounds converge for every host and every main that takes data at all.

What fits is made smaller still by more rounds for as long as each would halve it: the limit is what the host may have
to bear, not what it should.

All functions are pure; times in seconds, sizes in bytes, rates in bytes a second.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

SMOOTHING = 0.4                 # weight of the newest round in the smoothed speed
SHRINK_MIN = 0.7                # a round that leaves more than this share of what the one before left does not converge
SHARE_FIRST = 0.5               # of the speed to main, for the first throttle
SPEED_MIN_BYTES_S = 1.0
SPEED_UNKNOWN_BYTES_S = 32 * 2**20      # before the first round has ended; the first hold is never decided on it
SMALL_ROUND_BYTES = 2**20       # a smaller round tells its fixed cost, not the speed


class Step(StrEnum):
    ROUND = "round"             # another catch-up round
    HOLD = "hold"               # the pause fits: hold, drain, home
    THROTTLE = "throttle"       # bound the host's writes to `bytes_per_second`, then another round
    WAIT = "wait"               # it would fit, but the window for it is closed: look again in `seconds`


@dataclass(frozen=True, slots=True)
class Round:
    """One catch-up round that has ended. `left_bytes` is what was unreflected when it ended."""

    bytes: int
    seconds: float
    left_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    max_pause_s: float = 1.0
    overhead_s: float = 0.1
    wait_s: float = 1.0                 # how long WAIT waits
    throttle_floor_bytes_s: float = 256 * 1024.0
    rounds_before_throttle: int = 2     # rounds that may fail to converge before the host is slowed
    fits_rounds: int = 1                # rounds whose end must have been seen before a hold
    polish_s: float = 0.03              # a pause whose data part is longer is made shorter by more rounds, while these
    polish_rounds: int = 12             # halve it, and up to so many rounds in all


@dataclass(frozen=True, slots=True)
class History:
    """What the rounds so far have taught; `observe` makes the next one."""

    rounds: int = 0
    speed_bytes_s: float = 0.0          # smoothed; 0: unknown
    fixed_s: float = 0.0                # smoothed cost of a round that has next to nothing to do
    left_bytes: int = -1                # after the newest round; -1: none yet
    stalled: int = 0                    # rounds in a row that did not shrink enough
    throttles: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    step: Step
    predicted_s: float                  # pause if the host were held now
    bytes_per_second: float = 0.0       # THROTTLE
    seconds: float = 0.0                # WAIT
    reason: str = ""


def observe(history: History, done: Round) -> History:
    """The history with one more round: smoothed speed, smoothed fixed cost, convergence."""
    speed, fixed = history.speed_bytes_s, history.fixed_s
    seconds = max(done.seconds, 1e-6)
    if done.bytes >= SMALL_ROUND_BYTES or (speed == 0.0 and done.bytes > 0):
        newest = max(done.bytes / seconds, SPEED_MIN_BYTES_S)
        speed = newest if speed == 0.0 else _smooth(speed, newest)
    else:
        beyond = max(0.0, seconds - done.bytes / max(speed, SPEED_UNKNOWN_BYTES_S))
        fixed = beyond if fixed == 0.0 else _smooth(fixed, beyond)
    shrinks = history.left_bytes < 0 or done.left_bytes <= SHRINK_MIN * history.left_bytes
    return replace(history, rounds=history.rounds + 1, speed_bytes_s=speed, fixed_s=fixed, left_bytes=done.left_bytes,
                   stalled=0 if shrinks else history.stalled + 1)


def throttled(history: History) -> History:
    """The history after a THROTTLE was obeyed: the next rounds are judged afresh."""
    return replace(history, throttles=history.throttles + 1, stalled=0)


def predict(history: History, remaining_bytes: int, limits: Limits) -> float:
    """The pause, if the host were held now."""
    speed = history.speed_bytes_s or SPEED_UNKNOWN_BYTES_S
    return limits.overhead_s + history.fixed_s + max(0, remaining_bytes) / speed


def decide(history: History, remaining_bytes: int, host_bytes_s: float, limits: Limits,
           window_open: bool = True) -> Decision:
    """What to do next, with `remaining_bytes` unreflected now and the host writing `host_bytes_s`.

    While the window is closed the host is not slowed: nothing has to converge before it opens.
    An overhead that eats the limit up must not keep the host away for ever: the data part always has at least a quarter
    of the limit. The prediction stays honest.
    """
    predicted = predict(history, remaining_bytes, limits)
    speed = history.speed_bytes_s or SPEED_UNKNOWN_BYTES_S
    budget = max(limits.max_pause_s - limits.overhead_s - history.fixed_s, limits.max_pause_s / 4)
    fits = max(0, remaining_bytes) / speed <= budget
    if fits and history.rounds >= limits.fits_rounds:
        if window_open and _worth_a_round(history, remaining_bytes, host_bytes_s, speed, limits):
            return Decision(Step.ROUND, predicted, reason="another round makes the pause shorter")
        if window_open:
            return Decision(Step.HOLD, predicted, reason="what is left fits into the pause")
        return Decision(Step.WAIT, predicted, seconds=limits.wait_s, reason="the window for the cutover is closed")
    if history.stalled >= limits.rounds_before_throttle and host_bytes_s > 0 and window_open:
        return Decision(Step.THROTTLE, predicted, bytes_per_second=_throttle_rate(history, speed, limits),
                        reason="the host writes faster than main is caught up")
    return Decision(Step.ROUND, predicted, reason="more is left than fits into the pause")


def _worth_a_round(history: History, remaining_bytes: int, host_bytes_s: float, speed: float, limits: Limits) -> bool:
    """Whether one more round would at least halve what the pause has to flush, and that is worth having."""
    seconds = max(0, remaining_bytes) / speed
    left = host_bytes_s * (seconds + history.fixed_s)
    return seconds > limits.polish_s and history.rounds < limits.polish_rounds and 2 * left <= remaining_bytes


def _throttle_rate(history: History, speed: float, limits: Limits) -> float:
    """A smaller share of the speed each time; the floor never stands in the way of convergence."""
    share = SHARE_FIRST / 2 ** min(history.throttles, 16)
    return max(speed * share, min(limits.throttle_floor_bytes_s, speed / 4))


def _smooth(old: float, newest: float) -> float:
    return old + SMOOTHING * (newest - old)
