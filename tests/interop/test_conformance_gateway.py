"""iscsi-test-cu (libiscsi), the whole suite, through the gateway while a detour copies: with `detour target` and with
tgt as main. Nothing may fail that does not fail on main alone; afterwards main holds what the suite left, and the
backup what main held before.
"""
from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.interop.test_foreign_clients import (
    DETOUR,
    HELD,
    MAINS,
    begin,
    check_end,
    check_still,
    clients_of,
    first_content,
    new_site,
)
from tests.support.conformance import PASSED, Outcome, document_table, failures, run, table
from tests.support.conformance import skips as skips_of
from tests.support.foreign_clients import check_same

FIXED_SKIPS = "### What is skipped on a fixed, writable disk"
PHYSICAL = ["CompareAndWrite", "WriteSame10", "WriteSame16"]      # which need physical blocks of several logical ones
PASSED_MIN = 210
MORE_SKIPS = "### What is skipped through the gateway besides"

pytestmark = [pytest.mark.peer("iscsi-test-cu", "qemu-img"), pytest.mark.slow]


async def suite_alone(main: str, folder: Path) -> list[Outcome]:
    async with new_site(main, folder) as site:
        url = clients_of(site).url
        return await asyncio.to_thread(run, [url, url])


async def suite_in_mid_detour(main: str, folder: Path, families: list[str] | None = None, **options: Any
                              ) -> list[Outcome]:
    """The hosts log in to main, which sends them on to the gateway; so does the tool's second path."""
    async with new_site(main, folder, volume=HELD, journal="1GiB", **options) as site:
        url = clients_of(site).url
        await site.start_gateway()
        detour_id = await begin(site, "copying")
        outcomes = await asyncio.to_thread(run, [url, url], families)
        await check_still(site, detour_id, "copying")
        content = await asyncio.to_thread(clients_of(site).read_out)
        await site.gateway.end()
        site.volume = ""
        await site.start_gateway()
        check_end(site, await site.wait_over(), content)
        check_same(site.pit_image.read_bytes(), first_content(), "the point in time")
    return outcomes


@pytest.mark.parametrize("main", MAINS)
def test_suite_through_the_gateway(main: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns: dict[str, list[Outcome]] = {}
    try:
        columns["alone"] = asyncio.run(suite_alone(main, tmp_path / "alone"))
        columns["gateway"] = asyncio.run(suite_in_mid_detour(main, tmp_path / "site"))
        if main == DETOUR:
            columns["4 KiB blocks"] = asyncio.run(suite_in_mid_detour(
                main, tmp_path / "large", PHYSICAL, main_options="?physical-block=4KiB"))
    finally:
        with capsys.disabled():
            print(f"\n{main} as main\n{table(columns)}")
    if main == DETOUR:
        assert failures(columns["gateway"]) == []
        named = {row[0] for heading in (FIXED_SKIPS, MORE_SKIPS) for row in document_table(heading)}
        assert skips_of(columns["gateway"]) == named
        assert failures(columns["4 KiB blocks"]) == [] and skips_of(columns["4 KiB blocks"]) == set()
        passed = {one.name for one in (*columns["gateway"], *columns["4 KiB blocks"]) if one.verdict == PASSED}
        assert len(passed) >= PASSED_MIN
    else:
        assert failures(columns["gateway"], columns["alone"]) == []
