"""How a running detour is shown: one JSON object a line, a live display on a terminal, or a line for each phase."""
from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from detour.cli.support import human_bytes, human_seconds, print_json

EXIT_FAILED = 1


async def follow_json(documents: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """One JSON object a line; the last one has the result."""
    last: dict[str, Any] = {}
    async for last in documents:
        print_json(last, follow=True)
    return last


def numbers_of(document: dict[str, Any]) -> str:
    """What matters in the present phase, in one line."""
    copy, catch_up, host = (document.get(name) or {} for name in ("copy", "catch_up", "host"))
    words = []
    if document["phase"] == "copying":
        words.append(f"{human_bytes(copy['bytes_done'])} of {human_bytes(copy['bytes_total'])}")
        words.append(f"{human_bytes(copy['bytes_per_second'])}/s")
        if copy.get("seconds_left") is not None:
            words.append(f"{human_seconds(copy['seconds_left'])} left")
    elif document["phase"] in ("catching-up", "holding"):
        words.append(f"round {catch_up['rounds'] + 1}, {human_bytes(catch_up['remaining_bytes'])} to go")
        words.append(f"{human_bytes(catch_up['bytes_per_second'])}/s")
        if document.get("waits_because"):
            words.append(document["waits_because"])
    if host.get("sessions"):
        words.append(f"host p99 {host['p99_ms']:.1f} ms, writes {human_bytes(host['write_bytes_per_second'])}/s")
    return "  ".join(words)


def share_done(document: dict[str, Any]) -> float:
    """0..1 of the present phase."""
    if document["phase"] == "copying":
        return document["copy"]["bytes_done"] / max(1, document["copy"]["bytes_total"])
    if document["phase"] in ("catching-up", "holding", "going-home"):
        done, left = document["catch_up"]["bytes"], document["catch_up"]["remaining_bytes"]
        return done / max(1, done + left)
    return 1.0 if document["phase"] == "home" else 0.0


async def follow_terminal(documents: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """A bar with phase and figures on a terminal; elsewhere a line for each phase and each reason to wait."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    last: dict[str, Any] = {}
    if not console.is_terminal:
        told: tuple[Any, ...] = ()
        async for last in documents:
            if (last["phase"], last.get("waits_because")) != told:
                told = (last["phase"], last.get("waits_because"))
                console.print(f"{last['phase']}  {numbers_of(last)}".rstrip(), markup=False, highlight=False,
                              soft_wrap=True)
        return last
    columns = (TextColumn("[bold]{task.description:<12}"), BarColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=1.0, numbers="")
        async for last in documents:
            progress.update(task, description=last["phase"], completed=share_done(last), numbers=numbers_of(last))
    return last


def show_end(document: dict[str, Any]) -> None:
    """The result in a few lines."""
    import click

    if not document:
        click.echo("the gateway closed the connection; `detour status` tells how it goes on")
        return
    cutover = document.get("cutover") or {}
    click.echo(f"{document['volume']}: {document['result'] or document['phase']}"
               + (f", {document['reason']}" if document.get("reason") else ""))
    if document.get("backup_id") and document["result"] == "done":
        click.echo(f"backup {document['backup_id']}, point in time {document['pit_at']}")
    if cutover.get("actual_ms") is not None:
        click.echo(f"cutover took {cutover['actual_ms']:.0f} ms")
    for warning in document.get("warnings") or []:
        click.echo(f"note: {warning}")


def exit_code(document: dict[str, Any]) -> int:
    code = document.get("exit_code")
    return EXIT_FAILED if code is None else int(code)
