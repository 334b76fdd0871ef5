"""Extents: what an insertion replaces, splits and joins, the cursor, memory."""

import random

import numpy as np
import pytest

from detour.core._testing_index import LEAF_EXTENTS, ExtentsProbe

OK, E_NOMEM, E_RANGE = 0, -1, -3


@pytest.fixture
def tree() -> ExtentsProbe:
    return ExtentsProbe()


def test_empty(tree: ExtentsProbe) -> None:
    assert tree.find(0) is None
    assert tree.walk() == []
    assert tree.remove(0, 1000) == (OK, [])
    assert tree.check() == 0


@pytest.mark.parametrize(
    ("lba", "blocks", "replaced", "after"),
    [
        pytest.param(10, 10, [(1, 10)], [(10, 10, 9)], id="exactly"),
        pytest.param(5, 20, [(1, 10)], [(5, 20, 9)], id="around"),
        pytest.param(10, 4, [(1, 4)], [(10, 4, 9), (14, 6, 1)], id="begin"),
        pytest.param(16, 4, [(1, 4)], [(10, 6, 1), (16, 4, 9)], id="end"),
        pytest.param(13, 4, [(1, 4)], [(10, 3, 1), (13, 4, 9), (17, 3, 1)], id="middle"),
        pytest.param(5, 7, [(1, 2)], [(5, 7, 9), (12, 8, 1)], id="over-the-begin"),
        pytest.param(18, 7, [(1, 2)], [(10, 8, 1), (18, 7, 9)], id="over-the-end"),
        pytest.param(0, 10, [], [(0, 10, 9), (10, 10, 1)], id="before"),
        pytest.param(20, 10, [], [(10, 10, 1), (20, 10, 9)], id="behind"),
    ],
)
def test_insert_over_one(tree: ExtentsProbe, lba: int, blocks: int, replaced: list, after: list) -> None:
    tree.insert(10, 10, 1)
    assert tree.insert(lba, blocks, 9) == (OK, replaced)
    assert tree.walk() == after
    assert tree.blocks_count == sum(extent[1] for extent in after)
    assert tree.check() == 0


def test_insert_over_many_tells_each_piece_in_order(tree: ExtentsProbe) -> None:
    for index in range(5):
        tree.insert(index * 10, 8, index)
    assert tree.insert(5, 37, 9) == (OK, [(0, 3), (1, 8), (2, 8), (3, 8), (4, 2)])
    assert tree.walk() == [(0, 5, 0), (5, 37, 9), (42, 6, 4)]


def test_inserting_the_same_slot_again_tells_what_it_replaced(tree: ExtentsProbe) -> None:
    tree.insert(10, 10, 7)
    assert tree.insert(12, 3, 7) == (OK, [(7, 3)])
    assert tree.walk() == [(10, 10, 7)]
    assert tree.insert(10, 10, 7) == (OK, [(7, 10)])
    assert tree.check() == 0


def test_neighbours_of_one_slot_become_one(tree: ExtentsProbe) -> None:
    tree.insert(10, 5, 3)
    tree.insert(20, 5, 3)
    tree.insert(15, 5, 3)
    assert tree.walk() == [(10, 15, 3)]
    tree.insert(5, 5, 3)
    tree.insert(25, 5, 3)
    assert tree.walk() == [(5, 25, 3)]
    tree.insert(30, 5, 4)
    tree.insert(35, 5, 6)
    tree.insert(35, 5, 4)
    assert tree.walk() == [(5, 25, 3), (30, 10, 4)]
    assert tree.extents_count == 2, "different slots stay apart"


def test_an_extent_never_outgrows_its_count(tree: ExtentsProbe) -> None:
    half = 2**31
    tree.insert(0, half, 1)
    tree.insert(half, half, 1)
    assert tree.walk() == [(0, half, 1), (half, half, 1)]
    assert tree.blocks_count == 2 * half
    tree.insert(2 * half + 5, 2**32 - 1, 1)
    assert tree.check() == 0


