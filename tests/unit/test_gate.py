"""When the host may be sent home: windows of the week against a minute-by-minute model, and the operator's gate."""
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detour.errors import UsageError
from detour.gate import DAYS, Gate, Window

MONDAY = datetime(2026, 1, 5)


def at(day, clock):
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=DAYS.index(day), hours=hour, minutes=minute)


@pytest.mark.parametrize(("text", "open_at", "closed_at"), [
    ("01:00-05:00", [("mon", "1:00"), ("sun", "4:59")], [("mon", "0:59"), ("mon", "5:00")]),
    ("22:00-06:00", [("mon", "22:00"), ("tue", "5:59"), ("mon", "0:00")], [("mon", "6:00"), ("fri", "21:59")]),
    ("Sat 22:00-06:00", [("sat", "22:00"), ("sun", "5:59")], [("sat", "5:00"), ("sun", "22:00"), ("sun", "6:00")]),
    ("sun 22:00-06:00", [("sun", "23:00"), ("mon", "5:59")], [("mon", "22:00"), ("sun", "5:59")]),
    ("Mon-Fri 01:00-05:00", [("mon", "1:00"), ("fri", "4:00")], [("sat", "1:00"), ("sun", "1:00")]),
    ("Sat-Mon 01:00-05:00", [("sat", "1:00"), ("sun", "4:00"), ("mon", "2:00")], [("tue", "1:00"), ("fri", "1:00")]),
    ("00:00-24:00", [("wed", "0:00"), ("wed", "23:59")], []),
    ("Wed 00:00-24:00", [("wed", "0:00"), ("wed", "23:59")], [("tue", "23:59"), ("thu", "0:00")]),
])
def test_windows(text, open_at, closed_at):
    window = Window.parse(text)
    assert all(window.opens_in_s(at(*when)) == 0 for when in open_at)
    assert all(window.opens_in_s(at(*when)) > 0 for when in closed_at)


@pytest.mark.parametrize(("text", "reason"), [
    ("", "no window"), ("night", "no window"), ("1-5", "no window"), ("01:00-05:00 Mon", "no window"),
    ("25:00-26:00", "a day ends"), ("01:60-02:00", "a day ends"), ("01:00-24:01", "a day ends"),
    ("24:00-01:00", "a day ends"), ("03:00-03:00", "never open"), ("Foo 01:00-02:00", "days are Mon"),
    ("Mon-Bar 01:00-02:00", "days are Mon")])
def test_what_is_no_window(text, reason):
    with pytest.raises(UsageError, match=reason):
        Window.parse(text)


@given(st.integers(0, 1439), st.integers(0, 1440), st.sampled_from([*DAYS, "", "mon-wed", "fri-mon"]),
       st.integers(0, 7 * 86400 - 1))
def test_the_wait_ends_when_the_window_opens_and_not_before(begin, end, days, second):
    if begin == end:
        return
    window = Window.parse(f"{days} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}".strip())
    now = MONDAY + timedelta(seconds=second)
    wait_s = window.opens_in_s(now)
    assert 0 <= wait_s <= 7 * 86400
    assert window.opens_in_s(now + timedelta(seconds=wait_s)) == 0
    if wait_s > 1:
        assert window.opens_in_s(now + timedelta(seconds=wait_s - 1)) > 0


def test_the_gate_and_the_windows():
    noon, night = at("mon", "12:00"), at("tue", "2:00")
    assert Gate().closed_because(noon) == ""
    gate = Gate([Window.parse("01:00-05:00"), Window.parse("Mon 13:00-14:00")], held=True)
    assert gate.closed_because(night) == "the operator holds the cutover back"
    gate.held = False
    assert gate.closed_because(night) == ""
    assert gate.closed_because(noon) == "the window for the cutover opens at Mon 13:00"
    gate.open()
    gate.open()
    assert gate.closed_because(noon) == ""
