"""`detour backups [VOLUME]`: what there is."""
from __future__ import annotations

from typing import Any

import click

from detour.cli.support import gateway_option, human_bytes, json_option, print_json, run_async


async def list_backups(api: str, volume: str | None) -> list[dict[str, Any]]:
    from detour.api.client import Client

    async with Client(api) as client:
        return await client.backups(volume)


@click.command()
@click.argument("volume", required=False)
@gateway_option
@json_option
def command(volume: str | None, api: str, as_json: bool) -> int:
    """List the backups of all volumes, or of VOLUME, the newest last."""
    rows = run_async(list_backups(api, volume))
    if as_json:
        print_json(rows)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("backup", "volume", "point in time", "size", "store", "tag", "status"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(row["id"], row["volume"], row.get("pit_at") or "-", human_bytes(row["size_bytes"]), row["store"],
                      row.get("tag") or "", row["status"])
    console = Console()
    Console(width=max(console.width, 140)).print(table)
    return 0
