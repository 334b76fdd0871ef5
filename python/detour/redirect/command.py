"""An administrator's command as a redirect driver runs it: without a shell of its own, bounded in time and output, and
ended with everything that it started."""
from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detour.errors import StorageError, TimeoutError_

OUTPUT_BYTES_MAX = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Output:
    """How a command ended: its exit status and what it wrote."""

    status: int
    text: str
    complaint: str

    @property
    def said(self) -> str:
        """What it has to say about a failure, in one line."""
        lines = (self.complaint.strip() or self.text.strip()).splitlines()
        return lines[-1].strip() if lines else f"it ended with {self.status}"


class CommandRunner:
    """Runs `command` with arguments behind it.

    command: program and leading arguments, such as ["ssh", "root@main", "tgtadm"]. Behind ssh, which hands one line to
    a shell, the arguments are quoted. env: added to the environment. limit_s: bound on each run.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], limit_s: float) -> None:
        self._command = list(command)
        self._env = dict(env)
        self._limit_s = limit_s

    @property
    def remote(self) -> bool:
        """Whether a shell at the other end of ssh runs what is given."""
        return bool(self._command) and os.path.basename(self._command[0]) == "ssh"

    @property
    def program(self) -> str:
        return self._command[0] if self._command else ""

    def words(self, arguments: Sequence[str]) -> list[str]:
        quoted = [shlex.quote(argument) for argument in arguments] if self.remote else list(arguments)
        return self._command + quoted

    async def run(self, *arguments: str, given: bytes = b"", limit_s: float | None = None,
                  env: Mapping[str, str] | None = None) -> Output:
        """`given` goes to its standard input. StorageError when it cannot be run or writes without an end,
        TimeoutError_ after the limit; either way its process group is gone."""
        words = self.words(arguments)
        limit_s = self._limit_s if limit_s is None else limit_s
        try:
            process = await asyncio.create_subprocess_exec(
                *words, env={**os.environ, **self._env, **(env or {})}, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise StorageError(f"{words[0]} cannot be run: {error.strerror}",
                               hint="Write the command that reaches main into the table redirect.") from None
        try:
            async with asyncio.timeout(limit_s):
                text, complaint, _ = await asyncio.gather(_all_of(process.stdout), _all_of(process.stderr),
                                                          _feed(process.stdin, given))
                status = await process.wait()
        except TimeoutError:
            raise TimeoutError_(f"{os.path.basename(words[0])} did not answer within {limit_s:g} s") from None
        finally:
            await _end_group(process)
        return Output(status, text, complaint)


async def _all_of(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    parts: list[bytes] = []
    left = OUTPUT_BYTES_MAX
    while part := await stream.read(65536):
        left -= len(part)
        if left < 0:
            raise StorageError(f"a command of the redirect driver wrote more than {OUTPUT_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


async def _feed(stream: asyncio.StreamWriter | None, given: bytes) -> None:
    assert stream is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(given)
        await stream.drain()
    stream.close()


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Also what it left in the background: nothing goes on behind the driver's back."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await process.wait()
