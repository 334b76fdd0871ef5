"""`detour cutover VOLUME`: the operator lets the host go home."""
from __future__ import annotations

import click

from detour.cli.support import gateway_option, json_option, print_json, run_async


async def run_cutover(api: str, volume: str) -> dict[str, object]:
    from detour.api.client import Client

    async with Client(api) as client:
        return await client.cut_over(volume)


@click.command()
@click.argument("volume")
@gateway_option
@json_option
def command(volume: str, api: str, as_json: bool) -> int:
    """Let the host of VOLUME go home as soon as the pause fits: ends `backup --hold-cutover`, and passes its windows.

    May be asked for twice, and before the copy is over.
    """
    document = run_async(run_cutover(api, volume))
    print_json(document) if as_json else click.echo(f"{volume}: the cutover may come")
    return 0
