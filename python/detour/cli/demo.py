"""`detour demo`: the main job, whole, on this machine."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from detour.cli.support import SIZE, human_bytes, json_option, print_json, run_async


class Narrator:
    """Tells on a terminal what happens, as it happens."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)
        self._begun = time.monotonic()

    def __call__(self, kind: str, text: str) -> None:
        seconds = time.monotonic() - self._begun
        style = {"phase": "bold cyan", "note": "yellow"}.get(kind, "")
        self.console.print(f"[dim]{seconds:7.2f} s[/]  ", end="")
        self.console.print(f"-> {text}" if kind == "phase" else text, style=style, markup=False)


def show(document: dict[str, Any], console: Any) -> None:
    """The closing table."""
    from rich.table import Table

    host = document["host"]
    table = Table(title="what the host met")
    for column in ("", "before", "copy", "catch-up", "after"):
        table.add_column(column, justify="right" if column else "left")
    for label, key, form in (("operations/s", "iops", "{:.0f}"), ("p99 ms", "p99_ms", "{:.2f}"),
                             ("longest stall ms", "stall_ms", "{:.1f}")):
        table.add_row(label, *(form.format(host[key][name]) for name in ("before", "copy", "catch_up", "after")))
    console.print(table)
    copied = document["backup"]
    cutover = document["cutover"]
    answers = {True: "[green]yes[/]", False: "[bold red]NO[/]"}
    console.print(f"backup: {human_bytes(copied['bytes'])} in {copied['seconds']:.1f} s; "
                  f"catch-up: {document['catch_up']['rounds']} rounds, {human_bytes(document['catch_up']['bytes'])}; "
                  f"cutover: predicted {_ms(cutover['predicted_ms'])}, took {_ms(cutover['actual_ms'])}",
                  soft_wrap=True)
    console.print(f"host: {host['writes']} writes, {host['reads']} reads, {host['errors']} errors, "
                  f"{host['mismatches']} wrong reads in {human_bytes(host['checked_bytes'])} checked")
    console.print("the backup is main at the point in time, byte for byte: " + answers[copied["matches_pit"]])
    main_is_right = document["main"]["matches_host"]
    console.print("main is what the host wrote, byte for byte:             " + answers[main_is_right])
    for name, part in (("backup", copied["compare"]), ("main", document["main"]["compare"])):
        if not part["same"]:
            place = "" if part["first_difference"] is None else f" at byte {part['first_difference']}"
            console.print(f"{name} differs{place} {part.get('reason', '')}", style="bold red")
    for name in ("error", "mismatch"):
        if name in host:
            console.print(f"first {name} of the host: {host[name]}", style="bold red")
    if document.get("error"):
        console.print(str(document["error"]), style="bold red", markup=False)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


@click.command()
@click.option("--size", type=SIZE, default="256MiB", show_default=True, help="Size of the volume.")
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Work on a copy of this image instead; the backup then is the image.")
@click.option("--store", "store_url", metavar="URL", help="Where the backup goes (default: a file that is removed).")
@click.option("--seconds", type=click.FloatRange(0.2, 600), default=5.0, show_default=True,
              help="How long the host works before and after; the copy takes about as long.")
@click.option("--rate", type=click.FloatRange(1, 100_000), default=1000.0, show_default=True,
              help="Operations a second of the host.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path),
              help="Work in this folder and leave the files there.")
@json_option
def command(size: int, image: Path | None, store_url: str | None, seconds: float, rate: float,
            keep: Path | None, as_json: bool) -> int:
    """Do the whole job on this machine, and prove it.

    A target serves main storage, a gateway waits beside it, and a host works on main all the time. A backup is
    taken; the host goes through the gateway and home again. Then every byte is compared: the backup with a copy of
    main at the point in time, and main with what the host has written. Exit code 0 only when all of it is right.
    """
    from detour.demo import DemoOptions, run_demo

    narrator = None if as_json else Narrator()
    options = DemoOptions(size, image, store_url, seconds, rate, keep)
    document = run_async(run_demo(options, narrator or (lambda kind, text: None)))
    if narrator is None:
        print_json(document)
    else:
        show(document, narrator.console)
    return 0 if document["ok"] else 1
