"""Parts of the benchmark that train for an epoch or less: each function returns a dict that can be written as JSON.

`repeats` is the number of timings; `smoke` uses little data and the smallest numbers, to see that everything works.
What is compared is measured interleaved, several times, if possible in one process; a timing is the median and the
range.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from helpers import Net, build, fit
from s5.analysis.inspection import count_macs
from s5.benchmarks import baseline
from s5.benchmarks.timing import load, measure_interleaved, seconds_of
from s5.experiments.claims import KNOWN
from s5.training import kernels
from s5.training.command_line import plural
from s5.training.device import cores, pick_precision, use_threads
from s5.training.files import ROOT
from s5.training.mnist import MnistData
from s5.training.recipe import Recipe

CPU = torch.device("cpu")
IMAGES = 60_000  # in an epoch
PART_OF_AN_EPOCH = 12_000  # images: enough for a steady rate
SMALL_NETWORKS = ("below_8k", "below_5k", "below_2k", "below_1k", "below_500")
KERNEL_NAMES = {
    "NormRelu": "BatchNorm, ReLU, pooling: forward",
    "NormReluBackward": "BatchNorm, ReLU, pooling: backward",
}  # of profiled functions
BUSY = "while True: pass"  # a program that uses a whole core


def warm_up(model: torch.nn.Module, data: MnistData, recipe: Recipe, **options) -> None:
    """Train three batches with random labels, so that compiling, reading compiled code, or recording is done."""
    few = data.subset(3 * recipe.batch_size, 100)
    random_labels = torch.randint(10, few.train_labels.shape, generator=torch.Generator().manual_seed(0))
    few = replace(few, train_labels=random_labels)
    fit(model, few, replace(recipe, epochs=1), progress=False, **options)


def timed_epoch(variant: str, data: MnistData, **options) -> Callable[[], float]:
    """A function that trains one more epoch on the CPU and returns the seconds that 60,000 images would take."""
    model = build(KNOWN[variant].build, 0)
    recipe = KNOWN[variant].recipe.changed(epochs=1)  # with augmentation, as most epochs are
    options = {"device": "cpu", **options}
    warm_up(model, data, recipe, **options)
    few_evaluated = data.subset(len(data.train_images), 100)
    run = partial(fit, model, few_evaluated, recipe, progress=False, **options)
    return lambda: run()[0]["seconds"] * IMAGES / len(data.train_images)


def load_part(smoke: bool) -> MnistData:
    """A part of MNIST, or in a smoke run of the sample, and few images to evaluate."""
    data = load(smoke)
    return data.subset(min(PART_OF_AN_EPOCH, len(data.train_images)), 100)


def precisions() -> list[str]:
    """float32, and bfloat16 if this processor multiplies it: emulated, it would take minutes."""
    return list(dict.fromkeys(["float32", pick_precision("auto", CPU)]))


# --- Parts ------------------------------------------------------------------------------------------------------------


def epoch(repeats: int, smoke: bool) -> dict:
    """One epoch of `Net` on the CPU: this project, the baseline, and a lower bound.

    The lower bound is the time that large float32 matrix products take for as many floating-point operations.
    """
    data, threads = load(smoke), torch.get_num_threads()
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    flop = 2 * 3 * count_macs(Net()) * len(data.train_images)  # the backward pass costs two forward passes

    def lower_bound() -> float:
        return seconds_of(lambda: [left @ right for _ in range(10)]) / (10 * 2 * size**3) * flop

    def baseline_epoch(count: int) -> Callable[[], float]:
        epochs = baseline.train(data, epochs=repeats)

        def run() -> float:
            with use_threads(count):
                return next(epochs)[0]

        return run

    lower_bound()  # warm-up
    functions = {"lower bound": lower_bound}
    functions |= {precision: timed_epoch("s5", data, precision=precision) for precision in precisions()}
    functions["float32, not compiled"] = timed_epoch("s5", data, precision="float32", compile=False)
    for count in sorted({1, threads}):  # its two workers need the cores as well, so one thread may be faster
        functions[f"baseline, {plural(count, 'thread')}"] = baseline_epoch(count)
    return {"seconds": measure_interleaved(functions, repeats), "GFLOP per epoch": round(flop / 1e9, 1)}


def small(repeats: int, smoke: bool) -> dict:
    """One epoch of each claimed small network, with one thread, as in a sweep; and without compiling, in float32.

    The networks are recorded as lines: a later claim may be another network.
    """
    data, functions = load_part(smoke), {}
    with use_threads(1):
        for name in SMALL_NETWORKS:
            functions[name] = timed_epoch(name, data)
            functions[f"{name}, not compiled"] = timed_epoch(name, data, precision="float32", compile=False)
        lines = {name: KNOWN[name].network for name in SMALL_NETWORKS}
        return {"networks": lines, "seconds": measure_interleaved(functions, repeats)}


def busy(repeats: int, smoke: bool) -> dict:
    """One epoch of `Net` beside no, one and two busy programs; beside some, also with a thread for every core."""
    data = load_part(smoke)

    def beside(programs: int, threads: str | None) -> float:
        with _busy_programs(programs), ProcessPoolExecutor(1, get_context("spawn"), _set_threads, (threads,)) as pool:
            return pool.submit(_steady_epoch, data).result()

    counts = [0, 1] if smoke else [0, 1, 2]
    functions = {_others(count): partial(beside, count, None) for count in counts}
    functions |= {f"{_others(count)}, all threads": partial(beside, count, str(cores())) for count in counts[1:]}
    return {"seconds": measure_interleaved(functions, repeats)}


def _others(count: int) -> str:
    return plural(count, "other program")


@contextmanager
def _busy_programs(count: int) -> Iterator[None]:
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _set_threads(threads: str | None) -> None:
    """In a new process: leave the number of threads to `fit`, or set it."""
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = threads


def _steady_epoch(data: MnistData) -> float:
    """In a new process: seconds of an epoch, after a first one that loads the kernels."""
    run = timed_epoch("s5", data)
    run()
    return run()


def profile(repeats: int, smoke: bool) -> dict:
    """The share of each torch operation in the time of training `Net` on the CPU, in percent: the twelve largest.

    Measured once, over 50 batches: `repeats` is not used.
    """
    recipe = Recipe(epochs=1)
    few = load(smoke).subset(50 * recipe.batch_size, 100)
    train = partial(fit, build(Net, 0), few, recipe, device="cpu", progress=False)
    train()  # warm-up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        train()
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        name = KERNEL_NAMES.get(event.key, event.key)
        seconds[name] = seconds.get(name, 0) + event.self_cpu_time_total
    shares = {name: round(100 * value / sum(seconds.values()), 1) for name, value in seconds.items()}
    return {"percent of time": dict(sorted(shares.items(), key=lambda item: -item[1])[:12])}


def memory(repeats: int, smoke: bool) -> dict:
    """Peak resident memory of a process that trains one epoch, in MB. Measured once: `repeats` is not used."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return {"peak MB": pool.submit(_peak_of_an_epoch, smoke).result()}


