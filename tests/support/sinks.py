"""Stand-ins for the core below a listener: sockets are kept, answers come at once or when a test says so."""
from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from detour.runtime import Answer

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

    def text_response(self, session_id: int, itt: int, data: bytes) -> int:
        self.log.append(("text", session_id, itt, data))
        return self.runtime.ticket(GOOD)

    def close(self) -> None:
        for fd in self.sessions.values():
            os.close(fd)
        self.sessions.clear()
