"""Bitmap with summary layers: edges of words and layers, the count, borrowed words."""

from array import array

import pytest

from detour.core._testing_index import BitmapProbe

SIZES = [1, 63, 64, 65, 4095, 4096, 4097, 64**3 + 1]


@pytest.mark.parametrize("bits", SIZES)
def test_empty(bits: int) -> None:
    bitmap = BitmapProbe(bits)
    assert bitmap.count == 0
    assert bitmap.next_set(0, bits) == bits
    assert bitmap.next_clear(0, bits) == 0
    assert not bitmap.any_set(0, bits)
    assert not bitmap.all_set(0, bits)


@pytest.mark.parametrize("bits", SIZES)
def test_full(bits: int) -> None:
    bitmap = BitmapProbe(bits)
    assert bitmap.set(0, bits) == bits
    assert bitmap.set(0, bits) == 0
    assert bitmap.count == bits
    assert bitmap.next_clear(0, bits) == bits
    assert bitmap.all_set(0, bits)
    assert bitmap.clear(0, bits) == bits
    assert bitmap.count == 0
    assert all(word == 0 for layer in range(bitmap.layers) for word in bitmap.words_of(layer))


@pytest.mark.parametrize(("bits", "layers"), [(1, 1), (64, 1), (65, 2), (4096, 2), (4097, 3), (64**3 + 1, 4)])
def test_layers_grow_with_the_bits(bits: int, layers: int) -> None:
    assert BitmapProbe(bits).layers == layers


@pytest.mark.parametrize("bits", SIZES)
def test_the_last_bit_is_found_from_afar(bits: int) -> None:
    bitmap = BitmapProbe(bits)
    bitmap.set(bits - 1, 1)
    assert bitmap.next_set(0, bits) == bits - 1
    assert bitmap.test(bits - 1)
    assert bitmap.next_clear(bits - 1, bits) == bits


def test_every_range_in_three_words() -> None:
    bits = 192
    for start in range(0, bits, 5):
        for count in range(1, bits - start + 1, 7):
            bitmap = BitmapProbe(bits)
            assert bitmap.set(start, count) == count
            assert bitmap.next_set(0, bits) == start
            assert bitmap.next_clear(start, bits) == start + count
            assert bitmap.all_set(start, count)
            assert bitmap.next_set(start + count, bits) == bits
            bitmap.set(0, bits)
            assert bitmap.clear(start, count) == count
            assert bitmap.next_clear(0, bits) == start
            assert bitmap.next_set(start, bits) == start + count
            assert bitmap.count == bits - count


def test_changes_are_counted_once() -> None:
    bitmap = BitmapProbe(1000)
    assert bitmap.set(100, 100) == 100
    assert bitmap.set(150, 100) == 50
    assert bitmap.clear(0, 120) == 20
    assert bitmap.clear(0, 120) == 0
    assert bitmap.count == 130


def test_clearing_part_of_a_word_keeps_its_summary() -> None:
    bitmap = BitmapProbe(64 * 64 * 2)
    bitmap.set(4096, 64)
    bitmap.clear(4097, 63)
    assert bitmap.next_set(0, 8192) == 4096
    bitmap.clear(4096, 1)
    assert bitmap.next_set(0, 8192) == 8192
    assert bitmap.words_of(1) == [0, 0]


def test_the_end_bounds_the_search() -> None:
    bitmap = BitmapProbe(10_000)
    bitmap.set(5000, 10)
    assert bitmap.next_set(0, 5000) == 5000
    assert bitmap.next_set(0, 4000) == 4000
    assert bitmap.next_set(5005, 5007) == 5005
    assert bitmap.next_clear(5000, 5005) == 5005
    assert bitmap.next_set(7, 7) == 7
    assert bitmap.next_clear(7, 7) == 7


def test_an_empty_range_is_all_set_and_has_none_set() -> None:
    bitmap = BitmapProbe(100)
    assert bitmap.set(50, 0) == 0
    assert bitmap.clear(50, 0) == 0
    assert bitmap.all_set(50, 0)
    assert not bitmap.any_set(50, 0)


def test_no_bits_at_all() -> None:
    bitmap = BitmapProbe(0)
    assert bitmap.next_set(0, 0) == 0
    assert bitmap.next_clear(0, 0) == 0
    assert bitmap.count == 0


def test_borrowed_words_are_counted_and_summarised() -> None:
    words = array("Q", [0] * 130)
    words[1] = 0b1010
    words[129] = 1 << 5
    bitmap = BitmapProbe(130 * 64, words)
    assert bitmap.count == 3
    assert [bitmap.next_set(start, 8320) for start in (0, 66, 68)] == [65, 67, 129 * 64 + 5]
    bitmap.set(0, 1)
    assert words[0] == 1, "a change lands in the lender's memory"


def test_borrowed_bits_behind_the_end_do_not_count() -> None:
    words = array("Q", [2**64 - 1, 2**64 - 1])
    bitmap = BitmapProbe(70, words)
    assert bitmap.count == 70
    assert bitmap.next_clear(0, 70) == 70
    bitmap.clear(0, 70)
    assert bitmap.next_set(0, 70) == 70
    assert bitmap.words_of(1) == [0]