def _peak_of_an_epoch(smoke: bool) -> float:
    """In a worker process: its peak memory in MB after an epoch."""
    fit(build(Net, 0), load(smoke), Recipe(epochs=1), device="cpu", progress=False)
    return round(_peak_memory(), 1)


def _peak_memory() -> float:
    """Peak resident memory of this process in MB. Not `ru_maxrss` on Linux: it begins at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # macOS counts bytes


def start(repeats: int, smoke: bool) -> dict:
    """Seconds of `python main.py --help`, and how much longer the first epoch takes, with nothing compiled before."""
    command = [sys.executable, str(ROOT / "main.py"), "--help"]

    def run_help() -> float:
        return seconds_of(lambda: subprocess.run(command, check=True, capture_output=True))

    def first_epoch() -> float:
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_extra_of_the_first_epoch, Path(folder), smoke).result()

    return measure_interleaved({"main.py --help": run_help, "first epoch, extra": first_epoch}, repeats)


def _extra_of_the_first_epoch(folder: Path, smoke: bool) -> float:
    """In a new process that finds no compiled kernels: seconds of the first `fit` minus those of the second."""
    kernels.KERNELS = folder
    data = load_part(smoke)
    train = partial(fit, build(Net, 0), data, Recipe(epochs=1), device="cpu", progress=False)
    return seconds_of(train) - seconds_of(train)
