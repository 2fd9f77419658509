"""How fast this project is, measured side by side in one run: `python benchmarks/bench.py`, on an idle machine.

python benchmarks/bench.py                     all parts, into results/speed.json
python benchmarks/bench.py --only epoch,start  only these; the other parts' last results stay
python benchmarks/bench.py --smoke             all parts on the small sample; nothing is written

What is compared is measured in turns, in one process where that is possible, several times: medians and the range.
Time to accuracy is measured in the manner of cifar10-airbench (github.com/KellerJordan/cifar10-airbench): a fixed
schedule, the last epoch, a mean over seeds; a warm-up on random labels is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from analysis import inspection
from training.augmentation import normalize
from training.mnist import DataError, MnistData

REPO = Path(__file__).parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

import baseline  # noqa: E402
import torch  # noqa: E402

import helpers  # noqa: E402
from analysis.statistics import p_mean_above  # noqa: E402
from experiments.candidates import KNOWN  # noqa: E402
from experiments.ledger import provenance, read_ledger  # noqa: E402
from experiments.ray_runner import ClusterError, run_on_ray  # noqa: E402
from experiments.speed_tables import SPEED  # noqa: E402
from experiments.sweep import cores, load, run_all  # noqa: E402
from experiments.vectorized import fit_vectorized  # noqa: E402
from training.files import atomic_path  # noqa: E402
from training.fused import can_fuse  # noqa: E402
from training.recipe import Recipe  # noqa: E402

BATCH = 1000  # images, of inference
GOALS = {"to 99.0%": (99.0, "to_99_0"), "to 99.4%": (99.4, "to_99_4")}  # part: mean test accuracy, variant
TOGETHER = 32  # seeds at once, on a GPU
TRIALS = 4  # of a sweep


def spread(values: list[float]) -> dict:
    """Median and range of repeated timings, with the timings themselves."""
    rounded = [round(value, 5) for value in values]
    return {"median": statistics.median(rounded), "low": min(rounded), "high": max(rounded), "all": rounded}


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes, the accelerator's work included."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(functions: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict]:
    """Call each function, which returns seconds, `repeats` times, in turns, so that a slow minute hits them all."""
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(function())
            print(f"    {name}: {seconds[name][-1]:.3g} s", flush=True)
    return {name: spread(values) for name, values in seconds.items()}


def first(data: MnistData, trained: int, tested: int) -> MnistData:
    """A copy of the first so many training and test images."""
    return replace(
        data,
        train_images=data.train_images[:trained].clone(),
        train_labels=data.train_labels[:trained].clone(),
        eval_images=data.eval_images[:tested],
        eval_labels=data.eval_labels[:tested],
    )


# --- Parts ------------------------------------------------------------------------------------------------------------


def epoch(data: MnistData, repeats: int) -> dict:
    """One epoch of training: ours, in float32 and bfloat16, against the baseline and the arithmetic floor."""
    threads = torch.get_num_threads()
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    macs = inspection.count_macs(helpers.Net())
    flop = 2 * 3 * macs * len(data.train_images)  # forward, and twice as much backward
    opponents = {
        f"baseline, {count} threads": baseline.epochs(data, count=repeats)
        for count in sorted({1, threads})  # its two workers want the cores too: which is better is not obvious
    }

    def floor() -> float:
        return timed(lambda: [left @ right for _ in range(10)]) / (10 * 2 * size**3) * flop

    def opponent(name: str) -> float:
        torch.set_num_threads(int(name.split()[1]))
        try:
            return next(opponents[name])[0]
        finally:
            torch.set_num_threads(threads)

    untested = first(data, len(data.train_images), 100)

    def ours(recipe: Recipe, compiled: bool = can_fuse()) -> Callable[[], float]:
        model, recipe = helpers.build(helpers.Net, 0), replace(recipe, epochs=1)
        warm_up(model, data, recipe, compiled)
        run = partial(helpers.fit, model, untested, recipe, device="cpu", progress=False, compile=compiled)
        return lambda: run()[0]["seconds"]

    floor()  # warm
    seconds = in_turns(
        {
            "floor": floor,
            "ours": ours(Recipe()),
            "ours, bfloat16": ours(Recipe(precision="bfloat16")),
            "ours, not compiled": ours(Recipe(), compiled=False),
            **{name: lambda name=name: opponent(name) for name in opponents},
        },
        repeats,
    )
    return {"seconds": seconds, "GFLOP an epoch": round(flop / 1e9, 1)}


def warm_up(model: torch.nn.Module, data: MnistData, recipe: Recipe, compiled: bool, device: str = "cpu") -> None:
    """Two batches with random labels: what compiles is compiled, or read from torch's cache on disk."""
    few = first(data, 2 * recipe.batch_size, 100)
    few.train_labels.random_(10, generator=torch.Generator().manual_seed(0))
    helpers.fit(model, few, replace(recipe, epochs=1), device=device, progress=False, compile=compiled)


