"""The tables of speed and of the exported files, from invented measurements."""

import copy
import json

import pytest

from s5.benchmarks.timing import summarize
from s5.reports import speed_tables


def timing(*values: float) -> dict:
    return summarize(list(values))


def accuracy_run(variant: str, target: float) -> dict:
    return {
        "environment": ENVIRONMENT,
        "variant": variant,
        "recipe": {"epochs": 4},
        "target": target,
        "seeds": [0, 1],
        "mean": target + 0.05,
        "std": 0.02,
        "minimum": target,
        "p of a mean above the target": 0.01,
        "training seconds": timing(20, 22),
        "seconds from process start": timing(25, 27),
    }


ENVIRONMENT = {
    "system": "Linux x86_64",
    "time": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11", "torch": "2.9"},
}
ABACUS = {
    "epoch": {
        "environment": ENVIRONMENT,
        "seconds": {
            "lower bound": timing(3, 4, 5),
            "float32": timing(7, 8, 9),
            "bfloat16": timing(5, 5, 6),
            "float32, not compiled": timing(9, 10, 11),
            "baseline, 1 thread": timing(60, 64, 70),
            "baseline, 2 threads": timing(50, 56, 58),
        },
    },
    "small": {
        "environment": ENVIRONMENT,
        "seconds": {"below_1k": timing(7, 8, 9), "below_1k, not compiled": timing(15, 16, 17)},
    },
    "busy": {
        "environment": ENVIRONMENT,
        "seconds": {
            "0 other programs": timing(4, 5, 6),
            "1 other program": timing(7, 8, 9),
            "1 other program, all threads": timing(20, 21, 22),
        },
    },
    "to 99.0%": accuracy_run("quick", 99.0),
    "to 99.4%": accuracy_run("good", 99.4),
    "inference": {
        "environment": ENVIRONMENT,
        "one image": {"eager": timing(0.0004, 0.0005), "compiled": timing(0.0002, 0.0003)},
    },
    "memory": {"environment": ENVIRONMENT, "peak MB": 812.3},
    "start": {
        "environment": ENVIRONMENT,
        "main.py --help": timing(0.1, 0.2),
        "first epoch, extra": timing(2, 2.5),
    },
    "throughput": {
        "environment": ENVIRONMENT,
        "seconds per epoch": {},
        "trials of 20 epochs per hour": {"1 at a time": 20.0, "2 at a time": 25.0},
    },
    "sweeps": {
        "environment": ENVIRONMENT,
        "seconds of 4 trials": {"processes, 2 at a time": timing(30, 31), "Ray, 2 at a time": timing(40, 42)},
        "overhead seconds per trial": {"processes, 2 at a time": timing(5, 6), "Ray, 2 at a time": timing(10, 14)},
    },
    "profile": {"environment": ENVIRONMENT, "percent of time": {"aten::relu": 60.0, "aten::add": 40.0}},
}
SLATE = {  # an older record, without bfloat16
    "epoch": {
        "environment": ENVIRONMENT | {"time": "2025-01-02T03:04:05+00:00"},
        "seconds": {
            "lower bound": timing(2, 2, 2),
            "float32": timing(10, 10, 10),
            "float32, not compiled": timing(12, 12, 12),
            "baseline, 1 thread": timing(30, 30, 30),
        },
    },
    "profile": {"environment": ENVIRONMENT, "percent of time": {"aten::add": 90.0}},
}
RECORDS = {"Abacus": ABACUS, "Slate": SLATE}


def test_a_timing_is_shown_as_median_and_range():
    assert speed_tables.format_seconds(timing(7, 9, 8)) == "8 s (7–9)"
    assert speed_tables.format_seconds(timing(0.0123, 0.0121)) == "12.2 ms (12.1–12.3)"


def test_every_run_on_the_test_set_is_shown_also_those_measured_again():
    first, again = accuracy_run("good", 99.4), accuracy_run("good", 99.4) | {"seeds": [4, 5]}
    table = speed_tables.accuracy_runs_table({"Abacus": {"to 99.4%": again | {"earlier": [first]}}, "Other": {}})
    assert table["Seeds"].tolist() == ["0–1", "4–5"]
    assert table.iloc[0].to_dict() == {
        "Target": "99.4%",
        "Machine": "Abacus",
        "Epochs": 4,
        "Seeds": "0–1",
        "Mean": "99.450",
        "Std": "0.020",
        "Minimum": "99.40",
        "p": "0.01",
        "Training": "21 s (20–22)",
    }


