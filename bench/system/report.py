"""What a run found, as people read it: the goal table with verdicts, and a table for each scenario.

All of it works on the document that bench/results keeps, so that a kept result is shown again as it was.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from bench.system.goals import GOALS
from bench.system.scenario import MET, MISSED, NOT_MEASURED, Outcome, Scenario

TABLE_BEGIN, TABLE_END = "<!-- measured: begin -->", "<!-- measured: end -->"
UNITS = {"iops": "operations a second", "bytes_s": "bytes a second"}
DIGESTS = " with digests"        # behind the name of a scenario that ran with them
LOWER_IS_BETTER = ("p50_ms", "p99_ms", "stall_ms")
LATENCIES = ("p50_ms", "p99_ms", "p99_9_ms", "max_ms")


def rounded(value: Any) -> Any:
    """Numbers with six significant digits, all through a document."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value


def judge(checks: Iterable[Mapping[str, Any]]) -> str:
    """The verdict of a goal with these checks: missed if one is, met if some are judged and all are met."""
    verdicts = [check["verdict"] for check in checks]
    if MISSED in verdicts:
        return MISSED
    return MET if MET in verdicts else NOT_MEASURED


def found_words(checks: list[Mapping[str, Any]]) -> list[str]:
    """For each thing that was compared: its values from the least to the largest, and how many meet the bound."""
    groups: dict[tuple[str, Any, bool, str], list[Mapping[str, Any]]] = {}
    for check in checks:
        if check["verdict"] != NOT_MEASURED:
            groups.setdefault((check["what"], check["bound"], check["at_least"], check["unit"]), []).append(check)
    words = []
    for (what, bound, at_least, unit), group in groups.items():
        values = sorted(check["value"] for check in group)
        span = number(values[0]) if len(values) == 1 else f"{number(values[0])} to {number(values[-1])}"
        if bound is None:
            words.append(f"{what}: {span} {unit}")
        else:
            met = sum(check["verdict"] == MET for check in group)
            sign = "≥" if at_least else "≤"
            words.append(f"{what}: {span} {unit} ({sign} {number(bound)}: {met} of {len(group)})")
    return words


def goal_rows(scenarios: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The goal table: for each goal that these scenarios judge its verdict, and what was found. What was found with
    digests is not judged: its loss is shown."""
    rows = []
    scenarios = {name: one for name, one in scenarios.items() if not name.endswith(DIGESTS)}
    judged = {key for one in scenarios.values() for key in one["goals"]}
    for goal in GOALS:
        if goal.key not in judged:
            continue
        checks = [check for one in scenarios.values() for check in one["checks"] if check["goal"] == goal.key]
        errors = [f"{name}: {one['error']}" for name, one in scenarios.items()
                  if one["error"] and goal.key in one["goals"]]
        rows.append({"key": goal.key, "scenario": goal.scenario, "goal": goal.goal,
                     "verdict": NOT_MEASURED if errors and judge(checks) == MET else judge(checks),
                     "found": found_words(checks) + errors})
    return rows


def scenario_document(scenario: Scenario, outcome: Outcome) -> dict[str, Any]:
    return {"description": scenario.description, "goals": list(scenario.goals)} | outcome.document()


def number(value: float | None) -> str:
    """Three significant digits or whole thousands: 0.123, 12.3, 123, 123,456."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_unit(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if metric == "bytes_s":
        return f"{value / 1e9:.2f} GB/s"
    return number(value)


def sides_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(side for row in rows for side in row["sides"]))


def median_of(row: Mapping[str, Any], side: str, metric: str) -> float | None:
    return row["sides"].get(side, {}).get("medians", {}).get(metric)


