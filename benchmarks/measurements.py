"""What `benchmarks.bench` measures: a function per part, each returning a dict that can be written as JSON.

`repeats` is the number of timings; `smoke` uses little data and the smallest numbers, to see that everything works.
What is compared is measured interleaved, several times, if possible in one process; a timing is the median and the
range. Time to accuracy is measured as in cifar10-airbench (github.com/KellerJordan/cifar10-airbench): a fixed schedule,
the last epoch, the mean over seeds, after a warm-up on random labels that is not counted.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from analysis.inspection import count_macs
from analysis.statistics import p_mean_above
from benchmarks import baseline
from benchmarks.timing import measure_interleaved, seconds_of, summarize
from experiments.candidates import KNOWN
from experiments.ledger import read_ledger
from experiments.local_runner import run_locally
from experiments.ray_runner import ClusterError, run_on_ray
from experiments.trial import load_data, run_trial
from experiments.vectorized import fit_vectorized
from helpers import Net, build, fit
from training.augmentation import normalize
from training.cpu import cores
from training.files import ROOT
from training.kernels import can_compile
from training.mnist import MnistData
from training.recipe import Recipe

INFERENCE_BATCH = 1000  # images
VECTORIZED_SEEDS = 32  # trained at once on a GPU


# --- Shared by several parts -----------------------------------------------------------------------------------------


def load(smoke: bool) -> MnistData:
    """MNIST, or in a smoke run a part of the sample. Raises DataError if MNIST cannot be loaded."""
    return load_data(True).subset(640, 200) if smoke else load_data(False)


def worker_counts(smoke: bool) -> list[int]:
    """How many processes to measure at a time: one, and one per core."""
    return [cores()] if smoke else sorted({1, cores()})


def warm_up(model: torch.nn.Module, data: MnistData, recipe: Recipe, compile: bool, device: str = "cpu") -> None:
    """Train two batches with random labels, so that compiling, or reading torch's cache on disk, is done."""
    few = data.subset(2 * recipe.batch_size, 100)
    random_labels = torch.randint(10, few.train_labels.shape, generator=torch.Generator().manual_seed(0))
    few = replace(few, train_labels=random_labels)
    fit(model, few, replace(recipe, epochs=1), device=device, progress=False, compile=compile)


# --- Parts ------------------------------------------------------------------------------------------------------------


def epoch(repeats: int, smoke: bool) -> dict:
    """One training epoch on the CPU: this project, the baseline, and a lower bound.

    The lower bound is the time that large matrix products take for as many floating-point operations.
    """
    data, threads = load(smoke), torch.get_num_threads()
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    flop = 2 * 3 * count_macs(Net()) * len(data.train_images)  # the backward pass costs two forward passes
    few_evaluated = data.subset(len(data.train_images), 100)

    def lower_bound() -> float:
        return seconds_of(lambda: [left @ right for _ in range(10)]) / (10 * 2 * size**3) * flop

    def fit_epoch(precision: str, compile: bool) -> Callable[[], float]:
        model, recipe = build(Net, 0), Recipe(epochs=1, precision=precision)
        warm_up(model, data, recipe, compile)
        run = partial(fit, model, few_evaluated, recipe, device="cpu", progress=False, compile=compile)
        return lambda: run()[0]["seconds"]

    def baseline_epoch(count: int) -> Callable[[], float]:
        epochs = baseline.train(data, epochs=repeats)

        def run() -> float:
            torch.set_num_threads(count)
            try:
                return next(epochs)[0]
            finally:
                torch.set_num_threads(threads)

        return run

    lower_bound()  # warm-up
    functions = {
        "lower bound": lower_bound,
        "float32": fit_epoch("float32", can_compile()),
        "bfloat16": fit_epoch("bfloat16", can_compile()),
        "float32, not compiled": fit_epoch("float32", False),
    }
    for count in sorted({1, threads}):  # its two workers need the cores as well, so one thread may be faster
        functions[f"baseline, {count} thread{'s' if count > 1 else ''}"] = baseline_epoch(count)
    return {"seconds": measure_interleaved(functions, repeats), "GFLOP per epoch": round(flop / 1e9, 1)}


