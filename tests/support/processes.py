"""Runs `detour ...` and foreign programs for tests: waits until ready, keeps what they say, ends them in time."""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.patience import SLOWER

STOP_SECONDS = 15.0 * SLOWER
READY_SECONDS = 30.0 * SLOWER


class Program:
    """A running program whose output is kept. Use as a context manager, or end it by stop() or kill()."""

    def __init__(self, words: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str] | None = None,
                 cwd: Path | None = None, listens: bool = False) -> None:
        self.words = [os.fspath(word) for word in words]
        self.process = subprocess.Popen(self.words, env={**os.environ, **(env or {})}, cwd=cwd, text=True, bufsize=1,
                                        stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.output: list[str] = []
        self.errors: list[str] = []
        self._changed = threading.Condition()
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True)
                         for pair in ((self.process.stdout, self.output), (self.process.stderr, self.errors))]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: object, lines: list[str]) -> None:
        for line in stream:     # type: ignore[attr-defined]
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tell(self, line: str) -> None:
        """A line to its standard input; only where `listens` was given."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_line(self, start: str, seconds: float = READY_SECONDS) -> str:
        """The first line on standard output that begins with `start`. AssertionError with all output otherwise."""
        self.wait_for(lambda lines: any(line.startswith(start) for line in lines), seconds, f"line {start!r}")
        return next(line for line in self.output if line.startswith(start))

    def wait_for(self, found: Callable[[list[str]], bool], seconds: float, what: str = "answer") -> None:
        """Until `found` is true of the lines on standard output. AssertionError with all output otherwise."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not found(self.output):
                left = deadline - time.monotonic()
                ended = not self.running and not any(reader.is_alive() for reader in self._readers)
                if left <= 0 or ended:
                    why = f"ended with {self.process.returncode}" if ended else f"said nothing for {seconds} s"
                    raise AssertionError(f"no {what}: {self.words[:4]} {why}\n{self.said()}")
                self._changed.wait(min(left, 0.2))

    def said(self) -> str:
        return "\n".join(["-- output", *self.output[-50:], "-- errors", *self.errors[-50:]])

    def wait(self, seconds: float) -> int:
        """Exit code; kills and raises AssertionError when it does not end in time."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.words[:4]} did not end within {seconds} s\n{self.said()}") from None
        self._join()
        return code

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, then what wait() does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._join()

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(2)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            try:
                self.stop()
            except AssertionError:
                self.kill()
        else:
            self._join()


def detour(*words: str | os.PathLike[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Program:
    """`detour ...` of the Python that runs the tests."""
    return Program([sys.executable, "-m", "detour", *words], env=env, cwd=cwd)


def detour_ready(*words: str | os.PathLike[str], seconds: float = READY_SECONDS, env: Mapping[str, str] | None = None,
                 cwd: Path | None = None) -> tuple[Program, str]:
    """`detour serve` or `detour target`, accepting logins: the program and its line `ready ...`."""
    program = detour(*words, env=env, cwd=cwd)
    try:
        return program, program.wait_line("ready ", seconds)
    except AssertionError:
        program.kill()
        raise
