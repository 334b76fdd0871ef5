"""`detour target`: a plain iSCSI target with a redirect API."""
from __future__ import annotations

import contextlib

import click

from detour.cli.support import SIZE, run_async, until_signal
from detour.errors import UsageError

DEFAULT_IQN = "iqn.2026-01.org.detour:target"


async def serve(urls: tuple[str, ...], listen: tuple[str, ...], iqn: str, api: str | None, chap_user: str | None,
                chap_secret_file: str | None, options: dict[str, object]) -> None:
    from detour.embedded import DiskOptions, EmbeddedTarget, make_app, serving
    from detour.iscsi.chap import ChapAuth, Credentials
    from detour.runtime import Runtime
    from detour.urls import read_secret_file

    auth = None
    if chap_user and chap_secret_file:
        auth = ChapAuth((Credentials(chap_user, read_secret_file(chap_secret_file)),))
    async with Runtime() as runtime, contextlib.AsyncExitStack() as stack:
        target = EmbeddedTarget(runtime, iqn, auth=auth)
        stack.push_async_callback(target.close)
        for url in urls:
            await target.add_disk(url, DiskOptions(**options))       # type: ignore[arg-type]
        address = await stack.enter_async_context(serving(make_app(target), api)) if api else "-"
        portals = [await target.listen(text) for text in listen]
        click.echo(f"ready portal={','.join(portals)} iqn={target.entry.iqn} api={address}")
        click.get_text_stream("stdout").flush()
        await until_signal()


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="PATH|mem:SIZE...")
@click.option("--listen", multiple=True, default=("127.0.0.1:3260",), show_default=True, metavar="HOST:PORT",
              help="A portal; may be given several times. Port 0 takes a free one.")
@click.option("--iqn", default=DEFAULT_IQN, show_default=True, help="The target's name.")
@click.option("--api", metavar="URL", help="HTTP API for redirects: unix:PATH or http://127.0.0.1:PORT.")
@click.option("--chap-user", help="Demand CHAP with this user.")
@click.option("--chap-secret-file", type=click.Path(exists=True, dir_okay=False), help="File with the CHAP secret.")
@click.option("--size", "create_bytes", type=SIZE, help="Make files that are not there, with this size.")
@click.option("--read-only", is_flag=True)
@click.option("--no-write-cache", is_flag=True, help="Tell hosts that there is no volatile cache; writes are stable.")
@click.option("--no-thin", is_flag=True, help="Do not offer UNMAP.")
@click.option("--serial", default="", help="Serial number of LUN 0 (default: derived from the target's name).")
@click.option("--delay-ms", type=click.FloatRange(0, 60_000), default=0.0, help="Hold each write for so long (tests).")
def command(urls: tuple[str, ...], listen: tuple[str, ...], iqn: str, api: str | None, chap_user: str | None,
            chap_secret_file: str | None, create_bytes: int | None, read_only: bool, no_write_cache: bool,
            no_thin: bool, serial: str, delay_ms: float) -> int:
    """Serve files, block devices or memory as one iSCSI target: the first is LUN 0, the next LUN 1 and so on.

    Prints one line that begins with "ready " when logins are accepted, and ends on SIGINT or SIGTERM.
    """
    if bool(chap_user) != bool(chap_secret_file):
        raise UsageError("--chap-user and --chap-secret-file belong together")
    options = {"create_bytes": create_bytes, "read_only": read_only, "write_cache": not no_write_cache,
               "thin": not no_thin, "serial": serial, "delay_us": round(delay_ms * 1000)}
    run_async(serve(urls, listen, iqn, api, chap_user, chap_secret_file, options), log_level="info")
    return 0
