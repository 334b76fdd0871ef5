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


def test_what_the_url_says_of_digests_names_and_the_target_counts(monkeypatch):
    monkeypatch.setenv("DETOUR_TEST_SECRET", "the target's secret")
    url = parse_iscsi_url("iscsi://user%own-secret@host/iqn.2026-01.example:a/1?mutual-user=main&data-digest=crc32c"
                          "&mutual-secret-env=DETOUR_TEST_SECRET&initiator-name=iqn.2026-01.example:me")
    assert login_options(parse_iscsi_url(f"{PLAIN}?header-digest=crc32c")).wishes.header_digest == ("CRC32C", "None")
    how = login_options(url)
    assert how.mutual == Credentials("main", Secret("the target's secret")) and how.initiator_name.endswith(":me")
    assert how.wishes.data_digest == ("CRC32C", "None") and how.wishes.header_digest == ("None",)
    assert login_options(url, initiator_name="iqn.2026-01.example:other").initiator_name.endswith(":other")


def test_one_secret_for_both_directions_is_wrong_use():
    with pytest.raises(UsageError, match="must differ"):
        login_options(URL, mutual=Credentials("m", Secret("secret")))
