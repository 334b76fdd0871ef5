"""`detour backup VOLUME`: start a detour and follow it."""
from __future__ import annotations

from typing import Any

import click

from detour.cli.support import gateway_option, json_option, print_json, run_async


async def run_backup(api: str, volume: str, store: str | None, tag: str, hold_cutover: bool, wait: bool,
                     as_json: bool) -> dict[str, Any]:
    from detour.api.client import Client
    from detour.cli.following import follow_json, follow_terminal

    async with Client(api) as client:
        started = await client.start(volume, store=store, tag=tag, hold_cutover=hold_cutover)
        if not wait:
            return started
        documents = client.follow(started["id"])
        return await (follow_json(documents) if as_json else follow_terminal(documents))


@click.command()
@click.argument("volume")
@click.option("--store", help="Name of the store in the configuration (default: the only one).")
@click.option("--tag", default="", help="A word to find the backup by.")
@click.option("--hold-cutover", is_flag=True, help="Do not send the host home before `detour cutover VOLUME`.")
@click.option("--wait/--no-wait", default=True, help="Follow the detour to its end, or only start it.")
@gateway_option
@json_option
def command(volume: str, store: str | None, tag: str, hold_cutover: bool, wait: bool, api: str, as_json: bool) -> int:
    """Take a backup of VOLUME: its host is detoured through the gateway, and home again.

    Exit code 0: done. 1: nothing was begun, or it failed. 3: the host is safe and home, but the backup was given up.
    Ctrl-C stops following; the detour goes on, `detour cancel` ends it.
    """
    from detour.cli.following import exit_code, show_end

    document = run_async(run_backup(api, volume, store, tag, hold_cutover, wait, as_json))
    if not wait:
        print_json(document) if as_json else click.echo(f"started {document['id']}")
        return 0
    if not as_json:
        show_end(document)
    return exit_code(document)
