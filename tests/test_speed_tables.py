"""The tables of speed, from invented measurements; RESULTS.md, which another test compares, has the measured ones."""

import pytest

from s5.benchmarks.timing import summarize
from s5.reports import speed_tables


def timing(*values: float) -> dict:
    return summarize(list(values))


def accuracy_run(seeds: list[int]) -> dict:
    run = {"variant": "good", "recipe": {"epochs": 4}, "seeds": seeds, "mean": 99.45, "std": 0.02, "minimum": 99.4}
    run |= {"p of a mean above the target": 0.01}
    return run | {"training seconds": timing(20, 22), "seconds from process start": timing(25, 27)}


EPOCH = {"lower bound": timing(3, 4, 5), "float32": timing(7, 8, 9), "bfloat16": timing(5, 5, 6)}
EPOCH |= {"baseline, 1 thread": timing(60, 64, 70), "baseline, 2 threads": timing(50, 56, 58)}
SLOW = {"lower bound": timing(2), "float32": timing(10), "baseline, 1 thread": timing(30)}
RECORDS = {
    "Slate": {"epoch": {"seconds": SLOW}},
    "Abacus": {"epoch": {"seconds": EPOCH}, "to 99.4%": accuracy_run([4, 5]) | {"earlier": [accuracy_run([0, 1])]}},
    "Quill": {"to 99.4%": accuracy_run([6, 7])},
}


def test_a_timing_is_shown_as_median_and_range():
    assert speed_tables.format_seconds(timing(7, 9, 8)) == "8 s (7–9)"
    assert speed_tables.format_seconds(timing(0.0123, 0.0121)) == "12.2 ms (12.1–12.3)"


def test_the_speed_table_has_a_column_for_each_machine_and_compares_with_its_fastest_baseline():
    assert speed_tables.speed_table(RECORDS).to_numpy().tolist()[:-1] == [
        ["Baseline, one epoch", "", "30 s (30–30), 1 thread", "56 s (50–58), 2 threads"],
        ["Epoch of `Net`, bfloat16", "4×", "–", "5 s (5–6), 11.2× as fast"],
        ["Epoch of `Net`, float32", "AVX2: 2.5×", "10 s (10–10), 3.0× as fast", "8 s (7–9), 7.0× as fast"],
        ["Epoch of `Net` against the lower bound", "", "5.0× of 2 s (2–2)", "1.2× of 4 s (3–5)"],
        ["Mean to 99.4%: accuracy", "", "–", "99.450% ± 0.020, n = 2, p = 0.01; 4 epochs of `good`"],
        [
            "Mean to 99.4%: training",
            "15×",
            "–",
            "21 s (20–22), 26.7× as fast as 10 epochs of the baseline",
        ],
    ]


def test_every_run_on_the_test_set_is_shown_also_those_measured_again():
    table = speed_tables.accuracy_runs_table(RECORDS)
    assert table["Seeds"].tolist() == ["0–1", "4–5", "6–7"]
    first = ["99.4%", "Abacus", 4, "0–1", "99.450", "0.020", "99.40", "0.01", "21 s (20–22)"]
    assert table.iloc[0].tolist() == first


def test_damaged_measurements_are_reported(tmp_path):
    (tmp_path / "speed.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="speed.json is not valid JSON"):
        speed_tables.read_measurements(tmp_path / "speed.json")