def time_to_accuracy(variant: str, target: float, seeds: list[int], device: str = "cpu", smoke: bool = False) -> dict:
    """Seconds and accuracy of a variant's whole training, each seed in a new process.

    Measured from the start of the process, and again without imports, loading and warm-up. `target` is the mean test
    accuracy in percent that the variant was made for.
    """
    recipe = KNOWN[variant].recipe
    recipe = replace(recipe, epochs=1) if smoke else recipe
    accuracies, training, from_start = [], [], []
    for seed in seeds:
        started = time.time()
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            ready, done, accuracy = pool.submit(_train_once, variant, recipe, seed, device, smoke).result()
        accuracies.append(accuracy)
        training.append(done - ready)
        from_start.append(done - started)
        took = f"{training[-1]:.1f} s, from process start {from_start[-1]:.1f} s"
        print(f"    seed {seed}: {accuracy:.2f}% in {took}", flush=True)
    return {
        "variant": variant,
        "recipe": recipe.as_dict(),
        "target": target,
        "seeds": seeds,
        "accuracies": accuracies,
        "mean": round(statistics.mean(accuracies), 4),
        "std": round(statistics.stdev(accuracies), 4),
        "minimum": min(accuracies),
        "p of a mean above the target": p_mean_above(accuracies, target),
        "training seconds": summarize(training),
        "seconds from process start": summarize(from_start),
    }


def _train_once(variant: str, recipe: Recipe, seed: int, device: str, smoke: bool) -> tuple[float, float, float]:
    """In a new process: load, warm up, train, evaluate once. Times before and after training, and the accuracy."""
    data = load(smoke)
    architecture = KNOWN[variant].build
    compile = not smoke and (device != "cpu" or can_compile())
    warm_up(build(architecture, seed), data, recipe, compile, device)
    ready = time.time()
    options = {"device": device, "progress": False, "eval_every": recipe.epochs, "compile": compile}
    history = fit(build(architecture, seed), data, recipe, seed=seed, **options)
    return ready, time.time(), history[-1]["eval_accuracy"]


def profile(repeats: int, smoke: bool) -> dict:
    """The share of each torch operation in the time of training `Net` on the CPU, in percent: the twelve largest.

    Measured once, over 50 batches: `repeats` is not used.
    """
    recipe = Recipe(epochs=1)
    few = load(smoke).subset(50 * recipe.batch_size, 100)
    train = partial(fit, build(Net, 0), few, recipe, device="cpu", progress=False, compile=can_compile())
    train()  # warm-up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        train()
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        name = "compiled: normalisation, ReLU, pooling" if "CompiledFxGraph" in event.key else event.key
        seconds[name] = seconds.get(name, 0) + event.self_cpu_time_total
    shares = {name: round(100 * value / sum(seconds.values()), 1) for name, value in seconds.items()}
    return {"percent of time": dict(sorted(shares.items(), key=lambda item: -item[1])[:12])}


def gpu(repeats: int, smoke: bool) -> dict:
    """Training `Net` on a GPU, plain, compiled, and many seeds at once; empty without a CUDA device."""
    if not torch.cuda.is_available():
        print("    not measured: torch finds no CUDA device")
        return {}
    data, recipe = load(smoke), Recipe(epochs=1) if smoke else Recipe()
    options = {"device": "cuda", "progress": False, "eval_every": recipe.epochs}

    def one(compile: bool) -> float:
        model = build(Net, 0)
        return seconds_of(lambda: fit(model, data, recipe, compile=compile, **options))

    def vectorized() -> float:
        seeds = list(range(VECTORIZED_SEEDS))
        return seconds_of(lambda: fit_vectorized(Net, data, recipe, seeds, "cuda")) / VECTORIZED_SEEDS

    functions = {
        "one seed": partial(one, False),
        "one seed, compiled": partial(one, True),
        f"each of {VECTORIZED_SEEDS} seeds": vectorized,
    }
    for function in functions.values():
        function()  # compile and warm up
    return {
        "device": torch.cuda.get_device_name(),
        f"seconds of {recipe.epochs} epochs": measure_interleaved(functions, repeats),
    }


