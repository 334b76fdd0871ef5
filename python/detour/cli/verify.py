"""`detour verify ID`: read a backup again."""
from __future__ import annotations

from typing import Any

import click

from detour.cli.support import gateway_option, human_bytes, json_option, print_json, run_async


async def verify_backup(api: str, backup_id: str) -> dict[str, Any]:
    from detour.api.client import Client

    async with Client(api) as client:
        return await client.verify(backup_id)


@click.command()
@click.argument("backup_id", metavar="ID")
@gateway_option
@json_option
def command(backup_id: str, api: str, as_json: bool) -> int:
    """Read the backup ID and compare every chunk with the checksums that were taken of main."""
    document = run_async(verify_backup(api, backup_id))
    if as_json:
        print_json(document)
    elif document["ok"]:
        click.echo(f"{backup_id} is right: {human_bytes(document['checked_bytes'])} checked")
    else:
        click.echo(f"{backup_id} is DAMAGED: {document['mismatches']} chunks differ, at {document['places']}")
    return 0 if document["ok"] else 1
