"""What every redirect driver offers: the way in, on whatever main storage can do.

Order of a detour on main (FIELD.md of the design, RFC 7143 sections 11.13.5 and 6.3.5):

    prepare -> fence -> set -> verify -> drop_all -> sessions (until none is left) -> barrier   | the freeze may begin
    unfence -> clear -> verify                                                                  | hosts may be sent home

Contract of all drivers:
- Each call ends within `limit_s` of the driver's options: with the answer, or with a DetourError that says in one
  sentence what main answered. Nothing is left half begun in the background.
- Each call may be made twice: `set` over a set redirect and `clear` over a cleared one are no errors.
- What a driver changes on main and has to restore exactly (access rules) is written to its memo before the change, so
  that a gateway which was killed restores it after its next start.
- The gateway's own sessions are never dropped. `door()` tells how the gateway has to log in so that main knows it.
- A session is the gateway's own by more than its initiator name, which may be a host's own: by its ISID where main
  lists that, else by its address and by the session handle (TSIH) that main gave at the login.
"""
from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detour.durable import remove_durably, remove_unfinished, write_durably
from detour.errors import ConfigError, DetourError, StorageError, TimeoutError_, UsageError
from detour.urls import format_endpoint, parse_duration, parse_endpoint

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a redirect sends the host: an IP address and a port. Names are not resolved."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_endpoint(self.host, self.port)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises UsageError when `text` is no host:port."""
        return cls(*parse_endpoint(text))

    @property
    def numeric(self) -> bool:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class OwnSession:
    """A session that the gateway itself has on main's target: one for each volume of the target, always the same."""

    initiator: str
    isid: str                   # 12 hexadecimal digits


@dataclass(frozen=True, slots=True)
class VolumeContext:
    """What a driver knows of the volume that it serves."""

    volume: str
    target: str                 # IQN of main's target
    portal: Address             # main's portal as the gateway reaches it
    gateway: Address            # what a redirect tells the host
    initiator_name: str         # the name with which the gateway logs in to main
    memo_path: Path | None = None   # where the driver keeps what it must restore; None: in memory only
    own: tuple[OwnSession, ...] = ()    # the gateway's on this target, of all volumes that are on it


@dataclass(frozen=True, slots=True)
class MainSession:
    """A session on main as main lists it."""

    id: str
    initiator: str
    peer: str = ""              # IP address of the host, where main tells it
    isid: str = ""
    ours: bool = False          # the gateway's own
    twin: bool = False          # not the gateway's, and told apart from its own by nothing but the session handle


@dataclass(frozen=True, slots=True)
class Door:
    """How the gateway itself logs in to main while the redirect is on. None: nothing special."""

    source_ip: str | None = None
    portal: Address | None = None
    target: str | None = None


