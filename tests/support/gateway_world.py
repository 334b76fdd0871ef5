"""A gateway, its main (a plain target with its API) and hosts, all in the test's own process, on loopback."""
from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from detour.assembly import own_sessions
from detour.config import Config, parse_config
from detour.detour import DetourRun
from detour.embedded import DiskOptions, EmbeddedTarget, Exceptions, Redirect, make_app, serving
from detour.gateway import Gateway
from detour.iscsi.initiator import Connection, connect
from detour.runtime import Runtime
from detour.urls import IscsiUrl
from tests.support.ports import free_port

IQN = "iqn.2026-01.org.detour:world"
SIZE = 4 << 20


class GatewayWorld:
    """`async with GatewayWorld(folder, luns=2) as world`: volume volN is LUN N of main. `volume` has more lines for the
    table of each volume, `stores` the tables of the stores."""

    def __init__(self, folder: Path, luns: int = 1, volume: str = "", stores: str = "") -> None:
        self.folder, self.luns, self.volume = folder, luns, volume
        self.stores = stores or f'[store.raw]\nurl = "file://{folder}/backups/"\n'
        self.port, self.main_port = free_port(), free_port()
        self.runtime = Runtime()
        self.main: EmbeddedTarget | None = None
        self.gateway: Gateway | None = None
        self._main_life = contextlib.AsyncExitStack()
        self._life = contextlib.AsyncExitStack()

    async def __aenter__(self) -> GatewayWorld:
        for lun in range(self.luns):
            with open(self.image(lun), "wb") as file:
                file.truncate(SIZE)
        (self.folder / "backups").mkdir()
        await self._life.enter_async_context(self.runtime)
        await self.start_main()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.gateway is not None:
            await self.gateway.stop()
        await self.stop_main()
        await self._life.aclose()

    def image(self, lun: int) -> Path:
        return self.folder / f"main-{lun}.img"

    # --- main

    async def start_main(self) -> None:
        self.main = EmbeddedTarget(self.runtime, IQN)
        self._main_life.push_async_callback(self.main.close)
        for lun in range(self.luns):
            await self.main.add_disk(f"file://{self.image(lun)}", DiskOptions())
        await self.main.listen(f"127.0.0.1:{self.main_port}")
        await self._main_life.enter_async_context(serving(make_app(self.main), f"unix:{self.folder / 'main.sock'}"))

    async def stop_main(self) -> None:
        await self._main_life.aclose()
        self.main = None

    @property
    def redirects(self) -> bool:
        assert self.main is not None
        return self.main.entry.redirect is not None

    def redirect_here(self) -> None:
        """As a gateway that died left it: main redirects to it, and lets its own sessions pass."""
        assert self.main is not None
        own = own_sessions(self.config(), IQN)
        passes = Exceptions(frozenset((one.initiator, bytes.fromhex(one.isid)) for one in own))
        self.main.entry.redirect = Redirect(f"127.0.0.1:{self.port}", passes)

    def on_main(self) -> list[str]:
        """Initiators of the sessions on main."""
        assert self.main is not None
        return sorted(info.initiator_name for info in self.main.listener.sessions_of(IQN))

    # --- the gateway

    def config(self) -> Config:
        volumes = "".join(f"""
[volume.vol{lun}]
main = "iscsi://127.0.0.1:{self.main_port}/{IQN}/{lun}"
journal = {{ path = "{self.folder}/vol{lun}.journal", size = "16MiB" }}
redirect = {{ driver = "detour", api = "unix:{self.folder / 'main.sock'}" }}
{self.volume}
""" for lun in range(self.luns))
        return parse_config(f"""[gateway]
listen = ["127.0.0.1:{self.port}"]
state = "{self.folder}/state"
{volumes}
{self.stores}
""", "detour.toml")

    async def start(self) -> Gateway:
        self.gateway = Gateway(self.config())
        await self.gateway.start()
        return self.gateway

    async def stop(self) -> None:
        assert self.gateway is not None
        await self.gateway.stop()
        self.gateway = None

    async def backup(self, volume: str = "vol0", **more: Any) -> dict[str, Any]:
        """A detour to its end; its last document."""
        assert self.gateway is not None
        return await self.end(self.gateway.start_detour(volume, **more))

    @staticmethod
    async def end(run: DetourRun) -> dict[str, Any]:
        return [document async for document in run.follow(0.05)][-1]

    async def reach(self, run: DetourRun, phase: str) -> None:
        """The run is in that phase. AssertionError when it ended before."""
        async for document in run.follow(0.01):
            if document["phase"] == phase:
                return
            assert document["result"] is None, document

    # --- hosts

    async def host(self, lun: int = 0, name: str = "host", **options: Any) -> Connection:
        store = await connect(self.runtime, IscsiUrl("127.0.0.1", self.main_port, IQN, lun),
                              initiator_name=f"iqn.2026-01.org.detour:{name}", **options)
        self._life.push_async_callback(self._close, store)
        return store

    @staticmethod
    async def _close(store: Connection) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await store.close()


async def until(reached: Any, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not reached():
            await asyncio.sleep(0.01)
