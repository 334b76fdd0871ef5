"""`detour replay` with real processes: after a gateway that is dead for good, killed at many moments, and repeated."""
from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time

import pytest

from tests.support.dead_gateway import SIZE, DeadGateway
from tests.support.ports import free_port
from tests.support.processes import detour, detour_ready
from tests.support.scenes import played

pytestmark = pytest.mark.slow

IQN = "iqn.2026-01.org.detour:replayed"
KILLS = 12


def command(*words: object) -> tuple[int, dict, str]:
    done = subprocess.run([sys.executable, "-m", "detour", "replay", *map(str, words), "--json"], capture_output=True,
                          text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_killed_at_any_moment_and_repeated_main_ends_right(tmp_path):
    """Main is slow, so that the kills fall into the rounds; each time a little more of it is there."""
    gateway = DeadGateway(tmp_path, seed=3)
    gateway.writes(150)
    journal, image = gateway.die()
    pick, port = random.Random(5), free_port()
    with detour_ready("target", f"{image}", "--listen", f"127.0.0.1:{port}", "--iqn", IQN, "--delay-ms", "30")[0]:
        url = f"iscsi://127.0.0.1:{port}/{IQN}/0"
        words = ("replay", str(journal), "--to", url, "--force")
        ends = []
        for _ in range(KILLS):
            with detour(*words) as program:
                time.sleep(pick.uniform(0.2, 1.4))
                running = program.running
                program.kill()
                ends.append(running)
        assert any(ends), "a kill fell into a run"
        code, document, errors = command(journal, "--to", url, "--force")
        assert code == 0 and document["done"], (document, errors)
    assert image.read_bytes() == gateway.right
    assert len(image.read_bytes()) == SIZE


def test_ctrl_c_ends_it_in_order_and_it_can_be_repeated(tmp_path):
    gateway = DeadGateway(tmp_path, seed=4)
    gateway.writes(150)
    journal, image = gateway.die()
    before = image.read_bytes()
    port = free_port()
    with detour_ready("target", f"{image}", "--listen", f"127.0.0.1:{port}", "--iqn", IQN, "--delay-ms", "200")[0]:
        url = f"iscsi://127.0.0.1:{port}/{IQN}/0"
        with detour("replay", str(journal), "--to", url, "--force") as program:
            while program.running and image.read_bytes() == before:
                time.sleep(0.05)
            if program.running:
                assert program.stop(30) in (0, 130), program.said()
        assert not any("Traceback" in line for line in program.errors), program.said()
        code, document, errors = command(journal, "--to", url, "--force")
        assert code == 0 and document["done"], (document, errors)
    assert image.read_bytes() == gateway.right


def test_a_gateway_that_never_comes_back_is_replaced_by_a_replay(tmp_path):
    """Main still redirects: the replay comes in as the gateway did. The next gateway finds the journal finished, clears
    the redirect, and the host that waited all the time goes on at home."""
    async def play(scene):
        await scene.run_to("copying")
        await scene.written(150)
        await scene.site.kill_gateway()
        journal, site = tmp_path / "vol.journal", scene.site
        code, document, errors = await asyncio.to_thread(command, journal, "--to", site.main_url, "--dry-run")
        assert code == 0 and document["contents"]["bytes"] > 0, (document, errors)
        states = {row["check"]: row["state"] for row in document["checks"]}
        assert states == dict.fromkeys(("size", "identity", "reservations", "journal", "content"), "ok"), document
        assert "has the name" in next(row["finding"] for row in document["checks"] if row["check"] == "identity")
        code, document, errors = await asyncio.to_thread(command, journal, "--to", site.main_url)
        assert code == 0 and document["done"] and document["written_bytes"] > 0, (document, errors)
        assert (await site.main_target())["redirect"] is not None, "the replay leaves the redirect as it is"
        await site.start_gateway()
        await scene.end(("abandoned",))
    played(tmp_path, play, volume='copy = { rate = "4MiB/s" }')


def test_a_copy_of_the_wrong_volumes_journal_is_refused(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        await scene.written(50)
        await scene.site.kill_gateway()
        other, port = tmp_path / "other.img", free_port()
        other.write_bytes(bytes(scene.site.size_bytes))
        with detour_ready("target", str(other), "--listen", f"127.0.0.1:{port}", "--iqn", IQN)[0]:
            code, document, _ = await asyncio.to_thread(command, tmp_path / "vol.journal", "--to",
                                                        f"iscsi://127.0.0.1:{port}/{IQN}/0", "--force")
        refusals = [row["check"] for row in document["checks"] if row["state"] == "refused"]
        assert code == 1 and refusals == ["identity"], document
        assert other.read_bytes() == bytes(scene.site.size_bytes)
        await scene.site.start_gateway()
        await scene.end(("done", "abandoned"))
    played(tmp_path, play, volume='copy = { rate = "8MiB/s" }')
