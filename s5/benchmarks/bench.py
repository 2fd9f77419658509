"""Measure parts of the benchmark and write them into this machine's record in a file such as results/speed.json."""

import json
from pathlib import Path

import torch

from s5.benchmarks.parts import epoch, gpu, inference, small, time_to_accuracy
from s5.benchmarks.timing import environment, machine
from s5.reports.speed_tables import accuracy_runs, read_measurements
from s5.training.files import write_file

PARTS = {"epoch": epoch, "small": small, "inference": inference, "gpu": gpu}
ACCURACY, TARGET, VARIANT = "to 99.4%", 99.4, "to_99_4"  # the variant that reaches the mean in the fewest epochs


def bench(parts: list[str], output: Path, repeats: int, seeds: int, device: str, smoke: bool = False) -> None:
    """Measure the parts, each as in `parts.py`; after each, write the records of all machines to `output`.

    `seeds` and `device` are those of the time to accuracy. `smoke` takes few measurements and writes nothing. Raises
    DataError if MNIST cannot be loaded, ValueError if the file is damaged, and OSError if it cannot be written.
    """
    print(machine(environment()))
    records = read_measurements(output) if output.exists() and not smoke else {}
    for name in parts:
        print(f"{name} …", flush=True)
        if name == ACCURACY:
            first = unused_seed(records)
            numbers = list(range(first, first + (2 if smoke else seeds)))
            measured = time_to_accuracy(VARIANT, TARGET, numbers, device, smoke)
        else:
            measured = PARTS[name](1 if smoke else repeats, smoke)
        if measured and not smoke:  # without a GPU, its part measures nothing
            about = environment(torch.device({ACCURACY: device, "gpu": "cuda"}.get(name, "cpu")))
            results = records.setdefault(machine(about), {})  # other machines' records stay as they are
            if name == ACCURACY and name in results:  # a test accuracy that is replaced stays in the record
                replaced = results[name]
                measured["earlier"] = [*replaced.pop("earlier", []), replaced]
            results[name] = {"environment": about, **measured}
            write_file(output, json.dumps(records, indent=1) + "\n")


def unused_seed(records: dict[str, dict]) -> int:
    """The first seed above those of all recorded times to accuracy: a test accuracy takes fresh ones."""
    runs = [run for record in records.values() for run in accuracy_runs(record, ACCURACY)]
    return 1 + max((max(run["seeds"]) for run in runs), default=-1)