class DriverOptions(BaseModel):
    """Options that every driver has. Keys in the configuration are written with "-"."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"),
                              validate_by_name=True, validate_by_alias=True)

    driver: str
    limit: str = Field(default="10s", description="bound on each single action on main")
    barrier_limit: str = Field(default="25s", description="for the commands of dropped sessions to end on main")

    @property
    def limit_s(self) -> float:
        return parse_duration(self.limit)

    @property
    def barrier_limit_s(self) -> float:
        return parse_duration(self.barrier_limit)


class RedirectDriver(ABC):
    """Base of all drivers; one object serves one volume."""

    name: ClassVar[str]
    options_model: ClassVar[type[DriverOptions]] = DriverOptions

    def __init__(self, context: VolumeContext, options: DriverOptions) -> None:
        self.context = context
        self.options = options
        self.own_tsihs: Callable[[], frozenset[int]] = frozenset    # of the gateway's sessions that are attached now
        self._sentences: list[str] = []

    @abstractmethod
    async def prepare(self) -> None:
        """Checks that everything below will work, and changes nothing. Raises with the reason when it will not."""

    @abstractmethod
    async def set(self, address: Address) -> None:
        """From now on main answers logins of hosts, on every portal of the target, with a redirect to `address`."""

    @abstractmethod
    async def clear(self) -> None:
        """Main accepts logins of hosts again."""

    @abstractmethod
    async def verify(self, address: Address | None) -> None:
        """Raises StorageError unless every portal redirects to `address` (None: unless no portal redirects)."""

    @abstractmethod
    async def sessions(self) -> list[MainSession]:
        """Every session on main's target, closing ones included for as long as their commands run."""

    @abstractmethod
    async def drop_all(self) -> int:
        """Closes every session that is not the gateway's; answers how many there were. Does not wait for their end."""

    async def barrier(self) -> None:
        """Returns when no command of a dropped session is running on main any more, as far as main can tell it.
        Default: a session is listed until its commands have ended."""
        await wait_gone(self, self.options.barrier_limit_s)

    async def fence(self) -> None:
        """Refuses hosts that main would not redirect, where main's access rules can do that. Default: nothing."""
        return None

    async def unfence(self) -> None:
        """Restores exactly what `fence` found."""
        return None

    async def came(self) -> list[MainSession]:
        """Others than the gateway that logged in since `barrier`, or since this was asked last, whether they are still
        there or not. Default: nobody, because main does not tell."""
        return []

    async def let_in(self, sessions: Sequence[OwnSession]) -> None:
        """Besides the gateway's own, logins of these ports pass main's redirect from now on; none: of no others. Asked
        for while main is right, for the gateway to log in as a host that is not there (registrar.py). Default: nothing:
        who comes through the door passes, or main cannot tell them apart."""
        return None

    async def forget(self) -> None:
        """Hosts are home: what the driver has kept for a gateway that is killed on the way may go. May be asked for
        twice. Hosts wait for `unfence` and `clear`, which therefore leave that to this. Default: nothing is kept."""
        return None

    def told(self) -> list[str]:
        """What somebody has to know though it went on; each sentence once."""
        sentences, self._sentences = self._sentences, []
        return sentences

    async def check_own(self) -> None:
        """Raises StorageError unless main lists the gateway's own sessions, and none that it cannot tell from them."""
        sessions = await self.sessions()
        for session in sessions:
            if session.twin:
                raise StorageError(
                    f"a session of {session.initiator} from {session.peer} is on main that is not the gateway's",
                    hint="Main cannot tell it from the gateway: end it, or give the gateway another initiator-name.")
        if self.own_tsihs() and not any(session.ours for session in sessions):
            raise StorageError(f"main does not list the gateway's session on {self.context.target}",
                               hint="The table redirect leads to another main than the key main: compare both.")

    def door(self) -> Door:
        return Door()

    def traps(self, sessions: list[MainSession]) -> list[tuple[str, str]]:
        """What of the addresses of these sessions, main's and the gateway's keeps the redirect from working: sentences,
        each with what to do."""
        return []

    async def close(self) -> None:
        """Gives back connections of the driver itself."""
        return None


REGISTRY: dict[str, type[RedirectDriver]] = {}


def register(driver: type[RedirectDriver]) -> type[RedirectDriver]:
    """Class decorator: makes a driver known by its name."""
    if driver.name in REGISTRY:
        raise ValueError(f"two redirect drivers are called {driver.name}")
    REGISTRY[driver.name] = driver
    return driver


def make_driver(context: VolumeContext, options: dict[str, Any]) -> RedirectDriver:
    """The driver that `options["driver"]` names. ConfigError with key and reason for what it does not understand."""
    kind = driver_class(options)
    return kind(context, check_options(kind, options))


def driver_class(options: dict[str, Any]) -> type[RedirectDriver]:
    name = options.get("driver")
    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise ConfigError(f"there is no redirect driver {name!r}; known are {known}", key="redirect.driver")
    return REGISTRY[name]


def check_options(kind: type[RedirectDriver], options: dict[str, Any]) -> DriverOptions:
    try:
        model = kind.options_model.model_validate(options)
        if model.limit_s <= 0:
            raise UsageError("the limit must be longer than 0")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(first["msg"], key=f"redirect.{key}" if key else "redirect") from None
    except UsageError as error:
        raise ConfigError(error.message, key="redirect.limit") from None
    return model


