"""`detour serve`: the gateway."""
from __future__ import annotations

import contextlib

import click

from detour.cli.support import run_async
from detour.errors import ConfigError


@click.command()
@click.option("-c", "--config", "path", type=click.Path(exists=True, dir_okay=False), required=True,
              envvar="DETOUR_CONFIG", help="Configuration file.")
@click.option("--check", is_flag=True, help="Only check the configuration.")
def command(path: str, check: bool) -> int:
    """Run the gateway with a configuration file.

    Prints one line that begins with "ready " when logins are accepted, and ends on SIGINT or SIGTERM. A detour that was
    under way when it ended goes on at the next start.
    """
    from detour.config import load_config

    config = load_config(path)
    from detour.assembly import check_served, gateway_address
    from detour.gateway import serve
    from detour.iscsi.chap import refuse_across_roles

    try:
        gateway_address(config.gateway)
        check_served(config)
        if check:
            click.echo(f"{path} is right: {len(config.volume)} volumes, {len(config.store)} stores")
            return 0
        refuse_across_roles()
        with contextlib.suppress(KeyboardInterrupt):    # a signal is how a server ends
            run_async(serve(config))
    except ConfigError as error:                        # options of a driver are checked when it is made
        raise ConfigError(error.reason, file=error.file or path, key=error.key, hint=error.hint) from None
    return 0
