"""`detour doctor [VOLUME]`: checks everything a detour needs, before it is needed."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from detour.cli.support import gateway_option, json_option, print_json, run_async
from detour.errors import ClosedError, DetourError, StorageError, TimeoutError_, UsageError

MARKS = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "problem": ("WRONG", "red")}


async def ask_gateway(api: str, volume: str | None) -> list[dict[str, Any]]:
    """The findings of a gateway that runs: it looks at main through the session that it has."""
    from detour.api.client import Client

    async with Client(api) as client:
        names = [volume] if volume else [row["name"] for row in await client.volumes()]
        return [finding for name in names for finding in await client.doctor(name)]


async def look_alone(path: str, volume: str | None) -> list[dict[str, Any]]:
    """The findings of a configuration that no gateway serves now."""
    from detour.config import load_config
    from detour.doctor import documents
    from detour.doctor.alone import examine_config

    config = load_config(Path(path))
    if volume is not None and volume not in config.volume:
        raise UsageError(f"{path} has no volume {volume}", hint=f"It has {', '.join(config.volume) or 'none'}.")
    found: list[dict[str, Any]] = []
    for name in [volume] if volume else list(config.volume):
        found += documents(name, await examine_config(config, name))
    return found


async def gather(api: str, path: str | None, volume: str | None) -> list[dict[str, Any]]:
    """A configuration knows where its gateway listens: that one is asked, and no other."""
    places = [api] if path is None else configured_apis(path)
    for place in places:
        try:
            return await ask_gateway(place, volume)
        except (ClosedError, StorageError, TimeoutError_) as error:
            if path is None:
                raise DetourError(error.message, hint="Where no gateway runs, give its configuration with -c."
                                  ) from None
    assert path is not None
    return await look_alone(path, volume)


def configured_apis(path: str) -> list[str]:
    from detour.config import load_config

    return [str(api) for api in load_config(Path(path)).gateway.api]


def verdict(wrong: int, looks: int) -> str:
    """The last line."""
    if wrong:
        return f"{wrong} wrong: a detour would be refused, fail, or harm hosts"
    return f"ready for a detour; {looks} to look at" if looks else "ready for a detour"


@click.command()
@click.argument("volume", required=False)
@click.option("-c", "--config", "path", type=click.Path(exists=True, dir_okay=False), envvar="DETOUR_CONFIG",
              help="Configuration file, for when the gateway does not run.")
@gateway_option
@json_option
def command(volume: str | None, path: str | None, api: str, as_json: bool) -> int:
    """Check everything that a detour of VOLUME (or of each volume) needs. Nothing is changed on main.

    A gateway that runs is asked to look; where none runs, the configuration (-c) says where to look. Exit code 0:
    detours will work (what could be better is told); 1: something is wrong, with what to do about it.
    """
    found = run_async(gather(api, path, volume))
    wrong = sum(finding["state"] == "problem" for finding in found)
    if as_json:
        print_json({"ok": not wrong, "findings": found})
        return 1 if wrong else 0
    shown = ""
    for finding in found:
        if finding["volume"] != shown:
            shown = finding["volume"]
            click.echo(f"{shown}:")
        mark, colour = MARKS[finding["state"]]
        click.echo(f"  {click.style(f'{mark:5}', fg=colour)}  {finding['check']}: {finding['finding']}")
        if finding["fix"]:
            click.echo(f"         -> {finding['fix']}")
    click.echo(verdict(wrong, sum(finding["state"] == "warning" for finding in found)))
    return 1 if wrong else 0
