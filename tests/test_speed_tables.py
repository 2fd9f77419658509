"""The tables of speed and of the exported files, from invented measurements."""

import pytest

from s5.benchmarks.timing import summarize
from s5.reports import speed_tables


def timing(*values: float) -> dict:
    return summarize(list(values))


def part(day: str = "2026-01-02", device: str = "cpu: x86_64", **content) -> dict:
    environment = {"system": "Linux x86_64", "time": f"{day}T03:04:05", "versions": {"torch": "2.9"}, "device": device}
    return {"environment": environment, **content}


def accuracy_run(seeds: list[int]) -> dict:
    run = part(variant="good", recipe={"epochs": 4}, seeds=seeds, mean=99.45, std=0.02, minimum=99.4)
    run |= {"p of a mean above the target": 0.01}
    return run | {"training seconds": timing(20, 22), "seconds from process start": timing(25, 27)}


EPOCH = {"lower bound": timing(3, 4, 5), "float32": timing(7, 8, 9), "bfloat16": timing(5, 5, 6)}
EPOCH |= {"baseline, 1 thread": timing(60, 64, 70), "baseline, 2 threads": timing(50, 56, 58)}
SMALL = {"below_1k": timing(7, 8, 9), "below_1k, not compiled": timing(15, 16, 17)}
GPU = {"s5": timing(1, 2, 3), "s5, no CUDA graph": timing(4, 5, 6)}
SLOW = {"lower bound": timing(2), "float32": timing(10), "baseline, 1 thread": timing(30)}
ONE = {"one image": {"eager": timing(0.0004, 0.0005), "compiled": timing(0.0002, 0.0003)}}
RECORDS = {
    "Slate": {"epoch": part("2025-01-02", seconds=SLOW)},
    "Abacus": {
        "epoch": part(seconds=EPOCH),
        "to 99.4%": accuracy_run([4, 5]) | {"earlier": [accuracy_run([0, 1])]},
        "small": part("2026-01-04", seconds=SMALL),
        "inference": part(**ONE),
    },
    "Quill": {"gpu": part(device="cuda: NVIDIA Quill", networks={"s5": "Net"}, seconds=GPU)},
}


def test_a_timing_is_shown_as_median_and_range():
    assert speed_tables.format_seconds(timing(7, 9, 8)) == "8 s (7–9)"
    assert speed_tables.format_seconds(timing(0.0123, 0.0121)) == "12.2 ms (12.1–12.3)"


def test_the_speed_table_has_a_row_for_each_measurement_and_a_column_for_each_machine():
    since = "26 s (25–27), 21.5× as fast as 10 epochs of the baseline"
    faster = "21 s (20–22), 26.7× as fast as 10 epochs of the baseline"
    assert speed_tables.speed_table(RECORDS).to_numpy().tolist() == [
        ["Baseline, one epoch", "", "30 s (30–30), 1 thread", "56 s (50–58), 2 threads"],
        ["Epoch of `Net`, bfloat16", "5×", "–", "5 s (5–6), 11.2× as fast"],
        ["Epoch of `Net`, float32", "AVX2: 3.5×", "10 s (10–10), 3.0× as fast", "8 s (7–9), 7.0× as fast"],
        ["Epoch of `Net` against the lower bound", "2.2×", "5.0× of 2 s (2–2)", "1.2× of 4 s (3–5)"],
        ["Epoch of `below_1k`, 1 thread", "", "–", "8 s (7–9); not compiled, float32: 16 s (15–17)"],
        ["Mean to 99.4%: accuracy", "", "–", "99.450% ± 0.020, n = 2, p = 0.01; 4 epochs of `good`"],
        ["Mean to 99.4%: training", "18×, AVX2: 15×", "–", faster],
        ["Mean to 99.4%: from process start", "12×, AVX2: 10×", "–", since],
        ["Inference, one image", "", "–", "eager 0.45 ms (0.4–0.5); compiled 0.25 ms (0.2–0.3)"],
    ]


def test_gpu_table():
    (row,) = speed_tables.gpu_table(RECORDS).to_dict("records")
    assert row == {"GPU": "NVIDIA Quill", "Network": "`s5`", "With CUDA graph": "2 s (1–3)", "Without": "5 s (4–6)"}


def test_every_run_on_the_test_set_is_shown_also_those_measured_again():
    table = speed_tables.accuracy_runs_table(RECORDS)
    assert table["Seeds"].tolist() == ["0–1", "4–5"]
    first = ["99.4%", "Abacus", 4, "0–1", "99.450", "0.020", "99.40", "0.01", "21 s (20–22)"]
    assert table.iloc[0].tolist() == first


def test_machines_are_listed_with_versions_and_days():
    assert speed_tables.describe_machines(RECORDS).splitlines()[:2] == [
        "- **Slate**: Linux x86_64, torch 2.9, measured 2025-01-02",
        "- **Abacus**: Linux x86_64, torch 2.9, measured 2026-01-02 to 2026-01-04",
    ]


def test_export_table():
    row = {"network": "s5", "correct": 9941, "images": 10000, "accuracy": 99.41, "memory": None}
    onnx = row | {"format": "ONNX int8", "bytes": 43181, "microseconds": 150.2, "range": [100.4, 200.0]}
    code = row | {"format": "C int8", "bytes": 18444, "memory": 2541}
    assert speed_tables.export_table({"rows": [onnx, code]}).to_numpy().tolist() == [
        ["`s5`", "ONNX int8", "9941/10000 (99.41%)", "43,181", "–", "150 µs (100–200)"],
        ["`s5`", "C int8", "9941/10000 (99.41%)", "18,444", "2,541", "–"],
    ]


def test_damaged_measurements_are_reported(tmp_path):
    (tmp_path / "speed.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="speed.json is not valid JSON"):
        speed_tables.read_measurements(tmp_path / "speed.json")
