"""Slabs and the buffer pool: bounds, reuse, and waiting for room."""
import pytest

from detour.core._testing_base import DEBUG_BUILD, PoolBox, SlabBox

MIB = 2**20


def test_slab_hands_out_distinct_zeroed_slots_up_to_its_bound():
    slab = SlabBox(40, 10)
    slots = [slab.get() for _ in range(10)]
    assert len(set(slots)) == 10 and 0 not in slots
    assert all(slot % 16 == 0 for slot in slots)
    assert all(slab.bytes_of(slot) == bytes(48) for slot in slots)
    assert slab.get() == 0
    assert slab.figures == (48, 10, 10)


def test_slab_zeroes_a_reused_slot():
    slab = SlabBox(64, 1)
    slot = slab.get()
    slab.fill(slot, 0xFF)
    slab.put(slot)
    assert slab.get() == slot
    assert slab.bytes_of(slot) == bytes(64)


def test_slab_without_bound_grows_by_arenas():
    slab = SlabBox(16000)
    slots = {slab.get() for _ in range(100)}
    assert len(slots) == 100
    assert slab.figures[1] == 100
    slab.free()
    assert slab.figures == (16000, 0, 0)
    assert slab.get() != 0


def test_slab_takes_slots_larger_than_an_arena():
    slab = SlabBox(MIB, 2)
    first, second = slab.get(), slab.get()
    slab.fill(first, 1)
    slab.fill(second, 2)
    assert set(slab.bytes_of(first)) == {1} and set(slab.bytes_of(second)) == {2}
    assert slab.get() == 0


@pytest.mark.parametrize("slot_bytes", [0, MIB + 1])
def test_slab_refuses_senseless_slots(slot_bytes):
    with pytest.raises(ValueError):
        SlabBox(slot_bytes)


def test_pool_rounds_up_to_its_classes_and_aligns():
    pool = PoolBox(8 * MIB)
    for length, size_class in [(1, 4096), (4096, 4096), (4097, 16384), (65536, 65536), (65537, 262144), (MIB, MIB)]:
        before = pool.figures[0]
        buffer = pool.get(length)
        assert buffer % 4096 == 0 and buffer
        pool.touch(buffer, size_class)
        assert pool.figures[0] - before == size_class
        pool.put(buffer, length)
        assert pool.figures[0] == before


def test_pool_never_exceeds_its_limit():
    pool = PoolBox(2 * MIB)
    assert pool.get(MIB) and pool.get(MIB)
    assert pool.get(1) == 0
    assert pool.figures == (2 * MIB, 2 * MIB)


def test_pool_refuses_more_than_the_largest_part():
    assert PoolBox(8 * MIB).get(MIB + 1) == 0


def test_pool_refuses_a_limit_that_no_largest_part_fits_into():
    with pytest.raises(ValueError):
        PoolBox(MIB - 1)


def test_free_buffers_of_one_class_make_room_for_another():
    pool = PoolBox(MIB)
    small = [pool.get(4096) for _ in range(256)]
    assert all(small) and pool.get(1) == 0
    for buffer in small:
        pool.put(buffer, 4096)
    assert pool.figures == (0, MIB)
    large = pool.get(MIB)
    assert large and pool.figures == (MIB, MIB)


def test_a_returned_buffer_is_used_again():
    pool = PoolBox(4 * MIB)
    buffer = pool.get(10000)
    pool.put(buffer, 10000)
    assert pool.get(16384) == buffer


def test_waiters_are_served_in_order_and_only_by_wake():
    pool = PoolBox(MIB)
    buffer = pool.get(MIB)
    for index in range(3):
        pool.wait(index, 262144)
    pool.put(buffer, MIB)
    assert pool.served() == []
    assert pool.wake()
    assert [index for index, _ in pool.served()] == [0, 1, 2]


def test_a_small_waiter_passes_a_large_one_that_cannot_go_on():
    pool = PoolBox(MIB)
    held = [pool.get(262144) for _ in range(4)]
    pool.wait(0, MIB)
    pool.wait(1, 4096)
    pool.put(held.pop(), 262144)
    assert pool.wake()
    (small,) = pool.served()
    assert small[0] == 1
    assert pool.tries(0) == 1
    for buffer in held:
        pool.put(buffer, 262144)
    pool.wake()
    assert pool.served() == []
    pool.put(small[1], 4096)
    pool.wake()
    assert [index for index, _ in pool.served()] == [0]


def test_no_one_is_woken_while_nothing_came_back():
    pool = PoolBox(MIB)
    pool.get(MIB)
    pool.wait(0, 4096)
    assert not pool.wake()
    assert pool.tries(0) == 0


def test_a_waiter_is_queued_once_and_can_give_up():
    pool = PoolBox(MIB)
    buffer = pool.get(MIB)
    pool.wait(0, MIB)
    pool.wait(0, MIB)
    pool.wait(1, 4096)
    pool.cancel(0)
    pool.cancel(0)
    pool.put(buffer, MIB)
    pool.wake()
    assert [index for index, _ in pool.served()] == [1]
    assert pool.tries(0) == 0


@pytest.mark.skipif(not DEBUG_BUILD, reason="only a debug build poisons")
def test_debug_build_poisons_what_is_put_back():
    slab = SlabBox(64, 1)
    slot = slab.get()
    slab.put(slot)
    assert slab.bytes_of(slot)[8:] == b"\xdd" * 56
