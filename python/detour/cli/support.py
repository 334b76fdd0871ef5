"""What several commands need: parameter types, one JSON shape, units for people, and an orderly end on signals."""
from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from detour.errors import UsageError
from detour.urls import parse_duration, parse_size

T = TypeVar("T")


class _Parsed(click.ParamType):
    """A parameter that a function of urls.py reads; its UsageError becomes click's."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(error.message, param, ctx)


SIZE = _Parsed("size", parse_size)
DURATION = _Parsed("duration", parse_duration)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def gateway_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--api: which gateway."""
    return click.option(
        "--api", envvar="DETOUR_API", default="unix:/run/detour/api.sock", show_default=True, metavar="URL",
        help="The gateway's API: unix:PATH or http://HOST:PORT. Also from DETOUR_API.")(command)


def print_json(document: Any, *, follow: bool = False) -> None:
    """One document: a line when following, else indented."""
    click.echo(json.dumps(document, default=str) if follow else json.dumps(document, indent=2, default=str))
    sys.stdout.flush()


def human_bytes(length_bytes: float) -> str:
    """"1.5 GiB"."""
    value = float(length_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def human_seconds(seconds: float | None) -> str:
    """"1:02:03", "2:03", "4.2 s", or a dash when it is not known."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def run_async(main: Coroutine[Any, Any, T], log_level: str = "error") -> T:
    """Runs a command's coroutine, with logs on standard error. SIGINT and SIGTERM cancel it once, so that its `finally`
    parts run in peace; then KeyboardInterrupt is raised here."""
    from detour import logs

    logs.set_up(os.environ.get("DETOUR_LOG", log_level))
    stopped = False

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        return await main

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if stopped:
            raise KeyboardInterrupt from None
        raise


async def until_signal() -> None:
    """Waits for SIGINT or SIGTERM: the end of a server."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
