"""What the parts of the benchmark share: data, repeated timings and their summary, and the machine."""

import platform
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from s5.training.device import bfloat16_instructions, cores, pick_precision
from s5.training.mnist import MnistData, load_data
from s5.training.provenance import provenance

CPU = torch.device("cpu")


def load(smoke: bool) -> MnistData:
    """MNIST, or in a smoke run a part of the sample. Raises DataError if MNIST cannot be loaded."""
    return load_data("sample").subset(640, 200) if smoke else load_data(allow_sample=False)


def summarize(values: list[float]) -> dict:
    """Median and range of repeated timings, and the timings themselves."""
    rounded = [round(value, 5) for value in values]
    return {"median": statistics.median(rounded), "low": min(rounded), "high": max(rounded), "all": rounded}


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that one call takes, including the accelerator's work."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_interleaved(functions: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict]:
    """Summaries of functions that return seconds, each called `repeats` times, in turns.

    A slow minute of the machine then affects all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(function())
            print(f"    {name}: {seconds[name][-1]:.3g} s", flush=True)
    return {name: summarize(values) for name, values in seconds.items()}


def machine(environment: dict) -> str:
    """What machines are told apart by in results/speed.json: processor, cores, widest instructions, GPU."""
    name = f"{environment['processor']}, {environment['cores']} cores, {environment['capability']}"
    kind, _, gpu = environment["device"].partition(": ")
    return f"{name}, {gpu}" if kind == "cuda" else name


def environment(device: torch.device = CPU) -> dict:
    """The machine, the versions and the commit that results of `device` belong to."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "capability": ", ".join(filter(None, [torch.backends.cpu.get_cpu_capability(), bfloat16_instructions()])),
        "system": f"{platform.system()} {platform.machine()}",
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **provenance(device, pick_precision("auto", device)),
    }
