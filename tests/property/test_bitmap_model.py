"""Bitmap against a set of integers, with its summary layers checked after each step."""

from hypothesis import given, settings
from hypothesis import strategies as st

from detour.core._testing_index import BitmapProbe

BITS = 64 * 64 * 3 + 17

near_edges = st.one_of(
    st.integers(0, BITS),
    st.builds(lambda word, shift: min(BITS, max(0, word * 64 + shift)), st.integers(0, BITS // 64), st.integers(-2, 2)),
    st.builds(lambda group, shift: min(BITS, max(0, group * 4096 + shift)), st.integers(0, 3), st.integers(-2, 2)),
)
ranges = st.tuples(near_edges, near_edges).map(sorted)
steps = st.lists(st.tuples(st.sampled_from(["set", "clear"]), ranges), min_size=1, max_size=30)


def check_layers(bitmap: BitmapProbe, model: set[int]) -> None:
    words = [0] * (BITS // 64 + 1)
    for bit in model:
        words[bit // 64] |= 1 << bit % 64
    for layer in range(bitmap.layers):
        assert bitmap.words_of(layer) == words
        above = [0] * ((len(words) + 63) // 64)
        for index, word in enumerate(words):
            if word:
                above[index // 64] |= 1 << index % 64
        words = above


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps, st.lists(ranges, min_size=1, max_size=10))
def test_bitmap_is_a_set_of_integers(changes: list, questions: list) -> None:
    bitmap = BitmapProbe(BITS)
    model: set[int] = set()
    for kind, (start, end) in changes:
        touched = set(range(start, end))
        if kind == "set":
            assert bitmap.set(start, end - start) == len(touched - model)
            model |= touched
        else:
            assert bitmap.clear(start, end - start) == len(touched & model)
            model -= touched
        assert bitmap.count == len(model)
    check_layers(bitmap, model)
    for start, end in questions:
        inside = range(start, end)
        assert bitmap.next_set(start, end) == next((bit for bit in inside if bit in model), end)
        assert bitmap.next_clear(start, end) == next((bit for bit in inside if bit not in model), end)
        assert bitmap.any_set(start, end - start) == any(bit in model for bit in inside)
        assert bitmap.all_set(start, end - start) == all(bit in model for bit in inside)
        if start < BITS:
            assert bitmap.test(start) == (start in model)
    assert bitmap.walk() == sum(model)
