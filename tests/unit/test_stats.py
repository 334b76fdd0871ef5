"""Latency buckets and the view that numpy reads."""
import gc

import numpy as np
import pytest

from detour.core import stats
from detour.core._testing_base import HistogramBox


def test_buckets_are_right_within_an_eighth_and_ascend():
    floors = [stats.bucket_floor_ns(i) for i in range(stats.BUCKETS)]
    assert floors == sorted(set(floors))
    assert floors[0] == 0
    for index, floor in enumerate(floors):
        assert stats.bucket(floor) == index
        if index + 1 < stats.BUCKETS:
            assert stats.bucket(floors[index + 1] - 1) == index
            assert floors[index + 1] - floor <= max(1, floor / 8)


@pytest.mark.parametrize("value_ns", [2**40, 2**50, 2**64 - 1])
def test_what_is_too_long_falls_into_the_last_bucket(value_ns):
    assert stats.bucket(value_ns) == stats.BUCKETS - 1


def test_bucket_floor_is_bounded():
    with pytest.raises(IndexError):
        stats.bucket_floor_ns(stats.BUCKETS)


def test_a_histogram_is_read_without_copying():
    box = HistogramBox()
    seen = np.asarray(box.view())
    assert seen.dtype == np.uint64 and seen.shape == (3 + stats.BUCKETS,)
    for value_ns in (5, 100, 1000, -7):
        box.record(value_ns)
    assert seen[:3].tolist() == [4, 1105, 1000]
    assert seen[3:].sum() == 4
    assert seen[3 + stats.bucket(1000)] == 1 and seen[3] == 1


def test_a_view_is_read_only_and_keeps_its_owner():
    box = HistogramBox()
    box.record(1)
    view = box.view()
    seen = np.frombuffer(view, np.uint64)
    with pytest.raises(ValueError):
        seen[0] = 9
    with pytest.raises(TypeError):
        memoryview(view)[0] = 1
    del box, view
    gc.collect()
    assert seen[0] == 1


def test_a_view_is_indexed_within_its_bounds():
    view = HistogramBox().view()
    assert len(view) == 3 + stats.BUCKETS and view[0] == 0
    with pytest.raises(IndexError):
        view[len(view)]
