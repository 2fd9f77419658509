"""Tables of speed and of the exported files for RESULTS.md, from results/speed.json and results/export.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from s5.training.command_line import plural
from s5.training.files import SPEED

SPEED_ROWS = (  # the order of the table, by the beginning of a row's name
    "Baseline",
    "Epoch of `Net`, bfloat16",
    "Epoch of `Net`, float32",
    "Epoch of `Net` against",
    "Epoch of `below",
    "Epoch of `Net` beside",
    "Mean to 99.0%",
    "Mean to 99.4%",
    "Inference",
    "Peak",
    "`python",
    "First",
    "Ledger",
)
SPEED_GOALS = {
    "Epoch of `Net`, bfloat16": "5×",
    "Epoch of `Net`, float32": "AVX2: 3.5×",
    "Epoch of `Net` against the lower bound": "2.2×",
    "Epoch of `Net` beside 1 other program": "1.6×",
    "Epoch of `Net` beside 2 other programs": "2.2×",
    "Mean to 99.4%: training": "18×, AVX2: 15×",
    "Mean to 99.4%: from process start": "12×, AVX2: 10×",
    "Peak memory of training": "1500 MB",
    "`python main.py --help`": "500 ms",
    "First epoch, extra": "12 s",
    "Ledger: read 50,000 lines and draw tables": "5 s",
}
ACCURACY_PARTS = ("to 99.0%", "to 99.4%")
BASELINE_EPOCHS = 10  # until the original document first reports 99.4%; of five runs here one did, after 18 epochs


def read_measurements(path: str | Path = SPEED, command: str = "python -m s5.benchmarks.bench") -> dict:
    """The measurements that `command` wrote. Raises ValueError, naming the command, if they are missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing: run {command}") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error}): delete it and run {command}") from None


def format_seconds(timing: dict) -> str:
    """E.g. "6.91 s (6.80–7.22)": median and range; in milliseconds below a tenth of a second."""
    unit, factor = ("ms", 1000) if timing["median"] < 0.1 else ("s", 1)
    median, low, high = (f"{factor * timing[key]:.3g}" for key in ("median", "low", "high"))
    return f"{median} {unit} ({low}–{high})"


def best_baseline(epoch: dict) -> tuple[str, dict]:
    """The baseline with the number of threads that is fastest for it: its name and the timing of an epoch."""
    baselines = {name: timing for name, timing in epoch["seconds"].items() if name.startswith("baseline")}
    return min(baselines.items(), key=lambda item: item[1]["median"])


def speed_table(records: dict[str, dict]) -> pd.DataFrame:
    """One row per measurement, with its goal and a column for each machine; – where it is not measured."""
    columns = {name: dict(_measurements(record)) for name, record in records.items()}
    columns = {name: column for name, column in columns.items() if column}
    names = sorted(dict.fromkeys(name for column in columns.values() for name in column), key=_row_order)
    table = {"Measurement": names, "Goal": [SPEED_GOALS.get(name, "") for name in names]}
    return pd.DataFrame(
        table | {machine: [column.get(name, "–") for name in names] for machine, column in columns.items()}
    )


def _row_order(name: str) -> int:
    return next(number for number, start in enumerate(SPEED_ROWS) if name.startswith(start))


def _measurements(record: dict) -> Iterator[tuple[str, str]]:
    """The rows of one machine: measurement and result."""
    if "epoch" in record:
        yield from _epoch_rows(record["epoch"])
    if "small" in record:
        seconds = record["small"]["seconds"]
        for name in [name for name in seconds if "not compiled" not in name]:
            plain = seconds[f"{name}, not compiled"]
            text = f"{format_seconds(seconds[name])}; not compiled, float32: {format_seconds(plain)}"
            yield f"Epoch of `{name}`, 1 thread", text
    if "busy" in record:
        seconds = record["busy"]["seconds"]
        idle = seconds["0 other programs"]["median"]
        for name in [name for name in seconds if "all threads" not in name][1:]:
            ratio, all_threads = (seconds[key]["median"] / idle for key in (name, f"{name}, all threads"))
            yield f"Epoch of `Net` beside {name}", f"{ratio:.2f}× the idle time; {all_threads:.1f}× with all threads"
    for part in ACCURACY_PARTS:
        if part in record:
            yield from _accuracy_rows(part, record)
    for name in record.get("inference", {}):
        if name != "environment":
            timings = record["inference"][name]
            yield f"Inference, {name}", "; ".join(f"{way} {format_seconds(timing)}" for way, timing in timings.items())
    if "memory" in record:
        yield "Peak memory of training", f"{record['memory']['peak MB']:.0f} MB"
    for name, key in (("`python main.py --help`", "main.py --help"), ("First epoch, extra", "first epoch, extra")):
        if key in record.get("start", {}):
            yield name, format_seconds(record["start"][key])
    for name, timing in record.get("ledger", {}).items():
        if name != "environment":
            yield f"Ledger: {name}", format_seconds(timing)


def _epoch_rows(part: dict) -> Iterator[tuple[str, str]]:
    seconds = part["seconds"]
    name, baseline = best_baseline(part)
    yield "Baseline, one epoch", f"{format_seconds(baseline)}, {name.removeprefix('baseline, ')}"
    for key in ("bfloat16", "float32", "float32, not compiled"):
        if key in seconds:
            faster = baseline["median"] / seconds[key]["median"]
            yield f"Epoch of `Net`, {key}", f"{format_seconds(seconds[key])}, {faster:.1f}× as fast"
    bound = seconds["lower bound"]
    best = min(seconds[key]["median"] for key in ("bfloat16", "float32") if key in seconds)
    yield "Epoch of `Net` against the lower bound", f"{best / bound['median']:.1f}× of {format_seconds(bound)}"


