"""The pure parts of the benches side by side: turns, medians, verdicts, tables, and what foreign programs say."""
from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from bench.system import catalogue, plots, processes, programs, report
from bench.system.goals import GOALS, KEYS
from bench.system.machine import busy_ticks, cpu_model
from bench.system.measure import Figure, Samples, Usage, cpu_ticks, interleaved, peak_kib
from bench.system.peers import listener_pids, listening_inodes, parse_peer
from bench.system.profile import grouped, parsed, pid_of
from bench.system.programs import ProgramError, fio_sample, found_iops, sample_of
from bench.system.run import run_one
from bench.system.scenario import MET, MISSED, NOT_MEASURED, SHOWN, Bench, Missing, Outcome, Row, Scenario
from bench.system.site import Main, Volume, with_digests
from detour.errors import UsageError
from detour.urls import parse_url


def figures(**sides: list[float]) -> Samples:
    return Samples({side: Figure.of([{"iops": value} for value in values]) for side, values in sides.items()})


# --- turns and medians

def test_sides_take_turns():
    order = []

    def side(name):
        async def take():
            order.append(name)
            return {"iops": float(len(order))}
        return take

    found = asyncio.run(interleaved({"a": side("a"), "b": side("b")}, 3))
    assert order == ["a", "b"] * 3
    assert found.figures["a"].medians == {"iops": 3.0} and found.figures["b"].medians == {"iops": 4.0}
    assert [run["iops"] for run in found.figures["b"].runs] == [2.0, 4.0, 6.0]


def test_a_side_that_fails_is_dropped_with_its_reason_and_the_others_go_on():
    calls = []

    async def fails():
        calls.append("fails")
        if len(calls) > 1:
            raise OSError("gone")
        return {"iops": 1.0}

    async def works():
        return {"iops": 2.0}

    found = asyncio.run(interleaved({"fails": fails, "works": works}, 4))
    assert len(calls) == 2
    assert found.dropped == {"fails": "OSError: gone"}
    assert list(found.figures) == ["works"] and len(found.figures["works"].runs) == 4


def test_an_error_of_programming_is_not_hidden():
    async def wrong():
        return {}.nothing

    with pytest.raises(AttributeError):
        asyncio.run(interleaved({"wrong": wrong}, 1))


def test_medians_are_of_each_metric_where_it_was_taken():
    figure = Figure.of([{"iops": 1.0, "p99_ms": 5.0}, {"iops": 9.0}, {"iops": 2.0, "p99_ms": 7.0}])
    assert figure.medians == {"iops": 2.0, "p99_ms": 6.0}


def test_a_ratio_is_taken_round_by_round():
    # the machine is half as fast in the last two rounds; the ratio of medians would be 10 : 10
    row = Outcome().row("case", "iops", figures(one=[20.0, 10.0, 10.0], other=[10.0, 5.0, 5.0]))
    assert row.ratio("one", "other") == 2.0
    assert row.ratio("one", "third") is None and row.value("third") is None
    assert Outcome().row("case", "iops", figures(one=[1.0], other=[0.0])).ratio("one", "other") is None


# --- judgements

@pytest.mark.parametrize(("value", "bounds", "verdict"), [
    (7.0, {"at_least": 7.0}, MET), (6.99, {"at_least": 7.0}, MISSED), (50.0, {"at_most": 50.0}, MET),
    (50.1, {"at_most": 50.0}, MISSED), (None, {"at_least": 1.0}, NOT_MEASURED), (3.0, {}, SHOWN)])
def test_verdicts(value, bounds, verdict):
    assert Outcome().check("idle", "what", "case", value, **bounds).verdict == verdict


def test_a_goal_is_met_when_all_that_is_judged_meets_it():
    def verdict(*words: str) -> str:
        return report.judge([{"verdict": word} for word in words])

    assert verdict(MET, MET) == MET and verdict(MET, MISSED, NOT_MEASURED) == MISSED
    assert verdict(NOT_MEASURED) == NOT_MEASURED == verdict() == verdict(SHOWN)
    assert verdict(MET, SHOWN) == MET


