"""Figures of a run, and the constants that exist in the core too."""
import os
import re

import numpy as np
import pytest

import detour.core
from detour import events
from detour.progress import Rate, bucket_top_ns, iso, longest_ns, percentile_ns
from detour.run_parts import FAULT_OF_BACKUP


def histogram(**buckets):
    values = np.zeros(3 + 304, np.int64)
    for index, count in buckets.items():
        values[3 + int(index[1:])] = count
    return values


def bucket_of(value):
    """stats_bucket of core/stats.pxd, in Python."""
    if value < 8:
        return value
    top = value.bit_length() - 1
    return (top - 2) * 8 + (value >> (top - 3) & 7)


@pytest.mark.parametrize("value", [0, 7, 8, 9, 15, 16, 17, 1000, 123_456, 10**9, 2**39 + 1])
def test_a_buckets_top_is_its_largest_value(value):
    index = bucket_of(value)
    assert bucket_of(bucket_top_ns(index)) == index
    assert bucket_of(bucket_top_ns(index) + 1) == index + 1
    assert value <= bucket_top_ns(index) <= max(7, value * 1.125)


def test_percentiles():
    values = histogram(b10=98, b100=1, b200=1)
    assert percentile_ns(values, 0.5) == bucket_top_ns(10)
    assert percentile_ns(values, 0.99) == bucket_top_ns(100)
    assert percentile_ns(values, 1.0) == longest_ns(values) == bucket_top_ns(200)
    assert percentile_ns(histogram(), 0.99) == longest_ns(histogram()) == 0


def test_a_rate_is_over_its_window():
    now = [0.0]
    rate = Rate(3.0, lambda: now[0])
    assert rate.bytes_per_second == 0
    for second in range(10):
        now[0] = float(second)
        rate.add(second * 100 if second < 5 else 500)
    assert rate.bytes_per_second == 0
    rate.add(0)                                         # the counter began anew
    now[0] = 11.0
    rate.add(50)
    assert rate.bytes_per_second == pytest.approx(25.0)


def test_iso():
    assert iso(0.0) is None
    assert iso(1.5) == "1970-01-01T00:00:01.500+00:00"


def test_event_kinds_are_those_of_the_core():
    with open(os.path.join(os.path.dirname(detour.core.__file__), "reactor.pxd")) as file:
        text = file.read()
    core = {name: int(value) for name, value in re.findall(r"EVENT_([A-Z_]+) = (\d+)", text)}
    assert core == {name: value for name, value in vars(events).items() if name.isupper()}
    assert f"{FAULT_OF_BACKUP} backup" in text
