"""The loop: events, deferred work, end hooks, timers, commands, and what happens to each when it is taken out."""
import gc
import os
import select
import socket

import pytest

from detour.core._testing_base import Harness, echo, lost
from detour.core.reactor import Reactor

MS = 10**6
EPOLLIN, EPOLLOUT, EPOLLHUP = 1, 4, 16


@pytest.fixture
def loop():
    reactor = Reactor(index=3)
    reactor.set_clock(1000 * MS)
    harness = Harness(reactor)
    yield harness
    harness.free()


@pytest.fixture
def pairs():
    made = [socket.socketpair() for _ in range(4)]
    for left, _ in made:
        left.setblocking(False)
    yield made
    for left, right in made:
        left.close()
        right.close()


# --- descriptors

def test_an_event_reaches_its_watch(loop, pairs):
    assert loop.watch(5, pairs[0][0].fileno()) == 0
    assert loop.reactor.turn() == 0
    pairs[0][1].send(b"x")
    assert loop.reactor.turn() == 1
    assert loop.log() == [("event", 5)]
    assert loop.reactor.turn() == 0


def test_interest_can_be_changed(loop, pairs):
    fd = pairs[0][0].fileno()
    assert loop.watch(0, fd, EPOLLIN) == 0
    assert loop.watch(0, fd, EPOLLIN | EPOLLOUT) == 0
    loop.reactor.turn()
    assert loop.log() == [("event", 0)]
    assert loop.watch(0, fd, 0) == 0
    loop.reactor.turn()
    assert loop.log() == []
    assert loop.watch(0, fd, EPOLLOUT) == 0
    loop.reactor.turn()
    assert loop.log() == [("event", 0)]


def test_a_closed_descriptor_is_refused(loop):
    left, right = socket.socketpair()
    fd = left.fileno()
    left.close()
    right.close()
    assert loop.watch(0, fd) < 0
    assert loop.watch(1, -1) < 0


@pytest.mark.parametrize("close_too", [False, True])
def test_unwatching_in_a_handler_stops_the_event_that_epoll_already_told(loop, pairs, close_too):
    for index in (0, 1):
        loop.watch(index, pairs[index][0].fileno())
        pairs[index][1].send(b"x")
    loop.set(0, victim=1)
    loop.set(1, victim=0)
    if close_too:
        pairs[2][0].close()
    loop.reactor.turn()
    log = loop.log()
    assert len(log) == 1 and log[0][0] == "event"
    loop.reactor.turn()
    assert loop.log() == []


def test_a_watch_may_take_itself_out(loop, pairs):
    loop.watch(0, pairs[0][0].fileno())
    loop.set(0, victim=0, keep_bytes=True)
    pairs[0][1].send(b"xx")
    loop.reactor.turn()
    loop.reactor.turn()
    assert loop.log() == [("event", 0)]


def test_a_watch_can_be_used_again_for_another_descriptor(loop, pairs):
    loop.watch(0, pairs[0][0].fileno())
    loop.unwatch(0)
    loop.watch(0, pairs[1][0].fileno())
    pairs[0][1].send(b"x")
    loop.reactor.turn()
    assert loop.log() == []
    pairs[1][1].send(b"x")
    loop.reactor.turn()
    assert loop.log() == [("event", 0)]


def test_hang_up_is_told_without_being_asked_for(loop, pairs):
    loop.watch(0, pairs[0][0].fileno(), EPOLLOUT)
    loop.watch(0, pairs[0][0].fileno(), 0)
    pairs[0][1].close()
    loop.reactor.turn()
    assert loop.log() == [("event", 0)]


def test_more_events_than_one_batch_all_come(loop):
    made = [socket.socketpair() for _ in range(60)]
    for index, (left, right) in enumerate(made):
        loop.watch(index, left.fileno())
        right.send(b"x")
    loop.reactor.turn()
    loop.reactor.turn()
    assert sorted(index for _, index in loop.log()) == list(range(60))
    for index in range(60):
        loop.unwatch(index)
        made[index][0].close()
        made[index][1].close()


# --- deferred work and end hooks

def test_deferred_work_runs_in_order_and_once(loop):
    for index in (2, 0, 1, 2):
        loop.defer(index)
    loop.reactor.turn()
    assert loop.log() == [("work", 2), ("work", 0), ("work", 1)]


def test_work_that_defers_itself_or_others_is_done_in_the_same_turn(loop):
    loop.set(0, defer_again=3, then_defer=1)
    loop.defer(0)
    loop.reactor.turn()
    assert loop.log().count(("work", 0)) == 4
    loop.reactor.turn()
    assert loop.log() == []


def test_endless_deferring_does_not_hold_the_turn(loop):
    loop.set(0, defer_again=-1)
    loop.defer(0)
    assert 1000 < loop.reactor.turn(-1) < 10**6
    loop.undefer(0)
    loop.log()
    loop.reactor.turn()
    assert loop.log() == []