def scenario(name: str = "one.two", goals: tuple[str, ...] = ("idle",), run=None) -> Scenario:
    async def nothing(bench: Bench) -> Outcome:
        return Outcome()
    return Scenario(name, goals, "what it shows", run or nothing, 1)


def document(*outcomes: tuple[str, Outcome]) -> dict:
    found = {name: report.rounded(report.scenario_document(scenario(name), outcome)) for name, outcome in outcomes}
    load = {"average": 0.1, "busy": 0.01}
    return {"command": "python -m bench.system", "commit": "abc", "begun": "2026-01-01 00:00 UTC", "seconds": 1.0,
            "machine": {"cpu": "x", "cores": 2, "memory_gib": 4.0, "kernel": "6", "python": "3", "peers": {"tgt": "1"}},
            "load": {"begin": load, "end": load, "quiet": True}, "scenarios": found, "quick": False,
            "goals": report.goal_rows(found)}


def outcome() -> Outcome:
    one = Outcome(notes=["a note"], missing={"spdk": "not given"})
    row = one.row("4 KiB read", "iops", figures(detour=[300_000.0, 400_000.0], tgt=[40_000.0, 50_000.0]))
    one.check("idle", "detour : tgt", row.case, row.ratio("detour", "tgt"), at_least=7.0)
    one.check("idle", "detour : tgt", "another", 3.5, at_least=7.0)
    one.check("idle", "share of a core", "idle", 0.4, at_most=0.5, unit="%")
    return one


def test_the_goal_table_has_the_span_of_each_comparison_and_the_verdict():
    [row] = document(("one.two", outcome()))["goals"]
    assert row["key"] == "idle" and row["verdict"] == MISSED
    assert row["found"] == ["detour : tgt: 3.5 to 7.75 x (≥ 7: 1 of 2)", "share of a core: 0.4 % (≤ 0.5: 1 of 1)"]


def test_a_scenario_that_ended_early_does_not_meet_its_goal():
    broken = Outcome(error="it broke")
    broken.check("idle", "what", "case", 1.0, at_least=0.5)
    [row] = document(("one.two", broken))["goals"]
    assert row["verdict"] == NOT_MEASURED and row["found"][-1] == "one.two: it broke"


def test_markdown_shows_machine_table_goals_and_what_is_missing():
    text = report.markdown(document(("one.two", outcome())), {"one.two": "speed/one-two.svg"})
    assert "2 cores" in text and "The machine was quiet" in text
    assert "| 4 KiB read | 350,000 | 45,000 |" in text
    assert "**missed**" in text and "Not there: spdk: not given." in text and "- a note" in text
    assert "![one.two](speed/one-two.svg)" in text


def test_the_readme_shows_the_goal_table_and_where_it_comes_from():
    text = report.short(document(("one.two", outcome())))
    assert "**missed**" in text and "docs/performance.md" in text and "### one.two" not in text


def test_notes_are_a_list_and_tables_stay_tables():
    assert report.notes_markdown(["one", "two", "| a |", "| --- |", "three"]) == [
        "- one\n- two", "| a |\n| --- |", "- three"]


def test_a_busy_machine_is_told():
    kept = document(("one.two", outcome()))
    kept["load"]["quiet"] = False
    assert "not to be relied on" in report.markdown(kept)


def test_digests_are_shown_with_their_loss():
    plain, checked = Outcome(), Outcome()
    plain.row("64 KiB", "bytes_s", figures(detour=[1.0]))
    plain.rows[0].sides["detour"].medians["bytes_s"] = 2e9
    checked.row("64 KiB", "bytes_s", figures(detour=[1.0]))
    checked.rows[0].sides["detour"].medians["bytes_s"] = 1.5e9
    kept = document(("one.two", plain), ("one.two" + report.DIGESTS, checked))
    assert report.loss_lines(kept) == [["64 KiB", "detour", "2.00 GB/s", "1.50 GB/s", "25%"]]


