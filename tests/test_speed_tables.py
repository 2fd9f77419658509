"""The speed tables, from measurements that are made up here, and the benchmark's own arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench
from experiments import speed_tables


def spread(*values: float) -> dict:
    return bench.spread(list(values))


def reached(variant: str, goal: float) -> dict:
    return {
        "variant": variant,
        "recipe": {"epochs": 4},
        "goal": goal,
        "seeds": [0, 1],
        "mean": goal + 0.05,
        "std": 0.02,
        "p of a mean above the goal": 0.01,
        "net seconds": spread(20, 22),
        "seconds from process start": spread(25, 27),
    }


RESULTS = {
    "epoch": {
        "seconds": {
            "floor": spread(3, 4, 5),
            "ours": spread(7, 8, 9),
            "ours, bfloat16": spread(5, 5, 6),
            "ours, not compiled": spread(9, 10, 11),
            "baseline, 1 threads": spread(60, 64, 70),
            "baseline, 2 threads": spread(50, 56, 58),
        },
        "environment": {
            "processor": "Abacus",
            "cores": 2,
            "capability": "AVX2",
            "system": "Linux x86_64",
            "versions": {"python": "3.11", "torch": "2.9"},
        },
    },
    "to 99.0%": reached("quick", 99.0),
    "to 99.4%": reached("good", 99.4),
    "inference": {
        "all test images": {"eager": spread(0.4, 0.5), "compiled": spread(0.2, 0.25)},
        "one image": {"eager": spread(0.0004, 0.0005), "compiled": spread(0.0002, 0.0003)},
    },
    "memory": {"peak MB": 812.3},
    "start": {"main.py --help": spread(0.1, 0.2)},
    "throughput": {
        "environment": {"cores": 2},
        "seconds an epoch": {},
        "trials of 20 epochs an hour": {"1 at a time": 20.0, "2 at a time": 25.0},
    },
    "sweeps": {
        "seconds of 4 trials": {"processes, 2 at a time": spread(30, 31), "Ray, 2 at a time": spread(40, 42)},
        "seconds a trial outside its training": {
            "processes, 2 at a time": spread(5, 6),
            "Ray, 2 at a time": spread(10, 14),
        },
    },
    "profile": {"percent of the time": {"aten::relu": 60.0, "aten::add": 40.0}},
}


def test_spread_is_the_median_and_the_range():
    assert speed_tables.seconds(spread(7, 9, 8)) == "8 s (7–9)"
    assert speed_tables.seconds(spread(0.0123, 0.0121)) == "12.2 ms (12.1–12.3)"


def test_the_table_compares_with_the_best_opponent():
    table = speed_tables.speed_table(RESULTS).set_index("What")
    epoch = table.loc["One epoch of `Net`, 60,000 images, bfloat16"]
    assert list(epoch) == ["5 s (5–6)", "baseline, 2 threads: 56 s (50–58)", "5× faster", "11.2× faster"]
    assert table.loc["The same in float32", "Reached"] == "7.0× faster"
    assert table.loc["Beside the arithmetic alone, float32", "Reached"] == "2.0× the floor"
    good = table.loc["`good` to 99.4%, 4 epochs"]
    assert good["Beside"] == "mean 99.450% ± 0.020, n = 2, p = 0.01; 10 epochs of the baseline: 560 s"
    assert good["Reached"] == "26.7× faster"
    assert list(table.loc["`quick` to 99.0%, 4 epochs"])[-2:] == ["30 s", "21 s"]
    lone = json.loads(json.dumps(RESULTS).replace("baseline, 2 threads", "baseline, 3 threads").replace("64", "10"))
    assert speed_tables.opponent(lone["epoch"])[0] == "baseline, one thread"
    assert table.loc["Peak memory of training", "Ours"] == "812 MB"


def test_words():
    assert speed_tables.describe_machine(RESULTS).startswith(
        "Abacus, 2 cores, AVX2, Linux x86_64, Python 3.11, torch 2.9;"
    )
    assert speed_tables.describe_throughput(RESULTS).endswith("2 at a time: 25.0 trials of 20 epochs an hour")
    assert list(speed_tables.profile_table(RESULTS)["Percent"]) == [60.0, 40.0]


def test_exported_files():
    row = {"network": "ONNX int8", "correct": 9941, "accuracy": 99.41, "bytes": 43181}
    table = speed_tables.export_table({"rows": [row | {"milliseconds": 0.15, "range": [0.1, 0.2]}]})
    assert list(table.iloc[0]) == ["ONNX int8", "9941/10000 (99.41%)", "43,181", "0.150 ms (0.100–0.200)"]


def test_missing_or_damaged_measurements_are_named(tmp_path):
    path = tmp_path / "speed_tables.json"
    with pytest.raises(ValueError, match=r"speed_tables.json lacks: python benchmarks/bench.py"):
        speed_tables.read_speed(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="speed_tables.json is no JSON"):
        speed_tables.read_speed(path)
    path.write_text(json.dumps(RESULTS))
    assert speed_tables.read_speed(path) == RESULTS


def test_what_is_compared_is_measured_in_turns(capsys):
    called = []
    functions = {name: lambda name=name: called.append(name) or len(called) for name in "ab"}
    results = bench.in_turns(functions, 3)
    assert called == ["a", "b"] * 3
    assert results["a"] == {"median": 3, "low": 1, "high": 5, "all": [1, 3, 5]}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "epoch,horses"], "unknown part horses"),
        (["--repeats", "1"], "must be 2 or more"),
    ],
)
def test_a_bad_command_line_is_a_clear_word(arguments, complaint):
    command = [sys.executable, str(Path(bench.__file__)), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert complaint in answer.stderr


def test_sweeps_and_what_a_cluster_would_do():
    table = speed_tables.sweep_table(RESULTS).set_index("Sweep")
    assert table.loc["Ray, 2 at a time"].tolist() == ["41 s (40–42)", "351", "12 s (10–14)"]
    projected = speed_tables.projection_table(RESULTS, hosts=(1, 10))
    assert projected["Trials at a time"].tolist() == [2, 20]
    assert projected["Trials an hour"].tolist() == ["24", "240"]  # 288 seconds a trial here, and 12 for Ray
    assert projected["Ten variants × ten seeds"].tolist() == ["4.2 h", "25 min"]
