"""A soak of some detours: counts exactly, memory loosely; and the rule that tells growth from noise."""
from __future__ import annotations

import asyncio
import os
import random
import socket
import threading

import pytest

from detour.gateway import RUNS_KEPT
from tests.soak.__main__ import picture
from tests.soak.samples import descriptors, folder_figures, memory, process_figures, sockets, threads
from tests.soak.soak import WAYS, Soak
from tests.soak.trend import (
    KEPT_RUN_BYTES,
    MEMORY_ALLOWED_BYTES,
    list_was_full,
    table,
    theil_sen,
    trend,
)

LOOSE_BYTES = 24 << 20          # a gateway that is just born still finds its size
COUNTS = ("threads", "descriptors", "fd_sockets", "fd_eventfds", "fd_epolls", "fd_pipes", "fd_files")


@pytest.mark.slow
def test_a_few_detours_leave_nothing(tmp_path):
    soak = Soak(tmp_path, "detour", 2026, sample_every=len(WAYS))
    asyncio.run(soak.run(60, detours=2 * len(WAYS)))
    assert not soak.wrong and soak.results.total() == 2 * len(WAYS) and set(soak.ways) == set(WAYS)
    figures = soak.record.figures
    assert all(len(values) == 2 for values in figures.values())
    # journal_used at rest is what the last flush had not given back yet, so a short run has no bound on it: a freeze
    # begins with an empty ring. The hour's rule looks at its trend.
    for name in ("unreflected", "buffers_used", "tasks", "sessions", "state_files"):
        assert figures[name] == [0, 0], name
    for name in ("journal_file_bytes", "journal_room_bytes", *(f"{one}_{what}" for one in ("gateway", "main")
                                                               for what in COUNTS)):
        first, last = figures[name]
        assert last == first > 0, name
    first, last = figures["gateway_anonymous_bytes"]
    assert last - first < LOOSE_BYTES
    assert "polyline" in picture(soak.record) and "| gateway_threads |" in table(soak.record.trends(0))


def test_slopes():
    assert theil_sen([1, 2, 3, 4], [5, 7, 9, 11]) == 2
    assert theil_sen([1, 2, 3, 4, 5], [5, 5, 900, 5, 5]) == 0
    assert theil_sen([1], [5]) == 0
    places = list(range(5000))
    assert theil_sen(places, [3 * place for place in places]) == 3


def growing(name, slope, noise=0.0, start=60 << 20, count=400):
    dice = random.Random(7)
    places = list(range(505, 5 * count + 505, 5))        # the list of the last runs is full
    return trend(name, places, [start + slope * place + noise * dice.random() for place in places])


def test_a_leak_is_told_from_noise():
    assert growing("gateway_anonymous_bytes", 2048).grows
    assert growing("gateway_anonymous_bytes", 2048, 4 << 20).grows
    assert not growing("gateway_anonymous_bytes", 0, 4 << 20).grows
    assert not growing("gateway_anonymous_bytes", 100).grows, "less than what is allowed in all"
    assert growing("gateway_descriptors", 0.01, start=16).grows, "one in a hundred detours"
    assert not growing("gateway_descriptors", 0, start=16).grows
    assert not growing("gateway_anonymous_bytes", -500).grows


def test_what_warms_up_or_jumps_once_is_no_growth():
    places = list(range(400))
    warm = trend("gateway_anonymous_bytes", places, [min(place, 90) * 100_000.0 for place in places])
    assert not warm.grows and warm.first == warm.last
    odd = trend("gateway_threads", places, [6 + (place == 399) for place in places])
    assert not odd.grows and odd.peak == 7


def test_the_list_of_the_last_runs_is_allowed_to_fill():
    places = list(range(5, 105, 5))
    kept = trend("gateway_anonymous_bytes", places, [(60 << 20) + 33_000.0 * place for place in places])
    assert not kept.grows and kept.allowed > MEMORY_ALLOWED_BYTES
    assert trend("main_anonymous_bytes", places, [(60 << 20) + 33_000.0 * place for place in places]).grows
    assert trend("gateway_anonymous_bytes", places, [(60 << 20) + 99_000.0 * place for place in places]).grows


def kept_and_leaked(places, leak):
    """Memory of a gateway whose list of runs fills, and of which some bytes more are lost at each detour."""
    return [(60 << 20) + 33_000.0 * min(place, RUNS_KEPT) + leak * place for place in places]


def test_an_hour_is_judged_behind_the_list_of_the_last_runs():
    places = list(range(5, 551, 5))
    assert list_was_full(places)
    flat = trend("gateway_anonymous_bytes", places, kept_and_leaked(places, 0))
    assert not flat.grows and flat.slope == 0 and flat.allowed < MEMORY_ALLOWED_BYTES + KEPT_RUN_BYTES * 10
    assert trend("gateway_anonymous_bytes", places, kept_and_leaked(places, 8192)).grows
    for end in (100, RUNS_KEPT + 50):           # too few behind it: what the list takes is allowed
        places = list(range(5, end, 5))
        assert not list_was_full(places)
        assert not trend("gateway_anonymous_bytes", places, kept_and_leaked(places, 0)).grows


def test_a_step_that_stays_is_growth():
    places = list(range(400))
    assert trend("gateway_descriptors", places, [16.0 + place // 150 for place in places]).grows
    assert MEMORY_ALLOWED_BYTES < 4 << 20


def test_what_the_sockets_of_a_process_are(tmp_path):
    before = sockets(os.getpid())
    with socket.socket(socket.AF_UNIX) as one, socket.create_server(("127.0.0.1", 0)) as other:
        one.bind(str(tmp_path / "here.sock"))
        found = {inode: words for inode, words in sockets(os.getpid()).items() if inode not in before}
        listening = f"tcp 0100007F:{other.getsockname()[1]:04X} 00000000:0000 0A"
        assert sorted(found.values()) == [listening, f"unix 0001 01 {tmp_path}/here.sock"]


def test_what_a_process_holds():
    before = process_figures(os.getpid())
    reader, writer = os.pipe()
    event = os.eventfd(0)
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    block = bytes(range(256)) * (64 << 10)
    try:
        kinds = descriptors(os.getpid())
        after = process_figures(os.getpid())
        assert after["descriptors"] == before["descriptors"] + 3 == kinds.total()
        assert after["fd_pipes"] == before["fd_pipes"] + 2 and after["fd_eventfds"] == before["fd_eventfds"] + 1
        assert after["threads"] == before["threads"] + 1 == threads(os.getpid())
        assert memory(os.getpid())["anonymous_bytes"] >= len(block)
    finally:
        gate.set()
        thread.join()
        for descriptor in (reader, writer, event):
            os.close(descriptor)


def test_folders(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").write_bytes(bytes(100))
    (tmp_path / "b").write_bytes(bytes(11))
    assert folder_figures(tmp_path) == {"files": 2, "bytes": 111}
