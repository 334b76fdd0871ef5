"""Starts that cannot work, as a user meets them: one sentence that names the place, an exit code, never a traceback."""
from __future__ import annotations

import asyncio
import json
import socket

import pytest

from tests.support.ports import free_port
from tests.support.processes import detour
from tests.support.site import IQN, Site, eventually

GOOD = """[gateway]
listen = ["127.0.0.1:{port}"]
advertise = "127.0.0.1:{port}"
state = "{folder}/state"
api = "unix:{folder}/api.sock"

[volume.vol]
main = "iscsi://127.0.0.1:{main}/iqn.2026-01.org.detour:site/0"
journal = {{ path = "{folder}/vol.journal", size = "16MiB" }}
redirect = {{ driver = "detour", api = "unix:{folder}/main.sock" }}

[store.raw]
url = "file://{folder}/backup.img"
"""
LIMIT_SECONDS = 30.0


def config(tmp_path, port=0, text=GOOD):
    path = tmp_path / "detour.toml"
    path.write_text(text.format(folder=tmp_path, port=port or free_port(), main=free_port()))
    return path


def refused(code, *words):
    """The command ends with `code` and one complaint, which is answered."""
    program = detour(*words)
    assert program.wait(LIMIT_SECONDS) == code, program.said()
    said = "\n".join(program.errors)
    assert "Traceback" not in said and said.startswith("detour: "), program.said()
    return said


@pytest.mark.parametrize(("old", "new", "words"), [
    ("journal =", "jurnal =", ("volume.vol.jurnal", "unknown", "journal")),
    ('"16MiB"', '"16 apples"', ("volume.vol.journal.size", "16 apples")),
    ('"16MiB"', '"1MiB"', ("volume.vol.journal", "too small")),
    ('driver = "detour"', 'driver = "magic"', ("volume.vol.redirect", "magic")),
    ("iscsi://", "scsi://", ("volume.vol.main", "scsi:")),
    ("[store.raw]", "[store.raw", ("not TOML",)),
    ('advertise = "127.0.0.1', 'advertise = "0.0.0.0', ("gateway.advertise",)),
])
def test_a_wrong_configuration_is_refused_with_file_key_and_reason(tmp_path, old, new, words):
    path = config(tmp_path, text=GOOD.replace(old, new))
    said = refused(2, "serve", "-c", path)
    for word in (str(path), *words):
        assert word in said, said


@pytest.mark.parametrize("words", [
    ("read", "iscsi://", "--length", "512"), ("inq", "iscsi://127.0.0.1:99999/iqn.2026-01.x:y/0"),
    ("target", "mem:many"), ("bench", "ftp://somewhere/x"), ("frobnicate",),
    ("serve", "-c", "/nonexistent/detour.toml"), ("backup", "vol", "--api", "carrier-pigeon")])
def test_wrong_use_is_refused(words):
    assert "Traceback" not in refused(2, *words)


def test_a_port_in_use_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words in (("target", "mem:1MiB", "--listen", f"127.0.0.1:{port}"),
                      ("serve", "-c", config(tmp_path, port, GOOD.partition("[volume")[0]))):
            said = refused(1, *words)
            assert f"127.0.0.1:{port}" in said and "in use" in said, said


@pytest.mark.parametrize("where", ["below a file", "no room"])
def test_a_journal_that_cannot_be_made_is_told(tmp_path, where):
    text = GOOD
    if where == "below a file":
        (tmp_path / "plain").write_text("no folder")
        text = GOOD.replace("/vol.journal", "/plain/vol.journal")
    else:
        text = GOOD.replace("16MiB", "900TiB")
    said = refused(1, "serve", "-c", config(tmp_path, text=text))
    assert "vol.journal" in said, said


def test_no_gateway_is_told(tmp_path):
    said = refused(1, "status", "--api", f"unix:{tmp_path}/none.sock")
    assert f"{tmp_path}/none.sock" in said, said


@pytest.mark.slow
def test_main_that_is_not_there_or_refuses_is_told_and_waited_for(tmp_path):
    asyncio.run(main_away(tmp_path))


async def main_away(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a secret of sixteen")
    secret.chmod(0o600)
    async with Site(tmp_path, 16 << 20, target_options=("--chap-user", "host", "--chap-secret-file",
                                                        str(secret))) as site:
        away = site.main_url.replace(f":{site.main_port}/{IQN}", f":{free_port()}/{IQN}-away")
        site.volume = f"""
[volume.away]
main = "{away}"
journal = {{ path = "{tmp_path / 'away.journal'}", size = "16MiB" }}
redirect = {{ driver = "detour", api = "unix:{tmp_path / 'away.sock'}" }}
"""
        await site.start_gateway()
        told = await site.detour("status", "--json")
        trouble = {row["name"]: row["trouble"] for row in json.loads(told.output)}
        assert "refused" in trouble["away"], trouble
        assert "authentication" in trouble["vol"], trouble
        for volume in ("away", "vol"):
            told = await site.detour("backup", volume, "--store", "raw")
            assert told.code == 1 and trouble[volume].split(":")[0] in told.errors, told
            assert "Traceback" not in told.errors
        await site.kill_main()
        site.target_options = ()
        await site.start_main()

        async def ready() -> bool:
            async with site.client() as client:
                return (await client.volume("vol"))["ready"]
        assert await eventually(ready, 20), "main is there now"
        document = await site.backup()
        assert document["result"] == "done", document