def _accuracy_rows(part: str, record: dict) -> Iterator[tuple[str, str]]:
    run = record[part]
    epochs = run["recipe"]["epochs"]
    accuracy = f"{run['mean']:.3f}% ± {run['std']:.3f}, n = {len(run['seeds'])}"
    accuracy += f", p = {run['p of a mean above the target']:.2g}"
    yield f"Mean {part}: accuracy", f"{accuracy}; {plural(epochs, 'epoch')} of `{run['variant']}`"
    for name, key in (("training", "training seconds"), ("from process start", "seconds from process start")):
        text = format_seconds(run[key])
        if part == "to 99.4%" and "epoch" in record:
            compared = BASELINE_EPOCHS * best_baseline(record["epoch"])[1]["median"]
            text += f", {compared / run[key]['median']:.1f}× as fast as {BASELINE_EPOCHS} epochs of the baseline"
        yield f"Mean {part}: {name}", text


def gpu_table(records: dict[str, dict]) -> pd.DataFrame:
    """Seconds of an epoch of `Net`, a row per GPU."""
    return pd.DataFrame(
        {"GPU": part["environment"]["device"].partition(": ")[2]}
        | {f"Epoch of `Net`, {name}": format_seconds(timing) for name, timing in part["seconds"].items()}
        for part in (record["gpu"] for record in records.values() if "gpu" in record)
    )


def accuracy_runs(record: dict, part: str) -> list[dict]:
    """The runs of one machine that measured the time to an accuracy, the last of which is the current one."""
    return [*record[part].get("earlier", []), record[part]] if part in record else []


def accuracy_runs_table(records: dict[str, dict]) -> pd.DataFrame:
    """Every evaluation on the test set by the benchmark, also those that were measured again."""
    rows = []
    for part in ACCURACY_PARTS:
        for machine, record in records.items():
            for run in accuracy_runs(record, part):
                row = {"Target": part.removeprefix("to "), "Machine": machine, "Epochs": run["recipe"]["epochs"]}
                row |= {"Seeds": f"{run['seeds'][0]}–{run['seeds'][-1]}", "Mean": f"{run['mean']:.3f}"}
                row |= {"Std": f"{run['std']:.3f}", "Minimum": f"{run['minimum']:.2f}"}
                p = f"{run['p of a mean above the target']:.2g}"
                rows.append(row | {"p": p, "Training": format_seconds(run["training seconds"])})
    return pd.DataFrame(rows)


def describe_machines(records: dict[str, dict]) -> str:
    """The versions that each machine was measured with, a line per machine."""
    lines = []
    for name, record in records.items():
        environments = [part["environment"] for part in record.values()]
        versions = sorted({f"torch {each['versions']['torch']}" for each in environments})
        days = sorted({each["time"][:10] for each in environments})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines.append(f"- **{name}**: {environments[0]['system']}, {', '.join(versions)}, measured {when}")
    return "\n".join(lines)


def describe_throughput(records: dict[str, dict]) -> str:
    """Trials per hour, one after another with all threads and side by side with one thread each, a line per machine."""
    lines = []
    for machine, record in records.items():
        if "throughput" in record:
            what, hourly = next(item for item in record["throughput"].items() if item[0].startswith("trials"))
            rates = "; ".join(f"{name}: {count:.1f}" for name, count in hourly.items())
            lines.append(f"- {machine}, {what}: {rates}")
    return "\n".join(lines)


def sweep_table(records: dict[str, dict]) -> pd.DataFrame:
    """A sweep of a few short trials, by local processes and on Ray, one at a time and one per core."""
    rows = []
    for machine, part in ((machine, record["sweeps"]) for machine, record in records.items() if "sweeps" in record):
        what, timings = next(item for item in part.items() if item[0].startswith("seconds of"))
        count = int(re.search(r"\d+", what)[0])
        for name, timing in timings.items():
            row = {"Machine": machine, "Sweep": name, what.capitalize(): format_seconds(timing)}
            row["Trials per hour"] = f"{3600 * count / timing['median']:.0f}"
            rows.append(row | {"Overhead per trial": format_seconds(part["overhead seconds per trial"][name])})
    return pd.DataFrame(rows)


def profile_table(records: dict[str, dict]) -> pd.DataFrame:
    """The share of each operation in the time of training `Net` on the CPU, in percent, a column for each machine."""
    shares = {name: record["profile"]["percent of time"] for name, record in records.items() if "profile" in record}
    operations = list(dict.fromkeys(name for share in shares.values() for name in share))
    columns = {machine: [share.get(name, "–") for name in operations] for machine, share in shares.items()}
    return pd.DataFrame({"Operation": [f"`{name}`" for name in operations]} | columns)


def export_table(record: dict) -> pd.DataFrame:
    """Each exported network in each format: accuracy on the test set, size, memory, and time for one image."""
    rows = [
        {
            "Network": f"`{row['network']}`",
            "Format": row["format"],
            "Correct": f"{row['correct']}/{row['images']} ({row['accuracy']:.2f}%)",
            "Bytes": f"{row['bytes']:,}",
            "Memory": "–" if row["memory"] is None else f"{row['memory']:,}",
            "One image": f"{row['microseconds']:.0f} µs ({row['range'][0]:.0f}–{row['range'][1]:.0f})"
            if "microseconds" in row
            else "–",
        }
        for row in record["rows"]
    ]
    return pd.DataFrame(rows)