def headline_table(rows: list[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Cases and the first metric of each side."""
    sides = sides_of(rows)
    lines = []
    for row in rows:
        metric = row["metric"]
        name = row["case"] if metric in UNITS else f"{row['case']} ({metric})"
        lines.append([name, *(with_unit(metric, median_of(row, side, metric)) for side in sides)])
    return ["case", *sides], lines


def detail_table(rows: list[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Latencies, CPU time and memory of every side of every case; empty where none was measured."""
    names = [*LATENCIES, "server_us", "client_us", "server_peak_mib"]
    used = [name for name in names
            if any(median_of(row, side, name) is not None for row in rows for side in row["sides"])]
    lines = [[row["case"], side, *(number(median_of(row, side, name)) for name in used)]
             for row in rows for side in row["sides"]] if used else []
    shown = {"server_us": "server CPU µs/op", "client_us": "client CPU µs/op", "server_peak_mib": "server peak MiB"}
    return ["case", "side", *(shown.get(name, name.replace("_ms", " ms").replace("p99_9", "p99.9"))
                              for name in used)], lines


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([row(head), row("---" if i == 0 else "--:" for i in range(len(head))), *map(row, lines)])


def goal_table(document: Mapping[str, Any]) -> str:
    """The goal table as markdown."""
    lines = [[row["scenario"], row["goal"], "<br>".join(row["found"]) or "–", f"**{row['verdict']}**"]
             for row in document["goals"]]
    text = markdown_table(["scenario", "goal", "found in one run", "verdict"], lines)
    return text.replace("| --: | --: | --: |", "| --- | --- | --- |")


def machine_words(document: Mapping[str, Any]) -> str:
    """A paragraph: what it ran on, when, and whether the machine was quiet."""
    machine, load = document["machine"], document["load"]
    peers = ", ".join(f"{name} ({text})" for name, text in sorted(machine["peers"].items()))
    quiet = ("The machine was quiet" if load["quiet"] else
             "**The machine was not quiet: these figures are not to be relied on**")
    return (f"`{document['command']}`, {document['begun']}, commit {document['commit']}, {document['seconds']:.0f} s. "
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
            f"Python {machine['python']}; {peers}. {quiet} (busy without us: {load['begin']['busy']:.1%} at the "
            f"begin, {load['end']['busy']:.1%} at the end; load average {load['begin']['average']} and "
            f"{load['end']['average']}).")


def missing_words(document: Mapping[str, Any]) -> list[str]:
    """Which sides are not there, and why, each once."""
    found = dict.fromkeys(f"{side}: {why}" for one in document["scenarios"].values()
                          for side, why in [*one["missing"].items(), *one["dropped"].items()])
    return list(found)


def loss_lines(document: Mapping[str, Any]) -> list[list[str]]:
    """What digests cost: for scenarios that ran with and without them, each side's first metric. Of latencies the loss
    is how much longer they are."""
    lines = []
    for name, one in document["scenarios"].items():
        plain = document["scenarios"].get(name.removesuffix(DIGESTS))
        if not name.endswith(DIGESTS) or plain is None:
            continue
        before = {row["case"]: row for row in plain["rows"]}
        for row in one["rows"]:
            for side in row["sides"]:
                metric = row["metric"]
                new, old = median_of(row, side, metric), median_of(before.get(row["case"], row), side, metric)
                if new and old and (metric in UNITS or metric in LOWER_IS_BETTER):
                    loss = new / old - 1 if metric in LOWER_IS_BETTER else 1 - new / old
                    case = row["case"] if metric in UNITS else f"{row['case']} ({metric})"
                    lines.append([case, side, with_unit(metric, old), with_unit(metric, new), f"{loss:.0%}"])
    return lines


def scenario_markdown(name: str, one: Mapping[str, Any], plots: str = "") -> str:
    """A section: its headline table, its plot, what is missing, and the details folded away."""
    parts = [f"### {name}", f"{one['description']} ({one['seconds']:.0f} s)."]
    if one["error"]:
        parts.append(f"**It ended with an error: {one['error']}**")
    if one["rows"]:
        parts.append(markdown_table(*headline_table(one["rows"])))
    parts += [f"![{name}]({place})" for place in plots.split()]
    parts += notes_markdown(one["notes"])
    head, lines = detail_table(one["rows"])
    if lines:
        table = markdown_table(head, lines)
        parts.append(f"<details><summary>Latency, CPU time, memory</summary>\n\n{table}\n\n</details>")
    parts += [profile_markdown(profile) for profile in one.get("profiles", ())]
    return "\n\n".join(parts)


def notes_markdown(notes: Iterable[str]) -> list[str]:
    """Paragraphs: notes are items of a list, but those that are lines of a table stay a table."""
    kinds = itertools.groupby(notes, key=lambda note: note.startswith("|"))
    return ["\n".join(group if is_table else (f"- {note}" for note in group)) for is_table, group in kinds]


def profile_markdown(profile: Mapping[str, Any]) -> str:
    lines = [[f"{share:.1f} %", module, f"`{symbol}`"] for share, module, symbol in profile["lines"]]
    table = markdown_table(["of its time", "where", "what"], lines)
    return f"<details><summary>Profile of {profile['side']}: {profile['case']}</summary>\n\n{table}\n\n</details>"


def markdown(document: Mapping[str, Any], plots: Mapping[str, str] | None = None) -> str:
    """Everything that the docs show of a run."""
    parts = [machine_words(document), goal_table(document)]
    parts += [f"Not there: {words}." for words in missing_words(document)]
    losses = loss_lines(document)
    if losses:
        parts.append(markdown_table(["with CRC32C digests", "side", "without", "with", "loss"], losses))
    parts += [scenario_markdown(name, one, (plots or {}).get(name, "")) for name, one in document["scenarios"].items()]
    return "\n\n".join(parts) + "\n"


def short(document: Mapping[str, Any]) -> str:
    """What the README shows: the goal table, and where it comes from."""
    return (f"{goal_table(document)}\n\n{machine_words(document)} More of it, with plots and profiles, in "
            "[docs/performance.md](docs/performance.md).")


def replaced(text: str, table: str) -> str:
    """A page with what stands between its marks replaced. ValueError when it has no marks."""
    head, begin, rest = text.partition(TABLE_BEGIN)
    _, end, tail = rest.partition(TABLE_END)
    if not begin or not end:
        raise ValueError("the page has no marks for what was measured")
    return f"{head}{begin}\n\n{table.strip()}\n\n{end}{tail}"


def counts(document: Mapping[str, Any]) -> str:
    """How many goals are met, in one line."""
    verdicts = [row["verdict"] for row in document["goals"]]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in (MET, MISSED, NOT_MEASURED)
                     if verdict in verdicts)