def test_speed_table_has_a_column_for_each_machine():
    table = speed_tables.speed_table(RECORDS).set_index("Measurement")
    assert list(table) == ["Goal", "Abacus", "Slate"]
    assert list(table.loc["Baseline, one epoch"])[1:] == ["56 s (50–58), 2 threads", "30 s (30–30), 1 thread"]
    assert list(table.loc["Epoch of `Net`, bfloat16"]) == ["5×", "5 s (5–6), 11.2× as fast", "–"]
    assert list(table.loc["Epoch of `Net`, float32"])[1:] == ["8 s (7–9), 7.0× as fast", "10 s (10–10), 3.0× as fast"]
    assert list(table.loc["Epoch of `Net` against the lower bound"])[1:] == ["1.2× of 4 s (3–5)", "5.0× of 2 s (2–2)"]
    measured = table["Abacus"]
    assert measured["Epoch of `below_1k`, 1 thread"] == "8 s (7–9); not compiled, float32: 16 s (15–17)"
    assert measured["Epoch of `Net` beside 1 other program"] == "1.60× the idle time; 4.2× with all threads"
    assert measured["Mean to 99.4%: accuracy"] == "99.450% ± 0.020, n = 2, p = 0.01; 4 epochs of `good`"
    assert measured["Mean to 99.4%: training"] == "21 s (20–22), 26.7× as fast as 10 epochs of the baseline"
    assert measured["Mean to 99.0%: from process start"] == "26 s (25–27)"
    assert measured["Inference, one image"] == "eager 0.45 ms (0.4–0.5); compiled 0.25 ms (0.2–0.3)"
    assert measured["Peak memory of training"] == "812 MB"
    assert list(table.loc["First epoch, extra"]) == ["12 s", "2.25 s (2–2.5)", "–"]
    assert next(iter(table.index)) == "Baseline, one epoch"
    assert list(table.index)[-1] == "First epoch, extra"


@pytest.mark.parametrize(("seconds", "expected"), [(10, "baseline, 1 thread"), (64, "baseline, 2 threads")])
def test_best_baseline_is_the_number_of_threads_with_the_lowest_median(seconds, expected):
    epoch = copy.deepcopy(ABACUS["epoch"])
    epoch["seconds"]["baseline, 1 thread"] = timing(seconds)
    assert speed_tables.best_baseline(epoch) == (expected, epoch["seconds"][expected])


def test_machines_throughput_and_profile():
    assert speed_tables.describe_machines(RECORDS).splitlines() == [
        "- **Abacus**: Linux x86_64, torch 2.9, measured 2026-01-02",
        "- **Slate**: Linux x86_64, torch 2.9, measured 2025-01-02 to 2026-01-02",
    ]
    assert speed_tables.describe_throughput(RECORDS) == (
        "- Abacus, trials of 20 epochs per hour: 1 at a time: 20.0; 2 at a time: 25.0"
    )
    profile = speed_tables.profile_table(RECORDS)
    assert list(profile["Abacus"]) == [60.0, 40.0]
    assert list(profile["Slate"]) == ["–", 90.0]


def test_sweep_table():
    table = speed_tables.sweep_table(RECORDS).set_index("Sweep")
    assert list(table) == ["Machine", "Seconds of 4 trials", "Trials per hour", "Overhead per trial"]
    assert table.loc["Ray, 2 at a time"].tolist() == ["Abacus", "41 s (40–42)", "351", "12 s (10–14)"]


def test_export_table():
    row = {"network": "s5", "correct": 9941, "images": 10000, "accuracy": 99.41, "memory": None}
    onnx = row | {"format": "ONNX int8", "bytes": 43181, "microseconds": 150.2, "range": [100.4, 200.0]}
    code = row | {"format": "C int8", "bytes": 18444, "memory": 2541}
    table = speed_tables.export_table({"rows": [onnx, code]})
    assert list(table) == ["Network", "Format", "Correct", "Bytes", "Memory", "One image"]
    assert list(table.iloc[0]) == ["`s5`", "ONNX int8", "9941/10000 (99.41%)", "43,181", "–", "150 µs (100–200)"]
    assert list(table.iloc[1]) == ["`s5`", "C int8", "9941/10000 (99.41%)", "18,444", "2,541", "–"]


def test_missing_or_damaged_measurements_are_reported_by_file_name(tmp_path):
    path = tmp_path / "speed.json"
    with pytest.raises(ValueError, match=r"speed\.json is missing: run python -m benchmarks\.bench"):
        speed_tables.read_measurements(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"speed\.json is not valid JSON .*: delete it and run a command"):
        speed_tables.read_measurements(path, "a command")
    path.write_text(json.dumps(RECORDS))
    assert speed_tables.read_measurements(path) == RECORDS


def test_the_recorded_measurements_fill_every_table():
    recorded = speed_tables.read_measurements()
    for table in (speed_tables.speed_table, speed_tables.sweep_table, speed_tables.profile_table):
        assert not table(recorded).empty
    assert speed_tables.describe_machines(recorded)
    assert speed_tables.describe_throughput(recorded)
