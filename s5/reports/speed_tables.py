"""Tables of speed and of the exported files for RESULTS.md, from results/speed.json and results/export.json."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from s5.training.command_line import plural
from s5.training.files import SPEED

SPEED_GOALS = {
    "Epoch of `Net`, bfloat16": "4×",
    "Epoch of `Net`, float32": "AVX2: 2.5×",
    "Mean to 99.4%: training": "15×",
}
BASELINE_EPOCHS = 10  # until the original document first reports 99.4%; of five runs here one did, after 18 epochs


def read_measurements(path: str | Path = SPEED) -> dict:
    """The measurements in a JSON file. Raises OSError if it is missing and ValueError if it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete it and measure again") from None


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
    """One row per measurement, with its goal and a column for each machine that has timed the baseline."""
    columns = {machine: dict(_speed_rows(record)) for machine, record in records.items() if "epoch" in record}
    order: list[str] = []  # that of each machine; what only a later one has measured stands where it does there
    for column in columns.values():
        place = 0
        for name in column:
            if name not in order:
                order.insert(place, name)
            place = order.index(name) + 1
    table = pd.DataFrame(columns).loc[order].fillna("–").rename_axis("Measurement").reset_index()
    table.insert(1, "Goal", table["Measurement"].map(SPEED_GOALS).fillna(""))
    return table


def _speed_rows(record: dict) -> Iterator[tuple[str, str]]:
    """The measurements of one machine: name and text."""
    seconds = record["epoch"]["seconds"]
    name, baseline = best_baseline(record["epoch"])
    yield "Baseline, one epoch", f"{format_seconds(baseline)}, {name.removeprefix('baseline, ')}"
    for key in ("bfloat16", "float32", "float32, not compiled"):
        if key in seconds:
            faster = baseline["median"] / seconds[key]["median"]
            yield f"Epoch of `Net`, {key}", f"{format_seconds(seconds[key])}, {faster:.1f}× as fast"
    bound = seconds["lower bound"]
    best = min(seconds[key]["median"] for key in ("bfloat16", "float32") if key in seconds)
    yield "Epoch of `Net` against the lower bound", f"{best / bound['median']:.1f}× of {format_seconds(bound)}"
    if "small" in record:
        seconds = record["small"]["seconds"]
        for name in [name for name in seconds if "not compiled" not in name]:
            plain = format_seconds(seconds[f"{name}, not compiled"])
            yield f"Epoch of `{name}`, 1 thread", f"{format_seconds(seconds[name])}; not compiled, float32: {plain}"
    if "to 99.4%" in record:
        run = record["to 99.4%"]
        accuracy = f"{run['mean']:.3f}% ± {run['std']:.3f}, n = {len(run['seeds'])}"
        accuracy += f", p = {run['p of a mean above the target']:.2g}"
        yield "Mean to 99.4%: accuracy", f"{accuracy}; {plural(run['recipe']['epochs'], 'epoch')} of `{run['variant']}`"
        for name, key in (("training", "training seconds"), ("from process start", "seconds from process start")):
            faster = BASELINE_EPOCHS * baseline["median"] / run[key]["median"]
            text = f"{format_seconds(run[key])}, {faster:.1f}× as fast as {BASELINE_EPOCHS} epochs of the baseline"
            yield f"Mean to 99.4%: {name}", text
    for name, timings in record.get("inference", {}).items():
        if name != "environment":
            yield f"Inference, {name}", "; ".join(f"{way} {format_seconds(timing)}" for way, timing in timings.items())


def gpu_table(records: dict[str, dict]) -> pd.DataFrame:
    """Seconds of an epoch of the claimed networks, with and without a CUDA graph: a row per GPU and network."""
    return pd.DataFrame(
        {
            "GPU": part["environment"]["device"].partition(": ")[2],
            "Network": f"`{name}`",
            "With CUDA graph": format_seconds(part["seconds"][name]),
            "Without": format_seconds(part["seconds"][f"{name}, no CUDA graph"]),
        }
        for part in (record["gpu"] for record in records.values() if "gpu" in record)
        for name in part["networks"]
    )


def accuracy_runs(record: dict, part: str) -> list[dict]:
    """The runs of one machine that measured the time to an accuracy, the last of which is the current one."""
    return [*record[part].get("earlier", []), record[part]] if part in record else []


def accuracy_runs_table(records: dict[str, dict]) -> pd.DataFrame:
    """Every evaluation on the test set by the benchmark, also those that were measured again or no longer are."""
    rows = []
    for part in ("to 99.0%", "to 99.4%"):
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


def export_table(record: dict) -> pd.DataFrame:
    """Each exported network in each format: accuracy on the test set, size, memory, and time for one image."""
    rows = []
    for each in record["rows"]:
        row = {"Network": f"`{each['network']}`", "Format": each["format"]}
        row |= {"Correct": f"{each['correct']}/{each['images']} ({each['accuracy']:.2f}%)"}
        row |= {"Bytes": f"{each['bytes']:,}", "Memory": "–" if each["memory"] is None else f"{each['memory']:,}"}
        if "microseconds" in each:
            row["One image"] = "{:.0f} µs ({:.0f}–{:.0f})".format(each["microseconds"], *each["range"])
        if "instructions" in each:
            row["Cortex-M4"] = f"{each['instructions'] / 1e6:.2f} M instructions, {each['flash']:,} bytes of flash"
        rows.append(row)
    return pd.DataFrame(rows).fillna("–")
