"""Ranges in flight: overlap at the edges, order of waking, and changes from inside ready()."""

import pytest

from detour.core._testing_index import RangesProbe


@pytest.fixture
def ranges() -> RangesProbe:
    return RangesProbe()


@pytest.mark.parametrize(
    ("lba", "blocks", "overlaps"),
    [
        (0, 10, False),
        (0, 11, True),
        (10, 1, True),
        (19, 1, True),
        (20, 5, False),
        (12, 3, True),
        (5, 50, True),
        (15, 0, False),
        (10, 0, False),
    ],
)
def test_overlap(ranges: RangesProbe, lba: int, blocks: int, overlaps: bool) -> None:
    ranges.add(0, 10, 10)
    assert ranges.overlap(lba, blocks) is overlaps


def test_nothing_overlaps_an_empty_list(ranges: RangesProbe) -> None:
    assert not ranges.overlap(0, 2**40)
    ranges.add(0, 5, 5)
    ranges.remove(0)
    assert not ranges.overlap(0, 2**40)
    assert ranges.count == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_ranges_end_in_any_order(ranges: RangesProbe, order: tuple[int, ...]) -> None:
    for name in range(3):
        ranges.add(name, 10 * name, 10)
    left = {0, 1, 2}
    for name in order:
        ranges.remove(name)
        left.remove(name)
        assert ranges.count == len(left)
        assert [ranges.overlap(10 * other, 10) for other in range(3)] == [other in left for other in range(3)]


def test_waiters_wake_in_order_of_their_age(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 100)
    for name in (3, 1, 2):
        ranges.wait(name, name, 1)
    ranges.remove(0)
    assert ranges.woken == [3, 1, 2]
    assert ranges.queued() == []


def test_only_who_overlaps_nothing_any_more_wakes(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 10)
    ranges.add(1, 10, 10)
    ranges.wait(0, 5, 10)
    ranges.wait(1, 0, 3)
    ranges.wait(2, 15, 3)
    ranges.remove(0)
    assert ranges.woken == [1]
    assert ranges.queued() == [0, 2]
    ranges.remove(1)
    assert ranges.woken == [1, 0, 2]


def test_a_cancelled_waiter_is_never_called(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 10)
    for name in range(3):
        ranges.wait(name, 0, 1)
    ranges.cancel(1)
    ranges.cancel(1)
    ranges.remove(0)
    assert ranges.woken == [0, 2]


def test_who_wakes_may_take_the_range_and_the_next_waits_on(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 10)
    for name in (1, 2, 3):
        ranges.wait(name, 0, 10)
    ranges.on_ready = lambda name: ranges.add(name, 0, 10)
    ranges.remove(0)
    assert ranges.woken == [1]
    assert ranges.queued() == [2, 3]
    ranges.remove(1)
    ranges.remove(2)
    assert ranges.woken == [1, 2, 3]


def test_who_wakes_may_wait_again(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 10)
    ranges.add(1, 50, 10)
    ranges.wait(1, 0, 10)
    ranges.on_ready = lambda name: ranges.wait(name, 50, 10) if ranges.woken == [1] else None
    ranges.remove(0)
    assert ranges.woken == [1]
    assert ranges.queued() == [1]
    ranges.remove(1)
    assert ranges.woken == [1, 1]


def test_who_wakes_may_cancel_the_next(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 10)
    for name in range(4):
        ranges.wait(name, 0, 10)

    def cancel_two(name: int) -> None:
        if name == 0:
            ranges.cancel(1)
            ranges.cancel(2)

    ranges.on_ready = cancel_two
    ranges.remove(0)
    assert ranges.woken == [0, 3]


def test_a_range_that_ends_inside_ready_wakes_older_waiters_too(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 10)
    ranges.add(1, 20, 10)
    ranges.wait(0, 20, 1)
    ranges.wait(1, 0, 1)
    ranges.on_ready = lambda name: ranges.remove(1) if name == 1 else None
    ranges.remove(0)
    assert ranges.woken == [1, 0]
    assert ranges.queued() == []


def test_a_chain_of_takes_inside_ready_wakes_all(ranges: RangesProbe) -> None:
    ranges.add(0, 0, 10)
    for name in range(1, 40):
        ranges.wait(name, 0, 10)

    def take_and_end(name: int) -> None:
        ranges.add(name, 0, 10)
        ranges.remove(name)

    ranges.on_ready = take_and_end
    ranges.remove(0)
    assert ranges.woken == list(range(1, 40))
    assert ranges.count == 0
