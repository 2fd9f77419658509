"""The README's speed tables, from what `benchmarks/bench.py` measured: results/speed.json."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

SPEED = Path(__file__).parent / "results" / "speed.json"
TOUCHED = 10  # epochs after which the original document first reports 99.40%; of our five runs of it one did, after 18


def read_speed(path: str | Path = SPEED) -> dict:
    """The measurements, a dict a part. ValueError where they lack, with the command that makes them."""
    again = "python benchmarks/bench.py makes it"
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
    return min(baselines.items(), key=lambda item: item[1]["median"])


def speed_table(results: dict) -> pd.DataFrame:
    """One row a measurement: what, ours, beside what, and how many times as fast ours is."""
    rows = []

    def row(what: str, ours: dict | str, beside: str = "", other: float | None = None) -> None:
        faster = f"{other / ours['median']:.1f}×" if other else ""
        rows.append(
            {"What": what, "Ours": ours if isinstance(ours, str) else seconds(ours), "Beside": beside, "Faster": faster}
        )

    epoch = results["epoch"]["seconds"]
    name, baseline = opponent(results["epoch"])
    row("One epoch of `Net`, 60,000 images", epoch["ours"], f"{name}: {seconds(baseline)}", baseline["median"])
    floor = epoch["floor"]
    row("The same, beside the arithmetic alone", epoch["ours"], f"floor: {seconds(floor)}", floor["median"])
    row("The same in bfloat16", epoch["ours, bfloat16"], name, baseline["median"])
    row("The same in float32, not compiled", epoch["ours, not compiled"], name, baseline["median"])
    for part in ("to 99.0%", "to 99.4%"):
        reached = results[part]
        mean = f"mean {reached['mean']:.3f}% ± {reached['std']:.3f}, n = {len(reached['seeds'])}"
        p = reached["p of a mean above the goal"]
        what = f"`{reached['variant']}` {part}, {reached['recipe']['epochs']} epochs"
        beside, other = f"{mean}, p = {p:.2g}", None
        if part == "to 99.4%":
            other = TOUCHED * baseline["median"]
            beside += f"; {TOUCHED} epochs of the baseline: {other:.0f} s"
        row(what, reached["net seconds"], beside, other)
        row("The same from process start", reached["seconds from process start"], beside="", other=other)
    for what, ways in ((w, results["inference"][w]) for w in ("all test images", "one image")):
        others = "; ".join(f"{way}: {seconds(spread)}" for way, spread in ways.items() if way != "eager")
        row(f"Inference, {what}", ways["eager"], others)
    row("Peak memory of training", f"{results['memory']['peak MB']:.0f} MB")
    row("`python main.py --help`", results["start"]["main.py --help"])
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


def profile_table(results: dict) -> pd.DataFrame:
    """Where a training step of `Net` spends its time on the CPU."""
    shares = results["profile"]["percent of the time"]
    return pd.DataFrame({"Operation": [f"`{name}`" for name in shares], "Percent": list(shares.values())})
