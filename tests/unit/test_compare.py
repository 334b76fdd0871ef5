"""Whole images are compared byte by byte, and nothing that differs is called the same."""

from __future__ import annotations

import os

import pytest

from detour.compare import PIECE_BYTES, compare_expected, compare_files, first_difference
from detour.core.loadgen import LoadGenerator
from detour.core.reactor import Reactor
from detour.core.store import MemoryStore

SIZE = PIECE_BYTES + 65536


@pytest.fixture
def images(tmp_path):
    content = os.urandom(SIZE)
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(content)
    return tmp_path / "one", tmp_path / "other"


def spoil(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_first_difference():
    assert first_difference(b"abc", b"abc") == 3
    assert first_difference(b"abcd", b"abxd") == 2
    assert first_difference(b"", b"x") == 0
    assert first_difference(b"xb", b"ab") == 0


def test_same_files(images):
    result = compare_files(*images, SIZE)
    assert result.same and result.compared_bytes == SIZE and result.document()["first_difference"] is None


@pytest.mark.parametrize("offset", [0, 511, PIECE_BYTES - 1, PIECE_BYTES, SIZE - 1])
def test_one_byte_is_found(images, offset):
    spoil(images[1], offset)
    result = compare_files(*images, SIZE)
    assert not result.same and result.first_difference == offset


def test_short_and_missing_files_differ(images):
    os.truncate(images[0], SIZE - 1)
    assert compare_files(*images, SIZE).first_difference == SIZE - 1
    images[0].unlink()
    result = compare_files(*images, SIZE)
    assert not result.same and "missing" in result.reason


def test_against_what_a_host_expects(tmp_path):
    reactor = Reactor(0, 16 * 2**20)
    base = tmp_path / "base"
    base.write_bytes(os.urandom(2**20) + b"tail")
    store = MemoryStore(reactor, 2**20)
    memoryview(store)[:] = base.read_bytes()[: 2**20]
    load = LoadGenerator(reactor, 1, store, base=base.read_bytes()[: 2**20])
    load.start(operations=300)
    while not any(kind == 10 for kind, *_ in reactor.drain()):
        reactor.turn(0)
    image = tmp_path / "image"
    image.write_bytes(bytes(memoryview(store)) + b"tail")
    assert compare_expected(image, load, base).document() == {
        "same": True, "compared_bytes": 2**20 + 4, "first_difference": None}
    spoil(image, 2**20 + 1)
    assert compare_expected(image, load, base).first_difference == 2**20 + 1
    spoil(image, 70_000)
    assert compare_expected(image, load, base).first_difference == 70_000 // 512 * 512
    os.truncate(image, 4096)
    assert compare_expected(image, load).first_difference == 4096
    unknown = LoadGenerator(reactor, 2, store)
    image.write_bytes(bytes(2**20))
    assert not compare_expected(image, unknown).same
    reactor.stop()
