"""Who may come in: `detour target` with CHAP, discovery of its own, access rules, IPv6 and redirects, by its own tools
and by libiscsi's."""
from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from detour.cli import main as cli_main
from tests.support.processes import detour_ready

IQN = "iqn.2026-01.example:door"
HOST, OTHER = "iqn.2026-01.example:host1", "iqn.2026-01.other:host2"
SECRETS = {"host": "host1-secret-12", "main": "main1-secret-34", "seek": "seek1-secret-56", "show": "show1-secret-78"}


@pytest.fixture
def secrets(tmp_path) -> dict[str, str]:
    paths = {}
    for name, secret in SECRETS.items():
        path = tmp_path / f"{name}.secret"
        path.write_text(secret + "\n")
        path.chmod(0o600)
        paths[name] = str(path)
    return paths


@contextlib.contextmanager
def target(*options: str, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """A running `detour target` with one disk; its portal. No secret may be in what it says."""
    program, ready = detour_ready("target", "mem:16MiB", "--iqn", IQN, "--listen", listen, *options)
    try:
        yield ready.split("portal=")[1].split()[0]
    finally:
        program.stop()
        said = "\n".join(program.output + program.errors)
        assert not any(secret in said for secret in SECRETS.values())


@pytest.fixture
def tool(capfd):
    """`detour ...` to its end; what it says, which holds no secret."""
    def run(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        ended = cli_main.run(list(words))
        said = "".join(capfd.readouterr())
        assert ended == code, said
        assert not any(secret in said for secret in SECRETS.values())
        return said
    return run


def chap(secrets: dict[str, str], *, mutual: bool = True) -> list[str]:
    words = ["--user", "host1", "--secret-file", secrets["host"]]
    return [*words, "--mutual-user", "main1", "--mutual-secret-file", secrets["main"]] if mutual else words


def test_the_tools_prove_themselves_and_are_proven_to(tmp_path, secrets, tool):
    with target("--chap-user", "host1", "--chap-secret-file", secrets["host"], "--mutual-user", "main1",
                "--mutual-secret-file", secrets["main"]) as portal:
        url = f"iscsi://{portal}/{IQN}/0"
        (tmp_path / "data").write_bytes(b"through the door" * 256)
        how = [*chap(secrets), "--header-digest", "--data-digest", "--initiator-name", HOST]
        tool("write", url, "--input", str(tmp_path / "data"), *how)
        tool("read", url, "--length", "4096", "--output", str(tmp_path / "back"), *how)
        assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()
        assert json.loads(tool("inq", url, "--json", *how))["bytes"] == 16 << 20
        assert json.loads(tool("bench", url, "--seconds", "0.1", "--json", *how))["ok"]
        listed = json.loads(tool("ls", f"iscsi://{portal}", "--json", "--plain-discovery", *how))
        assert [one["target"] for one in listed] == [IQN] and listed[0]["luns"][0]["bytes"] == 16 << 20
        by_url = url.replace("//", "//host1@") + (f"?secret-file={secrets['host']}&mutual-user=main1"
                                                  f"&mutual-secret-file={secrets['main']}&header-digest=crc32c")
        tool("inq", by_url)

        assert "0201" in tool("inq", url, code=1)
        assert "0201" in tool("inq", url, "--user", "host1", "--secret-file", secrets["seek"], code=1)
        assert "prove" in tool("inq", url, *chap(secrets, mutual=False), "--mutual-user", "main1",
                               "--mutual-secret-file", secrets["seek"], code=1)
        assert "must differ" in tool("inq", url, *chap(secrets, mutual=False), "--mutual-user", "main1",
                                     "--mutual-secret-file", secrets["host"], code=2)


@pytest.mark.parametrize("algorithm", ["md5", "sha-1", "sha-256", "sha3-256"])
def test_one_algorithm_is_enough(secrets, algorithm, tool):
    with target("--chap-user", "host1", "--chap-secret-file", secrets["host"], "--chap-algorithm", algorithm) as portal:
        tool("inq", f"iscsi://{portal}/{IQN}/0", *chap(secrets, mutual=False))


def test_discovery_has_credentials_of_its_own(secrets, tool):
    with target("--discovery-user", "seek1", "--discovery-secret-file", secrets["seek"], "--discovery-mutual-user",
                "show1", "--discovery-mutual-secret-file", secrets["show"]) as portal:
        how = ["--user", "seek1", "--secret-file", secrets["seek"]]
        assert IQN in tool("ls", "--no-luns", f"iscsi://{portal}", *how)
        assert IQN in tool("ls", "--no-luns", f"iscsi://{portal}", *how, "--mutual-user", "show1",
                           "--mutual-secret-file", secrets["show"])
        assert "0201" in tool("ls", f"iscsi://{portal}", code=1)
        assert "0201" in tool("ls", f"iscsi://{portal}", *chap(secrets, mutual=False), code=1)
        tool("inq", f"iscsi://{portal}/{IQN}/0")        # the target itself asks for nothing


def test_who_is_not_admitted_neither_logs_in_nor_sees_the_target(tool):
    with target("--allow-initiator", "iqn.2026-01.example:*", "--allow-network", "127.0.0.0/8") as portal:
        url = f"iscsi://{portal}/{IQN}/0"
        assert IQN in tool("ls", f"iscsi://{portal}", "--initiator-name", HOST)
        tool("inq", url, "--initiator-name", HOST)
        assert IQN not in tool("ls", f"iscsi://{portal}", "--initiator-name", OTHER)
        assert "0202" in tool("inq", url, "--initiator-name", OTHER, code=1)
        assert "0203" in tool("inq", url.replace(":door", ":door2"), "--initiator-name", HOST, code=1)
    with target("--allow-network", "192.0.2.0/24", "--allow-network", "::1") as portal:
        assert IQN not in tool("ls", f"iscsi://{portal}")
        assert "0202" in tool("inq", f"iscsi://{portal}/{IQN}/0", code=1)


def redirect(api: str, to: str) -> None:
    request = urllib.request.Request(f"{api}/v1/targets/{IQN}/redirect", method="PUT",
                                     data=json.dumps({"address": to}).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_redirects_to_names_and_both_kinds_of_addresses(tool):
    front, ready = detour_ready("target", "mem:8MiB", "--iqn", IQN, "--listen", "[::1]:0", "--api",
                                "http://127.0.0.1:0")
    with front:
        portal, api = ready.split("portal=")[1].split()[0], ready.split("api=")[1].split()[0]
        assert portal.startswith("[::1]:")
        url = f"iscsi://{portal}/{IQN}/0"
        assert json.loads(tool("inq", url, "--json"))["bytes"] == 8 << 20
        for listen, named in (("127.0.0.1:0", "127.0.0.1"), ("127.0.0.1:0", "localhost"), ("[::1]:0", "[::1]")):
            with target(listen=listen) as other:
                redirect(api, f"{named}:{other.rpartition(':')[2]}")
                assert json.loads(tool("inq", url, "--json"))["bytes"] == 16 << 20
        redirect(api, portal)       # a circle
        assert "redirects more than" in tool("inq", url, code=1)


@pytest.mark.peer("iscsi-inq", "iscsi-ls")
def test_libiscsi_proves_itself_and_is_proven_to(secrets):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, capture_output=True, text=True, timeout=30)

    with target("--chap-user", "host1", "--chap-secret-file", secrets["host"], "--mutual-user", "main1",
                "--mutual-secret-file", secrets["main"], "--discovery-user", "host1", "--discovery-secret-file",
                secrets["host"]) as portal:
        login = f"host1%{SECRETS['host']}@"
        proof = f"?target_user=main1&target_password={SECRETS['main']}"
        assert run("iscsi-inq", f"iscsi://{login}{portal}/{IQN}/0").returncode == 0
        assert run("iscsi-inq", f"iscsi://{login}{portal}/{IQN}/0{proof}").returncode == 0
        assert run("iscsi-inq", f"iscsi://{login}{portal}/{IQN}/0{proof}x").returncode != 0
        assert run("iscsi-inq", f"iscsi://host1%wrong@{portal}/{IQN}/0").returncode != 0
        assert run("iscsi-inq", f"iscsi://{portal}/{IQN}/0").returncode != 0
        assert IQN in run("iscsi-ls", f"iscsi://{login}{portal}").stdout
        assert IQN not in run("iscsi-ls", f"iscsi://{portal}").stdout


def test_a_secret_that_others_may_read_starts_nothing(secrets, tool):
    Path(secrets["host"]).chmod(0o644)
    said = tool("target", "mem:16MiB", "--chap-user", "u", "--chap-secret-file", secrets["host"], code=2)
    assert "by others" in said and "chmod 600" in said
