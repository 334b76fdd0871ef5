"""Other `detour` processes of one program's own: started, awaited until ready, and surely ended.

They run in sessions of their own, so that Ctrl-C reaches only the program, and the kernel ends them when the program
dies in disorder. Start them before threads are there: the child runs a little code of ours between fork and exec.
"""
from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from detour.errors import DetourError, TimeoutError_

PR_SET_PDEATHSIG = 1
READY_SECONDS = 30.0
END_SECONDS = 10.0
LOG_TAIL_BYTES = 2000

_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A `detour` command in a process of its own. `ready` holds the words of its ready line."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self.ready: dict[str, str] = {}
        self._process = process
        self._drain: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, name: str, arguments: list[str], log: Path, env: Mapping[str, str] | None = None) -> Child:
        """Starts `detour ARGUMENTS`; its log lines go to `log`."""
        with open(log, "wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "detour", *arguments, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=errors, start_new_session=True, preexec_fn=_die_with_parent,
                env={**os.environ, **(env or {})})
        return cls(name, process, log)

    async def wait_ready(self, seconds: float = READY_SECONDS) -> dict[str, str]:
        """Waits for the line that begins with "ready "; answers its key=value words. DetourError when there is none."""
        try:
            async with asyncio.timeout(seconds):
                line = await self._ready_line()
        except TimeoutError:
            raise TimeoutError_(f"{self.name} was not ready within {seconds:g} s: {self.log_tail()}") from None
        self._drain = asyncio.create_task(self._read_on())
        self.ready = dict(word.partition("=")[::2] for word in line.split()[1:])
        return self.ready

    async def _ready_line(self) -> str:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if line.startswith(b"ready "):
                return line.decode()
        await self._process.wait()
        raise DetourError(f"{self.name} ended with exit code {self._process.returncode} before it was ready: "
                          f"{self.log_tail()}")

    async def _read_on(self) -> None:
        assert self._process.stdout is not None
        while await self._process.stdout.read(65536):
            pass

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def log_tail(self) -> str:
        """The last lines of its log, for a message."""
        with contextlib.suppress(OSError):
            text = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
            return text or "it said nothing"
        return "no log"

    def kill(self) -> None:
        """SIGKILL: it dies as in a crash."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, seconds: float = END_SECONDS) -> int:
        """SIGTERM, then SIGKILL when it does not go; answers its exit code."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(seconds):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
        code = await self._process.wait()
        if self._drain is not None:
            await self._drain
        return code
