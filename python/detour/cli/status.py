"""`detour status [VOLUME]`: volumes, and how far their detours are."""
from __future__ import annotations

import asyncio
from typing import Any

import click

from detour.cli.support import gateway_option, human_bytes, json_option, print_json, run_async
from detour.errors import UsageError

WATCH_SECONDS = 1.0


async def rows_of(client: Any, volume: str | None) -> list[dict[str, Any]]:
    rows = [row for row in await client.volumes() if volume in (None, row["name"])]
    if volume is not None and not rows:
        raise UsageError(f"the gateway has no volume {volume}", hint="`detour status` lists the volumes.")
    return rows


def table_of(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from detour.cli.following import numbers_of

    table = Table()
    for column in ("volume", "size", "phase", "figures"):
        table.add_column(column)
    for row in rows:
        detour = row.get("detour") or {}
        running = bool(detour) and detour.get("result") is None
        phase = detour["phase"] if running else "home"
        told = numbers_of(detour) if running else (f"last: {detour['result']}" if detour else "")
        table.add_row(row["name"], human_bytes(row.get("size_bytes") or 0), phase, told)
    return table


async def run_status(api: str, volume: str | None, watch: bool, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from detour.api.client import Client

    async with Client(api) as client:
        rows = await rows_of(client, volume)
        if as_json:
            print_json(rows, follow=watch)
            while watch:
                await asyncio.sleep(WATCH_SECONDS)
                print_json(await rows_of(client, volume), follow=True)
            return
        if not watch:
            Console().print(table_of(rows))
            return
        with Live(table_of(rows), auto_refresh=False) as live:
            while True:
                await asyncio.sleep(WATCH_SECONDS)
                live.update(table_of(await rows_of(client, volume)), refresh=True)


@click.command()
@click.argument("volume", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@gateway_option
@json_option
def command(volume: str | None, watch: bool, api: str, as_json: bool) -> int:
    """Show the gateway's volumes, or one, and how far a running detour is."""
    run_async(run_status(api, volume, watch, as_json))
    return 0
