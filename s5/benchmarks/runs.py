"""Parts of the benchmark that train whole networks, one or many, or use them; see `epochs.py`.

Time to accuracy is measured as in cifar10-airbench (github.com/KellerJordan/cifar10-airbench): a fixed schedule, the
last epoch, the mean over seeds, after a warm-up on random labels that is not counted.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from helpers import Net, build, fit
from s5.analysis.statistics import p_mean_above
from s5.benchmarks.epochs import warm_up
from s5.benchmarks.timing import load, measure_interleaved, seconds_of, summarize
from s5.experiments.claims import KNOWN
from s5.experiments.ledger import append_trial, read_ledger
from s5.experiments.local_runner import run_locally
from s5.experiments.ray_runner import ClusterError, run_on_ray
from s5.experiments.trial import run_trial
from s5.experiments.vectorized import fit_vectorized
from s5.reports import tables
from s5.training.augmentation import normalize
from s5.training.device import cores, eval_batch_size
from s5.training.recipe import Recipe

VECTORIZED_SEEDS = 32  # trained at once on a GPU


def worker_counts(smoke: bool) -> list[int]:
    """How many processes to measure at a time: one, and one per core."""
    return [cores()] if smoke else sorted({1, cores()})


def time_to_accuracy(variant: str, target: float, seeds: list[int], device: str = "cpu", smoke: bool = False) -> dict:
    """Seconds and accuracy of a variant's whole training, each seed in a new process.

    Measured from the start of the process, and again without imports, loading and warm-up. `target` is the mean test
    accuracy in percent that the variant was made for.
    """
    recipe = KNOWN[variant].recipe
    recipe = recipe.changed(epochs=1) if smoke else recipe
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
    compile = True if device == "cuda" and not smoke else None
    warm_up(build(architecture, seed), data, recipe, device=device, compile=compile)
    ready = time.time()
    options = {"device": device, "progress": False, "eval_every": recipe.epochs, "compile": compile}
    history = fit(build(architecture, seed), data, recipe, seed=seed, **options)
    return ready, time.time(), history[-1]["eval_accuracy"]


def throughput(repeats: int, smoke: bool) -> dict:
    """Trials per hour: one process with all threads, and one process per core with one thread each."""
    recipe = Recipe(epochs=2)  # the first epoch loads the kernels

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
    return fit(build(Net, 0), load(smoke), recipe, device="cpu", progress=False)[-1]["seconds"]


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


def ledger(repeats: int, smoke: bool) -> dict:
    """Appending a trial to a small and to a large ledger, and reading the large one and drawing its tables."""
    small, large = (5, 50) if smoke else (500, 50_000)
    recorded = read_ledger()

    def extended(trial: dict, number: int) -> dict:
        return trial | {"seed": 1_000_000 + number}

    with tempfile.TemporaryDirectory() as folder:
        functions = {}
        for count in (small, large):
            path = Path(folder) / f"{count}.jsonl"
            lines = (json.dumps(extended(recorded[number % len(recorded)], number)) for number in range(count))
            path.write_text("".join(f"{line}\n" for line in lines))
            seeds = iter(range(count, count + repeats + 1))
            append = partial(_seconds_to_append, path, recorded[0], seeds)
            append()  # the first reads the file
            functions[f"append to {count:,} lines"] = append
        functions[f"read {large:,} lines and draw tables"] = partial(_seconds_to_draw, path)
        return measure_interleaved(functions, repeats)


def _seconds_to_append(path: Path, trial: dict, seeds: Iterator[int]) -> float:
    new = trial | {"seed": 1_000_000 + next(seeds)}
    return seconds_of(lambda: append_trial(new, path))


def _seconds_to_draw(path: Path) -> float:
    def draw() -> None:
        trials = read_ledger(path)
        current = tables.current_trials("validation", trials)
        for table in (tables.summary_table, tables.comparison_table):
            table(current)
        tables.tried_table(trials)

    return seconds_of(draw)


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
            ("all test images", images.split(eval_batch_size(images.device)), 1),
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


def gpu(repeats: int, smoke: bool) -> dict:
    """An epoch of `Net` on a GPU: with and without a recorded step, and of many seeds at once; empty without CUDA."""
    if not torch.cuda.is_available():
        print("    not measured: torch finds no CUDA device")
        return {}
    data, recipe = load(smoke).to(torch.device("cuda")), Recipe(epochs=1)

    def one(compile: bool) -> float:
        return fit(build(Net, 0), data, recipe, device="cuda", compile=compile, progress=False)[0]["seconds"]

    def many() -> float:
        _, (history, *_) = fit_vectorized(Net, data, recipe, list(range(VECTORIZED_SEEDS)), "cuda")
        return history[0]["seconds"]

    functions = {
        "recorded": partial(one, True),
        "not recorded": partial(one, False),
        f"each of {VECTORIZED_SEEDS} seeds at once": many,
    }
    for function in functions.values():
        function()  # warm up
    return {"seconds": measure_interleaved(functions, repeats)}
