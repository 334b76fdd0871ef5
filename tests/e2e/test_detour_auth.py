"""A detour where everyone asks everyone for proof: host, gateway, main, backup storage over iSCSI; CHAP both ways."""
from __future__ import annotations

import asyncio
import os

import pytest

from detour.errors import LoginError
from detour.iscsi.chap import Credentials
from detour.iscsi.initiator import connect
from detour.urls import Secret
from tests.support.processes import detour_ready
from tests.support.site import HOST, IQN, Site, same_files

SIZE = 24 << 20
BACKUP_IQN = "iqn.2026-01.org.detour:backup"
SECRETS = {name: f"the secret of {name}" for name in ("host", "gateway", "main", "keeper", "vault")}


def write_secrets(folder):
    paths = {}
    for name, secret in SECRETS.items():
        path = folder / f"{name}.secret"
        path.write_text(secret + "\n")
        path.chmod(0o600)
        paths[name] = path
    return paths


async def refused(attempt):
    with pytest.raises(LoginError) as caught:
        await attempt
    return caught.value.status_class, caught.value.status_detail


async def whole(folder):
    paths = write_secrets(folder)
    vault, ready = detour_ready(
        "target", str(folder / "vault.img"), "--size", str(SIZE), "--iqn", BACKUP_IQN, "--listen", "127.0.0.1:0",
        "--chap-user", "keeper", "--chap-secret-file", str(paths["keeper"]), "--mutual-user", "vault",
        "--mutual-secret-file", str(paths["vault"]))
    portal = ready.split("portal=")[1].split()[0]
    login = ('user = "{}", secret-file = "{}", mutual-user = "{}", mutual-secret-file = "{}", data-digest = true')
    store_auth = login.format("keeper", paths["keeper"], "vault", paths["vault"])
    volume = f"""
main-auth = {{ {login.format("gateway", paths["gateway"], "main", paths["main"])} }}
auth = {{ chap-user = "host", chap-secret-file = "{paths['host']}", mutual-user = "main", \
mutual-secret-file = "{paths['main']}" }}
access = {{ initiators = ["iqn.2026-01.org.detour:host*"], networks = "127.0.0.0/8" }}
copy = {{ rate = "8MiB/s" }}
"""
    at_main = ("--chap-user", "host", "--chap-secret-file", str(paths["host"]), "--chap-user", "gateway",
               "--chap-secret-file", str(paths["gateway"]), "--mutual-user", "main", "--mutual-secret-file",
               str(paths["main"]))
    with vault:
        # The table of the store gets a second line behind its URL.
        async with Site(folder, SIZE, volume=volume, target_options=at_main,
                        store_url=f'iscsi://{portal}/{BACKUP_IQN}/0"\nauth = {{ {store_auth} }} # ') as site:
            await site.start_gateway()
            await detoured(site, folder)
    logs = "".join(path.read_text() for path in folder.glob("*.log")) + "".join(vault.output + vault.errors)
    assert "session opened" in logs and not any(secret in logs for secret in SECRETS.values())


async def detoured(site, folder):
    login = f"host%{SECRETS['host'].replace(' ', '%20')}@"
    mutual = Credentials("main", Secret(SECRETS["main"]))
    host = await connect(site.runtime, site.main_url.replace("//", f"//{login}"), initiator_name=HOST, mutual=mutual)
    data = os.urandom(1 << 20)
    await host.write(4096, data)
    await host.flush()
    async with site.client() as client:
        started = await site.begin(client)
        assert (await site.follow(client, started["id"], "copying"))["result"] is None
        later = os.urandom(1 << 16)
        await host.write(8 << 20, later)
        assert host.portal.endswith(f":{site.port}")
        door = f"iscsi://{login}127.0.0.1:{site.port}/{IQN}/0"
        for url, name, status in (
                (door.replace(login, ""), HOST, (2, 1)), (door.replace("host%", "gateway%"), HOST, (2, 1)),
                (door, HOST.replace("host", "else"), (2, 2))):
            assert await refused(connect(site.runtime, url, initiator_name=name)) == status
        document = await site.follow(client, started["id"])
    assert document["result"] == "done", document
    told = await site.detour("status", "--json")
    assert told.code == 0 and not any(secret in told.output + told.errors for secret in SECRETS.values())
    assert await host.read(4096, len(data)) == data and await host.read(8 << 20, len(later)) == later
    await host.close()
    assert same_files(folder / "vault.img", site.pit_image) is None
    assert site.main_image.read_bytes()[8 << 20:(8 << 20) + len(later)] == later


@pytest.mark.slow
def test_a_detour_among_strangers(tmp_path):
    asyncio.run(asyncio.wait_for(whole(tmp_path), 120))
