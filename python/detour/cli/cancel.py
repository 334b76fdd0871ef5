"""`detour cancel VOLUME`: home, now."""
from __future__ import annotations

import click

from detour.cli.support import gateway_option, json_option, print_json, run_async


async def run_cancel(api: str, volume: str) -> dict[str, object]:
    from detour.api.client import Client

    async with Client(api) as client:
        return await client.cancel(volume)


@click.command()
@click.argument("volume")
@gateway_option
@json_option
def command(volume: str, api: str, as_json: bool) -> int:
    """End the copy of VOLUME, catch main up, and send the host home. May be asked for twice."""
    document = run_async(run_cancel(api, volume))
    print_json(document) if as_json else click.echo(f"{volume}: on its way home")
    return 0