@pytest.mark.parametrize(
    ("lba", "blocks", "only_slot", "lost", "after"),
    [
        pytest.param(0, 100, -1, [(1, 10), (2, 10), (1, 10)], [], id="all"),
        pytest.param(0, 100, 1, [(1, 10), (1, 10)], [(20, 10, 2)], id="one-slot"),
        pytest.param(0, 100, 5, [], [(10, 10, 1), (20, 10, 2), (30, 10, 1)], id="absent-slot"),
        pytest.param(13, 4, -1, [(1, 4)], [(10, 3, 1), (17, 3, 1), (20, 10, 2), (30, 10, 1)], id="middle"),
        pytest.param(13, 4, 2, [], [(10, 10, 1), (20, 10, 2), (30, 10, 1)], id="middle-of-another-slot"),
        pytest.param(15, 20, 1, [(1, 5), (1, 5)], [(10, 5, 1), (20, 10, 2), (35, 5, 1)], id="both-edges"),
        pytest.param(15, 20, -1, [(1, 5), (2, 10), (1, 5)], [(10, 5, 1), (35, 5, 1)], id="edges-and-between"),
        pytest.param(15, 0, -1, [], [(10, 10, 1), (20, 10, 2), (30, 10, 1)], id="nothing"),
    ],
)
def test_remove(tree: ExtentsProbe, lba: int, blocks: int, only_slot: int, lost: list, after: list) -> None:
    for start, slot in ((10, 1), (20, 2), (30, 1)):
        tree.insert(start, 10, slot)
    assert tree.remove(lba, blocks, only_slot) == (OK, lost)
    assert tree.walk() == after
    assert tree.check() == 0


def test_slots_of_all_32_bits(tree: ExtentsProbe) -> None:
    tree.insert(0, 1, 2**32 - 1)
    assert tree.find(0) == (0, 1, 2**32 - 1)
    assert tree.remove(0, 1, 2**32 - 1) == (OK, [(2**32 - 1, 1)])


def test_find_answers_the_first_that_ends_behind(tree: ExtentsProbe) -> None:
    tree.insert(10, 10, 1)
    tree.insert(30, 10, 2)
    first, second = (10, 10, 1), (30, 10, 2)
    expected = {0: first, 10: first, 19: first, 20: second, 29: second, 30: second, 39: second, 40: None, 2**63: None}
    assert {lba: tree.find(lba) for lba in expected} == expected


def test_a_range_beyond_64_bits_is_refused(tree: ExtentsProbe) -> None:
    assert tree.insert(2**64 - 4, 8, 1) == (E_RANGE, [])
    assert tree.remove(2**64 - 4, 8) == (E_RANGE, [])
    assert tree.insert(2**64 - 9, 8, 1) == (OK, [])
    assert tree.find(2**64 - 2) == (2**64 - 9, 8, 1)


def test_sequential_insertion_packs_leaves_full(tree: ExtentsProbe) -> None:
    for index in range(20_000):
        tree.insert(index * 8, 8, index)
    assert tree.check() == 0
    assert tree.nodes_used <= 20_000 / LEAF_EXTENTS * 1.05 + tree.height
    assert [extent[2] for extent in tree.walk()] == list(range(20_000))


