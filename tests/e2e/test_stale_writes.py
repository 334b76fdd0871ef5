"""A few detours of a main whose writes are slow: see stale_writes.py, of which whole campaigns are run by hand."""
from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import stale_writes
from tests.e2e.stale_writes import DetourMain, Outcome, Site, campaign

pytestmark = pytest.mark.timeout(120)

# An administrator's program for `detour target` that tells of no host, and does not wait for the end of their writes.
LIAR = """
import http.client, json, os, socket, sys, urllib.parse
action, api = sys.argv[1], {api!r}
own = os.environ["DETOUR_INITIATOR"]
if action == "sessions":
    print(json.dumps([{{"id": "1", "initiator": own, "ours": True}}]))
if action not in ("set", "clear", "drop"):
    sys.exit(0)
link = http.client.HTTPConnection("main", timeout=5)
link.sock = socket.socket(socket.AF_UNIX)
link.sock.connect(api)
known = {{"set": ("PUT", "redirect"), "clear": ("DELETE", "redirect"), "drop": ("POST", "sessions/drop")}}
method, what = known[action]
target = urllib.parse.quote(os.environ["DETOUR_TARGET"], safe="")
link.request(method, f"/v1/targets/{{target}}/{{what}}",
             json.dumps({{"address": os.environ["DETOUR_ADDRESS"], "except": [own]}}))
if action != "drop":
    link.getresponse()
"""


class LyingMain(DetourMain):
    def redirect(self, _volume: Any) -> str:
        program = self.folder / "liar.py"
        program.write_text(LIAR.format(api=str(self.api)))
        return (f'driver = "hook", command = {json.dumps([sys.executable, str(program)])}, '
                f'portals = ["{self.portal}"], witness-name = "iqn.2026-01.org.detour:witness"')


def check(outcomes: list[Outcome]) -> None:
    assert [outcome.line() for outcome in outcomes if outcome.wrong] == []
    assert sum(outcome.under_way for outcome in outcomes) > 0, "no write was under way at any freeze"


def test_no_write_from_behind_the_freeze_with_a_slow_detour_target() -> None:
    check(asyncio.run(campaign(3, "detour", 11, 3)))


@pytest.mark.peer("tgtd", "gcc")
def test_no_write_from_behind_the_freeze_with_a_slow_tgtd() -> None:
    check(asyncio.run(campaign(3, "tgt", 12, 3)))


def test_a_main_that_conceals_its_sessions_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that lies, the freeze comes while old writes run: what the campaign checks can be wrong."""
    monkeypatch.setattr(stale_writes, "PLACES", 36)

    async def work() -> list[str]:
        made = LyingMain(tmp_path, 1, random.Random(3), (1200.0, 1200.0))
        async with Site(tmp_path, made) as site:
            return (await site.run(made.volumes[0], random.Random(4))).wrong
    wrong = asyncio.run(work())
    assert any("while it was frozen" in fault or "is not main as it was" in fault for fault in wrong), wrong
