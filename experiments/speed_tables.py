"""The README's tables of speed and export, from what was measured: results/speed.json and results/export.json."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd

from training.files import EXPORT, SPEED

TOUCHED = 10  # epochs after which the original document first reports 99.4%; of our five runs of it one did, after 18


def read_speed(path: str | Path = SPEED, command: str = "python benchmarks/bench.py") -> dict:
    """What `command` measured. ValueError where it lacks, naming the command."""
    again = f"{command} makes it"
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{Path(path).name} lacks: {again}") from None
    except ValueError as error:
        raise ValueError(f"{Path(path).name} is no JSON ({error}): delete it; {again} anew") from None


def seconds(spread: dict) -> str:
    """E.g. "6.91 s (6.80–7.22)": median and range; milliseconds below a tenth of a second."""
    unit, factor = ("ms", 1000) if spread["median"] < 0.1 else ("s", 1)
    median, low, high = (f"{factor * spread[key]:.3g}" for key in ("median", "low", "high"))
    return f"{median} {unit} ({low}–{high})"


def opponent(epoch: dict) -> tuple[str, dict]:
    """The baseline at its best: the number of threads that suits it, and its seconds an epoch."""
    baselines = {name: spread for name, spread in epoch["seconds"].items() if name.startswith("baseline")}
    name, best = min(baselines.items(), key=lambda item: item[1]["median"])
    return name.replace(" 1 threads", " one thread"), best


def speed_table(results: dict) -> pd.DataFrame:
    """One row a measurement: what, ours, beside what, our aim, and how far we came."""
    rows = []

    def row(what: str, ours: dict | str, beside: str = "", aim: str = "", came: str = "") -> None:
        ours = ours if isinstance(ours, str) else seconds(ours)
        rows.append({"What": what, "Ours": ours, "Beside": beside, "Aim": aim, "Reached": came})

    def faster(ours: dict, other: float) -> str:
        return f"{other / ours['median']:.1f}× faster"

    epoch = results["epoch"]["seconds"]
    name, baseline = opponent(results["epoch"])
    slow, floor = baseline["median"], epoch["floor"]
    for what, key, aim in (
        ("One epoch of `Net`, 60,000 images, bfloat16", "ours, bfloat16", "5× faster"),
        ("The same in float32", "ours", ""),
        ("The same in float32, not compiled", "ours, not compiled", ""),
    ):
        row(what, epoch[key], f"{name}: {seconds(baseline)}" if aim else "", aim, faster(epoch[key], slow))
    for key in ("ours, bfloat16", "ours"):
        times = f"{epoch[key]['median'] / floor['median']:.1f}× the floor"
        what = f"Beside the arithmetic alone, {'float32' if key == 'ours' else 'bfloat16'}"
        row(what, epoch[key], f"floor: {seconds(floor)}", "2× the floor", times)
    for part in ("to 99.0%", "to 99.4%"):
        reached = results[part]
        count, took = reached["recipe"]["epochs"], reached["net seconds"]
        mean = f"mean {reached['mean']:.3f}% ± {reached['std']:.3f}, n = {len(reached['seeds'])}"
        mean += f", p = {reached['p of a mean above the goal']:.2g}"
        whole = reached["seconds from process start"]
        what = f"`{reached['variant']}` {part}, {count} epoch{'s' if count > 1 else ''}"
        if part == "to 99.4%":
            other = TOUCHED * slow
            row(
                what,
                took,
                f"{mean}; {TOUCHED} epochs of the baseline: {other:.0f} s",
                "10× faster",
                faster(took, other),
            )
            row("The same from process start", whole, "", "", faster(whole, other))
        else:
            row(what, took, mean, "30 s", seconds(took).split(" (")[0])
            row("The same from process start", whole, "", "30 s", seconds(whole).split(" (")[0])
    for what, ways in ((w, results["inference"][w]) for w in ("all test images", "one image")):
        others = "; ".join(f"{way}: {seconds(spread)}" for way, spread in ways.items() if way != "eager")
        row(f"Inference, {what}", ways["eager"], others)
    row("Peak memory of training", f"{results['memory']['peak MB']:.0f} MB", aim="1500 MB")
    row("`python main.py --help`", results["start"]["main.py --help"], aim="500 ms")
    return pd.DataFrame(rows)


def describe_machine(results: dict) -> str:
    """What the speeds were measured on, in words."""
    where = results["epoch"]["environment"]
    return (
        f"{where['processor']}, {where['cores']} cores, {where['capability']}, {where['system']}, "
        f"Python {where['versions']['python']}, torch {where['versions']['torch']}; medians, and the range in brackets."
    )


def describe_throughput(results: dict) -> str:
    """How many trials an hour, one after the other with all threads or side by side with one thread each."""
    hourly = next(value for key, value in results["throughput"].items() if key.startswith("trials"))
    return "; ".join(f"{name}: {count:.1f} trials of 20 epochs an hour" for name, count in hourly.items())


def sweep_table(results: dict) -> pd.DataFrame:
    """A sweep of a few short trials, by processes of this machine and on Ray, one at a time and one a core."""
    part = results["sweeps"]
    what, took = next((key, value) for key, value in part.items() if key.startswith("seconds of"))
    count = int(re.search(r"\d+", what)[0])
    return pd.DataFrame(
        {
            "Sweep": list(took),
            what.capitalize(): [seconds(spread) for spread in took.values()],
            "Trials an hour": [f"{3600 * count / spread['median']:.0f}" for spread in took.values()],
            "A trial outside its training": [
                seconds(spread) for spread in part["seconds a trial outside its training"].values()
            ],
        }
    )


def projection_table(results: dict, hosts=(1, 10, 50)) -> pd.DataFrame:
    """What a Ray cluster of so many hosts like this one would do: trials of 20 epochs, a core each.

    A trial takes what it takes here beside as many others as there are cores, and what Ray costs it.
    """
    hourly = next(value for key, value in results["throughput"].items() if key.startswith("trials"))
    cores = results["throughput"]["environment"]["cores"]
    name = f"{cores} at a time"
    outside = results["sweeps"]["seconds a trial outside its training"][f"Ray, {name}"]["median"]
    trial = 3600 * cores / hourly[name] + outside
    rows = []
    for count in hosts:
        at_once = count * cores
        hours = math.ceil(100 / at_once) * trial / 3600
        rows.append(
            {
                "Hosts": count,
                "Trials at a time": at_once,
                "Trials an hour": f"{at_once * 3600 / trial:.0f}",
                "Ten variants × ten seeds": f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min",
            }
        )
    return pd.DataFrame(rows)


def profile_table(results: dict) -> pd.DataFrame:
    """Where a training step of `Net` spends its time on the CPU."""
    shares = results["profile"]["percent of the time"]
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
