"""One volume under examination: the checks in their order, each bounded, none ending the others."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from detour.doctor.findings import Case, Finding, ok, problem, said_by
from detour.doctor.on_gateway import check_address, check_journal, check_machine, check_medium, check_state
from detour.doctor.on_main import (
    check_addresses,
    check_hosts,
    check_main,
    check_pause,
    check_portals,
    check_redirect,
)
from detour.doctor.on_stores import check_stores
from detour.errors import DetourError

log = structlog.get_logger(__name__)

CHECK_LIMIT_S = 60.0

# In a detour main redirects and the host is here: what looks at main's redirect and sessions has to wait.
ON_MAIN: tuple[Callable[[Case], Awaitable[list[Finding]]], ...] = (
    check_portals, check_redirect, check_hosts, check_addresses, check_pause)
ANYWHERE: tuple[Callable[[Case], Awaitable[list[Finding]]], ...] = (
    check_address, check_stores, check_journal, check_medium, check_state, check_machine)
# What would take the disks of a copy that runs, or the room that its image is about to take.
NOT_IN_DETOUR = (check_stores, check_journal, check_medium)


async def examine(case: Case) -> list[Finding]:
    """All findings of a volume. Never raises for what it finds."""
    found = await _bounded(check_main, case)
    if case.in_detour:
        found.append(ok("redirect", f"the volume is in a detour now ({case.in_detour}): main, journal and "
                        "stores were left alone"))
    else:
        for check in ON_MAIN if case.main is not None else ON_MAIN[:2]:
            found += await _bounded(check, case)
    for check in ANYWHERE:
        if not case.in_detour or check not in NOT_IN_DETOUR:
            found += await _bounded(check, case)
    return found


async def _bounded(check: Callable[[Case], Awaitable[list[Finding]]], case: Case) -> list[Finding]:
    name = check.__name__.removeprefix("check_")
    try:
        async with asyncio.timeout(CHECK_LIMIT_S):
            return await check(case)
    except TimeoutError:
        return [problem(name, f"the check took longer than {CHECK_LIMIT_S:g} s", "Look for what does not answer.")]
    except (DetourError, OSError) as error:
        said, hint = said_by(error)
        return [problem(name, said, hint or "Mend what the sentence says, and look again.")]
