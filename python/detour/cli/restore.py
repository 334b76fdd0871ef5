"""`detour restore ID --to URL`: a backup onto a volume."""
from __future__ import annotations

from typing import Any

import click

from detour.cli.support import gateway_option, human_bytes, json_option, print_json, run_async


def is_url(text: str) -> bool:
    return text.startswith(("/", ".", "file:", "iscsi:"))


async def restore_image(source: str, to: str) -> dict[str, Any]:
    """An image by its URL, without a gateway."""
    from detour.backups.raw import restore, shown
    from detour.runtime import Runtime
    from detour.stores import open_store

    async with Runtime() as runtime:
        async def opener(url: str, **options: Any) -> Any:
            return await open_store(runtime, url, **options)

        verdict = await restore(runtime, opener, source, to)
    return {"source": shown(source), "to": shown(to), "ok": verdict.ok, "checked_bytes": verdict.checked_bytes}


async def restore_backup(api: str, source: str, to: str) -> dict[str, Any]:
    from detour.api.client import Client

    if is_url(source):
        return await restore_image(source, to)
    async with Client(api) as client:
        return await client.restore(source, to)


@click.command()
@click.argument("source", metavar="ID|URL")
@click.option("--to", required=True, metavar="URL", help="The volume to write: iscsi://, /dev/name or a file.")
@gateway_option
@json_option
def command(source: str, to: str, api: str, as_json: bool) -> int:
    """Write the backup ID, or the image at URL, to another volume, and check it on the way.

    What the volume held is overwritten. A file is made where there is none.
    """
    document = run_async(restore_backup(api, source, to))
    told = f"{document['source']} {{}} restored to {document['to']}"
    if as_json:
        print_json(document)
    elif document["ok"]:
        checked = document.get("checked_bytes") or 0
        click.echo(told.format("is") + (f"; {human_bytes(checked)} checked" if checked else ""))
    else:
        click.echo(f"{told.format('was')}, but it is DAMAGED: what was read differs from its checksums")
    return 0 if document["ok"] else 1
