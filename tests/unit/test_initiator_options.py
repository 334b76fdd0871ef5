"""How a URL and options become a login."""
import pytest

from detour.errors import UsageError
from detour.iscsi.chap import Credentials
from detour.iscsi.initiator import default_initiator_name, login_options
from detour.iscsi.keys import valid_name
from detour.urls import Secret, parse_iscsi_url

URL = parse_iscsi_url("iscsi://user%secret@host/iqn.2026-01.example:a/1")
PLAIN = parse_iscsi_url("iscsi://host/iqn.2026-01.example:a/1")


def test_the_default_name_is_a_name():
    assert valid_name(default_initiator_name())


def test_odd_host_names_make_names_too(monkeypatch):
    for name in ("Ärger_Host.LAN", "", "-.-", "x" * 300):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        assert valid_name(default_initiator_name())


def test_what_the_url_says_is_used():
    how = login_options(URL, header_digest=True, queue_depth=7, source_ip="192.0.2.1")
    assert how.credentials == Credentials("user", Secret("secret"))
    assert how.wishes.header_digest == ("CRC32C", "None") and how.wishes.data_digest == ("None",)
    assert how.wishes.queue_depth == 7 and how.source_ip == "192.0.2.1"
    assert how.isid[0] == 0x80 and how.isid != login_options(URL).isid
    assert login_options(PLAIN).credentials is None
    assert "secret" not in repr(how).replace("secret=", "")


@pytest.mark.parametrize("url, options", [
    (PLAIN, {"mutual": Credentials("m", Secret("x"))}), (PLAIN, {"initiator_name": "nobody"}), (PLAIN, {"isid": b"1"})])
def test_what_does_not_fit_together_is_wrong_use(url, options):
    with pytest.raises(UsageError):
        login_options(url, **options)
