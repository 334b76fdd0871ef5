"""libiscsi's tools at the door: discovery, CHAP and redirect."""
import asyncio
import shutil
import subprocess

import pytest

from detour.iscsi.chap import ChapAuth
from detour.iscsi.listener import TargetEntry
from tests.support.logins import HOST, TARGET
from tests.support.sinks import Door

pytestmark = [pytest.mark.peer("iscsi-inq"),
              pytest.mark.skipif(not (shutil.which("iscsi-inq") and shutil.which("iscsi-ls")),
                                 reason="libiscsi's tools are not installed")]
OTHER = "iqn.2026-01.example:other"
SECRET = HOST.secret.reveal()


async def tool(*words):
    """Starts a tool; it is killed with the test."""
    return await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


async def output(*words):
    process = await tool(*words)
    async with asyncio.timeout(10):
        text, _ = await process.communicate()
    return process.returncode, text.decode()


async def stop(process):
    if process.returncode is None:
        process.kill()
    await process.communicate()


def test_discovery():
    async def work():
        async with Door() as door:
            door.listener.add_target(TargetEntry(OTHER, None, portal_group=3, redirect="192.0.2.1:3260"))
            code, text = await output("iscsi-ls", f"iscsi://{door.host}:{door.port}/")
            assert code == 0
            assert set(text.split("\n")) == {"", f"Target:{TARGET} Portal:{door.host}:{door.port},1",
                                             f"Target:{OTHER} Portal:{door.host}:{door.port},3"}
    asyncio.run(work())


def test_chap():
    async def work():
        async with Door() as door:
            door.entry.auth = ChapAuth((HOST,))
            process = await tool("iscsi-inq", f"iscsi://{HOST.user}%{SECRET}@{door.host}:{door.port}/{TARGET}/0")
            try:
                await door.until(lambda: door.listener.sessions)
                assert door.listener.sessions[1].user == HOST.user
            finally:
                await stop(process)
            code, text = await output("iscsi-inq", f"iscsi://{HOST.user}%wrong@{door.host}:{door.port}/{TARGET}/0")
            assert code and "Authentication failure" in text
    asyncio.run(work())


def test_a_redirect_is_followed():
    async def work():
        async with Door() as door, Door() as elsewhere:
            door.entry.redirect = f"{elsewhere.host}:{elsewhere.port}"
            process = await tool("iscsi-inq", f"iscsi://{door.host}:{door.port}/{TARGET}/0")
            try:
                await elsewhere.until(lambda: elsewhere.listener.sessions)
                assert not door.listener.sessions and door.listener.redirects == 1
            finally:
                await stop(process)
    asyncio.run(work())
