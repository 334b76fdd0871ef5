"""A gate between the gateway and main's API: it passes requests on until told to stop at one of them.

    gate.stop_at("PUT")             the next PUT waits before main sees it; "PUT", answered=True: its answer waits
    await gate.stopped.wait()       it is there
    gate.open()                     everything passes again; what waited goes on, if its client is still there

So a test can act at an exact point of a detour's way in or home.
"""
from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

HEAD_BYTES_MAX = 65536


class ApiGate:
    """`async with ApiGate(listen_path, main_path) as gate`."""

    def __init__(self, path: Path, main: Path) -> None:
        self._path = path
        self._main = main
        self._method = b""
        self._answered = False
        self.stopped = asyncio.Event()
        self._go = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ApiGate:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop_at(self, method: str, *, answered: bool = False) -> None:
        self._method, self._answered = method.encode() + b" ", answered
        self.stopped.clear()
        self._go.clear()

    def open(self) -> None:
        self._method = b""
        self._go.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._pass_one(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pass_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _message(reader)
        if not request:
            return False
        stop = bool(self._method) and request.startswith(self._method)
        if stop and not self._answered:
            await self._wait()
        main_reader, main_writer = await asyncio.open_unix_connection(self._main)
        main_writer.write(request)
        answer = await _message(main_reader)
        main_writer.close()
        if stop and self._answered:
            await self._wait()
        writer.write(answer)
        await writer.drain()
        return True

    async def _wait(self) -> None:
        self.stopped.set()
        await self._go.wait()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP request or answer with a Content-Length, or without a body; b"" at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = await reader.readline()
        if not line or len(head) > HEAD_BYTES_MAX:
            return b""
        head += line
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head + await reader.readexactly(length)
