"""`detour show ID`: one backup."""
from __future__ import annotations

from typing import Any

import click

from detour.cli.support import gateway_option, human_bytes, json_option, print_json, run_async


async def get_backup(api: str, backup_id: str) -> dict[str, Any]:
    from detour.api.client import Client

    async with Client(api) as client:
        return await client.backup(backup_id)


@click.command()
@click.argument("backup_id", metavar="ID")
@gateway_option
@json_option
def command(backup_id: str, api: str, as_json: bool) -> int:
    """Show one backup: where it is, of when, and of what."""
    document = run_async(get_backup(api, backup_id))
    if as_json:
        print_json(document)
        return 0
    for name, value in document.items():
        if value not in ("", None, {}):
            shown = f"{value} ({human_bytes(value)})" if name == "size_bytes" else value
            click.echo(f"{name:<16}{shown}")
    return 0