def test_latency_with_digests_is_a_loss_when_it_is_longer():
    plain, checked = Outcome(), Outcome()
    for one, found in ((plain, 2.0), (checked, 3.0)):
        one.rows.append(Row("way home", "stall_ms", {"host": Figure.of([{"stall_ms": found}])}))
    kept = document(("one.two", plain), ("one.two" + report.DIGESTS, checked))
    assert report.loss_lines(kept) == [["way home (stall_ms)", "host", "2", "3", "50%"]]


def test_what_was_found_with_digests_is_not_judged():
    missed = Outcome()
    missed.check("idle", "detour : tgt", "4 KiB", 0.1, at_least=1.0)
    met = Outcome()
    met.check("idle", "detour : tgt", "4 KiB", 2.0, at_least=1.0)
    [row] = document(("one.two", met), ("one.two" + report.DIGESTS, missed))["goals"]
    assert row["verdict"] == MET


def test_only_what_stands_between_the_marks_of_a_page_is_replaced():
    page = f"head\n{report.TABLE_BEGIN}\nold\n{report.TABLE_END}\ntail\n"
    once = report.replaced(page, "new")
    assert once == f"head\n{report.TABLE_BEGIN}\n\nnew\n\n{report.TABLE_END}\ntail\n"
    assert report.replaced(once, "new") == once
    with pytest.raises(ValueError, match="marks"):
        report.replaced("nothing", "new")


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0, "0"), (0.1234, "0.123"), (12.34, "12.3"),
                                             (123.4, "123"), (456789.0, "456,789")])
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


def test_a_document_can_be_kept_as_json_without_endless_numbers():
    kept = report.rounded({"a": [1 / 3, float("inf")], "b": {"c": 10**12, "d": True}})
    assert json.loads(json.dumps(kept)) == {"a": [0.333333, None], "b": {"c": 10**12, "d": True}}


@pytest.mark.skipif(not plots.usable(), reason="matplotlib is not installed")
def test_plots_are_drawn_as_svg_and_png(tmp_path):
    drawn = plots.draw(document(("one.two", outcome())), tmp_path)
    assert sorted(place.name for place in drawn["one.two"]) == ["one-two.png", "one-two.svg"]
    assert "4 KiB read" in (tmp_path / "one-two.svg").read_text()


def test_a_line_has_the_colour_of_its_side():
    assert [plots.side_of(name) for name in ("tgt, p99", "tgt at its best, p99.9", "lookup")] == [
        "tgt", "tgt at its best", "lookup"]


# --- running

def test_a_scenario_that_raises_leaves_its_error_and_its_contexts(tmp_path):
    left = []

    class Context:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            left.append(True)

    async def breaks(bench):
        await bench.enter(Context())
        (bench.folder / "file").touch()
        raise OSError("broken")

    found = asyncio.run(run_one(scenario(run=breaks), folder=tmp_path))
    assert found.error == "OSError: broken" and left == [True] and not list(tmp_path.iterdir())


def test_the_short_form_judges_nothing():
    async def judged(bench):
        assert bench.quick and bench.rounds == 1
        return outcome()

    found = asyncio.run(run_one(scenario(run=judged), quick=True))
    assert {check.verdict for check in found.checks} == {SHOWN}


def test_what_is_missing_is_noted_and_errors_go_through():
    async def missing():
        raise Missing("not installed")

    async def broken():
        raise OSError

    async def there():
        return 5

    one = Outcome()
    assert asyncio.run(one.optional("tgt", missing())) is None and one.missing == {"tgt": "not installed"}
    assert asyncio.run(one.optional("x", there())) == 5
    with pytest.raises(OSError):
        asyncio.run(one.optional("y", broken()))


