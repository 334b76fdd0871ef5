"""Options of `detour target` that say who may come: CHAP for logins and for discovery, access rules."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from detour.errors import UsageError

if TYPE_CHECKING:
    from detour.iscsi.access import Access
    from detour.iscsi.chap import ChapAuth, Credentials

_SECRET = click.Path(dir_okay=False)
_OPTIONS = (
    click.option("--chap-user", "chap_users", multiple=True,
                 help="Demand CHAP with this user; several with their secret files in the same order."),
    click.option("--chap-secret-file", "chap_secret_files", multiple=True, type=_SECRET,
                 help="File with the CHAP secret, mode 0600."),
    click.option("--chap-algorithm", "chap_algorithms", multiple=True, metavar="NAME",
                 help="Accept sha3-256, sha-256, sha-1, md5; repeat it in order of preference (default: all)."),
    click.option("--mutual-user", help="With which the target proves itself to hosts that ask for it."),
    click.option("--mutual-secret-file", type=_SECRET, help="File with the secret of --mutual-user."),
    click.option("--discovery-user", help="Demand CHAP with this user of discovery sessions."),
    click.option("--discovery-secret-file", type=_SECRET, help="File with the secret of --discovery-user."),
    click.option("--discovery-mutual-user", help="With which the portal proves itself in discovery."),
    click.option("--discovery-mutual-secret-file", type=_SECRET, help="File with its secret."),
    click.option("--allow-initiator", "initiators", multiple=True, metavar="NAME",
                 help='Admit this initiator; "*" and "?" stand for other characters. May be repeated.'),
    click.option("--allow-network", "networks", multiple=True, metavar="CIDR",
                 help="Admit initiators from this network. May be repeated; name and network must both fit."),
)
_NAMES = ("chap_users", "chap_secret_files", "chap_algorithms", "mutual_user", "mutual_secret_file", "discovery_user",
          "discovery_secret_file", "discovery_mutual_user", "discovery_mutual_secret_file", "initiators", "networks")


@dataclass(frozen=True)
class Door:
    """What the targets of a process ask of hosts."""

    auth: ChapAuth | None
    discovery_auth: ChapAuth | None
    access: Access


def door_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, read into the argument `door` of the command."""
    @wraps(command)
    def wrapper(**options: Any) -> Any:
        wanted = {name: options.pop(name) for name in _NAMES}
        return command(door=read_door(**wanted), **options)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def read_door(*, chap_users: tuple[str, ...] = (), chap_secret_files: tuple[str, ...] = (),
              chap_algorithms: tuple[str, ...] = (), mutual_user: str | None = None,
              mutual_secret_file: str | None = None, discovery_user: str | None = None,
              discovery_secret_file: str | None = None, discovery_mutual_user: str | None = None,
              discovery_mutual_secret_file: str | None = None, initiators: tuple[str, ...] = (),
              networks: tuple[str, ...] = ()) -> Door:
    """UsageError when halves are missing or a secret cannot be read."""
    from detour.iscsi.access import Access
    from detour.iscsi.chap import ALGORITHMS, ChapAuth, algorithm_number

    if len(chap_users) != len(chap_secret_files):
        raise UsageError("each --chap-user and its --chap-secret-file belong together",
                         hint="Name as many files as users, in the same order.")
    algorithms = tuple(map(algorithm_number, chap_algorithms)) or tuple(ALGORITHMS)
    users = [_pair(user, file, "chap") for user, file in zip(chap_users, chap_secret_files, strict=True)]
    mutual = _pair(mutual_user, mutual_secret_file, "mutual")
    seeker = _pair(discovery_user, discovery_secret_file, "discovery")
    shown = _pair(discovery_mutual_user, discovery_mutual_secret_file, "discovery-mutual")
    if (mutual and not users) or (shown and not seeker):
        raise UsageError("mutual CHAP needs a CHAP user of the hosts, too")
    try:
        return Door(ChapAuth(tuple(one for one in users if one), mutual, algorithms) if users else None,
                    ChapAuth((seeker,), shown, algorithms) if seeker else None, Access.of(initiators, networks))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _pair(user: str | None, secret_file: str | None, prefix: str) -> Credentials | None:
    from detour.iscsi.chap import Credentials
    from detour.urls import read_secret_file

    if bool(user) != bool(secret_file):
        raise UsageError(f"--{prefix}-user and --{prefix}-secret-file belong together")
    if not user or not secret_file:
        return None
    try:
        return Credentials(user, read_secret_file(secret_file))
    except ValueError as error:
        raise UsageError(str(error)) from None
