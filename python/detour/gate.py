"""When the host may be sent home, besides the pause that it can bear: an operator's gate, and windows of the week.

Both hold back only the end of a detour that went well. A detour that is cancelled or given up goes home at once.

A window is "HH:MM-HH:MM" in the gateway's local time, on all days, or behind a day or a range of days:
"Sat 22:00-06:00", "Mon-Fri 01:00-05:00". One that ends before it begins goes on into the next day; "00:00-24:00" is a
whole day.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from detour.errors import UsageError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES

_WINDOW = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))? +)?(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes of the week, from Monday 0:00, in which hosts may be sent home: [begin, begin + length) on each day."""

    text: str
    days: tuple[int, ...]
    begin_minutes: int
    length_minutes: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """UsageError when `text` is no window."""
        found = _WINDOW.fullmatch(text.strip().lower())
        if found is None:
            raise UsageError(f'{text!r} is no window such as "01:00-05:00" or "Mon-Fri 22:00-06:00"')
        first, last, *clock = found.groups()
        numbers = [int(part) for part in clock]
        begin, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
        if numbers[1] > 59 or numbers[3] > 59 or begin >= DAY_MINUTES or end > DAY_MINUTES:
            raise UsageError(f"{text!r}: a day ends at 24:00")
        if begin == end:
            raise UsageError(f"{text!r} is never open")
        return cls(text, _days(text, first, last), begin, (end - begin) % DAY_MINUTES or DAY_MINUTES)

    def opens_in_s(self, when: datetime) -> float:
        """Seconds until it is open; 0: it is."""
        now = when.weekday() * DAY_MINUTES + when.hour * 60 + when.minute
        waits = []
        for day in self.days:
            since = (now - day * DAY_MINUTES - self.begin_minutes) % WEEK_MINUTES
            if since < self.length_minutes:
                return 0.0
            waits.append(WEEK_MINUTES - since)
        start = when.replace(second=0, microsecond=0)
        return (start + timedelta(minutes=min(waits)) - when).total_seconds()


def _days(text: str, first: str | None, last: str | None) -> tuple[int, ...]:
    if first is None:
        return tuple(range(7))
    try:
        begin, end = DAYS.index(first), DAYS.index(last or first)
    except ValueError:
        raise UsageError(f"{text!r}: days are {', '.join(day.capitalize() for day in DAYS)}") from None
    return tuple((begin + ahead) % 7 for ahead in range((end - begin) % 7 + 1))


class Gate:
    """The operator's gate of one run, and the windows of its volume."""

    def __init__(self, windows: Sequence[Window] = (), held: bool = False) -> None:
        self._windows = tuple(windows)
        self.held = held

    def open(self) -> None:
        """The operator lets the host go home; windows do not hold it back any more either. May be asked for twice."""
        self.held = False
        self._windows = ()

    def closed_because(self, when: datetime) -> str:
        """A sentence, or nothing when the host may go."""
        if self.held:
            return "the operator holds the cutover back"
        if not self._windows:
            return ""
        wait_s = min(window.opens_in_s(when) for window in self._windows)
        if wait_s <= 0:
            return ""
        opens = when + timedelta(seconds=wait_s)
        return f"the window for the cutover opens at {opens:%a %H:%M}"
