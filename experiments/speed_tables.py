"""Tables of speed and of the exported files for RESULTS.md, from results/speed.json and results/export.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from training.files import SPEED

BASELINE_EPOCHS = 10  # until the original document first reports 99.4%; of five runs here one did, after 18 epochs


def read_speed(path: str | Path = SPEED, command: str = "python -m benchmarks.bench") -> dict:
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


def speed_table(results: dict) -> pd.DataFrame:
    """One row per measurement: the result, what it is compared with, the target, and what was achieved."""
    rows = []

    def add(name: str, result: str, compared: str = "", target: str = "", achieved: str = "") -> None:
        columns = {"Measurement": name, "Result": result, "Compared with": compared}
        rows.append(columns | {"Target": target, "Achieved": achieved})

    def speedup(timing: dict, seconds: float) -> str:
        return f"{seconds / timing['median']:.1f}× faster"

    epoch = results["epoch"]["seconds"]
    baseline_name, baseline = best_baseline(results["epoch"])
    reference = f"{baseline_name}: {format_seconds(baseline)}"
    for name, key, compared, target in (
        ("One epoch of `Net`, 60,000 images, bfloat16", "bfloat16", reference, "5× faster"),
        ("The same in float32", "float32", "", ""),
        ("The same in float32, not compiled", "float32, not compiled", "", ""),
    ):
        add(name, format_seconds(epoch[key]), compared, target, speedup(epoch[key], baseline["median"]))
    bound = epoch["lower bound"]
    for key in ("bfloat16", "float32"):
        achieved = f"{epoch[key]['median'] / bound['median']:.1f}× the lower bound"
        compared = f"the arithmetic alone, as float32 matrix products: {format_seconds(bound)}"
        name = f"One epoch against the lower bound, {key}"
        add(name, format_seconds(epoch[key]), compared, "2× the lower bound", achieved)

    for part in ("to 99.0%", "to 99.4%"):
        run = results[part]
        training, from_start = run["training seconds"], run["seconds from process start"]
        epochs = run["recipe"]["epochs"]
        name = f"`{run['variant']}` {part}, {epochs} epoch{'s' if epochs > 1 else ''}"
        compared = f"mean {run['mean']:.3f}% ± {run['std']:.3f}, n = {len(run['seeds'])}"
        compared += f", p = {run['p of a mean above the target']:.2g}"
        if part == "to 99.4%":
            seconds = BASELINE_EPOCHS * baseline["median"]
            compared += f"; {BASELINE_EPOCHS} epochs of the baseline: {seconds:.0f} s"
            achieved = [speedup(training, seconds), speedup(from_start, seconds)]
            targets = ["10× faster", ""]
        else:
            achieved = [format_seconds(timing).split(" (")[0] for timing in (training, from_start)]
            targets = ["30 s", "30 s"]
        add(name, format_seconds(training), compared, targets[0], achieved[0])
        add("The same from process start", format_seconds(from_start), "", targets[1], achieved[1])

    for name in ("all test images", "one image"):
        timings = {way: format_seconds(timing) for way, timing in results["inference"][name].items()}
        eager = timings.pop("eager")
        add(f"Inference, {name}", eager, "; ".join(f"{way}: {text}" for way, text in timings.items()))
    add("Peak memory of training", f"{results['memory']['peak MB']:.0f} MB", target="1500 MB")
    add("`python main.py --help`", format_seconds(results["start"]["main.py --help"]), target="500 ms")
    return pd.DataFrame(rows)


def describe_machine(results: dict) -> str:
    """The machine and the versions of the speed table, and how to read a timing."""
    where = results["epoch"]["environment"]
    versions = f"Python {where['versions']['python']}, torch {where['versions']['torch']}"
    machine = f"{where['processor']}, {where['cores']} cores, {where['capability']}, {where['system']}"
    return f"{machine}, {versions}; medians, with the range in brackets."


def describe_throughput(results: dict) -> str:
    """Trials per hour, one after another with all threads and side by side with one thread each."""
    what, hourly = next(item for item in results["throughput"].items() if item[0].startswith("trials"))
    return "; ".join(f"{name}: {count:.1f} {what}" for name, count in hourly.items())


def sweep_table(results: dict) -> pd.DataFrame:
    """A sweep of a few short trials, by local processes and on Ray, one at a time and one per core."""
    part = results["sweeps"]
    what, timings = next(item for item in part.items() if item[0].startswith("seconds of"))
    count = int(re.search(r"\d+", what)[0])
    return pd.DataFrame(
        {
            "Sweep": list(timings),
            what.capitalize(): [format_seconds(timing) for timing in timings.values()],
            "Trials per hour": [f"{3600 * count / timing['median']:.0f}" for timing in timings.values()],
            "Overhead per trial": [format_seconds(timing) for timing in part["overhead seconds per trial"].values()],
        }
    )


def profile_table(results: dict) -> pd.DataFrame:
    """The share of each operation in the time of training `Net` on the CPU."""
    shares = results["profile"]["percent of time"]
    return pd.DataFrame({"Operation": [f"`{name}`" for name in shares], "Percent": list(shares.values())})


def export_table(record: dict) -> pd.DataFrame:
    """The network as PyTorch and as ONNX files: accuracy on the test set, size, and time for one image."""
    rows = [
        {
            "Network": row["network"],
            "Correct": f"{row['correct']}/10000 ({row['accuracy']:.2f}%)",
            "Bytes": f"{row['bytes']:,}",
            "One image": f"{row['milliseconds']:.3f} ms ({row['range'][0]:.3f}–{row['range'][1]:.3f})",
        }
        for row in record["rows"]
    ]
    return pd.DataFrame(rows)