def test_peers_that_are_not_there_are_missing_and_not_an_error(monkeypatch, tmp_path):
    async def entered(context):
        async with context:
            raise AssertionError("it was started")

    async def all_of_them(outcome):
        bench = Bench(tmp_path, tmp_path)
        await outcome.optional("tgt", entered(processes.tgt_target(bench)))
        await outcome.optional("spdk", entered(processes.peer_target(bench, "spdk")))
        await outcome.optional("bare C", entered(programs.bare(bench, 1 << 20)))
        await outcome.optional("libiscsi", programs.libiscsi(bench, "iscsi://127.0.0.1/iqn.2026-01.x:y/0"))
        await outcome.optional("iscsi-perf", programs.iscsi_perf("iscsi://127.0.0.1/iqn.2026-01.x:y/0", 1, 1))
        await outcome.optional("fio", entered(programs.fio_nbd(bench, "iscsi://127.0.0.1/iqn.2026-01.x:y/0")))

    monkeypatch.setattr("bench.system.tgt.USABLE", False)
    monkeypatch.setattr(programs, "program", lambda name: None)
    monkeypatch.setattr(programs, "library", lambda: None)
    one = Outcome()
    asyncio.run(all_of_them(one))
    assert one.missing == {
        "tgt": "tgtd is not installed, or this is not root", "spdk": "no --peer spdk=URL was given",
        "bare C": "no C compiler", "libiscsi": "libiscsi is not installed", "iscsi-perf": "iscsi-perf is not installed",
        "fio": "qemu-nbd is not installed"}


def test_every_goal_is_judged_by_a_scenario_and_every_scenario_is_found_by_its_name():
    known = catalogue.scenarios()
    assert len(KEYS) == len(set(KEYS)) == len(GOALS)
    assert {key for one in known.values() for key in one.goals} == set(KEYS)
    assert catalogue.chosen(known, []) == list(known.values())
    assert catalogue.chosen(known, ["plain.4k"]) == [known["plain.4k"]]
    assert [one.name.split(".")[0] for one in catalogue.chosen(known, ["plain"])].count("plain") >= 2
    with pytest.raises(KeyError, match="nothing"):
        catalogue.chosen(known, ["nothing"])


def test_the_whole_run_is_meant_to_take_less_than_half_an_hour():
    assert sum(one.seconds for one in catalogue.scenarios().values()) < 30 * 60


# --- what the system and foreign programs say

def test_cpu_time_and_peak_memory_of_a_process():
    stat = "12 (a name) with) 1 S 1 " + " ".join(str(number) for number in range(4, 50))
    fields = stat.rpartition(")")[2].split()
    assert cpu_ticks(stat) == int(fields[11]) + int(fields[12])
    assert peak_kib("VmPeak:\t 9 kB\nVmHWM:\t  1234 kB\n") == 1234 and peak_kib("") == 0


def test_the_usage_of_this_process_grows_with_what_it_does():
    before = Usage.of([os.getpid()])
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    used = Usage.of([os.getpid()]).since(before)
    assert used.cpu_s >= 0.03 and used.peak_bytes > 1 << 20
    sample = Usage(2.0, 3 << 20).per_operation(1000)
    assert sample == {"server_us": 2000.0, "server_peak_mib": 3.0}
    assert Usage(2.0, 3 << 20).per_operation(0) == {"server_peak_mib": 3.0}


def test_how_busy_a_machine_is_counts_all_but_idling():
    assert busy_ticks("cpu  1 2 4 1000 1000 8 16 32 64 128\ncpu0 1\n") == 1 + 2 + 4 + 8 + 16 + 32
    assert cpu_model("processor : 0\nmodel name\t: A CPU\n") == "A CPU"


def test_peers_are_given_by_name_and_url():
    assert parse_peer("spdk=iscsi://127.0.0.1:3260/iqn.2026-01.x:y/0") == (
        "spdk", "iscsi://127.0.0.1:3260/iqn.2026-01.x:y/0")
    for word in ("iscsi://127.0.0.1/iqn.2026-01.x:y/0", "SPDK=iscsi://127.0.0.1/iqn.2026-01.x:y/0", "spdk=mem:1GiB"):
        with pytest.raises(UsageError):
            parse_peer(word)


def test_the_process_behind_a_loopback_url_is_found():
    import socket

    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        url = f"iscsi://127.0.0.1:{door.getsockname()[1]}/iqn.2026-01.x:y/0"
        assert listener_pids(url) == [os.getpid()]
    assert listener_pids("iscsi://192.0.2.1/iqn.2026-01.x:y/0") == []
    table = "head\n 0: 0100007F:1F90 0:0 0A 0:0 00:0 0 0 0 77 1\n 1: 0100007F:1F90 0:0 01 0:0 0:0 0 0 0 78 1\n"
    assert listening_inodes(table, 8080) == {"77"}