def test_end_hooks_run_after_deferred_work_and_once_a_turn(loop):
    loop.set(0, end_again=2)
    loop.at_end(0)
    loop.defer(1)
    loop.reactor.turn()
    assert loop.log() == [("work", 1), ("work", 0)]
    loop.reactor.turn(-1)           # does not sleep: the hook asked for another turn
    assert loop.log() == [("work", 0)]
    loop.reactor.turn()
    assert loop.log() == [("work", 0)]
    loop.reactor.turn()
    assert loop.log() == []


def test_a_hook_may_ask_for_another_in_the_same_turn(loop):
    loop.set(0, then_end=1)
    loop.at_end(0)
    loop.reactor.turn()
    assert loop.log() == [("work", 0), ("work", 1)]


def test_what_a_hook_defers_runs_in_the_next_turn_without_sleep(loop):
    loop.set(0, then_defer=1)
    loop.at_end(0)
    loop.reactor.turn()
    assert loop.log() == [("work", 0)]
    loop.reactor.turn(-1)
    assert loop.log() == [("work", 1)]


@pytest.mark.parametrize("queue", ["defer", "at_end"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_work_can_be_taken_out_of_either_queue(loop, queue, victim):
    for index in range(3):
        getattr(loop, queue)(index)
    loop.undefer(victim)
    loop.undefer(victim)
    loop.reactor.turn()
    assert [index for _, index in loop.log()] == [i for i in range(3) if i != victim]
    getattr(loop, queue)(victim)
    loop.reactor.turn()
    assert loop.log() == [("work", victim)]


def test_work_takes_out_work_that_waits_behind_it(loop):
    loop.set(0, victim=1)
    for index in range(3):
        loop.defer(index)
    loop.reactor.turn()
    assert loop.log() == [("work", 0), ("work", 2)]


def test_a_hook_that_asked_for_the_next_turn_can_be_taken_out(loop):
    loop.set(0, end_again=1)
    loop.at_end(0)
    loop.at_end(1)
    loop.reactor.turn()
    loop.undefer(0)
    loop.log()
    loop.reactor.turn()
    assert loop.log() == []


# --- timers

def test_timers_run_in_the_order_of_their_deadlines(loop):
    for index, delay in [(0, 30), (1, 10), (2, 20), (3, 10), (4, 40)]:
        loop.timer(index, delay * MS)
    loop.reactor.set_clock(1020 * MS)
    loop.reactor.turn()
    assert loop.log() == [("timer", 1), ("timer", 3), ("timer", 2)]
    loop.reactor.set_clock(1040 * MS)
    loop.reactor.turn()
    assert loop.log() == [("timer", 0), ("timer", 4)]


def test_timers_of_one_grain_run_in_one_turn_and_none_too_soon(loop):
    delays = [1, 7, 20, 21, 40]         # from 1000 ms on, in grains of 20 ms
    for index, delay in enumerate(delays):
        loop.timer(index, delay * MS, 20 * MS)
    ran = {}
    for now in range(1000, 1061):
        loop.reactor.set_clock(now * MS)
        loop.reactor.turn()
        ran |= {index: now for _, index in loop.log()}
    assert ran == {0: 1020, 1: 1020, 2: 1020, 3: 1040, 4: 1040}


def test_a_timer_can_be_restarted_and_stopped(loop):
    loop.timer(0, 10 * MS)
    loop.timer(1, 15 * MS)
    loop.timer(0, 50 * MS)
    loop.stop_timer(1)
    loop.stop_timer(1)
    loop.reactor.set_clock(1049 * MS)
    loop.reactor.turn()
    assert loop.log() == []
    loop.reactor.set_clock(1050 * MS)
    loop.reactor.turn()
    assert loop.log() == [("timer", 0)]


def test_a_timer_stops_another_that_is_due_in_the_same_turn(loop):
    loop.set(0, victim=1)
    loop.timer(0, 1 * MS)
    loop.timer(1, 2 * MS)
    loop.timer(2, 3 * MS)
    loop.reactor.set_clock(2000 * MS)
    loop.reactor.turn()
    assert loop.log() == [("timer", 0), ("timer", 2)]


def test_a_timer_without_delay_that_restarts_itself_waits_for_the_clock(loop):
    loop.set(0, timer_again=-1)
    loop.timer(0, 0)
    loop.reactor.turn()
    assert loop.log() == []
    for step in range(1, 4):
        loop.reactor.set_clock(1000 * MS + step)
        loop.reactor.turn()
        assert loop.log() == [("timer", 0)]


def test_sleep_ends_with_the_next_timer_of_a_real_clock():
    reactor = Reactor()
    loop = Harness(reactor)
    loop.timer(0, 5 * MS)
    for _ in range(1000):
        reactor.turn(10000)
        if loop.log():
            break
    else:
        pytest.fail("the timer never ran")
    loop.free()


# --- commands and events

def test_an_answer_carries_ticket_status_results_and_data(loop):
    ticket = echo(loop.reactor, status=-2, value=99, data=b"abc")
    assert ticket >> 48 == 3
    assert loop.reactor.drain() == []
    loop.reactor.turn()
    assert select.select([loop.reactor.event_fd], [], [], 0)[0]
    assert loop.reactor.drain() == [(0, ticket, -2, (99, -5, 0, 0, 0, 0, 0, 0), b"abc")]
    assert not select.select([loop.reactor.event_fd], [], [], 0)[0]
    assert loop.reactor.drain() == []


def test_tickets_are_unique_and_answers_in_order(loop):
    tickets = [echo(loop.reactor) for _ in range(3000)]
    assert len(set(tickets)) == 3000
    while loop.reactor.turn():
        pass
    assert [item[1] for item in loop.reactor.drain()] == tickets


def test_events_beyond_the_outbox_wait_in_order(loop):
    ticket = echo(loop.reactor, events=40000)
    loop.reactor.turn()
    arrived = []
    for _ in range(10):
        batch = loop.reactor.drain()
        assert len(batch) <= 16384
        arrived += batch
        loop.reactor.turn()
    assert [item[3][0] for item in arrived[:-1]] == list(range(40000))
    assert all(item[:2] == (12, 77) for item in arrived[:-1])
    assert arrived[-1][1] == ticket


def test_a_full_inbox_is_told(loop):
    with pytest.raises(BlockingIOError):
        for _ in range(20000):
            echo(loop.reactor)
    while loop.reactor.turn():
        pass
    assert len(loop.reactor.drain()) == 16384
    echo(loop.reactor)


def test_what_was_never_drained_is_freed(loop):
    reactor = Reactor()
    echo(reactor, events=20000, data=b"x" * 100)
    reactor.turn()
    echo(reactor)
    del reactor
    gc.collect()


# --- the thread

def test_a_started_reactor_answers_by_itself():
    reactor = Reactor(poll_ns=1000)
    reactor.start()
    ticket = echo(reactor, value=7)
    assert select.select([reactor.event_fd], [], [], 10)[0]
    assert reactor.drain()[0][1] == ticket
    assert reactor.running and not reactor.closed
    with pytest.raises(RuntimeError):
        reactor.turn()
    with pytest.raises(RuntimeError):
        reactor.set_clock(0)
    with pytest.raises(RuntimeError):
        reactor.start()
    reactor.stop()
    assert not reactor.running and reactor.closed


def test_stop_runs_what_was_posted_before_and_refuses_more():
    reactor = Reactor()
    reactor.start()
    tickets = [echo(reactor) for _ in range(100)]
    reactor.stop()
    reactor.stop()
    assert [item[1] for item in reactor.drain()][:100] == tickets
    with pytest.raises(RuntimeError):
        echo(reactor)
    with pytest.raises(RuntimeError):
        reactor.start()


def test_stop_does_not_wait_for_commands_without_answer():
    reactor = Reactor()
    reactor.start()
    lost(reactor)
    reactor.stop()
    assert not reactor.running


def test_an_idle_thread_sleeps():
    reactor = Reactor()
    reactor.start()
    echo(reactor)
    select.select([reactor.event_fd], [], [], 10)
    before = reactor.turns
    select.select([], [], [], 0.05)
    assert reactor.turns - before <= 2
    reactor.stop()


def test_a_loop_without_polling_never_polls():
    reactor = Reactor(poll_ns=0)
    for _ in range(4):
        reactor.turn(1)
    assert (reactor.polls_found, reactor.polls_vain, reactor.poll_window_ns) == (0, 0, 0)


def test_waits_shorter_than_a_poll_may_be_are_polled_for():
    reactor = Reactor(poll_ns=10**10)
    reactor.turn(1)
    assert (reactor.polls_vain, reactor.poll_window_ns) == (0, 10_000)      # the first wait slept: it was short
    reactor.turn(1)
    assert (reactor.polls_found, reactor.polls_vain) == (0, 1)


def test_waits_longer_than_a_poll_may_be_are_not_polled_for():
    reactor = Reactor(poll_ns=1000)
    for _ in range(4):
        reactor.turn(1)
    assert (reactor.polls_found, reactor.polls_vain, reactor.poll_window_ns) == (0, 0, 0)


def test_what_comes_while_the_loop_polls_ends_the_wait(pairs):
    reactor = Reactor(poll_ns=10**10)
    harness = Harness(reactor)
    assert harness.watch(0, pairs[0][0].fileno()) == 0
    reactor.turn(1)                                                         # the next wait polls
    pairs[0][1].send(b"x")
    assert reactor.turn(1) == 1
    assert (reactor.polls_found, reactor.polls_vain) == (1, 0)
    harness.free()


def test_a_virtual_clock_is_never_polled():
    reactor = Reactor(poll_ns=10**10)
    reactor.set_clock(1000 * MS)
    for _ in range(4):
        reactor.turn(1)
    assert (reactor.polls_found, reactor.polls_vain, reactor.poll_window_ns) == (0, 0, 0)


def test_descriptors_are_given_back():
    gc.collect()                    # what earlier tests dropped must not go while this one counts
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        reactor = Reactor()
        reactor.start()
        reactor.stop()
    del reactor
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("arguments", [{"index": -1}, {"index": 40000}, {"buffer_bytes": 4096}])
def test_senseless_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        Reactor(**arguments)
