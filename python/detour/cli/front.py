"""`detour front`: the portal that hosts are configured with, for mains that cannot redirect."""
from __future__ import annotations

import contextlib
from pathlib import Path

import click

from detour.cli.support import run_async, until_signal


async def serve(targets: tuple[str, ...], listen: tuple[str, ...], advertise: tuple[str, ...], state: str, api: str
                ) -> None:
    from detour.embedded import make_app, serving
    from detour.front import Behind, Front

    front = Front([Behind.parse(text) for text in targets], listen, Path(state), advertise)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(front.close)
        await front.start()
        address = await stack.enter_async_context(serving(make_app(*front.targets), api))
        click.echo(f"ready portal={','.join(front.portals)} api={address}")
        click.get_text_stream("stdout").flush()
        await until_signal()


@click.command()
@click.option("--target", "targets", multiple=True, required=True, metavar="IQN=HOST:PORT[,HOST:PORT...]",
              help="A target behind the front, and main's portals for it. May be given several times.")
@click.option("--listen", multiple=True, default=("0.0.0.0:3260",), show_default=True, metavar="HOST:PORT",
              help="A portal for hosts; may be given several times: the second belongs to main's second, and so on.")
@click.option("--advertise", multiple=True, metavar="HOST:PORT",
              help="What discovery tells of the portal, where hosts know it by another address; one for each --listen.")
@click.option("--state", type=click.Path(file_okay=False), default="/var/lib/detour/front", show_default=True,
              help="Folder where it is kept which targets are in a detour.")
@click.option("--api", default="unix:/run/detour/front.sock", show_default=True, metavar="URL",
              help="HTTP API for the gateway: unix:PATH or http://127.0.0.1:PORT.")
def command(targets: tuple[str, ...], listen: tuple[str, ...], advertise: tuple[str, ...], state: str, api: str) -> int:
    """Send hosts on: to main in normal operation, to the gateway for the time of a detour.

    For main storage that cannot redirect logins (portal mode). Prints one line that begins with "ready " when logins
    are answered, and ends on SIGINT or SIGTERM.
    """
    run_async(serve(targets, listen, advertise, state, api), log_level="info")
    return 0