def accuracy(variant: str, goal: float, seeds: list[int], sample: bool, device: str) -> dict:
    """Time to a mean accuracy: every seed in a process of its own, from its start, and net of imports and loading."""
    recipe = KNOWN[variant].recipe
    recipe = recipe.for_smoke() if sample else recipe
    runs = []
    for seed in seeds:
        began = time.time()
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            ready, done, reached = pool.submit(_train_once, variant, recipe, seed, sample, device).result()
        runs.append({"accuracy": reached, "net": done - ready, "whole": done - began})
        took = f"{done - ready:.1f} s, from process start {done - began:.1f} s"
        print(f"    seed {seed}: {reached:.2f}% in {took}", flush=True)
    accuracies = [run["accuracy"] for run in runs]
    return {
        "variant": variant,
        "recipe": recipe.as_dict(),
        "goal": goal,
        "seeds": seeds,
        "accuracies": accuracies,
        "mean": round(statistics.mean(accuracies), 4),
        "std": round(statistics.stdev(accuracies), 4),
        "minimum": min(accuracies),
        "p of a mean above the goal": p_mean_above(accuracies, goal),
        "net seconds": spread([run["net"] for run in runs]),
        "seconds from process start": spread([run["whole"] for run in runs]),
    }


def _train_once(variant: str, recipe: Recipe, seed: int, sample: bool, device: str) -> tuple[float, float, float]:
    """In a fresh process: load, warm up on random labels, train, score once. Times of day, and the accuracy."""
    data = load(sample)
    build = KNOWN[variant].build
    compiled = device != "cpu" or can_fuse()
    warm_up(helpers.build(build, seed), data, recipe, compiled, device)
    ready = time.time()
    options = {"progress": False, "eval_every": recipe.epochs, "compile": compiled}
    history = helpers.fit(helpers.build(build, seed), data, recipe, seed, device, **options)
    return ready, time.time(), history[-1]["eval_accuracy"]


def profiled(data: MnistData, batches: int = 50) -> dict:
    """Where training `Net` on the CPU spends its time: the share of each of torch's operations, in percent."""
    recipe = replace(Recipe(), epochs=1)
    few = first(data, batches * recipe.batch_size, 100)
    model = helpers.build(helpers.Net, 0)
    options = {"device": "cpu", "progress": False, "compile": can_fuse()}
    helpers.fit(model, few, recipe, **options)  # warm
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        helpers.fit(model, few, recipe, **options)
    seconds: dict[str, float] = {}
    for event in profile.key_averages():
        name = "compiled: normalisation, ReLU, pooling" if "CompiledFxGraph" in event.key else event.key
        seconds[name] = seconds.get(name, 0) + event.self_cpu_time_total
    shares = {name: round(100 * value / sum(seconds.values()), 1) for name, value in seconds.items()}
    return {"percent of the time": dict(sorted(shares.items(), key=lambda item: -item[1])[:12])}


