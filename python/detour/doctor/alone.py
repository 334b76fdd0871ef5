"""The doctor where no gateway serves the configuration: main is opened by a session of its own."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from detour.assembly import check_served, gateway_address, make_unit, stable_isid
from detour.backups.catalog import Catalog, Status
from detour.config import Config
from detour.doctor.checkup import examine
from detour.doctor.findings import Case, Finding
from detour.errors import BusyError, DetourError
from detour.iscsi.initiator import connect
from detour.redirect.base import Address
from detour.runtime import Runtime
from detour.stores import open_store
from detour.urls import IscsiUrl


async def examine_config(config: Config, volume: str) -> list[Finding]:
    """Findings of one volume. ConfigError when the configuration cannot be served at all."""
    address = gateway_address(config.gateway)
    check_served(config)
    unit = make_unit(volume, config, address)
    history = Catalog(config.gateway.state / "backups").list(volume) if config.gateway.state.exists() else []
    case = Case(volume, unit.section, config, unit.driver, address,
                history=[record for record in history if record.status is Status.COMPLETE])
    async with Runtime() as runtime:
        try:
            case.main = await _open_main(runtime, case)
        except (DetourError, OSError) as error:
            case.main_error = error
        try:
            return await examine(case)
        finally:
            await unit.driver.close()
            if case.main is not None:
                await case.main.close()


async def _open_main(runtime: Runtime, case: Case) -> Any:
    """With the gateway's own name and ISID: main then knows it as it will know the gateway. So it is not done while a
    detour may be under way, whose session it would end."""
    url, driver = case.section.main, case.driver
    siblings = [name for name, section in case.config.volume.items()
                if section.target_name.lower() == case.section.target_name.lower()]
    for name in siblings:
        if (case.state / "volumes" / f"{name}.detour.json").exists():
            raise BusyError(f"a detour of {name} is not ended, and the gateway does not answer",
                            hint="Start the gateway: it brings the host home.")
    if not isinstance(url, IscsiUrl):
        return await open_store(runtime, url)
    door = driver.door()
    if door.portal is not None or door.target is not None:
        portal = door.portal or Address(url.host, url.port)
        url = replace(url, host=portal.host, port=portal.port, target=door.target or url.target)
    main = await connect(runtime, url, retry_seconds=0.0, initiator_name=driver.context.initiator_name,
                         isid=stable_isid(case.state, case.name), source_ip=door.source_ip, follow_redirect=False)
    driver.own_tsihs = lambda: frozenset({main.session_handle} if main.state == "connected" else ())
    return main