async def wait_gone(driver: RedirectDriver, limit_s: float, poll_s: float = 0.1, drop_again_s: float = 3.0,
                    on_left: Callable[[int], None] | None = None) -> None:
    """After `drop_all`: polls until only the gateway's own sessions are on main; TimeoutError_ names who is left.

    A session that comes meanwhile (its login had passed the redirect check just before the redirect was set) is
    dropped too, and one that does not go is dropped again after `drop_again_s`; not sooner, because a second loss in
    the middle of a reconnect harms some hosts.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    dropped_at: dict[str, float] | None = None
    while True:
        others = [session for session in await driver.sessions() if not session.ours]
        if on_left is not None:
            on_left(len(others))
        if not others:
            return
        now = loop.time()
        if now >= end:
            names = ", ".join(sorted({session.initiator for session in others}))
            raise TimeoutError_(f"main still has sessions of {names} after {limit_s:g} s")
        if dropped_at is None:
            dropped_at = {session.id: now for session in others}
        if any(now - dropped_at.get(session.id, now - drop_again_s) >= drop_again_s for session in others):
            await driver.drop_all()
            dropped_at = {session.id: now for session in others}
        await asyncio.sleep(min(poll_s, max(0.0, end - now)))


class Memo:
    """A small JSON document that outlives the process: written beside, flushed, renamed, and the folder flushed.

    The way home never waits for the disk under it (rule 10): what cannot be removed counts as removed in this process,
    and `forget` raises nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: dict[str, Any] | None = None
        self._forgotten = False         # it counts no more, whether its file could be removed or not

    @property
    def path(self) -> Path | None:
        return self._path

    @property
    def kept(self) -> bool:
        return self._memory is not None or (self._path is not None and not self._forgotten and self._path.exists())

    def read(self) -> dict[str, Any] | None:
        """None when nothing is kept. DetourError when it cannot be read."""
        if self._path is None or self._forgotten:
            return self._memory
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DetourError(f"the memo {self._path} cannot be read: {error}") from None

    def tidy(self) -> None:
        """At the start of a process, before it writes: what a kill has left of an unfinished write goes."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                remove_unfinished(self._path)

    def write(self, content: dict[str, Any]) -> None:
        if self._path is None:
            self._memory = content
            return
        write_durably(self._path, json.dumps(content, indent=1).encode())
        self._forgotten = False

    def ignore(self) -> None:
        """It counts no more in this process. Its file stays until `forget`, for which a disk is waited."""
        self._memory = None
        self._forgotten = True

    def forget(self) -> None:
        self.ignore()
        if self._path is None:
            return
        try:
            remove_durably(self._path)
        except OSError as error:
            log.warning("a file of the state folder cannot be removed; the next start finds it once more",
                        file=str(self._path), reason=error.strerror)


def require_numeric(address: Address) -> None:
    """StorageError for a name: hosts are told an IP address."""
    if not address.numeric:
        raise StorageError(f"a redirect needs an IP address, not the name {address.host!r}",
                           hint="Write the IP address into gateway.advertise.")


def check_place(found: Address | None, address: Address | None, who: str, about: str = "",
                home: tuple[str, str] = ("does not redirect", "not redirect")) -> None:
    """StorageError unless `found` is where `who` should send hosts. `home`: what it does, and should do, without an
    address; `about`: for which target."""
    if not same_place(found, address):
        does = f"redirects to {found}" if found else home[0]
        raise StorageError(f"{who} {does}{about}, but should {f'redirect to {address}' if address else home[1]}")


def same_place(one: Address | None, other: Address | None) -> bool:
    """Whether two addresses are the same, in whatever spelling."""
    if one is None or other is None:
        return one is other
    return one.port == other.port and same_host(one.host, other.host)


def same_host(one: str, other: str) -> bool:
    try:
        return ipaddress.ip_address(one.strip("[]")) == ipaddress.ip_address(other.strip("[]"))
    except ValueError:
        return one.lower() == other.lower()
