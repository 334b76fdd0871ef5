"""Stand-ins for the core below a listener: sockets are kept, answers come at once or when a test says so."""
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from detour.iscsi.listener import Listener, TargetEntry
from detour.iscsi.session import Login, LoginOptions, login
from detour.limits import LoginLimits
from detour.runtime import Answer
from tests.support.logins import INITIATOR, ISID, TARGET

GOOD = Answer(0, (0,) * 8, None)


class FakeRuntime:
    """Tickets are numbers; an answer given by a Sink is there at once, one that is held comes with `release`."""

    def __init__(self) -> None:
        self.callbacks: dict[tuple[int, int], Callable[..., None]] = {}
        self.answers: dict[int, asyncio.Future[Answer]] = {}

    def ticket(self, answer: Answer | None) -> int:
        number = len(self.answers) + 1
        self.answers[number] = asyncio.get_running_loop().create_future()
        if answer is not None:
            self.answers[number].set_result(answer)
        return number

    def release(self) -> None:
        for future in self.answers.values():
            if not future.done():
                future.set_result(GOOD)

    async def wait(self, ticket: int, check: bool = True, context: str = "") -> Answer:
        return await asyncio.shield(self.answers[ticket])

    def on_event(self, kind: int, sender: int, callback: Callable[..., None]) -> None:
        self.callbacks[kind, sender] = callback

    def off_event(self, kind: int, sender: int) -> None:
        self.callbacks.pop((kind, sender), None)


class Sink:
    """Takes sessions as a TargetHandle does. `log` tells what was asked, in order."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.sessions: dict[int, int] = {}
        self.params: dict[int, dict[str, Any]] = {}
        self.log: list[tuple[Any, ...]] = []
        self.hold_drops = False

    def adopt(self, fd: int, params: dict[str, Any], initiator_name: str, isid: bytes) -> int:
        number = len(self.params) + 1
        self.sessions[number], self.params[number] = fd, params
        self.log.append(("adopt", number, initiator_name, isid))
        return self.runtime.ticket(Answer(0, (number,) + (0,) * 7, None))

    def drop(self, session_id: int, reason: int) -> int:
        self.log.append(("drop", session_id))
        os.close(self.sessions.pop(session_id))
        return self.runtime.ticket(None if self.hold_drops else GOOD)

    def text_response(self, session_id: int, itt: int, data: bytes, send_data_bytes_max: int = 0) -> int:
        self.log.append(("text", session_id, itt, data, send_data_bytes_max))
        return self.runtime.ticket(GOOD)

    def text_reject(self, session_id: int, itt: int, reason: int) -> int:
        self.log.append(("reject", session_id, itt, reason))
        return self.runtime.ticket(GOOD)

    def close(self) -> None:
        for fd in self.sessions.values():
            os.close(fd)
        self.sessions.clear()


class Door:
    """A listener on loopback with one target over a Sink."""

    def __init__(self, limits: LoginLimits | None = None, **options: Any) -> None:
        self.runtime = FakeRuntime()
        self.sink = Sink(self.runtime)
        self.listener = Listener(self.runtime, limits=limits, **options)    # type: ignore[arg-type]
        self.entry = self.listener.add_target(TargetEntry(TARGET, self.sink))
        self.sockets: list[socket.socket] = []

    async def __aenter__(self) -> Door:
        self.host, self.port = await self.listener.listen("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()
        self.sink.close()
        for sock in self.sockets:
            sock.close()

    async def login(self, target: str | None = TARGET, *, initiator: str = INITIATOR, **options: Any) -> Login:
        options = {"isid": ISID, "login_seconds": 5.0, **options}
        done = await login(self.host, self.port, target, LoginOptions(initiator, **options))
        self.sockets.append(done.sock)
        return done

    async def connect(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        self.sockets.append(sock)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        return sock

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)
