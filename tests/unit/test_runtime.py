"""Tickets and events on asyncio, the order of the end, and leaving the interpreter with everything open."""
import asyncio
import subprocess
import sys
import textwrap

import pytest

from detour.core._testing_base import echo, lost
from detour.core.store import MemoryStore
from detour.errors import ClosedError, DetourError, RangeError, UsageError
from detour.runtime import Answer, Runtime

EVENT, SENDER = 12, 77


def run(coroutine):
    async def bounded():
        return await asyncio.wait_for(coroutine, 20)

    return asyncio.run(bounded())


def test_answers_come_to_their_tickets():
    async def main():
        async with Runtime(reactors=2) as runtime:
            tickets = [echo(runtime.reactors[i % 2], value=i) for i in range(500)]
            answers = await asyncio.gather(*(runtime.wait(ticket) for ticket in reversed(tickets)))
            assert [answer.results[0] for answer in answers] == list(reversed(range(500)))
            assert answers[0] == Answer(0, (499, -5, 0, 0, 0, 0, 0, 0), None)

    run(main())


def test_an_answer_may_come_before_anyone_waits():
    async def main():
        async with Runtime() as runtime:
            first = echo(runtime.reactors[0], value=1, data=b"d")
            await runtime.wait(echo(runtime.reactors[0]))
            assert await runtime.wait(first) == Answer(0, (1, -5, 0, 0, 0, 0, 0, 0), b"d")

    run(main())


def test_a_status_becomes_its_exception_unless_unchecked():
    async def main():
        async with Runtime() as runtime:
            with pytest.raises(RangeError, match=r"^read of x: the access"):
                await runtime.wait(echo(runtime.reactors[0], status=-3), context="read of x")
            assert (await runtime.wait(echo(runtime.reactors[0], status=-3), check=False)).status == -3

    run(main())


def test_a_ticket_is_waited_for_once():
    async def main():
        async with Runtime() as runtime:
            ticket = lost(runtime.reactors[0])
            waiter = asyncio.ensure_future(runtime.wait(ticket))
            await asyncio.sleep(0)
            with pytest.raises(UsageError):
                await runtime.wait(ticket)
            waiter.cancel()

    run(main())


def test_a_cancelled_waiter_does_not_disturb_the_others():
    async def main():
        async with Runtime() as runtime:
            store = MemoryStore(runtime.reactors[0], 1 << 20)
            waiter = asyncio.ensure_future(runtime.wait(store.submit_read(0, 512)))
            await asyncio.sleep(0)
            waiter.cancel()
            assert (await runtime.wait(store.submit_read(0, 512))).data == bytes(512)
            with pytest.raises(asyncio.CancelledError):
                await waiter

    run(main())


def test_events_reach_their_callback_also_the_early_ones():
    async def main():
        async with Runtime() as runtime:
            seen = []
            await runtime.wait(echo(runtime.reactors[0], events=3))
            runtime.on_event(EVENT, SENDER, lambda status, results, data: seen.append((status, results[0], data)))
            await asyncio.sleep(0)
            assert seen == [(0, 0, None), (0, 1, None), (0, 2, None)]
            await runtime.wait(echo(runtime.reactors[0], events=1))
            assert len(seen) == 4
            runtime.off_event(EVENT, SENDER)
            runtime.off_event(EVENT, SENDER)
            await runtime.wait(echo(runtime.reactors[0], events=1))
            assert len(seen) == 4

    run(main())


def test_a_bad_callback_is_reported_and_the_rest_goes_on():
    async def main():
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
        async with Runtime() as runtime:
            runtime.on_event(EVENT, SENDER, lambda *_: 1 / 0)
            answer = await runtime.wait(echo(runtime.reactors[0], events=2, value=5))
            assert answer.results[0] == 5
        assert [type(report["exception"]) for report in reports] == [ZeroDivisionError] * 2

    run(main())


def test_stop_fails_what_waits_and_refuses_more():
    async def main():
        runtime = Runtime()
        await runtime.start()
        waiter = asyncio.ensure_future(runtime.wait(lost(runtime.reactors[0])))
        await asyncio.sleep(0)
        await runtime.stop()
        await runtime.stop()
        with pytest.raises(ClosedError):
            await waiter
        with pytest.raises(ClosedError):
            await runtime.wait(12345)
        assert not runtime.running
        with pytest.raises(UsageError):
            await runtime.start()

    run(main())


def test_stop_closes_newest_first_and_goes_on_after_an_error():
    async def main():
        order = []
        runtime = Runtime()
        await runtime.start()

        async def close(name):
            await runtime.wait(echo(runtime.reactors[0]))       # the threads still answer
            order.append(name)
            if name == "second":
                raise DetourError("does not want to")

        for name in ("first", "second", "third", "gone"):
            number = runtime.add_closer(lambda name=name: close(name))
        runtime.remove_closer(number)
        await runtime.stop()
        assert order == ["third", "second", "first"]

    run(main())


def test_it_needs_a_start():
    async def main():
        runtime = Runtime()
        with pytest.raises(ClosedError):
            await runtime.wait(1)
        await runtime.stop()

    run(main())


@pytest.mark.parametrize("reactors", [0, 65])
def test_the_number_of_reactors_is_bounded(reactors):
    with pytest.raises(UsageError):
        Runtime(reactors)


def test_ids_and_tickets_are_unique_over_runtimes():
    first, second = Runtime(2), Runtime(2)
    assert len({reactor.index for runtime in (first, second) for reactor in runtime.reactors}) == 4
    assert len({runtime.new_id() for runtime in (first, second, first)}) == 3
    assert [first.next_reactor() for _ in range(3)] == [*first.reactors, first.reactors[0]]


LEAVES = {
    "a running reactor": """
        from detour.core.reactor import Reactor
        reactor = Reactor()
        reactor.start()
    """,
    "a reactor in a cycle": """
        from detour.core.reactor import Reactor
        class Holder: pass
        holder = Holder(); holder.self = holder; holder.reactor = Reactor(); holder.reactor.start()
        del holder
    """,
    "open stores with work under way": """
        from detour.core.reactor import Reactor
        from detour.core.store import MemoryStore
        from detour.core.filestore import FileStoreHandle
        reactor = Reactor()
        reactor.start()
        memory = MemoryStore(reactor, 1 << 30)
        file = FileStoreHandle(reactor, PATH, 64 << 20, create=True)
        for i in range(500):
            memory.submit_write(i << 16, bytes(65536))
            file.submit_write(i << 16, bytes(65536), fua=True)
    """,
    "a runtime that was never stopped": """
        import asyncio
        from detour.runtime import Runtime
        from detour.stores import open_store
        async def main():
            global runtime, store
            runtime = Runtime(2)
            await runtime.start()
            store = await open_store(runtime, PATH, create_bytes=1 << 20)
            await store.write(0, bytes(1 << 20))
            store.handle.submit_read(0, 512)
        asyncio.run(main())
    """,
    "a runtime that ends by an exception": """
        import asyncio
        from detour.runtime import Runtime
        from detour.stores import open_store
        async def main():
            async with Runtime() as runtime:
                await open_store(runtime, "mem:1MiB")
                raise SystemExit(0)
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("what", LEAVES)
def test_leaving_the_interpreter_is_silent(what, tmp_path):
    program = f"PATH = {str(tmp_path / 'image')!r}\n" + textwrap.dedent(LEAVES[what])
    ended = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