def throughput(repeats: int, smoke: bool) -> dict:
    """Trials per hour: one process with all threads, and one process per core with one thread each."""
    recipe = Recipe(epochs=2)  # the first epoch compiles

    def seconds_per_epoch(workers: int) -> float:
        threads = max(1, cores() // workers)
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            seconds = pool.map(_last_epoch, [recipe] * workers, [threads] * workers, [smoke] * workers)
            return max(seconds) / workers

    functions = {f"{count} at a time": partial(seconds_per_epoch, count) for count in worker_counts(smoke)}
    seconds = measure_interleaved(functions, repeats)
    epochs = Recipe().epochs
    hourly = {name: round(3600 / value["median"] / epochs, 2) for name, value in seconds.items()}
    return {"seconds per epoch": seconds, f"trials of {epochs} epochs per hour": hourly}


def _last_epoch(recipe: Recipe, threads: int, smoke: bool) -> float:
    """In a worker process: seconds of the last epoch of training `Net`."""
    torch.set_num_threads(threads)
    options = {"device": "cpu", "progress": False, "compile": not smoke and can_compile()}
    return fit(build(Net, 0), load(smoke), recipe, **options)[-1]["seconds"]


def sweeps(repeats: int, smoke: bool) -> dict:
    """A sweep of short trials, by local processes and on Ray, one at a time and one per core; empty without Ray.

    The overhead per trial is the worker time that is not spent training, starting the workers included.
    """
    data, trials = load(smoke), 1 if smoke else 4
    fixed = {"variant": "to_99_0", "split": "validation", "sample": smoke, "device": "cpu", "threads": 1}
    todo = [fixed | {"seed": seed} for seed in range(trials)]
    overhead: dict[str, list[float]] = {}

    def sweep(name: str, engine: str, workers: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            ledger = Path(folder) / "ledger.jsonl"
            start = time.perf_counter()
            if engine == "Ray":
                failed = run_on_ray(todo, data, ledger, run_trial, "local", workers)
            else:
                failed = run_locally(todo, ledger, run_trial, workers)
            seconds = time.perf_counter() - start
            if failed:
                raise ValueError(f"{failed} trials of a sweep failed ({name})")
            training = sum(trial["seconds"] for trial in read_ledger(ledger))
        overhead.setdefault(name, []).append((workers * seconds - training) / trials)
        return seconds

    functions = {}
    for workers in worker_counts(smoke):
        for engine in ("processes", "Ray"):
            name = f"{engine}, {workers} at a time"
            functions[name] = partial(sweep, name, engine, workers)
    try:
        seconds = measure_interleaved(functions, repeats)
    except ClusterError as error:
        print(f"    not measured: {error}")
        return {}
    return {
        f"seconds of {trials} trials": seconds,
        "overhead seconds per trial": {name: summarize(values) for name, values in overhead.items()},
    }


def inference(repeats: int, smoke: bool) -> dict:
    """Inference of all test images in batches, and of one image: eager, compiled, and by onnxruntime if installed."""
    model = build(Net, 0).eval()
    images = normalize(load(smoke).eval_images)
    networks = {"eager": model, "compiled": torch.compile(model), **_onnx_session(model)}

    def run(network: Callable, batches: tuple[torch.Tensor, ...], rounds: int) -> float:
        return seconds_of(lambda: [network(batch) for _ in range(rounds) for batch in batches]) / rounds

    results = {}
    with torch.inference_mode():
        for name, batches, rounds in (
            ("all test images", images.split(INFERENCE_BATCH), 1),
            ("one image", images[:1].split(1), 100),
        ):
            functions = {key: partial(run, network, batches, rounds) for key, network in networks.items()}
            for function in functions.values():
                function()  # compile and warm up
            results[name] = measure_interleaved(functions, repeats)
    return results


def _onnx_session(model: torch.nn.Module) -> dict[str, Callable]:
    """The model as a function that onnxruntime computes, {"onnxruntime": function}; empty if it is not installed."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  required by torch.onnx.export
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


def memory(repeats: int, smoke: bool) -> dict:
    """Peak resident memory of a process that trains one epoch, in MB. Measured once: `repeats` is not used."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return {"peak MB": pool.submit(_peak_of_an_epoch, smoke).result()}


def _peak_of_an_epoch(smoke: bool) -> float:
    """In a worker process: its peak memory in MB after an epoch."""
    _last_epoch(Recipe(epochs=1), torch.get_num_threads(), smoke)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)  # macOS counts bytes, Linux kilobytes


def start(repeats: int, smoke: bool) -> dict:
    """Seconds of `python main.py --help`."""
    command = [sys.executable, str(ROOT / "main.py"), "--help"]

    def run_help() -> float:
        return seconds_of(lambda: subprocess.run(command, check=True, capture_output=True))

    return measure_interleaved({"main.py --help": run_help}, repeats)