def test_what_iscsi_perf_prints():
    text = ("00:00:01 - lba 5, iops current 56151 (219 MB/s), iops average 56151 (219 MB/s), in_flight 32, busy 0  \r"
            "iops average 54534 (213 MB/s)      \n\nfinished.\n")
    assert found_iops(text) == 54534.0
    with pytest.raises(ProgramError):
        found_iops("Failed to login")


def test_what_fio_prints():
    kind = {"total_ios": 10, "iops": 100.0, "bw_bytes": 409600,
            "clat_ns": {"mean": 2e6, "max": 9e6, "percentile": {"50.000000": 1e6, "99.000000": 8e6}}}
    none = {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "clat_ns": {"mean": 0, "max": 0}}
    sample = fio_sample({"jobs": [{"error": 0, "read": kind, "write": none}]})
    assert sample == {"iops": 100.0, "bytes_s": 409600.0, "operations": 10.0, "mean_ms": 2.0, "max_ms": 9.0,
                      "p50_ms": 1.0, "p99_ms": 8.0}
    with pytest.raises(ProgramError):
        fio_sample({"jobs": [{"error": 5, "read": kind, "write": none}]})


def test_what_the_small_clients_print():
    document = {"operations": 1000, "seconds": 0.5, "errors": 0, "cpu_s": 0.1, "peak_kib": 2048,
                "latency_ms": {"p50": 0.1, "max": 3.0}}
    assert sample_of(document, 4096) == {
        "iops": 2000.0, "bytes_s": 8192000.0, "operations": 1000, "seconds": 0.5, "client_us": 100.0,
        "client_peak_mib": 2.0, "stall_ms": 3.0, "p50_ms": 0.1, "max_ms": 3.0}
    for wrong in ({"errors": 1}, {"operations": 0}):
        with pytest.raises(ProgramError):
            sample_of(document | wrong, 4096)


def test_what_perf_prints():
    text = ("# head\n 60.50%|[kernel.kallsyms]|[k] tcp_sendmsg\n"
            " 20.00%|task.cpython-311-x86_64-linux-gnu.so|[.] __pyx_f_6detour_4core_4task_part_release\n"
            "  9.50%|[kernel.kallsyms]|[k] copy\n")
    lines = parsed(text)
    assert lines == [(60.5, "kernel", "tcp_sendmsg"), (20.0, "task", "task_part_release"), (9.5, "kernel", "copy")]
    assert grouped(lines) == [(70.0, "kernel", "all together"), (20.0, "task", "all together"), *lines]


def test_a_process_is_found_by_its_program(tmp_path):
    place = shutil.copy(shutil.which("sleep"), tmp_path / "asleep")
    with pytest.raises(ProcessLookupError):
        pid_of(place)
    with subprocess.Popen([place, "60"]) as process:
        try:
            assert pid_of(place) == process.pid
        finally:
            process.kill()


def test_a_run_with_digests_has_them_on_the_sessions_of_the_gateway_as_well():
    main = Main(processes.Target("main", "iscsi://127.0.0.1:3260/iqn.2026-01.example:m/0"), 'driver = "none"')
    plain, checked = (tomllib.loads(Volume(main, Path("j")).table("vol", digests))["volume"]["vol"]
                      for digests in (False, True))
    assert checked == plain | {"main-auth": {"header-digest": True, "data-digest": True}}
    assert parse_url(with_digests("iscsi://127.0.0.1/iqn.2026-01.example:m/0", True)).data_digest
    assert with_digests("file:///x", True) == "file:///x"


def test_the_page_has_the_marks_for_what_was_measured():
    page = Path(__file__).parents[2] / "docs" / "performance.md"
    assert report.replaced(page.read_text(), "x").count(report.TABLE_BEGIN) == 1