@pytest.mark.parametrize("order", ["up", "down", "random", "inwards"])
def test_growing_and_emptying_in_any_order(tree: ExtentsProbe, order: str) -> None:
    names = list(range(6000))
    orders = {
        "up": names,
        "down": names[::-1],
        "random": random.Random(5).sample(names, len(names)),
        "inwards": [name for pair in zip(names[:3000], names[:2999:-1], strict=True) for name in pair],
    }
    for name in orders[order]:
        tree.insert(name * 3, 2, name)
    assert tree.check() == 0
    assert tree.walk() == [(name * 3, 2, name) for name in names]
    for count, name in enumerate(orders[order]):
        assert tree.remove(name * 3, 3) == (OK, [(name, 2)])
        if count % 500 == 0:
            assert tree.check() == 0
    assert (tree.extents_count, tree.blocks_count, tree.height, tree.nodes_used) == (0, 0, 1, 1)
    assert tree.check() == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whole_leaves_go_at_once(tree: ExtentsProbe, seed: int) -> None:
    leaf, leaves = LEAF_EXTENTS, 42 * 4
    for index in range(leaf * leaves):
        tree.insert(index * 2, 1, index)
    assert tree.height == 3
    for number in random.Random(seed).sample(range(leaves), leaves):
        first = number * leaf
        assert tree.remove(first * 2, leaf * 2)[1] == [(slot, 1) for slot in range(first, first + leaf)]
        assert tree.check() == 0, number
        if number % 3 == 0:
            assert tree.insert(first * 2, leaf * 2, number) == (OK, [])
            assert tree.find(first * 2 + 1) == (first * 2, leaf * 2, number)
    assert tree.extents_count == leaves // 3
    assert tree.check() == 0


def test_one_insertion_over_all(tree: ExtentsProbe) -> None:
    for index in range(10_000):
        tree.insert(index * 2, 1, index)
    status, replaced = tree.insert(0, 20_000, 77)
    assert status == OK
    assert replaced == [(index, 1) for index in range(10_000)]
    assert tree.walk() == [(0, 20_000, 77)]
    assert tree.check() == 0
    assert tree.nodes_used == 1


def test_thinning_out_joins_sparse_leaves(tree: ExtentsProbe) -> None:
    for index in range(30_000):
        tree.insert(index * 2, 1, index)
    full = tree.nodes_used
    for index in range(30_000):
        if index % 10:
            tree.remove(index * 2, 1)
    assert tree.check() == 0
    assert tree.nodes_used < full / 3


def test_nodes_are_used_again(tree: ExtentsProbe) -> None:
    for _ in range(5):
        for index in range(20_000):
            tree.insert(index * 2, 1, index)
        held = tree.bytes_used
        tree.remove(0, 50_000)
    assert tree.bytes_used == held
    tree.clear()
    assert tree.bytes_used == ExtentsProbe().bytes_used
    assert tree.walk() == []
    assert tree.check() == 0


@pytest.mark.parametrize("count", [20_000, 100_000, 200_000, 260_000])
def test_an_index_holds_little_more_than_it_uses(tree: ExtentsProbe, count: int) -> None:
    tree.insert_many(np.random.default_rng(7).permutation(1 << 21)[:count].astype(np.uint64) * np.uint64(8), 8, 0)
    assert tree.extents_count == count
    assert tree.bytes_used < tree.nodes_used * 512 + (1 << 19) + 256, "one small step, and the hints"
    assert tree.bytes_used < 14 * count + (1 << 18)


def test_at_the_memory_limit_nothing_changes() -> None:
    one_arena = ExtentsProbe().bytes_used
    tree = ExtentsProbe(bytes_max=2 * one_arena)
    index = 0
    while (answer := tree.insert(index * 10, 8, index))[0] == OK:
        index += 1
    assert answer == (E_NOMEM, [])
    assert tree.bytes_used == 2 * one_arena
    assert tree.check() == 0
    assert (tree.extents_count, tree.blocks_count) == (index, index * 8)
    assert tree.insert(3, 2, 0) == (E_NOMEM, []), "one that would split"
    assert tree.find(3) == (0, 8, 0)
    assert tree.insert(10, 8, 5) == (OK, [(1, 8)]), "an exact overwrite takes no memory"
    assert tree.remove(0, 4000)[0] == OK
    assert tree.insert(0, 8, 1) == (OK, []), "room that was given back is there again"
    assert tree.check() == 0
