"""The tables of speed and of the exported files, from invented measurements."""

import copy
import json

import pytest

from benchmarks.timing import summarize
from experiments import speed_tables


def timing(*values: float) -> dict:
    return summarize(list(values))


def accuracy_run(variant: str, target: float) -> dict:
    return {
        "variant": variant,
        "recipe": {"epochs": 4},
        "target": target,
        "seeds": [0, 1],
        "mean": target + 0.05,
        "std": 0.02,
        "p of a mean above the target": 0.01,
        "training seconds": timing(20, 22),
        "seconds from process start": timing(25, 27),
    }


RESULTS = {
    "epoch": {
        "seconds": {
            "lower bound": timing(3, 4, 5),
            "float32": timing(7, 8, 9),
            "bfloat16": timing(5, 5, 6),
            "float32, not compiled": timing(9, 10, 11),
            "baseline, 1 thread": timing(60, 64, 70),
            "baseline, 2 threads": timing(50, 56, 58),
        },
        "environment": {
            "processor": "Abacus",
            "cores": 2,
            "capability": "AVX2",
            "system": "Linux x86_64",
            "versions": {"python": "3.11", "torch": "2.9"},
        },
    },
    "to 99.0%": accuracy_run("quick", 99.0),
    "to 99.4%": accuracy_run("good", 99.4),
    "inference": {
        "all test images": {"eager": timing(0.4, 0.5), "compiled": timing(0.2, 0.25)},
        "one image": {"eager": timing(0.0004, 0.0005), "compiled": timing(0.0002, 0.0003)},
    },
    "memory": {"peak MB": 812.3},
    "start": {"main.py --help": timing(0.1, 0.2)},
    "throughput": {
        "environment": {"cores": 2},
        "seconds per epoch": {},
        "trials of 20 epochs per hour": {"1 at a time": 20.0, "2 at a time": 25.0},
    },
    "sweeps": {
        "seconds of 4 trials": {"processes, 2 at a time": timing(30, 31), "Ray, 2 at a time": timing(40, 42)},
        "overhead seconds per trial": {"processes, 2 at a time": timing(5, 6), "Ray, 2 at a time": timing(10, 14)},
    },
    "profile": {"percent of time": {"aten::relu": 60.0, "aten::add": 40.0}},
}


def test_a_timing_is_shown_as_median_and_range():
    assert speed_tables.format_seconds(timing(7, 9, 8)) == "8 s (7–9)"
    assert speed_tables.format_seconds(timing(0.0123, 0.0121)) == "12.2 ms (12.1–12.3)"


def test_speed_table_compares_with_the_fastest_baseline():
    table = speed_tables.speed_table(RESULTS).set_index("Measurement")
    epoch = table.loc["One epoch of `Net`, 60,000 images, bfloat16"]
    assert list(epoch) == ["5 s (5–6)", "baseline, 2 threads: 56 s (50–58)", "5× faster", "11.2× faster"]
    assert table.loc["The same in float32", "Achieved"] == "7.0× faster"
    assert table.loc["One epoch against the lower bound, float32", "Achieved"] == "2.0× the lower bound"
    good = table.loc["`good` to 99.4%, 4 epochs"]
    assert good["Compared with"] == "mean 99.450% ± 0.020, n = 2, p = 0.01; 10 epochs of the baseline: 560 s"
    assert good["Achieved"] == "26.7× faster"
    assert list(table.loc["`quick` to 99.0%, 4 epochs"])[-2:] == ["30 s", "21 s"]
    assert table.loc["Peak memory of training", "Result"] == "812 MB"


@pytest.mark.parametrize(("seconds", "expected"), [(10, "baseline, 1 thread"), (64, "baseline, 2 threads")])
def test_best_baseline_is_the_number_of_threads_with_the_lowest_median(seconds, expected):
    epoch = copy.deepcopy(RESULTS["epoch"])
    epoch["seconds"]["baseline, 1 thread"] = timing(seconds)
    assert speed_tables.best_baseline(epoch) == (expected, epoch["seconds"][expected])


def test_machine_throughput_and_profile():
    machine = speed_tables.describe_machine(RESULTS)
    assert machine.startswith("Abacus, 2 cores, AVX2, Linux x86_64, Python 3.11, torch 2.9;")
    assert speed_tables.describe_throughput(RESULTS).endswith("2 at a time: 25.0 trials of 20 epochs per hour")
    assert list(speed_tables.profile_table(RESULTS)["Percent"]) == [60.0, 40.0]


def test_sweep_table():
    table = speed_tables.sweep_table(RESULTS).set_index("Sweep")
    assert list(table) == ["Seconds of 4 trials", "Trials per hour", "Overhead per trial"]
    assert table.loc["Ray, 2 at a time"].tolist() == ["41 s (40–42)", "351", "12 s (10–14)"]


def test_export_table():
    row = {"network": "ONNX int8", "correct": 9941, "accuracy": 99.41, "bytes": 43181}
    table = speed_tables.export_table({"rows": [row | {"milliseconds": 0.15, "range": [0.1, 0.2]}]})
    assert list(table.iloc[0]) == ["ONNX int8", "9941/10000 (99.41%)", "43,181", "0.150 ms (0.100–0.200)"]


def test_missing_or_damaged_measurements_are_reported_by_file_name(tmp_path):
    path = tmp_path / "speed.json"
    with pytest.raises(ValueError, match=r"speed\.json is missing: run python -m benchmarks\.bench"):
        speed_tables.read_speed(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"speed\.json is not valid JSON .*: delete it and run a command"):
        speed_tables.read_speed(path, "a command")
    path.write_text(json.dumps(RESULTS))
    assert speed_tables.read_speed(path) == RESULTS


def test_the_recorded_measurements_fill_every_table():
    recorded = speed_tables.read_speed()
    for table in (speed_tables.speed_table, speed_tables.sweep_table, speed_tables.profile_table):
        assert not table(recorded).empty
    assert speed_tables.describe_machine(recorded)
    assert speed_tables.describe_throughput(recorded)
