"""The pure parts of the gateway's and of scale's scenarios: the model, quantiles, fio's figures, images."""
from __future__ import annotations

from pathlib import Path

import pytest

from bench.system.model import (
    CASE,
    GIB,
    Costs,
    Load,
    Machine,
    carries,
    costs_of,
    kept_costs,
    room,
    sentence,
    table,
    used,
)
from bench.system.qemu_backup import KINDS, fio_sample
from bench.system.scale import judge_blocks
from bench.system.scenario import MET, MISSED, Outcome
from bench.system.site import Main, Volume, image
from bench.system.whole_run import share_of
from detour.config import parse_config

COSTS = Costs(read_us=5.0, write_us=4.0, catch_up_us=6.0, copy_us_mib=600.0, connection_bytes=64 * 1024,
              dirty_block_bytes=16.0)


def test_what_a_volume_takes_is_the_sum_of_its_parts() -> None:
    load = Load("one", iops=1000, read_share=0.5, copy_bytes_s=10 << 20, dirty_bytes=GIB, sessions=2)
    takes = used(COSTS, load)
    assert takes["cores"] == 500 * 5.0 + 500 * 10.0 + 10 * 600.0
    assert takes["memory"] == 2 * 64 * 1024 + (GIB // 4096) * 16
    assert takes["journal"] == 500 * (4096 + 64)
    assert takes["links"] > 1000 * 4096 + (10 << 20)


@pytest.mark.parametrize(("machine", "first"), [
    (Machine(cores=4), "cores"), (Machine(bytes_s=1e7), "links"), (Machine(memory_bytes=1e8), "memory"),
    (Machine(journal_bytes_s=1e7), "journal")])
def test_what_is_scarce_is_used_up_first(machine: Machine, first: str) -> None:
    load = Load("one", iops=1000, read_share=0.5, copy_bytes_s=1e6, dirty_bytes=GIB / 16)
    answer = carries(COSTS, machine, load)
    assert answer.first == first
    assert answer.shares[first] == max(answer.shares.values()) <= 1.0
    takes, has = used(COSTS, load), room(machine)
    assert (answer.volumes + 1) * takes[first] > has[first] >= answer.volumes * takes[first]


def test_a_model_without_costs_does_not_divide_by_zero() -> None:
    answer = carries(Costs(), Machine(), Load("idle", 0, 0.5, 0.0, 0.0))
    assert answer.volumes == 0 and answer.first == "" and answer.volume_iops_most == 0.0


def test_what_each_further_block_takes_is_told_apart_from_what_is_there_once() -> None:
    outcome = Outcome()
    judge_blocks(outcome, [0, 8_000_000, 14_000_000], [0, 400_000, 900_000])
    assert [row.value("gateway", row.metric) for row in outcome.rows] == pytest.approx(
        [20.0, 140 / 9, 12.0, 3_200_000 / (1 << 20)])
    assert [check.verdict for check in outcome.checks] == [MISSED, MET, MET]


def test_the_table_has_a_line_for_each_load_and_the_sentence_its_costs() -> None:
    lines = table(COSTS)
    assert {line.count("|") for line in lines} == {11}
    assert "4.0 us" in sentence(COSTS) and "64 KiB" in sentence(COSTS)


def test_costs_come_from_a_kept_result() -> None:
    rows = [{"case": CASE, "sides": {"gateway": {"medians": {"read_us": 7.0, "unknown": 1.0}}}}]
    assert kept_costs({"scenarios": {"scale.memory": {"rows": rows}}}) == costs_of({"read_us": 7.0})
    with pytest.raises(KeyError):
        kept_costs({"scenarios": {"scale.memory": {"rows": []}}})


def test_a_share_of_an_ordered_list() -> None:
    fifty = [float(number) for number in range(1, 51)]
    assert share_of(fifty, 0.99) == 50.0
    assert share_of(fifty, 0.5) == 25.0
    assert share_of([3.0], 0.99) == 3.0


def test_fio_figures_and_its_errors() -> None:
    writes = {"iops": 350.5, "bw_bytes": 1435648, "total_ios": 701, "runtime": 2000,
              "clat_ns": {"mean": 9e6, "max": 2.7e9, "percentile": {"50.000000": 1e6, "99.000000": 2e9}}}
    found = fio_sample({"jobs": [{"error": 0, "write": writes}]})
    assert found["iops"] == 350.5 and found["stall_ms"] == 2700.0 and found["p99_ms"] == 2000.0
    with pytest.raises(OSError, match="error 5"):
        fio_sample({"jobs": [{"error": 5, "write": writes}]})


def test_the_daemon_is_measured_in_every_form_of_its_backup() -> None:
    assert {(kind.backs_up, kind.fleecing, bool(kind.cluster_bytes)) for kind in KINDS} == {
        (True, False, False), (False, False, False), (True, True, False), (True, False, True)}
    assert all(50_000_000 in kind.rates for kind in KINDS if kind.backs_up)


def test_an_image_is_filled_to_its_size(tmp_path: Path) -> None:
    assert image(tmp_path / "holes", 10_000).read_bytes() == bytes(10_000)
    assert image(tmp_path / "blocks", 10, [b"abc", b"d"]).read_bytes() == b"abcdabcdab"


def test_a_volume_s_table_is_one_that_the_gateway_takes(tmp_path: Path) -> None:
    from bench.system.processes import Target

    main = Main(Target("main", "iscsi://127.0.0.1:3260/iqn.2026-01.org.detour:x/0"),
                f'driver = "detour", api = "unix:{tmp_path}/main.sock"')
    config = parse_config(Volume(main, tmp_path / "journal", 64 << 20, 'copy = { rate = "64KiB/s" }').table("v", False))
    assert config.volume["v"].copy_.rate == 64 << 10 and config.volume["v"].journal.size == 64 << 20
