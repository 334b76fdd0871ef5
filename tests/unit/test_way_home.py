"""Registrations on the way home of a run, with fake core and redirect: in which order, and what is told."""
import pytest

from detour.errors import StorageError
from detour.phases import Result
from detour.registrar import Brought
from detour.run_parts import CORE_PASS
from tests.support.run_world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_registrations_that_main_shut_out_are_tried_again_when_it_redirects_no_more(world):
    brought = [Brought(("iqn.one is not registered",), True), Brought()]

    async def bring(let_in):
        world.live.log.append("bring_registrations")
        return brought.pop(0)
    world.live.bring_registrations = bring
    assert world.go() is Result.DONE and world.run.warnings == []
    log = [name for name in world.live.log if name in ("bring_registrations", "clear", "send_home")]
    assert log == ["bring_registrations", "clear", "bring_registrations", "send_home"]


def test_registrations_that_main_does_not_take_are_told_and_the_host_goes_home(world):
    world.live.brought = Brought(("iqn.one is not registered",))
    assert world.go() is Result.DONE
    assert any("iqn.one is not registered" in sentence for sentence in world.run.warnings)
    assert world.live.log.count("bring_registrations") == 1


def test_main_is_writable_again_before_hosts_are_served_on(world):
    world.live.fail["clear"] = [StorageError("not now")]
    assert world.go() is Result.DONE
    log = world.live.log
    first = log.index("keep_writing")
    assert log.index("bring_registrations") < first < log.index("resume_hosts")
    assert "bring_registrations" in log[first:] and log.index("send_home") > first


def test_a_resumed_run_leaves_registrations_alone_when_hosts_are_home(world):
    world.restarted(CORE_PASS, None)
    world.driver.address = None
    world.go()
    assert "leave_main" in world.live.log and "bring_registrations" not in world.live.log
