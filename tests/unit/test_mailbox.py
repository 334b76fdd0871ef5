"""The ring between two threads: order, bounds, and that no wake-up is lost."""
import os
import select
import threading

import pytest

from detour.core._testing_base import Box

E_FULL = -4


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_items_come_out_in_order_and_the_ring_is_bounded():
    box = Box(4)
    assert [box.post(i) for i in (1, 2, 3, 4, 5)] == [0, 0, 0, 0, E_FULL]
    assert [box.take() for _ in range(5)] == [1, 2, 3, 4, 0]


def test_it_wraps_around():
    box = Box(2)
    for i in range(1, 100):
        assert box.post(i) == 0
        assert box.take() == i


@pytest.mark.parametrize("capacity", [0, 3, 100])
def test_capacity_is_a_power_of_two(capacity):
    with pytest.raises(ValueError):
        Box(capacity)


def test_the_descriptor_is_written_only_when_the_ring_was_empty():
    box = Box(8)
    assert not readable(box.event_fd)
    box.post(1)
    assert readable(box.event_fd)
    box.acknowledge()
    box.post(2)
    assert not readable(box.event_fd)
    assert [box.take(), box.take(), box.take()] == [1, 2, 0]
    box.post(3)
    box.post(4)
    assert os.eventfd_read(box.event_fd) == 1


def test_a_consumer_that_stops_early_can_wake_itself():
    box = Box(8)
    box.post(1)
    box.acknowledge()
    box.signal()
    assert readable(box.event_fd)


@pytest.mark.parametrize(("capacity", "count"), [(2, 20000), (16, 100000), (4096, 300000)])
def test_two_threads_lose_nothing_and_no_wake_up(capacity, count):
    box = Box(capacity)
    producer = threading.Thread(target=box.produce, args=(count,), daemon=True)
    producer.start()
    assert box.consume(count, 10000) == ""
    producer.join(10)
    assert not producer.is_alive()