def gpu(data: MnistData, repeats: int, sample: bool) -> dict:
    """On a GPU: 20 epochs of `Net`, plain and compiled, and many seeds at once against one by one."""
    if not torch.cuda.is_available():
        print("    not measured: torch finds no CUDA device")
        return {}
    recipe = Recipe().for_smoke() if sample else Recipe()

    def alone(compiled: bool) -> float:
        model = helpers.build(helpers.Net, 0)
        return timed(
            lambda: helpers.fit(model, data, recipe, device="cuda", progress=False, eval_every=99, compile=compiled)
        )

    def together() -> float:
        return timed(lambda: fit_vectorized(helpers.Net, data, recipe, list(range(TOGETHER)), "cuda")) / TOGETHER

    runs = {"one": lambda: alone(False), "one, compiled": lambda: alone(True), f"each of {TOGETHER}": together}
    for run in runs.values():
        run()  # warm up and compile
    return {"device": torch.cuda.get_device_name(), f"seconds for {recipe.epochs} epochs": in_turns(runs, repeats)}


def throughput(sample: bool, repeats: int) -> dict:
    """Trials an hour: one process with all threads, against as many one-thread processes as there are cores."""
    recipe = replace(Recipe(), epochs=2)  # the first one compiles

    def trials(workers: int) -> float:
        threads = max(1, cores() // workers)
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            seconds = pool.map(_epoch_alone, [recipe] * workers, [threads] * workers, [sample] * workers)
            return max(seconds) / workers

    seconds = in_turns({f"{count} at a time": lambda count=count: trials(count) for count in {1, cores()}}, repeats)
    hourly = {name: round(3600 / value["median"] / Recipe().epochs, 2) for name, value in seconds.items()}
    return {"seconds an epoch": seconds, f"trials of {Recipe().epochs} epochs an hour": hourly}


def _epoch_alone(recipe: Recipe, threads: int, sample: bool) -> float:
    torch.set_num_threads(threads)
    options = {"device": "cpu", "progress": False, "compile": can_fuse()}
    return helpers.fit(helpers.build(helpers.Net, 0), load(sample), recipe, **options)[-1]["seconds"]


def sweeps(data: MnistData, sample: bool, repeats: int) -> dict:
    """A sweep of short trials by processes of this machine and on Ray, one at a time and as many as there are cores.

    Beside its seconds what a trial costs outside its training, the start of everything included; none where Ray lacks.
    """
    fixed = {"variant": "to_99_0", "split": "validation", "sample": sample, "device": "cpu", "threads": 1}
    trials = [fixed | {"seed": seed} for seed in range(TRIALS)]
    outside: dict[str, list[float]] = {}

    def sweep(engine: str, workers: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.jsonl"
            start = time.perf_counter()
            failed = (
                run_on_ray(trials, data, path, "local", workers) if engine == "Ray" else run_all(trials, path, workers)
            )
            seconds = time.perf_counter() - start
            if failed:
                raise ValueError(f"{failed} trials of a sweep failed ({engine}, {workers} at a time)")
            training = sum(trial["seconds"] for trial in read_ledger(path))
        outside.setdefault(f"{engine}, {workers} at a time", []).append((workers * seconds - training) / TRIALS)
        return seconds

    ways = [(engine, workers) for workers in sorted({1, cores()}) for engine in ("processes", "Ray")]
    try:
        seconds = in_turns({f"{way[0]}, {way[1]} at a time": partial(sweep, *way) for way in ways}, repeats)
    except ClusterError as error:
        print(f"    {error}")
        return {}
    return {
        f"seconds of {TRIALS} trials": seconds,
        "seconds a trial outside its training": {way: spread(values) for way, values in outside.items()},
    }


def inference(data: MnistData, repeats: int) -> dict:
    """All test images in batches, and one image alone: eager, compiled, and by onnxruntime where it is installed."""
    model = helpers.build(helpers.Net, 0).eval()
    images = normalize(data.eval_images)
    ways = {"eager": model, "compiled": torch.compile(model), **_onnx(model)}
    results = {}
    for name, batches in {"all test images": images.split(BATCH), "one image": images[:1].split(1)}.items():

        def run(way: Callable, batches=batches) -> float:
            rounds = 1 if len(batches) > 1 else 100
            return timed(lambda: [way(batch) for _ in range(rounds) for batch in batches]) / rounds

        with torch.inference_mode():
            for way in ways.values():
                run(way)  # compile and warm up
            results[name] = in_turns({label: lambda way=way: run(way) for label, way in ways.items()}, repeats)
    return results


def _onnx(model: torch.nn.Module) -> dict[str, Callable]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx.export needs
    except ImportError as error:
        print(f"    onnxruntime is not measured: {error}")
        return {}
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return {"onnxruntime": lambda batch: session.run(None, {name: batch.numpy()})}


def memory(sample: bool) -> dict:
    """Peak memory of a training run, as the operating system counts it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return {"peak MB": pool.submit(_peak_of_an_epoch, sample).result()}


def _peak_of_an_epoch(sample: bool) -> float:
    _epoch_alone(replace(Recipe(), epochs=1), torch.get_num_threads(), sample)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)  # bytes there, kilobytes elsewhere


def start(repeats: int) -> dict:
    """Seconds until `python main.py --help` has answered."""

    def answer() -> float:
        command = [sys.executable, str(REPO / "main.py"), "--help"]
        return timed(lambda: subprocess.run(command, check=True, capture_output=True))

    return in_turns({"main.py --help": answer}, repeats)


# --- Command line -----------------------------------------------------------------------------------------------------


def environment() -> dict:
    """What the figures were measured on and with."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **provenance(torch.device("cpu")),
    }


def measure(part: str, options: argparse.Namespace) -> dict:
    """One part's results; a smoke run takes the sample and the smallest numbers."""
    sample, repeats = options.smoke, 2 if options.smoke else options.repeats
    if part in GOALS:
        goal, variant = GOALS[part]
        seeds = [options.first_seed + number for number in range(2 if sample else options.seeds)]
        return accuracy(variant, goal, seeds, sample, options.device)
    data = load(sample)
    return {
        "epoch": lambda: epoch(data, repeats),
        "profile": lambda: profiled(data, 5 if sample else 50),
        "throughput": lambda: throughput(sample, repeats),
        "sweeps": lambda: sweeps(data, sample, repeats),
        "inference": lambda: inference(data, repeats),
        "memory": lambda: memory(sample),
        "start": lambda: start(repeats),
        "gpu": lambda: gpu(data, repeats, sample),
    }[part]()


PARTS = ("epoch", "profile", "throughput", "sweeps", "inference", "memory", "start", "gpu", *GOALS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", default=",".join(PARTS), metavar="PARTS", help=f"comma-separated, of {', '.join(PARTS)}")
    add("--repeats", type=int, default=5, metavar="N", help="of each timing (default: 5)")
    add("--seeds", type=int, default=10, metavar="N", help="of each time to accuracy (default: 10)")
    add("--first-seed", type=int, default=0, metavar="N", help="of them (default: 0)")
    add("--device", default="cpu", metavar="NAME", help="of the times to accuracy: cpu or cuda (default: cpu)")
    add("--smoke", action="store_true", help="try everything on the small sample, write nothing")
    add("--output", type=Path, default=SPEED, metavar="FILE", help="default: results/speed.json")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    if min(options.repeats, options.seeds) < 2:
        parser.error("--repeats and --seeds must be 2 or more: one measurement has no spread")
    print(json.dumps(environment(), indent=1))
    try:
        results = json.loads(options.output.read_text()) if options.output.exists() else {}
        for part in parts:
            print(f"{part} …", flush=True)
            results[part] = {"environment": environment(), **measure(part, options)}
            if not options.smoke:
                with atomic_path(options.output) as temporary:
                    temporary.write_text(json.dumps(results, indent=1) + "\n")
    except (DataError, OSError, ValueError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
